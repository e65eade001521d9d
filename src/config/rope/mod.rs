//! Rotary position embeddings: the frequencies by which pairs of a head's components turn.

mod parse;

use std::f64::consts::TAU;
use std::iter::repeat;

/// How fast each pair of a query's or key's components turns with the position.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// The base θ: pair i of D/2 turns by θ^(-2i/D) radians per position.
    pub theta: f64,
    /// How the frequencies are slowed down for a context longer than the model was first trained
    /// on.
    pub scaling: Option<RopeScaling>,
    /// What each pair's frequency is divided by, after that; GGUF has Llama 3.1's scaling so. [D/2], or none.
    pub divisors: Vec<f32>,
}

/// The ways of `transformers` (modeling_rope_utils) that Llamas have been tuned with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Every pair is slowed down by the factor (Chen et al., 2023, arXiv:2306.15595).
    Linear {
        factor: f64,
    },
    /// A text that is longer than the model was made for has a larger base, which grows with it.
    Dynamic {
        factor: f64,
        original_context: usize,
    },
    Llama3(Llama3Scaling),
    Yarn(Yarn),
}

/// Llama 3.1's scaling: slow pairs are slowed down by `factor`, fast ones are kept, those between
/// are blended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Llama3Scaling {
    /// By how much slow pairs are slowed down; at least 1.
    pub factor: f64,
    /// Pairs that turn less often than this within the original context are slow.
    pub low_freq_factor: f64,
    /// Pairs that turn more often than this within the original context are fast.
    pub high_freq_factor: f64,
    /// The context length that the model was first trained on, in tokens.
    pub original_context: usize,
}

/// As Llama 3's, with the blend linear in the pair's number (Peng et al., 2023, arXiv:2309.00071).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    /// By how much slow pairs are slowed down.
    pub factor: f64,
    /// What the cosines and sines are multiplied with.
    pub magnitude: f64,
    /// Pairs that turn more often than this within the original context are fast.
    pub beta_fast: f64,
    /// Pairs that turn less often than this are slow.
    pub beta_slow: f64,
    /// Whether the blend begins and ends at whole pairs.
    pub truncate: bool,
    /// The context length that the model was first trained on, in tokens.
    pub original_context: usize,
}

impl Rope {
    /// The inverse frequencies, radians per position, of a text of `tokens` tokens. [D/2]
    ///
    /// In f32, step by step as `transformers` computes its table (modeling_rope_utils), so that the
    /// angles of far positions agree with it. Powers alone are taken in f64: libraries differ in
    /// their last f32 bit.
    pub fn frequencies(&self, head_dim: usize, tokens: usize) -> Vec<f32> {
        let base = match self.scaling {
            Some(RopeScaling::Dynamic { factor, original_context }) => {
                stretched(self.theta, factor, original_context, head_dim, tokens)
            }
            _ => self.theta,
        };
        let power = |pair: usize| base.powf(f64::from((2 * pair) as f32 / head_dim as f32)) as f32;
        let scale = |pair: usize| match &self.scaling {
            Some(RopeScaling::Linear { factor }) => power(pair).recip() / *factor as f32,
            Some(RopeScaling::Llama3(llama)) => llama.scale(power(pair).recip()),
            Some(RopeScaling::Yarn(yarn)) => yarn.scale(power(pair), pair, self.theta, head_dim),
            Some(RopeScaling::Dynamic { .. }) | None => power(pair).recip(),
        };
        let divisors = self.divisors.iter().copied().chain(repeat(1.0));
        (0..head_dim / 2).zip(divisors).map(|(pair, divisor)| scale(pair) / divisor).collect()
    }

    /// What the cosines and sines are multiplied with.
    pub fn magnitude(&self) -> f32 {
        match self.scaling {
            Some(RopeScaling::Yarn(yarn)) => yarn.magnitude as f32,
            _ => 1.0,
        }
    }

    /// The longest text whose frequencies do not depend on its length, if there is one.
    pub fn fixed_up_to(&self) -> Option<usize> {
        match self.scaling {
            Some(RopeScaling::Dynamic { original_context, .. }) => Some(original_context),
            _ => None,
        }
    }
}

