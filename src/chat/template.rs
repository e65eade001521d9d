//! A model's own chat template: Jinja, as `transformers` runs it, from a stranger.
//!
//! It runs on a budget that every step and every byte it makes is charged to, so it cannot run for
//! ever or fill the memory; what a message says cannot become a control token (see [`guard`]).

use std::collections::BTreeMap;
use std::error::Error as _;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, merge_maps};
use minijinja::{Environment, ErrorKind, State, Value, context};
use serde_json::{Map, json};

use super::apart::{ENDLESS, apart};
use super::{Message, Request, failed, guard, python, tojson};
use crate::error::{Error, Result};
use crate::json;
use crate::source::Source;
use crate::tokenizer::Tokenizer;

pub(super) const CONFIG: &str = "tokenizer_config.json";
const FILE: &str = "chat_template.jinja";
/// The template of `transformers`' processors.
const LEGACY_FILE: &str = "chat_template.json";
/// Where `transformers` 5 keeps the templates beside the default one.
const NAMED: &str = "additional_chat_templates";

/// The names of templates: the one that all have, and the one for conversations with tools.
const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// The longest published templates have some 20 kB.
const MAX_SOURCE_BYTES: usize = 1 << 18;
/// Steps that a template may take, and more for each byte of a conversation. Published ones take
/// fewer than a hundred for a message.
const FUEL: u64 = 1_000_000;
const FUEL_PER_BYTE: u64 = 4;

pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token` and the like, by name.
    special_tokens: BTreeMap<String, String>,
    /// What `content` must be for the template to write it.
    content: Content,
    has_tool_use: bool,
    /// The file that holds the template, for messages.
    path: String,
}

/// What a template makes of `content`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Text,
    Parts,
    Either,
}

/// Marks the error that a template raised itself.
#[derive(Debug)]
struct Raised;

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("raised by the template")
    }
}

impl std::error::Error for Raised {}

impl ChatTemplate {
    /// Reads `chat_template.jinja`, or else what `tokenizer_config.json` or `chat_template.json` hold;
    /// `None` where there is no template.
    pub fn load(source: &Source, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let Some((path, sources)) = sources(source)? else {
            return Ok(None);
        };
        let special_tokens = tokenizer.special_tokens().clone();
        Self::new(path, sources, special_tokens).map(Some)
    }

    /// Templates by name.
    fn new(
        path: String,
        sources: BTreeMap<String, String>,
        special_tokens: BTreeMap<String, String>,
    ) -> Result<Self> {
        if !sources.contains_key(DEFAULT) {
            let names = sources.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            let what = format!("has chat templates, but none named default: {names}");
            return Err(failed(&path, &what));
        }
        let has_tool_use = sources.contains_key(TOOL_USE);
        let environment = apart(|| environment(sources)).map_err(|what| failed(&path, &what))?;
        // Until it is known, content is given as it is.
        let content = Content::Either;
        let mut template = Self { environment, special_tokens, content, has_tool_use, path };
        template.content = template.probe()?;
        Ok(template)
    }

    /// Makes `strftime_now` tell of the first second of `date`.
    pub fn set_date(&mut self, date: jiff::civil::Date) -> Result<()> {
        let start = date
            .to_zoned(jiff::tz::TimeZone::UTC)
            .map_err(|error| Error::failed(format!("the date {date}: {error}")))?;
        let now = move |format: String| strftime(&format, &start);
        self.environment.add_function("strftime_now", now);
        Ok(())
    }

    /// The ids of a conversation, with what BOS the template writes.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        request: &Request,
        add_assistant_header: bool,
    ) -> Result<Vec<u32>> {
        let (request, guard) = guard::guard(tokenizer, request)
            .ok_or_else(|| failed(&self.path, "the conversation leaves no private character"))?;
        let rendered = self.render(&request, add_assistant_header, Some(guard))?;
        tokenizer.encode_guarded(&rendered, guard)
    }

    /// The text that the template makes of a request, in which there may be a guard.
    fn render(
        &self,
        request: &Request,
        add_assistant_header: bool,
        guard: Option<char>,
    ) -> Result<String> {
        let bytes = request.to_json().to_string().len();
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(FUEL + FUEL_PER_BYTE.saturating_mul(bytes as u64)));
        let tojson =
            move |state: &State, value: &Value, positional: Rest<Value>, options: Kwargs| {
                tojson::tojson(state, value, &positional, options, guard)
            };
        environment.add_filter("tojson", tojson);
        let special = self.special_tokens.iter().map(|(name, text)| (name.as_str(), text.as_str()));
        let names = context! {
            messages => request.messages.iter().map(|m| self.message(m)).collect::<Vec<_>>(),
            add_generation_prompt => add_assistant_header,
            tools => request.tools.as_ref().map(python::value),
            documents => request.documents.as_ref().map(python::value),
            ..merge_maps([python::map(&request.variables), Value::from_pairs(special)])
        };
        let name = if request.tools.is_some() && self.has_tool_use { TOOL_USE } else { DEFAULT };
        let rendered = apart(move || {
            let template = environment.get_template(name);
            template.and_then(|t| t.render(names)).map_err(|error| describe(&error))
        });
        rendered.map_err(|what| failed(&self.path, &what))
    }

    /// A message as the template sees it. What was thought has the names that templates know.
    fn message(&self, message: &Message) -> Value {
        let mut fields = message.fields().clone();
        match (fields.get("content"), self.content) {
            (Some(serde_json::Value::Array(_)), Content::Text) => {
                fields.insert("content".to_owned(), message.text().into());
            }
            (Some(serde_json::Value::String(_)), Content::Parts) => {
                let part = json!([{"type": "text", "text": message.text()}]);
                fields.insert("content".to_owned(), part);
            }
            _ => {}
        }
        let thought = ["reasoning_content", "thinking", "reasoning"]
            .iter()
            .find_map(|key| fields.get(*key).cloned());
        if let Some(thought) = thought {
            fields.entry("thinking").or_insert_with(|| thought.clone());
            fields.insert("reasoning_content".to_owned(), thought);
        }
        python::map(&fields)
    }

    /// Whether the template writes a content that is a text, and one in parts. One that takes only
    /// whole conversations of a kind is taken to want texts, as most do.
    ///
    /// # Errors
    /// The template does not end.
    fn probe(&self) -> Result<Content> {
        const SAID: &str = "Q7vKx";
        let writes = |content: serde_json::Value, dump: &str| {
            let message = Message::try_from(json!({"role": "user", "content": content}));
            let message = message.expect("a message");
            match self.render(&Request::from(&[message][..]), true, None) {
                Ok(text) => Ok(text.contains(SAID) && !text.contains(dump)),
                Err(error) if error.to_string().ends_with(ENDLESS) => Err(error),
                Err(_) => Ok(false),
            }
        };
        let parts = json!([{"type": "text", "text": SAID}]);
        Ok(match (writes(json!(SAID), "no dump")?, writes(parts, "type")?) {
            (true, true) => Content::Either,
            (false, true) => Content::Parts,
            (_, false) => Content::Text,
        })
    }
}

/// The templates of a model by name, and the file that holds the default one.
fn sources(source: &Source) -> Result<Option<(String, BTreeMap<String, String>)>> {
    let text = |file: &str| match source.read(file)? {
        None => Ok(None),
        Some(text) => String::from_utf8(text)
            .map(Some)
            .map_err(|error| failed(&source.path(file), &error.to_string())),
    };
    let object = |file: &str| match source.read(file)? {
        None => Ok(Map::new()),
        Some(text) => json::parse_object(&text).map_err(|what| failed(&source.path(file), &what)),
    };
    let mut found = BTreeMap::new();
    let mut path = source.path(FILE);
    if let Some(template) = text(FILE)? {
        found.insert(DEFAULT.to_owned(), template);
    }
    for name in [DEFAULT, TOOL_USE] {
        if let Some(template) = text(&format!("{NAMED}/{name}.jinja"))? {
            found.insert(name.to_owned(), template);
        }
    }
    for file in [CONFIG, LEGACY_FILE] {
        if found.is_empty() {
            path = source.path(file);
            let named =
                object(file)?.remove("chat_template").map(|template| templates_in(&template));
            found = named.unwrap_or(Ok(found)).map_err(|what| failed(&path, &what))?;
        }
    }
    Ok((!found.is_empty()).then_some((path, found)))
}

/// A `chat_template`: one template, or several by name.
fn templates_in(
    value: &serde_json::Value,
) -> std::result::Result<BTreeMap<String, String>, String> {
    let trouble = || format!("chat_template is {}, not a template", json::show(value));
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned).ok_or_else(trouble);
    match value {
        serde_json::Value::Null => Ok(BTreeMap::new()),
        serde_json::Value::String(template) => {
            Ok(BTreeMap::from([(DEFAULT.to_owned(), template.clone())]))
        }
        serde_json::Value::Array(templates) => templates
            .iter()
            .map(|template| Ok((text(&template["name"])?, text(&template["template"])?)))
            .collect(),
        serde_json::Value::Object(templates) => {
            templates.iter().map(|(name, template)| Ok((name.clone(), text(template)?))).collect()
        }
        _ => Err(trouble()),
    }
}

/// Everything that `transformers` gives a template.
fn environment(
    sources: BTreeMap<String, String>,
) -> std::result::Result<Environment<'static>, String> {
    if sources.values().any(|source| source.len() > MAX_SOURCE_BYTES) {
        return Err(format!("the chat template has over {MAX_SOURCE_BYTES} bytes"));
    }
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    environment.set_syntax(syntax.build().map_err(|error| describe(&error))?);
    environment.set_unknown_method_callback(python::method);
    environment.set_formatter(python::write);
    environment.add_filter("center", python::center);
    environment.add_filter("urlencode", python::urlencode);
    environment.add_filter("truncate", python::truncate);
    environment.add_filter("wordcount", python::wordcount);
    environment.add_function("raise_exception", raise_exception);
    environment
        .add_function("cycler", |items: Rest<Value>| minijinja_contrib::globals::cycler(items.0));
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
    environment
        .add_function("strftime_now", |format: String| strftime(&format, &jiff::Zoned::now()));
    for (name, source) in sources {
        environment
            .add_template_owned(name, without_generation_tags(&source))
            .map_err(|error| describe(&error))?;
    }
    Ok(environment)
}

/// `{% generation %}` marks what the assistant says, for training. A block of no variables takes
/// its place: what is set inside is not seen outside either.
fn without_generation_tags(template: &str) -> String {
    let mut replaced = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + "{%".len());
        replaced.push_str(before);
        rest = tag;
        let name = tag.trim_start_matches(['-', '+']).trim_start();
        for (old, new) in [("endgeneration", "endwith"), ("generation", "with")] {
            let after = name.strip_prefix(old);
            let is_whole =
                |after: &&str| after.trim_start().trim_start_matches(['-', '+']).starts_with("%}");
            if let Some(after) = after.filter(is_whole) {
                replaced.push_str(&tag[..tag.len() - name.len()]);
                replaced.push_str(new);
                rest = after;
                break;
            }
        }
    }
    replaced.push_str(rest);
    replaced
}

fn raise_exception(message: String) -> std::result::Result<Value, minijinja::Error> {
    let error = minijinja::Error::new(ErrorKind::InvalidOperation, message);
    Err(error.with_source(Raised))
}

/// As Python's, of a time without a zone, in the C locale: what is no directive is written as it is.
fn strftime(format: &str, now: &jiff::Zoned) -> std::result::Result<String, minijinja::Error> {
    let mut known = String::new();
    let mut rest = format;
    while let Some((before, directive)) = rest.split_once('%') {
        known.push_str(before);
        let flags = directive.len() - directive.trim_start_matches(['-', '_', '0', '^', '#']).len();
        let letter = directive[flags..].chars().next();
        let after = flags + letter.map_or(0, char::len_utf8);
        match letter {
            Some('c') => known.push_str("%a %b %e %H:%M:%S %Y"),
            Some('x') => known.push_str("%m/%d/%y"),
            Some('X') => known.push_str("%H:%M:%S"),
            Some('f') => known.push_str("%6f"),
            Some('Z' | 'z') => {}
            Some(
                'a' | 'A' | 'b' | 'B' | 'C' | 'd' | 'D' | 'e' | 'F' | 'g' | 'G' | 'h' | 'H' | 'I'
                | 'j' | 'k' | 'l' | 'm' | 'M' | 'n' | 'p' | 'P' | 'r' | 'R' | 's' | 'S' | 't' | 'T'
                | 'u' | 'U' | 'V' | 'w' | 'W' | 'y' | 'Y' | '%',
            ) => {
                known.push('%');
                known.push_str(&directive[..after]);
            }
            _ => {
                known.push_str("%%");
                known.push_str(&directive[..after]);
            }
        }
        rest = &directive[after..];
    }
    known.push_str(rest);
    jiff::fmt::strtime::format(&known, now).map_err(|error| {
        minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}"))
    })
}

/// An error of the template, on one line.
fn describe(error: &minijinja::Error) -> String {
    if error.kind() == ErrorKind::OutOfFuel {
        return ENDLESS.to_owned();
    }
    let is_raised = error.source().is_some_and(|source| source.is::<Raised>());
    match error.detail() {
        Some(message) if is_raised => format!("the chat template says: {message}"),
        _ => format!("the chat template: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A template that sees the special tokens of a golden case.
    fn template(template: &str, case: &serde_json::Value) -> Result<ChatTemplate> {
        let special = ["bos_token", "eos_token"].into_iter();
        let special =
            special.filter_map(|role| Some((role.to_owned(), case[role].as_str()?.to_owned())));
        let sources = BTreeMap::from([(DEFAULT.to_owned(), template.to_owned())]);
        ChatTemplate::new("file".to_owned(), sources, special.collect())
    }

    fn request(case: &serde_json::Value) -> Request {
        let mut more = case.get("more").cloned().unwrap_or_else(|| json!({}));
        let more = more.as_object_mut().unwrap();
        let (tools, documents) = (more.remove("tools"), more.remove("documents"));
        let messages = serde_json::from_value(case["messages"].clone()).unwrap();
        Request { messages, tools, documents, variables: std::mem::take(more) }
    }

    /// Renderings by `transformers`, and the messages of what its templates raise.
    #[test]
    fn templates_render_as_in_transformers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/text.json");
        let golden: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let (mut cases, mut wrong) = (0, Vec::new());
        for golden in golden["templates"].as_array().unwrap() {
            for case in golden["cases"].as_array().unwrap() {
                let source = golden["template"].as_str().unwrap();
                let mut template = template(source, case).unwrap();
                template.set_date(jiff::civil::date(2024, 7, 26)).unwrap();
                let header = case["add_generation_prompt"].as_bool().unwrap();
                let name = &golden["name"];
                match template.render(&request(case), header, None) {
                    Ok(text) => {
                        let expected = case["rendered"].as_str().unwrap_or("an error");
                        let differ = |(ours, theirs): &(&str, &str)| ours != theirs;
                        if text != expected {
                            let first = text.lines().zip(expected.lines()).find(differ);
                            wrong.push(format!("{name}: {first:?}"));
                        }
                    }
                    Err(error) => {
                        let message = case["error"].as_str().unwrap_or("no error");
                        if !error.to_string().ends_with(&format!("says: {message}")) {
                            wrong.push(format!("{name}: {error}, not {message}"));
                        }
                    }
                }
                cases += 1;
            }
        }
        assert!(cases > 50);
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn the_template_of_a_folder_is_that_of_transformers() {
        let folder = |files: &[(&str, serde_json::Value)]| {
            let directory = tempfile::TempDir::new().unwrap();
            for (name, content) in files {
                let path = directory.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                let text = content.as_str().map(str::to_owned);
                std::fs::write(path, text.unwrap_or_else(|| content.to_string())).unwrap();
            }
            let found = sources(&Source::Directory(directory.path().to_owned()));
            found.map(|found| found.map(|(_, sources)| sources.into_iter().collect::<Vec<_>>()))
        };
        let is = |name: &str, text: &str| (name.to_owned(), text.to_owned());
        let in_config = |template: serde_json::Value| (CONFIG, json!({"chat_template": template}));
        let named = |name: &str| json!({"name": name, "template": name});
        let several = json!([named("tool_use"), named("default")]);
        let both = vec![is("default", "default"), is("tool_use", "tool_use")];
        for (files, expected) in [
            (vec![], None),
            (vec![in_config(json!(null))], None),
            (vec![in_config(json!("a"))], Some(vec![is("default", "a")])),
            (vec![in_config(json!("a")), (FILE, json!("b"))], Some(vec![is("default", "b")])),
            (vec![in_config(several)], Some(both.clone())),
            (vec![in_config(json!({"default": "default", "tool_use": "tool_use"}))], Some(both)),
            (
                vec![(FILE, json!("b")), ("additional_chat_templates/tool_use.jinja", json!("t"))],
                Some(vec![is("default", "b"), is("tool_use", "t")]),
            ),
            (vec![(LEGACY_FILE, json!({"chat_template": "c"}))], Some(vec![is("default", "c")])),
            (
                vec![in_config(json!("a")), (LEGACY_FILE, json!({"chat_template": "c"}))],
                Some(vec![is("default", "a")]),
            ),
        ] {
            assert_eq!(folder(&files), Ok(expected));
        }
        let error = folder(&[in_config(json!(5))]).unwrap_err().to_string();
        assert!(error.ends_with("chat_template is 5, not a template"), "{error}");
        let tool = BTreeMap::from([is("tool_use", "x")]);
        let error = ChatTemplate::new("file".to_owned(), tool, BTreeMap::new()).err().unwrap();
        assert!(error.to_string().ends_with("none named default: tool_use"), "{error}");
    }

    #[test]
    fn tools_have_their_own_template_where_there_is_one() {
        let sources = [(DEFAULT, "plain"), (TOOL_USE, "with {{ tools | length }}")];
        let sources = sources.map(|(name, text)| (name.to_owned(), text.to_owned()));
        let template =
            ChatTemplate::new("file".to_owned(), sources.into(), BTreeMap::new()).unwrap();
        let mut request = Request::default();
        assert_eq!(template.render(&request, true, None).unwrap(), "plain");
        request.tools = Some(json!([{}, {}]));
        assert_eq!(template.render(&request, true, None).unwrap(), "with 2");
    }

    #[test]
    fn content_comes_as_the_template_writes_it() {
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        let list = "{% for part in messages[0].content %}{{ part.text }}{% endfor %}";
        let either = format!(
            "{{% if messages[0].content is string %}}{{{{ messages[0].content }}}}\
             {{% else %}}{list}{{% endif %}}"
        );
        for (source, content, rendered) in [
            ("{{ messages[0].content }}", parts.clone(), "a\nb"),
            ("{{ messages[0].content | trim }}", parts.clone(), "a\nb"),
            (list, parts.clone(), "ab"),
            (list, json!("text"), "text"),
            (&either, parts, "ab"),
            (&either, json!("text"), "text"),
        ] {
            let message = Message::try_from(json!({"role": "user", "content": content})).unwrap();
            let template = template(source, &json!({})).unwrap();
            let request = Request::from(&[message][..]);
            assert_eq!(template.render(&request, true, None).unwrap(), rendered, "{source}");
        }
    }

    #[test]
    fn the_longest_chains_fit_the_stack() {
        for link in ["+1", "|e", ".a", "~1", "()", "<1"] {
            let links = (MAX_SOURCE_BYTES - "{{ 1 }}".len()) / link.len();
            let source = format!("{{{{ 1{} }}}}", link.repeat(links));
            let rendered = template(&source, &json!({}))
                .and_then(|t| t.render(&Request::default(), true, None));
            assert_eq!(rendered.is_ok(), ["+1", "|e", "<1"].contains(&link), "{link}");
        }
    }

    #[test]
    fn generation_tags_are_blocks() {
        let source =
            "{%- generation -%} a {%+ endgeneration %}{% generation_x %}{% set generation = 1 %}";
        let expected = "{%- with -%} a {%+ endwith %}{% generation_x %}{% set generation = 1 %}";
        assert_eq!(without_generation_tags(source), expected);
    }
}
