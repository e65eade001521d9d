//! What a chat is asked with: messages and, for templates that know them, tools and documents. All of
//! it is JSON of the caller's, kept as it came.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::json;

/// The names that the rest of a request has in a template.
const TAKEN: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];

/// What one side says: an object with `role` and, mostly, `content`, a text or a list of parts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct Message(Map<String, Value>);

/// A conversation, and what else a template is told.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Request {
    pub messages: Vec<Message>,
    /// A list of JSON schemas of functions.
    pub tools: Option<Value>,
    /// A list of objects with `title` and `text`.
    pub documents: Option<Value>,
    /// What the template sees beside that, by name.
    pub variables: Map<String, Value>,
}

impl Message {
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        let fields = [("role", role.into()), ("content", content.into())];
        Self(fields.map(|(key, text)| (key.to_owned(), Value::String(text))).into_iter().collect())
    }

    /// `system`, `user`, `assistant`, or what else the model knows.
    pub fn role(&self) -> &str {
        self.0["role"].as_str().unwrap_or_default()
    }

    /// What is said: a text; one part a line, where it comes in parts; nothing, where there is no
    /// content.
    pub fn text(&self) -> String {
        match self.0.get("content") {
            Some(Value::Array(parts)) => {
                parts.iter().filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("\n")
            }
            Some(content) => content.as_str().unwrap_or_default().to_owned(),
            None => String::new(),
        }
    }

    pub fn has_parts(&self) -> bool {
        self.0.get("content").is_some_and(Value::is_array)
    }

    pub fn fields(&self) -> &Map<String, Value> {
        &self.0
    }

    /// The key of what is neither role nor content.
    pub fn first_extra(&self) -> Option<&str> {
        self.0.keys().map(String::as_str).find(|key| !matches!(*key, "role" | "content"))
    }

    /// With every text changed: `change` is told whether it is content.
    pub(super) fn map_texts(&self, change: &mut impl FnMut(&str, bool) -> String) -> Self {
        let mut fields = self.0.clone();
        for (key, value) in &mut fields {
            map_texts(value, key == "content", change);
        }
        Self(fields)
    }
}

impl TryFrom<Value> for Message {
    type Error = String;

    /// Keys that are null are as good as absent, as in `transformers`.
    fn try_from(value: Value) -> Result<Self, String> {
        let Value::Object(mut fields) = value else {
            return Err(format!(
                "is {}: an object with role and content is needed",
                json::show(&value)
            ));
        };
        fields.retain(|_, value| !value.is_null());
        match fields.get("role") {
            Some(Value::String(_)) => {}
            Some(role) => return Err(format!("role is {}: a text is needed", json::show(role))),
            None => return Err("has no role".to_owned()),
        }
        match fields.get("content") {
            None | Some(Value::String(_)) => {}
            Some(Value::Array(parts)) => parts.iter().try_for_each(check_part)?,
            Some(other) => {
                let shown = json::show(other);
                return Err(format!("content is {shown}: a text or a list of parts is needed"));
            }
        }
        let calls = fields.get("tool_calls");
        if calls
            .is_some_and(|calls| !calls.as_array().is_some_and(|c| c.iter().all(Value::is_object)))
        {
            return Err("tool_calls is not a list of objects".to_owned());
        }
        Ok(Self(fields))
    }
}

impl From<Message> for Value {
    fn from(message: Message) -> Value {
        Value::Object(message.0)
    }
}

fn check_part(part: &Value) -> Result<(), String> {
    match (part.get("type").map(|kind| kind.as_str().unwrap_or_default()), part.get("text")) {
        (Some("text") | None, Some(Value::String(_))) => Ok(()),
        (Some(kind), _) if kind != "text" => {
            Err(format!("content has a part of type {}: only text is supported", json::quote(kind)))
        }
        _ => Err("content has a part without a text".to_owned()),
    }
}

