//! `/tokenize`, `/detokenize` and `/apply-template`, under the names of llama-server and vLLM.

use serde_json::{Value, json};

use super::body::RequestBody;
use super::conversation;
use super::refusal::Refusal;
use super::serving::Serving;

type Result<T> = std::result::Result<T, Refusal>;

/// The ids of a text, as llama-server (`content`) and vLLM (`prompt`) are asked for them, or of a
/// conversation (`messages`).
///
/// # Errors
/// The first field that is wrong.
pub fn tokenize(serving: &Serving, mut body: RequestBody) -> Result<Value> {
    let tokenizer = serving.tokenizer();
    let ids = if body.get("messages").is_some() {
        conversation::encoded(serving, &mut body)?.0
    } else {
        let (text, name, default) = match body.text("content")? {
            Some(text) => (text, "add_special", false),
            None => (body.text("prompt")?.unwrap_or_default(), "add_special_tokens", true),
        };
        let ids = tokenizer.encode(text)?;
        let is_whole = body.read(name, "a truth value", Value::as_bool)?.unwrap_or(default);
        if is_whole { tokenizer.surround(ids) } else { ids }
    };
    Ok(json!({ "count": ids.len(), "tokens": ids, "max_model_len": serving.context }))
}

/// The text of ids.
///
/// # Errors
/// What are no ids.
pub fn detokenize(serving: &Serving, body: RequestBody) -> Result<Value> {
    let text = serving.tokenizer().decode(&body.ids("tokens")?, true)?;
    Ok(json!({ "content": text, "prompt": text }))
}

/// A conversation as the model is shown it.
///
/// # Errors
/// What the model's format has no place for.
pub fn apply_template(serving: &Serving, mut body: RequestBody) -> Result<Value> {
    let (ids, _) = conversation::encoded(serving, &mut body)?;
    Ok(json!({ "prompt": serving.tokenizer().decode(&ids, true)? }))
}
