//! Calls of tools in an answer, in the forms of the Llama 3 family: a JSON object with `name` and
//! `parameters`, or several, and after `<|python_tag|>` those or `NAME.call(KEY="VALUE")`.

use serde_json::{Map, Value};

use crate::json;

/// The control token before calls of built-in tools.
pub const CALL_TAG: &str = "<|python_tag|>";

/// A call that the model wants made.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCall {
    pub name: String,
    /// A JSON object.
    pub arguments: Map<String, Value>,
}

/// What has become of a piece of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum TextOrCalls {
    Text(String),
    Calls(Vec<ToolCall>),
}

/// Watches an answer for calls. What begins like one is held back until the answer ends.
#[derive(Debug, Clone)]
pub struct CallWatch {
    /// Names of the tools that there are.
    tools: Vec<String>,
    held: String,
    /// Text has come that is no call: there will be none.
    is_text: bool,
}

impl CallWatch {
    pub fn new(tools: Vec<String>) -> Self {
        Self { tools, held: String::new(), is_text: false }
    }

    /// What is certain to be text now that `piece` has come.
    pub fn push(&mut self, piece: &str) -> String {
        if self.is_text {
            return piece.to_owned();
        }
        self.held.push_str(piece);
        let begun = self.held.trim_start();
        self.is_text = !begun.is_empty() && !begun.starts_with(['{', '[', '<']);
        if self.is_text { std::mem::take(&mut self.held) } else { String::new() }
    }

    /// What was held back, at the end.
    pub fn finish(&mut self) -> TextOrCalls {
        let held = std::mem::take(&mut self.held);
        let known = |call: &ToolCall| self.tools.contains(&call.name);
        match calls(&held).filter(|calls| !calls.is_empty() && calls.iter().all(known)) {
            Some(calls) => TextOrCalls::Calls(calls),
            None => TextOrCalls::Text(held.replace(CALL_TAG, "")),
        }
    }
}

/// The calls that a text consists of, if it does.
fn calls(text: &str) -> Option<Vec<ToolCall>> {
    let text = text.trim();
    let (rest, is_tagged) = match text.strip_prefix(CALL_TAG) {
        Some(rest) => (rest.trim(), true),
        None => (text, false),
    };
    if is_tagged && let Some(call) = builtin(rest) {
        return Some(vec![call]);
    }
    // Values one after another, with or without what separates them.
    let mut calls = Vec::new();
    let mut rest = rest;
    while !rest.is_empty() {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        let value = values.next()?.ok()?;
        let end = values.byte_offset();
        // As everywhere else, no key is given twice.
        json::parse(&rest.as_bytes()[..end]).ok()?;
        match value {
            Value::Array(list) => {
                calls.extend(list.into_iter().map(call).collect::<Option<Vec<_>>>()?);
            }
            value => calls.push(call(value)?),
        }
        rest = rest[end..].trim_start_matches(|c: char| c.is_whitespace() || c == ';' || c == ',');
        rest = rest.strip_prefix(CALL_TAG).unwrap_or(rest);
    }
    Some(calls)
}

fn call(value: Value) -> Option<ToolCall> {
    let Value::Object(mut fields) = value else { return None };
    let Some(Value::String(name)) = fields.remove("name") else { return None };
    let arguments = fields.remove("parameters").or_else(|| fields.remove("arguments"));
    match arguments {
        Some(Value::Object(arguments)) => Some(ToolCall { name, arguments }),
        None => Some(ToolCall { name, arguments: Map::new() }),
        Some(_) => None,
    }
}

/// `NAME.call(KEY="VALUE", ...)`
fn builtin(text: &str) -> Option<ToolCall> {
    let (name, rest) = text.split_once(".call(")?;
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    let mut rest = rest.trim_end().strip_suffix(')').filter(|_| is_name)?.trim();
    let mut arguments = Map::new();
    while !rest.is_empty() {
        let (key, value) = rest.split_once('=')?;
        let mut values = serde_json::Deserializer::from_str(value).into_iter::<Value>();
        arguments.insert(key.trim().to_owned(), values.next()?.ok()?);
        rest = value[values.byte_offset()..].trim_start().trim_start_matches(',').trim_start();
    }
    Some(ToolCall { name: name.to_owned(), arguments })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of an answer that is cut into pieces of so many characters.
    fn told(answer: &str, length: usize) -> (String, TextOrCalls) {
        let tools = ["level", "search"].map(str::to_owned).to_vec();
        let mut watch = CallWatch::new(tools);
        let characters: Vec<char> = answer.chars().collect();
        let pieces = characters.chunks(length).map(|piece| piece.iter().collect::<String>());
        let text = pieces.map(|piece| watch.push(&piece)).collect();
        (text, watch.finish())
    }

    #[test]
    fn calls_are_found_and_what_is_none_is_text() {
        let call = |name: &str, arguments: &str| ToolCall {
            name: name.to_owned(),
            arguments: serde_json::from_str(arguments).unwrap(),
        };
        let river = call("level", r#"{"river": "Rin"}"#);
        let json = r#"{"name": "level", "parameters": {"river": "Rin"}}"#;
        let search = format!("{CALL_TAG}search.call(query=\"a, \\\"b\\\" = c\", n=2)");
        for (answer, calls) in [
            (json.to_owned(), vec![river.clone()]),
            (format!("\n{json}\n"), vec![river.clone()]),
            (format!("{json}; {json}"), vec![river.clone(), river.clone()]),
            (format!("{CALL_TAG}{json}"), vec![river.clone()]),
            (format!("[{json}, {json}]"), vec![river.clone(), river.clone()]),
            (r#"{"name": "level", "arguments": {}}"#.to_owned(), vec![call("level", "{}")]),
            (search, vec![call("search", r#"{"query": "a, \"b\" = c", "n": 2}"#)]),
        ] {
            for length in [1, 3, 1000] {
                let found = told(&answer, length);
                assert_eq!(found, (String::new(), TextOrCalls::Calls(calls.clone())), "{answer}");
            }
        }
        for answer in [
            "It is high.",
            r#"{"name": "other", "parameters": {}}"#,
            r#"{"name": "level", "parameters": 5}"#,
            r#"{"name": "level", "name": "level"}"#,
            r#"{"name": "level""#,
            "[]",
            "{}",
            "<b>",
            "",
        ] {
            let (text, rest) = told(answer, 2);
            let TextOrCalls::Text(rest) = rest else { panic!("{answer}: {rest:?}") };
            assert_eq!(text + &rest, answer);
        }
    }
}
