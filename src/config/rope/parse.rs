//! Rotary embeddings as config.json has them, in both of the spellings that `transformers` has given
//! them: `rope_theta` with `rope_scaling` (4), `rope_parameters` (5).

use super::super::MAX_CONTEXT;
use super::super::fields::Fields;
use super::{Llama3Scaling, Rope, RopeScaling, Yarn};
use crate::error::Result;
use crate::json::{quote, show};

/// Keys that mean nothing where the frequencies are not scaled, so that a type is needed beside them.
const SCALING_KEYS: [&str; 3] = ["factor", "low_freq_factor", "long_factor"];

impl Rope {
    /// Reads the keys of either spelling. Null is absent.
    pub(in super::super) fn parse(config: &Fields) -> Result<Rope> {
        let new = config.object("rope_parameters", "rope_parameters.")?;
        let old = config.object("rope_scaling", "rope_scaling.")?;
        let mut theta = None;
        for fields in [Some(*config), new, old].into_iter().flatten() {
            let turning = fields.optional("partial_rotary_factor");
            if turning.is_some_and(|factor| factor.as_f64() != Some(1.0)) {
                return Err(fields.wrong("partial_rotary_factor", "is not 1: not supported"));
            }
            let found = fields.optional_number("rope_theta", 1.0..=1e12)?;
            if theta.is_some() && found.is_some() && theta != found {
                return Err(
                    fields.wrong("rope_theta", "contradicts the other rope_theta of this file")
                );
            }
            theta = theta.or(found);
        }
        let Some(theta) = theta else {
            return Err(config.wrong(
                "rope_theta",
                "is missing (and not in rope_parameters): it is never guessed; add \
                 \"rope_theta\": 10000.0 for a Llama 2 model, 500000.0 for a Llama 3",
            ));
        };
        let scaling = |fields: Option<Fields>| -> Result<Option<Option<RopeScaling>>> {
            fields.map(|fields| RopeScaling::parse(&fields, config, theta)).transpose()
        };
        let (new, old) = (scaling(new)?, scaling(old)?);
        if let (Some(new), Some(old)) = (new, old)
            && new != old
        {
            return Err(config.wrong("rope_scaling", "contradicts rope_parameters"));
        }
        let divisors = config.numbers("rope_divisors", 1e-6..=1e6)?.unwrap_or_default();
        Ok(Rope { theta, scaling: new.or(old).flatten(), divisors })
    }
}

impl RopeScaling {
    /// Reads the object under `rope_scaling` or `rope_parameters`; none for the type `default`. Keys that
    /// the type does not have are passed over, as `transformers` does.
    fn parse(fields: &Fields, config: &Fields, theta: f64) -> Result<Option<RopeScaling>> {
        if let Some((key, _)) = fields.object.iter().find(|(_, value)| value.is_object()) {
            return Err(fields.wrong(&quote(key), "is an object: Llama's layers all turn alike"));
        }
        let types = ["rope_type", "type"].map(|key| (key, fields.optional(key)));
        if let [(_, Some(new)), (key, Some(old))] = types
            && new != old
        {
            return Err(
                fields.wrong(key, &format!("is {} but rope_type is {}", show(old), show(new)))
            );
        }
        let key = if types[0].1.is_none() && types[1].1.is_some() { "type" } else { "rope_type" };
        if fields.optional(key).is_none()
            && SCALING_KEYS.iter().all(|key| fields.optional(key).is_none())
        {
            return Ok(None);
        }
        let factor = || fields.number("factor", 1.0..=1e6);
        Ok(Some(match fields.text(key)? {
            "default" => return Ok(None),
            "linear" => Self::Linear { factor: factor()? },
            "dynamic" => {
                let original_context = config.size("max_position_embeddings", MAX_CONTEXT)?;
                Self::Dynamic { factor: factor()?, original_context }
            }
            "llama3" => Self::Llama3(Llama3Scaling::parse(fields, config)?),
            "yarn" => Self::Yarn(Yarn::parse(fields, config, theta)?),
            other => {
                let trouble = format!(
                    "is {}: default, linear, dynamic, llama3 and yarn are supported",
                    quote(other)
                );
                return Err(fields.wrong(key, &trouble));
            }
        }))
    }
}

/// The length that the model was first trained on, by the key of either object.
fn original_context(fields: &Fields, config: &Fields) -> Result<Option<usize>> {
    const KEY: &str = "original_max_position_embeddings";
    let outer = config.optional_size(KEY, 1, MAX_CONTEXT)?;
    Ok(outer.or(fields.optional_size(KEY, 1, MAX_CONTEXT)?))
}

impl Llama3Scaling {
    fn parse(fields: &Fields, config: &Fields) -> Result<Self> {
        let factor = fields.number("factor", 1.0..=1e6)?;
        let low_freq_factor = fields.number("low_freq_factor", 1e-6..=1e6)?;
        let high_freq_factor = fields.number("high_freq_factor", 1e-6..=1e6)?;
        if low_freq_factor as f32 >= high_freq_factor as f32 {
            return Err(fields.wrong("high_freq_factor", "must be above low_freq_factor"));
        }
        let original_context = match original_context(fields, config)? {
            Some(tokens) => tokens,
            None => fields.size("original_max_position_embeddings", MAX_CONTEXT)?,
        };
        Ok(Self { factor, low_freq_factor, high_freq_factor, original_context })
    }
}

impl Yarn {
    fn parse(fields: &Fields, config: &Fields, theta: f64) -> Result<Self> {
        if theta == 1.0 {
            return Err(config.wrong("rope_theta", "is 1, of which yarn can make nothing"));
        }
        let longest = config.size("max_position_embeddings", MAX_CONTEXT)?;
        let original = original_context(fields, config)?;
        let original_context = original.unwrap_or(longest);
        let factor = match (fields.optional_number("factor", 1.0..=1e6)?, original) {
            (Some(factor), _) => factor,
            (None, Some(original)) => longest as f64 / original as f64,
            (None, None) => fields.number("factor", 1.0..=1e6)?,
        };
        // Zero is taken for absent, as Python's `or` and `if` do.
        let positive = |key| -> Result<Option<f64>> {
            Ok(fields.optional_number(key, 0.0..=1e6)?.filter(|number| *number > 0.0))
        };
        let magnitude = |scale: f64| match factor {
            ..=1.0 => 1.0,
            _ => 0.1 * scale * factor.ln() + 1.0,
        };
        let given = fields.optional_number("attention_factor", 0.0..=1e6)?;
        let magnitude = match (given, positive("mscale")?, positive("mscale_all_dim")?) {
            (Some(given), ..) => given,
            (None, Some(one), Some(all)) => magnitude(one) / magnitude(all),
            _ => magnitude(1.0),
        };
        Ok(Self {
            factor,
            magnitude,
            beta_fast: positive("beta_fast")?.unwrap_or(32.0),
            beta_slow: positive("beta_slow")?.unwrap_or(1.0),
            truncate: fields.optional_bool("truncate")?.unwrap_or(true),
            original_context,
        })
    }
}
