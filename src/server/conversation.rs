//! `/v1/chat/completions`: conversations to be answered.

use serde_json::{Map, Value};

use super::body::RequestBody;
use super::refusal::Refusal;
use super::serving::{Manner, Serving};
use crate::chat::Request as ChatRequest;
use crate::json;
use crate::sampler::for_conversation;

type Result<T> = std::result::Result<T, Refusal>;

/// The prompt of a request, and how to continue it.
///
/// # Errors
/// The first field that is wrong, or that asks for what there is not.
pub fn read(serving: &Serving, mut body: RequestBody) -> Result<(Vec<u32>, Manner)> {
    serving.check_model(&body)?;
    let format = body.get("response_format").map(|format| &format["type"]);
    if format.is_some_and(|format| format != "text") {
        return Err(Refusal::field(
            "response_format",
            "of another type than text is not supported",
        ));
    }
    let top = body.count("top_logprobs")?;
    let logprobs = body.flag("logprobs")?.then(|| top.unwrap_or(0));
    let defaults = &serving.model.config.defaults;
    let defaults = match body.get("temperature") {
        Some(_) => defaults.clone(),
        None => for_conversation(defaults),
    };
    let mut manner = serving.manner(&body, &defaults, None, logprobs)?;
    let prompt;
    (prompt, manner.tools) = encoded(serving, &mut body)?;
    serving.check_prompt(&prompt)?;
    Ok((prompt, manner))
}

/// The ids of the conversation that a request has, with the header of an answer, and the names of the tools
/// that the model is told of.
///
/// # Errors
/// What the model's format has no place for.
pub fn encoded(serving: &Serving, body: &mut RequestBody) -> Result<(Vec<u32>, Vec<String>)> {
    let messages = body.take("messages").ok_or_else(|| Refusal::field("messages", "is missing"))?;
    let Value::Array(mut messages) = messages else {
        return Err(Refusal::field("messages", "is not a list"));
    };
    if messages.is_empty() {
        return Err(Refusal::field("messages", "is empty: at least one message is needed"));
    }
    messages.iter_mut().for_each(as_templates_know);
    let mut asked = Map::new();
    asked.insert("messages".to_owned(), Value::Array(messages));
    for name in ["documents", "chat_template_kwargs"] {
        asked.extend(body.take(name).map(|value| (name.to_owned(), value)));
    }
    let (tools, names) = tools(body)?;
    if !tools.is_empty() {
        asked.insert("tools".to_owned(), Value::Array(tools));
    }
    let request = ChatRequest::of_json(Value::Object(asked))
        .map_err(|what| Refusal::field("messages", format!("cannot be read: {what}")))?;
    let ids = serving.chat()?.encode(serving.tokenizer(), &request, true);
    let ids =
        ids.map_err(|error| Refusal::field("messages", format!("cannot be laid out: {error}")))?;
    Ok((ids, names))
}

/// A message in the words of chat templates: `developer` is OpenAI's newer name for `system`, and its clients
/// give a call's arguments as a text.
fn as_templates_know(message: &mut Value) {
    let Value::Object(fields) = message else { return };
    if fields.get("role").is_some_and(|role| role == "developer") {
        fields.insert("role".to_owned(), "system".into());
    }
    for call in fields.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
        let object = arguments.as_str().map(|text| json::parse_object(text.as_bytes()));
        if let Some(Ok(object)) = object {
            *arguments = Value::Object(object);
        }
    }
}

/// The functions that the model may call, and their names. Tools of other types are passed over.
fn tools(body: &mut RequestBody) -> Result<(Vec<Value>, Vec<String>)> {
    match body.get("tool_choice").map(|choice| choice.as_str().unwrap_or_default()) {
        None | Some("auto") => {}
        Some("none") => return Ok((Vec::new(), Vec::new())),
        Some(_) => {
            let what = "is supported as auto and none: what the model calls is its own choice";
            return Err(Refusal::field("tool_choice", what));
        }
    }
    let Some(given) = body.take("tools") else { return Ok((Vec::new(), Vec::new())) };
    let Value::Array(mut tools) = given else {
        return Err(Refusal::field("tools", "is not a list"));
    };
    tools.retain(|tool| tool["type"] == "function");
    let name = |tool: &Value| {
        let name = tool["function"]["name"].as_str().map(str::to_owned);
        name.ok_or_else(|| Refusal::field("tools", "has a function without a name"))
    };
    let names = tools.iter().map(name).collect::<Result<_>>()?;
    Ok((tools, names))
}
