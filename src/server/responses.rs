//! `/v1/responses`, without a memory: what it is asked, and its reply, whole or as OpenAI's events in their
//! order.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::body::RequestBody;
use super::conversation;
use super::refusal::Refusal;
use super::reply::{ReplyWriter, function_json, new_id, seconds_since_1970};
use super::serving::{Manner, Serving};
use super::task::{Done, TaskEvent};
use super::tools::{CallWatch, TextOrCalls, ToolCall};
use crate::session::FinishReason;

type Result<T> = std::result::Result<T, Refusal>;

/// Fields that are repeated in the reply, and what stands there where the request is silent.
fn repeated(body: &RequestBody) -> Map<String, Value> {
    let fields = [
        ("instructions", Value::Null),
        ("max_output_tokens", Value::Null),
        ("temperature", Value::Null),
        ("top_p", Value::Null),
        ("tools", json!([])),
        ("tool_choice", json!("auto")),
        ("parallel_tool_calls", json!(true)),
        ("metadata", json!({})),
        ("text", json!({ "format": { "type": "text" } })),
        ("reasoning", json!({ "effort": null, "summary": null })),
    ];
    let given =
        |(name, usual): (&str, Value)| (name.to_owned(), body.get(name).cloned().unwrap_or(usual));
    fields.into_iter().map(given).collect()
}

/// The prompt of a request, how to continue it, and what its reply repeats.
///
/// # Errors
/// The first field that is wrong, or that asks for what there is not.
pub fn read(
    serving: &Serving,
    mut body: RequestBody,
) -> Result<(Vec<u32>, Manner, Map<String, Value>)> {
    for name in ["previous_response_id", "conversation", "prompt"] {
        if body.get(name).is_some() {
            return Err(Refusal::field(name, "is not supported: nothing is stored here"));
        }
    }
    if body.flag("background")? {
        return Err(Refusal::field("background", "is not supported"));
    }
    let format = body.get("text").and_then(|text| text.pointer("/format/type"));
    if format.is_some_and(|format| format != "text") {
        return Err(Refusal::field("text", "of another format than text is not supported"));
    }
    let repeated = repeated(&body);
    let mut messages = Vec::new();
    if let Some(text) = body.text("instructions")? {
        messages.push(json!({ "role": "system", "content": text }));
    }
    match body.take("input") {
        Some(Value::String(text)) => messages.push(json!({ "role": "user", "content": text })),
        Some(Value::Array(items)) => items.iter().try_for_each(|item| add(item, &mut messages))?,
        _ => return Err(Refusal::field("input", "is neither a text nor a list of items")),
    }
    body.set("messages", Value::Array(messages));
    if let Some(most) = body.take("max_output_tokens") {
        body.set("max_completion_tokens", most);
    }
    if let Some(Value::Array(tools)) = body.take("tools") {
        body.set("tools", tools.into_iter().filter_map(as_chat_has_it).collect());
    }
    let (prompt, manner) = conversation::read(serving, body)?;
    Ok((prompt, Manner { answers: 1, logprobs: None, ..manner }, repeated))
}

/// A function as chat completions have it; what is none is passed over.
fn as_chat_has_it(tool: Value) -> Option<Value> {
    let Value::Object(mut function) = tool else { return None };
    if function.remove("type").is_none_or(|kind| kind != "function") {
        return None;
    }
    function.remove("strict");
    Some(json!({ "type": "function", "function": function }))
}

