//! A model's own chat template: Jinja, as `transformers` runs it, from a stranger.
//!
//! What a message says cannot become a control token (see [`guard`]); what the template may do, is
//! for [`jinja`] to bound.

use std::collections::BTreeMap;

use minijinja::value::merge_maps;
use minijinja::{Value, context};
use serde_json::json;

use super::files::{self, DEFAULT, TOOL_USE};
use super::jinja::{self, ENDLESS, Surroundings};
use super::{Message, Request, failed, guard, python};
use crate::error::{Error, Result};
use crate::source::Source;
use crate::tokenizer::Tokenizer;

pub(super) struct ChatTemplate {
    /// By name; there is always a default one.
    sources: BTreeMap<String, String>,
    /// `bos_token` and the like, by name.
    special_tokens: BTreeMap<String, String>,
    /// What `content` must be for the template to write it.
    content: Content,
    /// What time it is for the template; now, if it is not fixed.
    time: Option<jiff::Zoned>,
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

impl ChatTemplate {
    /// Reads `chat_template.jinja`, or else what `tokenizer_config.json` or `chat_template.json`
    /// hold; `None` where there is no template.
    pub fn load(source: &Source, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let Some((path, sources)) = files::templates(source)? else {
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
        sources
            .values()
            .try_for_each(|source| jinja::check(source))
            .map_err(|what| failed(&path, &what))?;
        // Until it is known, content is given as it is.
        let content = Content::Either;
        let mut template = Self { sources, special_tokens, content, time: None, path };
        template.content = template.probe()?;
        Ok(template)
    }

    /// Makes `strftime_now` tell of the first second of `date`.
    pub fn set_date(&mut self, date: jiff::civil::Date) -> Result<()> {
        let start = date.to_zoned(jiff::tz::TimeZone::UTC);
        self.time =
            Some(start.map_err(|error| Error::failed(format!("the date {date}: {error}")))?);
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
        let special = self.special_tokens.iter().map(|(name, text)| (name.as_str(), text.as_str()));
        let names = context! {
            messages => request.messages.iter().map(|m| self.message(m)).collect::<Vec<_>>(),
            add_generation_prompt => add_assistant_header,
            tools => request.tools.as_ref().map(python::value),
            documents => request.documents.as_ref().map(python::value),
            ..merge_maps([python::map(&request.variables), Value::from_pairs(special)])
        };
        let for_tools = self.sources.get(TOOL_USE).filter(|_| request.tools.is_some());
        let source = for_tools.unwrap_or(&self.sources[DEFAULT]);
        let surroundings = Surroundings {
            now: self.time.clone().unwrap_or_else(jiff::Zoned::now),
            guard,
            bytes: request.to_json().to_string().len(),
        };
        jinja::render(source, names, surroundings).map_err(|what| failed(&self.path, &what))
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
}
