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
        let new = new.as_ref().map(RopeScaling::parse).transpose()?;
        let old = old.as_ref().map(RopeScaling::parse).transpose()?;
        if let (Some(new), Some(old)) = (new, old)
            && new != old
        {
            return Err(config.wrong("rope_scaling", "contradicts rope_parameters"));
        }
        Ok(Rope { theta, scaling: new.or(old).flatten() })
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
        if let Some(key) = fields.object.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(
                fields.wrong(&quote(key), "is not a key that Llama's rotary embeddings have")
            );
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
        Ok(Some(RopeScaling { factor, low_freq_factor, high_freq_factor, original_context }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    const LLAMA_3: f64 = 500000.0;

    fn llama3(factor: f64) -> Rope {
        let scaling = RopeScaling {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192,
        };
        Rope { theta: LLAMA_3, scaling: Some(scaling) }
    }

    fn relative(found: f32, expected: f64) -> f64 {
        (f64::from(found) / expected - 1.0).abs()
    }

    /// Values of Llama 3.1 (head width 128, factor 8) and 3.2 (3B: 128, 32; 1B: 64, 32), computed
    /// in f64.
    #[test]
    fn scaled_frequencies_of_the_real_models() {
        type Case = (usize, f64, &'static [(usize, f64)]);
        let cases: [Case; 3] = [
            (
                128,
                8.0,
                &[
                    (28, 3.211445995e-3),
                    (29, 2.166570764e-3),
                    (30, 1.371893568e-3),
                    (31, 8.567514129e-4),
                    (32, 5.248461610e-4),
                    (33, 3.126937504e-4),
                    (34, 1.785078128e-4),
                    (35, 9.556212354e-5),
                    (63, 3.068925989e-7),
                ],
            ),
            (
                128,
                32.0,
                &[
                    (29, 2.118406997e-3),
                    (30, 1.290547928e-3),
                    (31, 7.625412034e-4),
                    (32, 4.295567966e-4),
                    (33, 2.227635015e-4),
                    (34, 9.708287803e-5),
                    (35, 2.389053088e-5),
                    (63, 7.672314972e-8),
                ],
            ),
            (
                64,
                32.0,
                &[
                    (15, 1.290547928e-3),
                    (16, 4.295567966e-4),
                    (17, 9.708287803e-5),
                    (18, 1.946163818e-5),
                    (31, 9.418306725e-8),
                ],
            ),
        ];
        for (head_dim, factor, expected) in cases {
            let frequencies = llama3(factor).frequencies(head_dim);
            assert_eq!(frequencies.len(), head_dim / 2);
            for &(pair, expected) in expected {
                let difference = relative(frequencies[pair], expected);
                assert!(difference < 2e-6, "pair {pair} of {head_dim}: {difference:e}");
            }
        }
    }

    #[test]
    fn fast_pairs_are_kept_and_slow_ones_divided() {
        let plain = Rope { theta: LLAMA_3, scaling: None }.frequencies(128);
        let scaled = llama3(8.0).frequencies(128);
        for pair in 0..64 {
            match pair {
                0..=28 => assert_eq!(scaled[pair], plain[pair]),
                29..=34 => assert!(scaled[pair] < plain[pair] && scaled[pair] > plain[pair] / 8.0),
                _ => assert_eq!(scaled[pair], plain[pair] / 8.0),
            }
        }
    }

    /// The f32 tables that `transformers` computes, written by scripts/golden.
    #[test]
    fn tables_of_transformers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/rope.json");
        let text = std::fs::read(path).expect("rope.json");
        let tables: Vec<Value> = serde_json::from_slice(&text).expect("JSON");
        let mut largest = 0.0_f64;
        for table in &tables {
            let number = |value: &Value| value.as_f64().expect("a number");
            let scaling = table["scaling"].as_object().map(|scaling| RopeScaling {
                factor: number(&scaling["factor"]),
                low_freq_factor: number(&scaling["low_freq_factor"]),
                high_freq_factor: number(&scaling["high_freq_factor"]),
                original_context: number(&scaling["original_max_position_embeddings"]) as usize,
            });
            let rope = Rope { theta: number(&table["theta"]), scaling };
            let found = rope.frequencies(number(&table["head_dim"]) as usize);
            let expected = table["frequencies"].as_array().expect("a list");
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.into_iter().zip(expected) {
                largest = largest.max(relative(found, number(expected)));
            }
        }
        println!("largest relative difference of {} tables: {largest:e}", tables.len());
        assert!(tables.len() >= 3);
        assert!(largest < 1.2e-7, "over one f32 ulp: {largest:e}");
    }
}
