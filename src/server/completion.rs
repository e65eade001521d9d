//! `/v1/completions`: texts or ids to be continued.

use serde_json::Value;

use super::body::{RequestBody, ids};
use super::refusal::Refusal;
use super::serving::{Manner, Serving};

type Result<T> = std::result::Result<T, Refusal>;

/// What OpenAI generates where nobody says how much.
const MAX_TOKENS: usize = 16;
/// In one request, at most.
const MOST_PROMPTS: usize = 64;

/// The prompts of a request, and how to continue them.
///
/// # Errors
/// The first field that is wrong, or that asks for what there is not.
pub fn read(serving: &Serving, body: &RequestBody) -> Result<(Vec<Vec<u32>>, Manner)> {
    serving.check_model(body)?;
    if body.text("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(Refusal::field("suffix", "is not supported: leave it out"));
    }
    if body.get("best_of").is_some_and(|best| Some(best) != body.get("n") && *best != 1) {
        return Err(Refusal::field("best_of", "is not supported: leave it out"));
    }
    let defaults = &serving.model.config.defaults;
    let mut manner = serving.manner(body, defaults, Some(MAX_TOKENS), body.count("logprobs")?)?;
    manner.echo = body.flag("echo")?;
    let given = body.get("prompt").ok_or_else(|| Refusal::field("prompt", "is missing"))?;
    let prompts = prompts(serving, given)?;
    if prompts.is_empty() || prompts.len() > MOST_PROMPTS {
        let what = format!("has {} texts: from 1 to {MOST_PROMPTS} are taken", prompts.len());
        return Err(Refusal::field("prompt", what));
    }
    prompts.iter().try_for_each(|prompt| serving.check_prompt(prompt))?;
    Ok((prompts, manner))
}

/// A text, a list of texts, a list of ids, or a list of such lists.
fn prompts(serving: &Serving, value: &Value) -> Result<Vec<Vec<u32>>> {
    if let Some(ids) = ids(value).filter(|ids| !ids.is_empty()) {
        return Ok(vec![ids]);
    }
    let one = |value: &Value| match value {
        Value::String(text) => {
            let tokenizer = serving.tokenizer();
            Ok(tokenizer.surround(tokenizer.encode(text)?))
        }
        _ => ids(value).ok_or_else(|| {
            Refusal::field("prompt", "is neither a text, nor ids, nor a list of those")
        }),
    };
    match value {
        Value::Array(list) => list.iter().map(one).collect(),
        _ => one(value).map(|prompt| vec![prompt]),
    }
}