/// Adds an item of the input as a message; one of a kind that nobody here knows is passed over.
fn add(item: &Value, messages: &mut Vec<Value>) -> Result<()> {
    match item["type"].as_str().unwrap_or("message") {
        "message" => {
            let part = |part: &Value| part["text"].as_str().map(str::to_owned);
            let content = match &item["content"] {
                Value::String(text) => text.clone(),
                Value::Array(parts) => match parts.iter().map(part).collect::<Option<Vec<_>>>() {
                    Some(parts) => parts.join("\n"),
                    None => {
                        return Err(Refusal::field("input", "has a part that is no text"));
                    }
                },
                _ => return Err(Refusal::field("input", "has a message without content")),
            };
            messages.push(json!({ "role": item["role"], "content": content }));
        }
        "function_call" => {
            let function = json!({ "name": item["name"], "arguments": item["arguments"] });
            let call = json!({ "type": "function", "id": item["call_id"], "function": function });
            messages.push(json!({ "role": "assistant", "tool_calls": [call] }));
        }
        "function_call_output" => {
            let output = match &item["output"] {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            messages.push(
                json!({ "role": "tool", "tool_call_id": item["call_id"], "content": output }),
            );
        }
        _ => {}
    }
    Ok(())
}

/// The reply to one request.
pub struct ResponsesReply {
    serving: Arc<Serving>,
    repeated: Map<String, Value>,
    id: String,
    message_id: String,
    created: u64,
    text: String,
    /// Bytes of the text that have gone out.
    told: usize,
    watch: CallWatch,
    /// With the ids of their items.
    calls: Vec<(String, ToolCall)>,
    done: Option<Done>,
    has_begun: bool,
    has_message: bool,
    events: usize,
}

impl ResponsesReply {
    pub fn new(serving: Arc<Serving>, manner: &Manner, repeated: Map<String, Value>) -> Self {
        Self {
            serving,
            repeated,
            id: new_id("resp"),
            message_id: new_id("msg"),
            created: seconds_since_1970(),
            text: String::new(),
            told: 0,
            watch: CallWatch::new(manner.tools.clone()),
            calls: Vec::new(),
            done: None,
            has_begun: false,
            has_message: false,
            events: 0,
        }
    }

    /// The response as far as it has come.
    fn response(&self) -> Value {
        let status = match &self.done {
            None => "in_progress",
            Some(done) if is_whole(done) => "completed",
            Some(_) => "incomplete",
        };
        let mut response = json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": null,
            "incomplete_details": null,
            "model": self.serving.name,
            "output": [],
            "previous_response_id": null,
            "store": false,
            "truncation": "disabled",
            "usage": null,
        });
        for (name, value) in &self.repeated {
            response[name] = value.clone();
        }
        let Some(done) = &self.done else { return response };
        if status == "incomplete" {
            response["incomplete_details"] = json!({ "reason": "max_output_tokens" });
        }
        let calls = self.calls.iter().map(|(id, call)| call_item(id, call, true));
        let message = (!self.text.is_empty() || self.calls.is_empty()).then(|| self.message(true));
        response["output"] = message.into_iter().chain(calls).collect();
        response["usage"] = json!({
            "input_tokens": done.prompt_tokens,
            "input_tokens_details": { "cached_tokens": done.cached_tokens },
            "output_tokens": done.tokens,
            "output_tokens_details": { "reasoning_tokens": 0 },
            "total_tokens": done.prompt_tokens + done.tokens,
        });
        response
    }

    fn message(&self, is_whole: bool) -> Value {
        let content = if is_whole { json!([part(&self.text)]) } else { json!([]) };
        json!({
            "id": self.message_id,
            "type": "message",
            "role": "assistant",
            "status": if is_whole { "completed" } else { "in_progress" },
            "content": content,
        })
    }

    /// An event, with its number.
    fn event(&mut self, kind: &str, mut fields: Value) -> String {
        fields["type"] = json!(kind);
        fields["sequence_number"] = json!(self.events);
        self.events += 1;
        format!("event: {kind}\ndata: {fields}\n\n")
    }

    /// An event about the part of the message that is its text.
    fn of_text(&mut self, kind: &str, key: &str, value: Value) -> String {
        let mut fields =
            json!({ "item_id": self.message_id, "output_index": 0, "content_index": 0 });
        fields[key] = value;
        self.event(kind, fields)
    }

    /// The message's last events, or its only ones.
    fn end_message(&mut self, due: &mut Vec<String>) {
        self.begin_message(due);
        let (text, item) = (self.text.clone(), self.message(true));
        due.push(self.of_text("response.output_text.done", "text", json!(text)));
        due.push(self.of_text("response.content_part.done", "part", part(&text)));
        let fields = json!({ "output_index": 0, "item": item });
        due.push(self.event("response.output_item.done", fields));
    }

    fn begin_message(&mut self, due: &mut Vec<String>) {
        if !std::mem::replace(&mut self.has_message, true) {
            let fields = json!({ "output_index": 0, "item": self.message(false) });
            due.push(self.event("response.output_item.added", fields));
            due.push(self.of_text("response.content_part.added", "part", part("")));
        }
    }

    fn tell_calls(&mut self, due: &mut Vec<String>) {
        for (number, (id, call)) in self.calls.clone().iter().enumerate() {
            let at = number + usize::from(self.has_message);
            let whole = call_item(id, call, true);
            let added = json!({ "output_index": at, "item": call_item(id, call, false) });
            due.push(self.event("response.output_item.added", added));
            for (end, key) in [("delta", "delta"), ("done", "arguments")] {
                let mut fields = json!({ "item_id": id, "output_index": at });
                fields[key] = whole["arguments"].clone();
                let kind = format!("response.function_call_arguments.{end}");
                due.push(self.event(&kind, fields));
            }
            let done = json!({ "output_index": at, "item": whole });
            due.push(self.event("response.output_item.done", done));
        }
    }
}

