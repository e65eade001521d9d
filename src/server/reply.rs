//! Answers in OpenAI's JSON: whole, or in the chunks of a stream.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::refusal::Refusal;
use super::serving::{Manner, Serving};
use super::task::{Done, Piece, TaskEvent, TokenScore};
use super::tools::{CallWatch, TextOrCalls, ToolCall};
use crate::random::random_seed;
use crate::session::FinishReason;

/// A reply on its way, in whatever form.
pub trait ReplyWriter: Send + 'static {
    /// Takes what has come of an answer.
    ///
    /// # Errors
    /// Why there is none.
    fn add(&mut self, index: usize, event: TaskEvent) -> Result<(), Refusal>;

    /// The events that are due in a stream now that something has been [added](Self::add) to an answer, the
    /// last ones where it was the end.
    fn due(&mut self, index: usize) -> Vec<String>;

    /// The last event of a stream that breaks off.
    fn failed(&mut self, refusal: &Refusal) -> String;

    fn has_ended(&self) -> bool;

    /// The whole reply, once it has ended.
    fn whole(&mut self) -> Value;
}

/// Which of OpenAI's forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyForm {
    Chat,
    Completion,
}

/// The reply to one request, of one answer or several.
pub struct ChoicesReply {
    form: ReplyForm,
    serving: Arc<Serving>,
    id: String,
    created: u64,
    include_usage: bool,
    has_logprobs: bool,
    /// Answers to each prompt.
    answers: usize,
    all: Vec<Answered>,
}

/// One of the answers, as far as it has come.
#[derive(Debug, Clone, Default)]
struct Answered {
    /// Without what has gone out as a chunk.
    text: String,
    tokens: Vec<TokenScore>,
    /// Where the model may call tools.
    watch: Option<CallWatch>,
    calls: Vec<ToolCall>,
    has_called: bool,
    done: Option<Done>,
    has_begun: bool,
    /// Characters of the tokens so far.
    offset: usize,
}

impl ChoicesReply {
    /// To a request for answers to these prompts.
    ///
    /// # Errors
    /// A prompt to begin with that is no text.
    pub fn new(
        form: ReplyForm,
        serving: Arc<Serving>,
        manner: &Manner,
        prompts: &[Vec<u32>],
    ) -> Result<Self, Refusal> {
        let answered = |prompt: &Vec<u32>| -> Result<Answered, Refusal> {
            let text = if manner.echo {
                serving.tokenizer().decode(prompt, false)?
            } else {
                String::new()
            };
            let watch = CallWatch::new(manner.tools.clone());
            let watch = Some(watch).filter(|_| !manner.tools.is_empty());
            Ok(Answered { text, watch, ..Answered::default() })
        };
        let each = prompts.iter().flat_map(|prompt| vec![prompt; manner.answers]);
        let all = each.map(answered).collect::<Result<_, _>>()?;
        let prefix = if form == ReplyForm::Chat { "chatcmpl" } else { "cmpl" };
        Ok(Self {
            form,
            serving,
            id: new_id(prefix),
            created: seconds_since_1970(),
            include_usage: manner.include_usage,
            has_logprobs: manner.logprobs.is_some(),
            answers: manner.answers,
            all,
        })
    }

    /// The chunks that are due now that something has been [added](Self::add) to an answer.
    fn chunks(&mut self, index: usize) -> Vec<Value> {
        let mut chunks = Vec::new();
        let is_chat = self.form == ReplyForm::Chat;
        if is_chat && !std::mem::replace(&mut self.all[index].has_begun, true) {
            let delta = json!({ "role": "assistant", "content": "" });
            chunks.push(self.chunk(index, "delta", delta, Value::Null, Value::Null));
        }
        let text = std::mem::take(&mut self.all[index].text);
        if !text.is_empty() || !self.all[index].tokens.is_empty() {
            let (key, said) =
                if is_chat { ("delta", json!({ "content": text })) } else { ("text", json!(text)) };
            let logprobs = self.logprobs(index);
            chunks.push(self.chunk(index, key, said, logprobs, Value::Null));
        }
        if self.all[index].done.is_some() {
            for (number, call) in std::mem::take(&mut self.all[index].calls).iter().enumerate() {
                let mut begun = call_json(call);
                let arguments = begun["function"]["arguments"].take();
                begun["index"] = json!(number);
                begun["function"]["arguments"] = json!("");
                let rest = json!({ "index": number, "function": { "arguments": arguments } });
                for part in [begun, rest] {
                    let delta = json!({ "tool_calls": [part] });
                    chunks.push(self.chunk(index, "delta", delta, Value::Null, Value::Null));
                }
            }
            let (key, said) = if is_chat { ("delta", json!({})) } else { ("text", json!("")) };
            let mut last = self.chunk(index, key, said, Value::Null, self.finish(index));
            if self.has_ended() {
                last["timings"] = self.timings();
            }
            chunks.push(last);
            if self.has_ended() && self.include_usage {
                let mut usage = self.around(Vec::new());
                usage["usage"] = self.usage();
                chunks.push(usage);
            }
        }
        chunks
    }

