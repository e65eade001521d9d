//! A model's own chat template: Jinja, as `transformers` runs it, from a stranger.
//!
//! It runs on a budget that every step and every byte it makes is charged to, so it cannot run for
//! ever or fill the memory; what a message says cannot become a control token (see [`guard`]).

use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value, context};
use serde_json::Map;

use super::{Message, failed, guard, python};
use crate::error::{Error, Result};
use crate::json;
use crate::source::Source;
use crate::tokenizer::Tokenizer;

const NAME: &str = "chat_template";
const CONFIG: &str = "tokenizer_config.json";
const FILE: &str = "chat_template.jinja";

/// The longest published templates have some 20 kB.
const MAX_SOURCE_BYTES: usize = 1 << 18;
const ENDLESS: &str = "the chat template runs for too long or makes too much text";
/// Steps that a template may take, and more for each byte of a conversation. Published ones take
/// fewer than a hundred for a message.
const FUEL: u64 = 1_000_000;
const FUEL_PER_BYTE: u64 = 4;
/// What the engine does within one step is not all charged: a list that is the sum of a list and
/// itself, which is such a sum as well ..., takes for ever to walk. So time is limited too.
const MAX_TIME: Duration = Duration::from_secs(2);
/// The engine bounds how deep expressions and calls nest, but not how long a chain of operators is:
/// this is enough for the longest that fit a source.
const STACK_BYTES: usize = 64 << 20;

pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token` and the like, by name.
    special_tokens: BTreeMap<String, String>,
    /// The file that holds the template, for messages.
    path: String,
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
    /// Reads `chat_template.jinja`, or else the template in `tokenizer_config.json`, which sees the
    /// texts of special tokens by their role.
    pub fn load(source: &Source, special_tokens: BTreeMap<String, String>) -> Result<Self> {
        let config = match source.read(CONFIG)? {
            Some(text) => {
                json::parse_object(&text).map_err(|what| failed(&source.path(CONFIG), &what))?
            }
            None => Map::new(),
        };
        let (path, template) = match source.read(FILE)? {
            Some(text) => (source.path(FILE), String::from_utf8(text).map_err(|e| e.to_string())),
            None => (source.path(CONFIG), template_in(&config).map(str::to_owned)),
        };
        let template = template.map_err(|what| failed(&path, &what))?;
        let environment = apart(|| environment(template)).map_err(|what| failed(&path, &what))?;
        Ok(Self { environment, special_tokens, path })
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
        messages: &[Message],
        add_assistant_header: bool,
    ) -> Result<Vec<u32>> {
        let (messages, guard) = guard::guard(tokenizer, messages)
            .ok_or_else(|| failed(&self.path, "the conversation leaves no private character"))?;
        let rendered = self.render(&messages, add_assistant_header)?;
        tokenizer.encode_guarded(&rendered, guard)
    }

    /// The text that the template makes of messages.
    fn render(&self, messages: &[Message], add_assistant_header: bool) -> Result<String> {
        let bytes: usize = messages.iter().map(|m| m.role.len() + m.content.len()).sum();
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(FUEL + FUEL_PER_BYTE.saturating_mul(bytes as u64)));
        let message =
            |m: &Message| context! { role => m.role.as_str(), content => m.content.as_str() };
        let special = self.special_tokens.iter().map(|(name, text)| (name.as_str(), text.as_str()));
        let names = context! {
            messages => messages.iter().map(message).collect::<Vec<_>>(),
            add_generation_prompt => add_assistant_header,
            tools => Value::from(()),
            documents => Value::from(()),
            ..Value::from_pairs(special)
        };
        let rendered = apart(move || {
            let template = environment.get_template(NAME);
            template.and_then(|t| t.render(names)).map_err(|error| describe(&error))
        });
        rendered.map_err(|what| failed(&self.path, &what))
    }
}

/// Runs what a template makes us do with a stack and a time of its own. When the time is over, what
/// runs is left behind: it ends with the program.
fn apart<T: Send + 'static>(
    work: impl FnOnce() -> std::result::Result<T, String> + Send + 'static,
) -> std::result::Result<T, String> {
    let (sender, receiver) = mpsc::channel();
    // The receiver is gone if the time is over; then nobody waits for what is sent.
    let run = move || drop(sender.send(work()));
    let thread = thread::Builder::new().name("chat template".to_owned()).stack_size(STACK_BYTES);
    thread.spawn(run).map_err(|error| format!("cannot start a thread: {error}"))?;
    receiver.recv_timeout(MAX_TIME).unwrap_or_else(|error| match error {
        RecvTimeoutError::Timeout => Err(ENDLESS.to_owned()),
        RecvTimeoutError::Disconnected => Err("the chat template cannot be run".to_owned()),
    })
}

/// The template in a tokenizer_config.json: a string, or the one of several that is the default.
fn template_in(config: &Map<String, serde_json::Value>) -> std::result::Result<&str, String> {
    let missing = "has no chat_template, and there is no chat_template.jinja beside it: \
                   this may be a base model, which only continues text";
    match config.get("chat_template").ok_or(missing)? {
        serde_json::Value::String(template) => Ok(template),
        serde_json::Value::Array(templates) => templates
            .iter()
            .find(|template| template["name"] == "default")
            .and_then(|template| template["template"].as_str())
            .ok_or_else(|| "has chat templates, but none named default".to_owned()),
        other => Err(format!("chat_template is {}, not a template", json::show(other))),
    }
}

/// Everything that `transformers` gives a template.
fn environment(template: String) -> std::result::Result<Environment<'static>, String> {
    if template.len() > MAX_SOURCE_BYTES {
        return Err(format!("the chat template has over {MAX_SOURCE_BYTES} bytes"));
    }
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    environment.set_syntax(syntax.build().map_err(|error| describe(&error))?);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", python::tojson);
    environment.set_formatter(python::write);
    environment.add_function("raise_exception", raise_exception);
    environment
        .add_function("strftime_now", |format: String| strftime(&format, &jiff::Zoned::now()));
    environment
        .add_template_owned(NAME, without_generation_tags(&template))
        .map_err(|error| describe(&error))?;
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

fn strftime(format: &str, now: &jiff::Zoned) -> std::result::Result<String, minijinja::Error> {
    jiff::fmt::strtime::format(format, now).map_err(|error| {
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
        let directory = tempfile::TempDir::new().unwrap();
        std::fs::write(directory.path().join(FILE), template).unwrap();
        let special = ["bos_token", "eos_token"].into_iter();
        let special =
            special.filter_map(|role| Some((role.to_owned(), case[role].as_str()?.to_owned())));
        ChatTemplate::load(&Source::Directory(directory.path().to_owned()), special.collect())
    }

    /// Renderings by `transformers`, and the messages of what its templates raise.
    #[test]
    fn templates_render_as_in_transformers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/text.json");
        let golden: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let mut cases = 0;
        for golden in golden["templates"].as_array().unwrap() {
            for case in golden["cases"].as_array().unwrap() {
                let source = golden["template"].as_str().unwrap();
                let mut template = template(source, case).unwrap();
                template.set_date(jiff::civil::date(2024, 7, 26)).unwrap();
                let messages: Vec<Message> =
                    serde_json::from_value(case["messages"].clone()).unwrap();
                let header = case["add_generation_prompt"].as_bool().unwrap();
                let name = &golden["name"];
                match template.render(&messages, header) {
                    Ok(text) => assert_eq!(text, case["rendered"], "{name}"),
                    Err(error) => {
                        let message = case["error"].as_str().unwrap_or("no error");
                        let is_same = error.to_string().ends_with(&format!("says: {message}"));
                        assert!(is_same, "{name}: {error}, not {message}");
                    }
                }
                cases += 1;
            }
        }
        assert!(cases > 30);
    }

    #[test]
    fn the_default_of_several_templates_is_taken() {
        let named = |name: &str| serde_json::json!({"name": name, "template": name});
        let object = |value: serde_json::Value| value.as_object().unwrap().clone();
        let config =
            object(serde_json::json!({"chat_template": [named("tool"), named("default")]}));
        assert_eq!(template_in(&config), Ok("default"));
        let config = object(serde_json::json!({"chat_template": [named("tool")]}));
        assert!(template_in(&config).unwrap_err().contains("none named default"));
        let config = object(serde_json::json!({"chat_template": 5}));
        assert_eq!(template_in(&config).unwrap_err(), "chat_template is 5, not a template");
        assert!(template_in(&Map::new()).unwrap_err().contains("has no chat_template"));
    }

    #[test]
    fn time_is_limited() {
        let sleeps = || {
            thread::sleep(3 * MAX_TIME);
            Ok(())
        };
        assert_eq!(apart(sleeps), Err(ENDLESS.to_owned()));
        assert_eq!(apart(|| Ok(5)), Ok(5));
    }

    #[test]
    fn the_longest_chains_fit_the_stack() {
        for link in ["+1", "|e", ".a", "~1", "()", "<1"] {
            let links = (MAX_SOURCE_BYTES - "{{ 1 }}".len()) / link.len();
            let source = format!("{{{{ 1{} }}}}", link.repeat(links));
            let rendered =
                template(&source, &serde_json::json!({})).and_then(|t| t.render(&[], true));
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
