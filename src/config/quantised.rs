//! What a config says of quantised weights: that they are E4M3 numbers with scales for tensors or rows, or
//! something else, which is refused. What each tensor is, the files of weights say.

use serde_json::Value;

use super::fields::Fields;
use crate::error::Result;
use crate::json::{quote, show};

const KEY: &str = "quantization_config";

/// That `quantization_config`, if there is one, means weights that we have.
///
/// # Errors
/// Other weights, by name.
pub fn check(fields: &Fields) -> Result<()> {
    let Some(config) = fields.object(KEY, "quantization_config.")? else { return Ok(()) };
    match config.text("quant_method")? {
        // <https://huggingface.co/docs/transformers/quantization/fbgemm_fp8>
        "fbgemm_fp8" => Ok(()),
        "compressed-tensors" => check_compressed(&config),
        other => Err(fields.wrong(
            KEY,
            &format!(
                "says {}: compressed-tensors of float-quantized weights and fbgemm_fp8 are supported; \
                 take those, a GGUF, or the model that it was made from",
                quote(other)
            ),
        )),
    }
}

/// <https://github.com/vllm-project/compressed-tensors>: quantization_config.py, quant_args.py
fn check_compressed(config: &Fields) -> Result<()> {
    let is = |fields: &Fields, key: &str, allowed: &[Value], default: &Value| {
        let value = fields.optional(key).unwrap_or(default);
        if allowed.contains(value) {
            return Ok(());
        }
        let allowed: Vec<String> = allowed.iter().map(Value::to_string).collect();
        let trouble = format!("is {}: only {} is supported", show(value), allowed.join(" or "));
        Err(fields.wrong(key, &trouble))
    };
    let no = Value::Null;
    is(config, "format", &["float-quantized".into()], &no)?;
    for key in ["kv_cache_scheme", "sparsity_config", "transform_config"] {
        let empty = Value::Object(serde_json::Map::new());
        is(config, key, &[Value::Null, empty], &no)?;
    }
    let groups = config.object("config_groups", "quantization_config.config_groups.")?;
    for (name, group) in groups.iter().flat_map(|groups| groups.object) {
        let weights = group.get("weights").and_then(Value::as_object);
        let Some(object) = weights else {
            return Err(config.wrong("config_groups", &format!("{} has no weights", quote(name))));
        };
        let prefix = "quantization_config.config_groups' weights.";
        let weights = Fields { file: config.file, prefix, object };
        is(&weights, "num_bits", &[8.into()], &no)?;
        is(&weights, "type", &["float".into()], &no)?;
        is(&weights, "strategy", &["tensor".into(), "channel".into()], &no)?;
        is(&weights, "symmetric", &[true.into()], &true.into())?;
    }
    Ok(())
}