/// The base for a text of `tokens` tokens.
fn stretched(theta: f64, factor: f64, original: usize, head_dim: usize, tokens: usize) -> f64 {
    if tokens <= original {
        return theta;
    }
    let longer = factor as f32 * tokens as f32 / original as f32 - (factor - 1.0) as f32;
    let exponent = (head_dim as f64 / (head_dim as f64 - 2.0)) as f32;
    let growth = f64::from(longer).powf(f64::from(exponent)) as f32;
    f64::from(theta as f32 * growth)
}

impl Llama3Scaling {
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
}

impl Yarn {
    /// The inverse frequency of a pair that takes `period` positions for a radian if it is not scaled.
    fn scale(&self, period: f32, pair: usize, theta: f64, head_dim: usize) -> f32 {
        let (kept, slowed) = (period.recip(), (self.factor as f32 * period).recip());
        let dim = head_dim as f64;
        // The pair that turns so often within the original context.
        let turning = |times: f64| {
            dim * (self.original_context as f64 / (times * TAU)).ln() / (2.0 * theta.ln())
        };
        let (mut low, mut high) = (turning(self.beta_fast), turning(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        let ramp = ((pair as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
        let keep = 1.0 - ramp;
        slowed * (1.0 - keep) + kept * keep
    }
}

#[cfg(test)]
mod tests {
    use super::super::fields::Fields;
    use super::*;
    use serde_json::Value;

    const LLAMA_3: f64 = 500000.0;

    fn llama3(factor: f64) -> Rope {
        let scaling = Llama3Scaling {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192,
        };
        Rope { theta: LLAMA_3, scaling: Some(RopeScaling::Llama3(scaling)), divisors: Vec::new() }
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
            let frequencies = llama3(factor).frequencies(head_dim, 0);
            assert_eq!(frequencies.len(), head_dim / 2);
            for &(pair, expected) in expected {
                let difference = relative(frequencies[pair], expected);
                assert!(difference < 2e-6, "pair {pair} of {head_dim}: {difference:e}");
            }
        }
    }

    #[test]
    fn fast_pairs_are_kept_and_slow_ones_divided() {
        let plain =
            Rope { theta: LLAMA_3, scaling: None, divisors: Vec::new() }.frequencies(128, 0);
        let scaled = llama3(8.0).frequencies(128, 0);
        for pair in 0..64 {
            match pair {
                0..=28 => assert_eq!(scaled[pair], plain[pair]),
                29..=34 => assert!(scaled[pair] < plain[pair] && scaled[pair] > plain[pair] / 8.0),
                _ => assert_eq!(scaled[pair], plain[pair] / 8.0),
            }
        }
    }

    /// The f32 tables that `transformers` computes, written by scripts/golden, of all ways to scale.
    #[test]
    fn tables_of_transformers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/rope.json");
        let text = std::fs::read(path).expect("rope.json");
        let tables: Vec<Value> = serde_json::from_slice(&text).expect("JSON");
        let mut largest = [0.0_f64; 2];
        for table in &tables {
            let number = |value: &Value| value.as_f64().expect("a number");
            let object = table["config"].as_object().expect("an object");
            let config = Fields { file: "rope.json", prefix: "", object };
            let rope = Rope::parse(&config).expect("rope parameters");
            let tokens = table["length"].as_u64().unwrap_or(0) as usize;
            let found = rope.frequencies(number(&table["head_dim"]) as usize, tokens);
            let expected = table["frequencies"].as_array().expect("a list");
            assert_eq!(found.len(), expected.len());
            // These take the power of a power, or blend two roundings of one.
            let twice =
                matches!(rope.scaling, Some(RopeScaling::Dynamic { .. } | RopeScaling::Yarn(_)));
            let largest = &mut largest[usize::from(twice)];
            for (found, expected) in found.into_iter().zip(expected) {
                *largest = largest.max(relative(found, number(expected)));
            }
            let magnitude = relative(rope.magnitude(), number(&table["magnitude"]));
            assert!(magnitude < 6e-8, "{table}");
        }
        println!("largest relative differences of {} tables: {largest:?}", tables.len());
        assert!(tables.len() >= 20);
        assert!(largest[0] < 1.2e-7, "over one f32 ulp: {largest:?}");
        assert!(largest[1] < 3.6e-7, "over three f32 ulps: {largest:?}");
    }
}
