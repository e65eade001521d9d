//! How the next token is chosen.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How the next token is chosen; the default is to draw from the model's own probabilities.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplingOptions {
    /// Divides the logits; 0 takes the most probable token.
    pub temperature: f32,
    /// Keeps this many of the most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the most probable tokens up to this share of the probability, in (0, 1]; 1 keeps all.
    pub top_p: f32,
    /// Keeps the tokens at least this fraction as probable as the most probable one, in [0, 1].
    pub min_p: f32,
    /// Divides the positive logits of tokens that are in the prompt or the answer, multiplies the
    /// negative ones; 1 changes nothing.
    pub repeat_penalty: f32,
    /// Is taken off the logits of tokens that are in the answer, in [-2, 2].
    pub presence_penalty: f32,
    /// Is taken off the logits of tokens as often as they are in the answer, in [-2, 2].
    pub frequency_penalty: f32,
    /// Ids and what is added to their logits; negative infinity rules a token out.
    #[serde(with = "bits")]
    pub logit_bias: Vec<(u32, f32)>,
    pub seed: u64,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

/// With a penalty, and the model's own logit, it is still finite.
const MOST_BIAS: f32 = 1e30;

impl SamplingOptions {
    /// Refuses what has no meaning, by the name of its field; `vocab` is the number of logits.
    pub fn validate(&self, vocab: usize) -> Result<()> {
        let penalty = -2.0..=2.0;
        let is_positive = |number: f32| number > 0.0 && number.is_finite();
        // Others would make infinities of the model's logits.
        let (repeat_penalty, repeat_penalties) = (self.repeat_penalty, 0.01..=100.0);
        let temperature = self.temperature;
        for (field, value, is_right, range) in [
            (
                "temperature",
                temperature,
                temperature == 0.0 || is_positive(temperature),
                "0 or above",
            ),
            ("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1"),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1"),
            (
                "repeat_penalty",
                repeat_penalty,
                repeat_penalties.contains(&repeat_penalty),
                "from 0.01 to 100",
            ),
            (
                "presence_penalty",
                self.presence_penalty,
                penalty.contains(&self.presence_penalty),
                "from -2 to 2",
            ),
            (
                "frequency_penalty",
                self.frequency_penalty,
                penalty.contains(&self.frequency_penalty),
                "from -2 to 2",
            ),
        ] {
            if !is_right {
                return Err(Error::usage(format!("`{field}` is {value}: it must be {range}")));
            }
        }
        for (id, bias) in &self.logit_bias {
            if *id as usize >= vocab {
                return Err(Error::usage(format!(
                    "`logit_bias` names the id {id}: ids are below {vocab}"
                )));
            }
            if !(-MOST_BIAS..=MOST_BIAS).contains(bias) && *bias != f32::NEG_INFINITY {
                return Err(Error::usage(format!(
                    "`logit_bias` for the id {id} is {bias}: it must be a number from -1e30 to 1e30, or -inf"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn senseless_options_are_named() {
        type Change = fn(&mut SamplingOptions);
        let cases: [(Change, &str); 14] = [
            (|o| o.temperature = -0.5, "`temperature` is -0.5: it must be 0 or above"),
            (|o| o.temperature = f32::NAN, "`temperature` is NaN"),
            (|o| o.temperature = f32::INFINITY, "`temperature` is inf"),
            (|o| o.top_p = 0.0, "`top_p` is 0"),
            (|o| o.top_p = 1.5, "`top_p` is 1.5"),
            (|o| o.min_p = -0.1, "`min_p` is -0.1"),
            (|o| o.min_p = f32::NAN, "`min_p` is NaN"),
            (|o| o.repeat_penalty = 0.0, "`repeat_penalty` is 0"),
            (|o| o.repeat_penalty = 1e-45, "`repeat_penalty` is 0.0"),
            (|o| o.logit_bias = vec![(1, f32::MAX)], "`logit_bias` for the id 1 is 3"),
            (|o| o.presence_penalty = 2.5, "`presence_penalty` is 2.5"),
            (|o| o.frequency_penalty = f32::NAN, "`frequency_penalty` is NaN"),
            (
                |o| o.logit_bias = vec![(100, 0.0)],
                "`logit_bias` names the id 100: ids are below 100",
            ),
            (|o| o.logit_bias = vec![(1, f32::NAN)], "`logit_bias` for the id 1 is NaN"),
        ];
        assert_eq!(SamplingOptions::default().validate(100), Ok(()));
        for (change, message) in cases {
            let mut options = SamplingOptions::default();
            change(&mut options);
            let error = options.validate(100).unwrap_err();
            assert!(matches!(&error, Error::Usage(text) if text.starts_with(message)), "{error}");
        }
    }
}

/// Biases in JSON, which does not know infinity.
mod bits {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(bias: &[(u32, f32)], to: S) -> Result<S::Ok, S::Error> {
        let bits: Vec<_> = bias.iter().map(|(id, bias)| (id, bias.to_bits())).collect();
        bits.serialize(to)
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(
        from: D,
    ) -> Result<Vec<(u32, f32)>, D::Error> {
        let bits: Vec<(u32, u32)> = Deserialize::deserialize(from)?;
        Ok(bits.into_iter().map(|(id, bits)| (id, f32::from_bits(bits))).collect())
    }
}