impl Request {
    /// Reads an array of messages, or an object with `messages`, `tools`, `documents` and
    /// `chat_template_kwargs`. The error is what is wrong, without the name of the file.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::of_json(json::parse(text.as_bytes())?)
    }

    /// As [`Self::parse`], of what has been read.
    pub fn of_json(value: Value) -> Result<Self, String> {
        let mut request = Self::default();
        let messages = match value {
            messages @ Value::Array(_) => messages,
            Value::Object(mut object) => {
                let messages = object.remove("messages").ok_or("has no messages")?;
                object.retain(|_, value| !value.is_null());
                for key in ["tools", "documents"] {
                    if let Some(value) = object.get(key)
                        && !value.as_array().is_some_and(|list| list.iter().all(Value::is_object))
                    {
                        return Err(format!("{key} is not a list of objects"));
                    }
                }
                request.tools = object.remove("tools");
                request.documents = object.remove("documents");
                match object.remove("chat_template_kwargs") {
                    None => {}
                    Some(Value::Object(variables)) => request.variables = variables,
                    Some(other) => {
                        return Err(format!(
                            "chat_template_kwargs is {}, not an object",
                            json::show(&other)
                        ));
                    }
                }
                if let Some(key) = object.keys().next() {
                    let known = "messages, tools, documents and chat_template_kwargs are known";
                    return Err(format!("{} is not known here: {known}", json::quote(key)));
                }
                messages
            }
            other => {
                let shown = json::show(&other);
                return Err(format!(
                    "is {shown}: a JSON array of {{\"role\", \"content\"}} is needed"
                ));
            }
        };
        if let Some(name) = request.variables.keys().find(|name| TAKEN.contains(&name.as_str())) {
            return Err(format!("chat_template_kwargs names {name}, which has its own place"));
        }
        let Value::Array(messages) = messages else {
            return Err(format!("messages is {}, not a list", json::show(&messages)));
        };
        for (number, message) in messages.into_iter().enumerate() {
            let message = Message::try_from(message);
            request
                .messages
                .push(message.map_err(|what| format!("message {}: {what}", number + 1))?);
        }
        Ok(request)
    }

    /// What [`Self::parse`] reads: an array, if there is nothing but messages.
    pub fn to_json(&self) -> Value {
        let messages = json!(self.messages);
        if self.first_extra().is_none() {
            return messages;
        }
        let mut object = Map::new();
        object.insert("messages".to_owned(), messages);
        for (key, value) in [("tools", &self.tools), ("documents", &self.documents)] {
            object.extend(value.iter().map(|value| (key.to_owned(), value.clone())));
        }
        if !self.variables.is_empty() {
            object.insert("chat_template_kwargs".to_owned(), Value::Object(self.variables.clone()));
        }
        Value::Object(object)
    }

    /// What there is beside the messages.
    pub fn first_extra(&self) -> Option<&str> {
        if self.tools.is_some() {
            return Some("tools");
        }
        if self.documents.is_some() {
            return Some("documents");
        }
        self.variables.keys().next().map(String::as_str)
    }

    /// With every text changed, but no key: see [`Message::map_texts`].
    pub(super) fn map_texts(&self, change: &mut impl FnMut(&str, bool) -> String) -> Self {
        let mut mapped = self.clone();
        mapped.messages = self.messages.iter().map(|message| message.map_texts(change)).collect();
        let rest = [&mut mapped.tools, &mut mapped.documents];
        rest.into_iter().flatten().for_each(|value| map_texts(value, false, change));
        mapped.variables.values_mut().for_each(|value| map_texts(value, false, change));
        mapped
    }
}

impl From<&[Message]> for Request {
    fn from(messages: &[Message]) -> Self {
        Self { messages: messages.to_vec(), ..Self::default() }
    }
}

fn map_texts(value: &mut Value, is_content: bool, change: &mut impl FnMut(&str, bool) -> String) {
    match value {
        Value::String(text) => *text = change(text, is_content),
        Value::Array(values) => {
            values.iter_mut().for_each(|value| map_texts(value, is_content, change));
        }
        Value::Object(fields) => {
            // Of a part, the text alone is said: its type is compared.
            for (key, value) in fields {
                map_texts(value, is_content && key == "text", change);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_or_refused_in_one_line() {
        let parse = |value: Value| Request::parse(&value.to_string());
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        let request = parse(json!({
            "messages": [
                {"role": "user", "content": parts, "name": "Ana"},
                {"role": "assistant", "content": null, "tool_calls": [{"type": "function"}]},
            ],
            "tools": [{"type": "function"}],
            "documents": null,
            "chat_template_kwargs": {"date_string": "today"},
        }))
        .unwrap();
        assert_eq!(request.messages[0].text(), "a\nb");
        assert_eq!(request.messages[0].first_extra(), Some("name"));
        assert_eq!(request.messages[1].text(), "");
        assert_eq!(request.messages[1].fields().get("content"), None);
        assert_eq!(request.first_extra(), Some("tools"));
        assert_eq!(Request::parse(&request.to_json().to_string()), Ok(request));
        let plain = parse(json!([{"role": "user", "content": "Hi"}])).unwrap();
        assert_eq!(plain.to_json(), json!([{"role": "user", "content": "Hi"}]));
        let user = |content: Value| json!([{"role": "user", "content": content}]);
        for (value, what) in [
            (json!("Hi"), "is \"Hi\": a JSON array of"),
            (json!({}), "has no messages"),
            (json!({"messages": 5}), "messages is 5, not a list"),
            (json!({"messages": [], "model": "x"}), "\"model\" is not known here"),
            (json!({"messages": [], "tools": [5]}), "tools is not a list of objects"),
            (
                json!({"messages": [], "chat_template_kwargs": {"tools": 1}}),
                "chat_template_kwargs names tools",
            ),
            (json!([{"role": "user", "content": "Hi"}, "Hi"]), "message 2: is \"Hi\""),
            (json!([{"content": "Hi"}]), "message 1: has no role"),
            (json!([{"role": null, "content": "Hi"}]), "message 1: has no role"),
            (json!([{"role": 1, "content": "Hi"}]), "message 1: role is 1"),
            (user(json!(5)), "content is 5: a text or a list of parts"),
            (user(json!([{"type": "image_url"}])), "a part of type \"image_url\": only text"),
            (user(json!([{"type": "text"}])), "a part without a text"),
            (
                json!([{"role": "assistant", "tool_calls": {"name": "f"}}]),
                "message 1: tool_calls is not a list of objects",
            ),
        ] {
            let error = parse(value).unwrap_err();
            assert!(error.contains(what) && !error.contains('\n'), "{error}");
        }
    }
}
