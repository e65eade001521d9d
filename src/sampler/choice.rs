//! How tokens are chosen as a caller says, else as the model's makers do.

use super::SamplingOptions;
use crate::config::SamplingDefaults;
use crate::error::Result;

/// What a caller says of it. See [`SamplingOptions`] for the fields.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SamplingChoice {
    pub temperature: Option<f32>,
    pub top_k: Option<usize>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repeat_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub logit_bias: Vec<(u32, f32)>,
    pub seed: u64,
}

impl SamplingChoice {
    /// The options: the caller's, else the makers' own, else off. `vocab`: V
    ///
    /// # Errors
    /// Options without meaning.
    pub fn options(self, models: &SamplingDefaults, vocab: usize) -> Result<SamplingOptions> {
        let draws = models.do_sample == Some(true);
        let drawing = if draws { models.clone() } else { SamplingDefaults::default() };
        let makers_temperature = if draws { drawing.temperature.unwrap_or(1.0) } else { 0.0 };
        // Penalties have a meaning without a draw, too.
        let penalty =
            |given: Option<f32>, models: Option<f32>, off| given.or(models).unwrap_or(off);
        let options = SamplingOptions {
            temperature: self.temperature.unwrap_or(makers_temperature),
            top_k: self.top_k.or(drawing.top_k).unwrap_or(0),
            top_p: self.top_p.or(drawing.top_p).unwrap_or(1.0),
            min_p: self.min_p.or(drawing.min_p).unwrap_or(0.0),
            repeat_penalty: penalty(self.repeat_penalty, models.repetition_penalty, 1.0),
            presence_penalty: penalty(self.presence_penalty, models.presence_penalty, 0.0),
            frequency_penalty: penalty(self.frequency_penalty, models.frequency_penalty, 0.0),
            logit_bias: self.logit_bias,
            seed: self.seed,
        };
        options.validate(vocab)?;
        Ok(options)
    }
}

/// What a conversation is drawn by whose temperature nobody has chosen: where the makers do not say whether
/// to draw, llama.cpp's defaults, since the most probable tokens alone have small models repeat themselves
/// for ever.
pub fn for_conversation(models: &SamplingDefaults) -> SamplingDefaults {
    if models.do_sample.is_some() {
        return models.clone();
    }
    SamplingDefaults {
        do_sample: Some(true),
        temperature: models.temperature.or(Some(0.8)),
        top_k: models.top_k.or(Some(40)),
        top_p: models.top_p.or(Some(0.95)),
        min_p: models.min_p.or(Some(0.05)),
        ..models.clone()
    }
}
