//! How the model's makers sample from it, by generation_config.json.

use serde_json::Value;

use super::MAX_VOCAB;
use super::fields::Fields;
use crate::error::Result;

/// What generation_config.json says of it; `None` where it says nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SamplingDefaults {
    /// Whether to draw at random at all.
    pub do_sample: Option<bool>,
    /// 0 is greedy.
    pub temperature: Option<f32>,
    /// 0 is no limit.
    pub top_k: Option<usize>,
    /// Above 0.
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    /// Keys that ask for what we do not have.
    pub ignored: Vec<&'static str>,
}

/// Keys that change what is generated and that we do not have, by the number that turns them off; null,
/// false and an empty list do so for all. Limits of length are the user's to set.
const UNSUPPORTED: [(f64, &[&str]); 2] = [
    (
        0.0,
        &[
            "epsilon_cutoff",
            "eta_cutoff",
            "penalty_alpha",
            "no_repeat_ngram_size",
            "encoder_no_repeat_ngram_size",
            "diversity_penalty",
            "min_new_tokens",
            "min_length",
            "bad_words_ids",
            "force_words_ids",
            "constraints",
            "sequence_bias",
            "suppress_tokens",
            "begin_suppress_tokens",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "exponential_decay_length_penalty",
            "stop_strings",
            "watermarking_config",
        ],
    ),
    (
        1.0,
        &[
            "typical_p",
            "top_h",
            "num_beams",
            "num_beam_groups",
            "encoder_repetition_penalty",
            "guidance_scale",
        ],
    ),
];

impl SamplingDefaults {
    /// Reads a generation_config.json. Numbers out of their range are errors that name the key.
    pub(super) fn parse(fields: &Fields) -> Result<Self> {
        let number =
            |key: &str, range| Ok(fields.optional_number(key, range)?.map(|number| number as f32));
        let positive = f64::from(f32::MIN_POSITIVE);
        Ok(Self {
            do_sample: fields.optional_bool("do_sample")?,
            temperature: number("temperature", 0.0..=1e3)?,
            top_k: fields.optional_size("top_k", 0, MAX_VOCAB)?,
            // A share of 0 keeps the most probable token, as the smallest share does.
            top_p: number("top_p", 0.0..=1.0)?.map(|share: f32| share.max(f32::MIN_POSITIVE)),
            min_p: number("min_p", 0.0..=1.0)?,
            repetition_penalty: number("repetition_penalty", positive..=1e3)?,
            presence_penalty: number("presence_penalty", -2.0..=2.0)?,
            frequency_penalty: number("frequency_penalty", -2.0..=2.0)?,
            ignored: ignored(fields),
        })
    }

    /// Whether the makers say nothing about drawing at random.
    pub fn are_missing(&self) -> bool {
        self.do_sample.is_none()
    }
}

fn ignored(fields: &Fields) -> Vec<&'static str> {
    let is_on = |key: &str, off: f64| {
        fields.optional(key).is_some_and(|value| match value {
            Value::Number(number) => number.as_f64() != Some(off),
            Value::Bool(on) => *on,
            Value::Array(values) => !values.is_empty(),
            _ => true,
        })
    };
    let keys = UNSUPPORTED.iter().flat_map(|(off, keys)| keys.iter().map(|key| (*off, *key)));
    keys.filter(|(off, key)| is_on(key, *off)).map(|(_, key)| key).collect()
}