impl ReplyWriter for ResponsesReply {
    fn add(&mut self, _index: usize, event: TaskEvent) -> Result<()> {
        match event {
            TaskEvent::Piece(piece) => self.text.push_str(&self.watch.push(&piece.text)),
            TaskEvent::Done(done) => {
                self.done = Some(done);
                match self.watch.finish() {
                    TextOrCalls::Text(text) => self.text.push_str(&text),
                    TextOrCalls::Calls(calls) => {
                        self.calls = calls.into_iter().map(|call| (new_id("fc"), call)).collect();
                    }
                }
            }
            TaskEvent::Refused(refusal) => return Err(refusal),
        }
        Ok(())
    }

    fn due(&mut self, _index: usize) -> Vec<String> {
        let mut due = Vec::new();
        if !std::mem::replace(&mut self.has_begun, true) {
            let mut response = self.response();
            if self.done.is_some() {
                (response["status"], response["output"]) = (json!("in_progress"), json!([]));
            }
            for kind in ["response.created", "response.in_progress"] {
                due.push(self.event(kind, json!({ "response": response })));
            }
        }
        let fresh = self.text[self.told..].to_owned();
        if !fresh.is_empty() {
            self.told = self.text.len();
            self.begin_message(&mut due);
            due.push(self.of_text("response.output_text.delta", "delta", json!(fresh)));
        }
        if let Some(done) = &self.done {
            let end = if is_whole(done) { "response.completed" } else { "response.incomplete" };
            if self.has_message || self.calls.is_empty() {
                self.end_message(&mut due);
            }
            self.tell_calls(&mut due);
            let response = self.response();
            due.push(self.event(end, json!({ "response": response })));
        }
        due
    }

    fn failed(&mut self, refusal: &Refusal) -> String {
        let mut response = self.response();
        response["status"] = json!("failed");
        response["error"] = json!({ "code": "server_error", "message": refusal.message() });
        self.event("response.failed", json!({ "response": response }))
    }

    fn has_ended(&self) -> bool {
        self.done.is_some()
    }

    fn whole(&mut self) -> Value {
        self.response()
    }
}

fn is_whole(done: &Done) -> bool {
    matches!(done.finish, FinishReason::StopId | FinishReason::StopString)
}

fn part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}

/// A call as an item: begun, without its arguments, or whole.
fn call_item(id: &str, call: &ToolCall, is_whole: bool) -> Value {
    let function = function_json(call);
    json!({
        "id": id,
        "type": "function_call",
        "status": if is_whole { "completed" } else { "in_progress" },
        "call_id": format!("call_{id}"),
        "name": function["name"],
        "arguments": if is_whole { function["arguments"].clone() } else { json!("") },
    })
}