    fn chunk(&self, index: usize, key: &str, said: Value, logprobs: Value, finish: Value) -> Value {
        let mut choice = json!({ "index": index });
        choice[key] = said;
        choice["logprobs"] = logprobs;
        choice["finish_reason"] = finish;
        let mut chunk = self.around(vec![choice]);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn around(&self, choices: Vec<Value>) -> Value {
        let object = match (self.form, choices.first().map(|choice| choice.get("message"))) {
            (ReplyForm::Chat, Some(Some(_))) => "chat.completion",
            (ReplyForm::Chat, _) => "chat.completion.chunk",
            (ReplyForm::Completion, _) => "text_completion",
        };
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.serving.name,
            "system_fingerprint": concat!("chaski-", env!("CARGO_PKG_VERSION")),
            "choices": choices,
        })
    }

    /// What the assistant says, whole.
    fn message(&self, index: usize, text: String) -> Value {
        let calls = &self.all[index].calls;
        let mut message = json!({ "role": "assistant", "content": text, "refusal": null });
        if !calls.is_empty() {
            message["content"] = Value::Null;
            message["tool_calls"] = calls.iter().map(call_json).collect();
        }
        message
    }

    fn finish(&self, index: usize) -> Value {
        let Answered { done, has_called, .. } = &self.all[index];
        let Some(done) = done else { return Value::Null };
        json!(if *has_called { "tool_calls" } else { finish_reason(done.finish) })
    }

    /// Of the tokens that have come and not gone out yet.
    fn logprobs(&mut self, index: usize) -> Value {
        if !self.has_logprobs {
            return Value::Null;
        }
        let tokens = std::mem::take(&mut self.all[index].tokens);
        let text = |id: u32| self.text(id);
        if self.form == ReplyForm::Chat {
            let one = |(id, logprob): (u32, Option<f64>)| {
                let text = text(id);
                json!({ "bytes": text.as_bytes(), "token": text, "logprob": logprob })
            };
            let content = tokens.iter().map(|score| {
                let mut token = one((score.id, score.logprob));
                let top = score.top.iter().map(|(id, logprob)| one((*id, Some(*logprob))));
                token["top_logprobs"] = top.collect();
                token
            });
            return json!({ "content": content.collect::<Vec<_>>(), "refusal": null });
        }
        let texts: Vec<String> = tokens.iter().map(|score| text(score.id)).collect();
        let top = tokens.iter().map(|score| {
            if score.logprob.is_none() {
                return Value::Null;
            }
            let mut by_text = Map::new();
            for (id, logprob) in &score.top {
                // Of tokens that look alike the most probable one counts.
                by_text.entry(text(*id)).or_insert(json!(logprob));
            }
            Value::Object(by_text)
        });
        let top: Vec<_> = top.collect();
        let offset = &mut self.all[index].offset;
        let offsets = texts.iter().map(|text| {
            let end = *offset + text.chars().count();
            std::mem::replace(offset, end)
        });
        let offsets: Vec<_> = offsets.collect();
        json!({
            "tokens": texts,
            "token_logprobs": tokens.iter().map(|score| score.logprob).collect::<Vec<_>>(),
            "top_logprobs": top,
            "text_offset": offsets,
        })
    }

    /// A token's own text; none where a model has more ids than its tokenizer.
    fn text(&self, id: u32) -> String {
        self.serving.tokenizer().decode(&[id], true).unwrap_or_default()
    }

    fn usage(&self) -> Value {
        let done = || self.all.iter().filter_map(|answered| answered.done.as_ref());
        // A prompt counts once, however many answers there are to it.
        let prompts = || done().step_by(self.answers);
        let prompt: usize = prompts().map(|done| done.prompt_tokens).sum();
        let cached: usize = prompts().map(|done| done.cached_tokens).sum();
        let said: usize = done().map(|done| done.tokens).sum();
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": said,
            "total_tokens": prompt + said,
            "prompt_tokens_details": { "cached_tokens": cached },
        })
    }

    /// Of the first answer, under llama-server's names; times in milliseconds.
    fn timings(&self) -> Value {
        let Some(done) = self.all.first().and_then(|answered| answered.done.as_ref()) else {
            return Value::Null;
        };
        let milliseconds = |time: std::time::Duration| time.as_secs_f64() * 1e3;
        json!({
            "cache_n": done.cached_tokens,
            "prompt_n": done.prompt_tokens - done.cached_tokens,
            "prompt_ms": milliseconds(done.prefill),
            "first_token_ms": milliseconds(done.first_token),
            "predicted_n": done.tokens,
            "predicted_ms": milliseconds(done.decode),
            "predicted_per_second": done.rate(),
        })
    }
}

