//! What a post-processor puts around a text, as BOS.

use serde_json::Value;

use super::step::PipelineStep;
use crate::json;

/// The most tokens around a text: published tokenizers have two.
const MAX_AROUND: usize = 64;

/// The ids that a post-processor puts before and after a text. The error is what is wrong, without
/// the key.
pub(super) fn around(post_processor: Option<&Value>) -> Result<(Vec<u32>, Vec<u32>), String> {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for step in PipelineStep::all(post_processor, "processors")? {
        let (first, last) = match step.kind {
            "ByteLevel" => continue,
            "TemplateProcessing" => around_template(&step)?,
            "BertProcessing" | "RobertaProcessing" => {
                (vec![token_id(&step, "cls")?], vec![token_id(&step, "sep")?])
            }
            _ => return Err(step.not_supported()),
        };
        before.splice(0..0, first);
        after.extend(last);
        if before.len() + after.len() > MAX_AROUND {
            return Err(format!("puts more than {MAX_AROUND} tokens around a text"));
        }
    }
    Ok((before, after))
}

/// The ids of a `single` template around its only sequence, A.
fn around_template(step: &PipelineStep) -> Result<(Vec<u32>, Vec<u32>), String> {
    let parts = step
        .fields
        .get("single")
        .and_then(Value::as_array)
        .ok_or("TemplateProcessing: single is no list")?;
    let (mut sides, mut texts) = ([Vec::new(), Vec::new()], 0);
    for part in parts {
        if part["Sequence"]["id"] == "A" {
            texts += 1;
            continue;
        }
        let name = part["SpecialToken"]["id"]
            .as_str()
            .ok_or("TemplateProcessing: single has an unknown part")?;
        let ids = step
            .fields
            .get("special_tokens")
            .and_then(|tokens| tokens.get(name)?["ids"].as_array());
        let ids = ids.and_then(|ids| ids.iter().map(id).collect::<Option<Vec<u32>>>());
        let ids = ids.ok_or_else(|| {
            format!("TemplateProcessing: special_tokens has no ids of {}", json::quote(name))
        })?;
        sides[usize::from(texts > 0)].extend(ids);
    }
    let [before, after] = sides;
    if texts == 1 { Ok((before, after)) } else { Err("does not keep a text once".to_owned()) }
}

/// The id of `[text, id]`.
fn token_id(step: &PipelineStep, key: &str) -> Result<u32, String> {
    let pair = step.fields.get(key).and_then(Value::as_array);
    let found = pair.and_then(|pair| if let [_, number] = &pair[..] { id(number) } else { None });
    found.ok_or_else(|| format!("{}: {key} is not a token and its id", step.kind))
}

fn id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}
