//! Rotary position embeddings: the frequencies by which pairs of a head's components turn, in both
//! of the spellings that `transformers` has given them.

use std::f64::consts::TAU;

use super::MAX_CONTEXT;
use super::fields::Fields;
use crate::error::Result;
use crate::json::{quote, show};

/// How fast each pair of a query's or key's components turns with the position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// The base θ: pair i of D/2 turns by θ^(-2i/D) radians per position.
    pub theta: f64,
    /// How the frequencies are slowed down for a context longer than the model was first trained
    /// on.
    pub scaling: Option<RopeScaling>,
}

/// Llama 3.1's scaling: slow pairs are slowed down by `factor`, fast ones are kept, those between
/// are blended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeScaling {
    /// By how much slow pairs are slowed down; at least 1.
    pub factor: f64,
    /// Pairs that turn less often than this within the original context are slow.
    pub low_freq_factor: f64,
    /// Pairs that turn more often than this within the original context are fast.
    pub high_freq_factor: f64,
    /// The context length that the model was first trained on, in tokens.
    pub original_context: usize,
}

/// The keys that may stand in `rope_scaling` or `rope_parameters`; any other means an unknown way
/// to turn.
const KEYS: [&str; 8] = [
    "rope_theta",
    "rope_type",
    "type",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "partial_rotary_factor",
];

impl Rope {
    /// The inverse frequencies, radians per position. [D/2]
    ///
    /// In f32, step by step as `transformers` computes its table (modeling_rope_utils, `llama3`),
    /// so that the angles of far positions agree with it. The power alone is taken in f64:
    /// libraries differ in its last f32 bit.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        let frequency = |pair: usize| {
            let exponent = (2 * pair) as f32 / head_dim as f32;
            (self.theta.powf(f64::from(exponent)) as f32).recip()
        };
        let scale = |frequency: f32| match &self.scaling {
            Some(scaling) => scaling.scale(frequency),
            None => frequency,
        };
        (0..head_dim / 2).map(frequency).map(scale).collect()
    }

    /// Reads `rope_theta` with `rope_scaling` (transformers 4), or `rope_parameters` (transformers
    /// 5).
    pub(super) fn parse(config: &Fields) -> Result<Rope> {
        let new = config.object("rope_parameters", "rope_parameters.")?;
        let old = config.object("rope_scaling", "rope_scaling.")?;
        let mut theta = None;
        for fields in [Some(*config), new, old].into_iter().flatten() {
            let found = fields.optional_number("rope_theta", 1.0..=1e12)?;
            if theta.is_some() && found.is_some() && theta != found {
                return Err(fields.wrong(
                    "rope_theta",
                    "contradicts the other rope_theta of this file",
                ));
            }
            theta = theta.or(found);
        }
        let Some(theta) = theta else {
            return Err(config.wrong(
                "rope_theta",
                "is missing (and not in rope_parameters): it is never guessed; add \
                 \"rope_theta\": 10000.0 if this \
                 is a Llama 2 model, 500000.0 if it is a Llama 3",
            ));
        };
        let new = new.as_ref().map(RopeScaling::parse).transpose()?;
        let old = old.as_ref().map(RopeScaling::parse).transpose()?;
        if let (Some(new), Some(old)) = (new, old)
            && new != old
        {
            return Err(config.wrong("rope_scaling", "contradicts rope_parameters"));
        }
        Ok(Rope {
            theta,
            scaling: new.or(old).flatten(),
        })
    }
}

impl RopeScaling {
    /// One scaled inverse frequency, by the wavelength 2π/f that it has in positions.
    fn scale(&self, frequency: f32) -> f32 {
        let [low, high] = [self.low_freq_factor as f32, self.high_freq_factor as f32];
        let [factor, original] = [self.factor as f32, self.original_context as f32];
        let wavelength = TAU as f32 * frequency.recip();
        if wavelength < original / high {
            return frequency;
        }
        if wavelength > original / low {
            return frequency / factor;
        }
        let smooth = (original * wavelength.recip() - low) / (high - low);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }

    /// Reads the object under `rope_scaling` or `rope_parameters`; none for the type `default`.
    fn parse(fields: &Fields) -> Result<Option<RopeScaling>> {
        if let Some(key) = fields
            .object
            .keys()
            .find(|key| !KEYS.contains(&key.as_str()))
        {
            return Err(fields.wrong(
                &quote(key),
                "is not a key that Llama's rotary embeddings have",
            ));
        }
        fields.optional_number("partial_rotary_factor", 1.0..=1.0)?;
        let types = ["rope_type", "type"].map(|key| (key, fields.optional(key)));
        if let [(_, Some(new)), (key, Some(old))] = types
            && new != old
        {
            return Err(fields.wrong(
                key,
                &format!("is {} but rope_type is {}", show(old), show(new)),
            ));
        }
        let key = if types[0].1.is_none() && types[1].1.is_some() {
            "type"
        } else {
            "rope_type"
        };
        match fields.text(key)? {
            "default" => return Ok(None),
            "llama3" => {}
            other => {
                let trouble = format!("is {}: only llama3 and default are supported", quote(other));
                return Err(fields.wrong(key, &trouble));
            }
        }
        let factor = fields.number("factor", 1.0..=1e6)?;
        let low_freq_factor = fields.number("low_freq_factor", 1e-6..=1e6)?;
        let high_freq_factor = fields.number("high_freq_factor", 1e-6..=1e6)?;
        if low_freq_factor as f32 >= high_freq_factor as f32 {
            return Err(fields.wrong("high_freq_factor", "must be above low_freq_factor"));
        }
        let original_context = fields.size("original_max_position_embeddings", MAX_CONTEXT)?;
        Ok(Some(RopeScaling {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_context,
        }))
    }
}