impl ReplyWriter for ChoicesReply {
    fn add(&mut self, index: usize, event: TaskEvent) -> Result<(), Refusal> {
        let answered = &mut self.all[index];
        match event {
            TaskEvent::Piece(Piece { text, tokens }) => {
                // A chat is not told of the token that ends it.
                let is_chat = self.form == ReplyForm::Chat;
                answered.tokens.extend(tokens.into_iter().filter(|s| !(is_chat && s.is_stop)));
                match &mut answered.watch {
                    None => answered.text.push_str(&text),
                    Some(watch) => answered.text.push_str(&watch.push(&text)),
                }
            }
            TaskEvent::Done(done) => {
                answered.done = Some(done);
                match answered.watch.as_mut().map(CallWatch::finish) {
                    None => {}
                    Some(TextOrCalls::Text(text)) => answered.text.push_str(&text),
                    Some(TextOrCalls::Calls(calls)) => {
                        (answered.calls, answered.has_called) = (calls, true);
                    }
                }
            }
            TaskEvent::Refused(refusal) => return Err(refusal),
        }
        Ok(())
    }

    fn has_ended(&self) -> bool {
        self.all.iter().all(|answered| answered.done.is_some())
    }

    fn due(&mut self, index: usize) -> Vec<String> {
        let chunks = self.chunks(index);
        let mut due: Vec<_> = chunks.iter().map(|chunk| format!("data: {chunk}\n\n")).collect();
        due.extend(self.has_ended().then(|| "data: [DONE]\n\n".to_owned()));
        due
    }

    fn failed(&mut self, refusal: &Refusal) -> String {
        format!("data: {}\n\n", refusal.to_json())
    }

    fn whole(&mut self) -> Value {
        let choices = (0..self.all.len()).map(|index| {
            let text = std::mem::take(&mut self.all[index].text);
            let mut choice = match self.form {
                ReplyForm::Chat => json!({ "index": index, "message": self.message(index, text) }),
                ReplyForm::Completion => json!({ "index": index, "text": text }),
            };
            choice["logprobs"] = self.logprobs(index);
            choice["finish_reason"] = self.finish(index);
            choice
        });
        let choices = choices.collect();
        let mut whole = self.around(choices);
        whole["usage"] = self.usage();
        whole["timings"] = self.timings();
        whole
    }
}

/// Like `chatcmpl_0123456789abcdef`, another one each time.
pub fn new_id(prefix: &str) -> String {
    format!("{prefix}_{:08x}{:08x}", random_seed(), random_seed())
}

pub fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A call's function as clients know it, its arguments as the text of an object.
pub fn function_json(call: &ToolCall) -> Value {
    let arguments = Value::Object(call.arguments.clone()).to_string();
    json!({ "name": call.name, "arguments": arguments })
}

/// A call in a chat's message.
fn call_json(call: &ToolCall) -> Value {
    json!({ "id": new_id("call"), "type": "function", "function": function_json(call) })
}

/// In OpenAI's words, of which there is none for an answer that the server's end has cut.
fn finish_reason(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::StopId | FinishReason::StopString => "stop",
        FinishReason::Length | FinishReason::Context | FinishReason::Interrupted => "length",
    }
}
