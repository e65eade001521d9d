//! Arguments about how tokens are chosen, and when an answer ends.

use clap::Args;

use super::values::{logit_bias, off_at_zero, seed, stop_text, temperature, unlimited};

/// How the next token is chosen. What is not given is as the model's generation_config.json says, or
/// else off: without any of it, decoding is greedy.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Temperature: divides the logits, so the higher it is, the flatter is the distribution; 0 always
    /// takes the most probable token [default: generation_config.json's, else 0, or 0.8 in a conversation]
    #[arg(long, visible_alias = "temperature", value_name = "T", value_parser = temperature)]
    pub temp: Option<f32>,

    /// Draw from the K most probable tokens; 0 or -1 is no limit [default: generation_config.json's,
    /// else 0, or 40 in a conversation]
    #[arg(long, value_name = "K", value_parser = off_at_zero)]
    pub top_k: Option<usize>,

    /// Draw from the most probable tokens that together have this probability; 1 is no limit [default:
    /// generation_config.json's, else 1, or 0.95 in a conversation]
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,

    /// Leave out tokens less probable than P times the most probable one; 0 is no limit [default:
    /// generation_config.json's, else 0, or 0.05 in a conversation]
    #[arg(long, value_name = "P")]
    pub min_p: Option<f32>,

    /// Divide positive and multiply negative logits of tokens in the prompt or the answer; 1 is off
    /// [default: generation_config.json's, else 1]
    #[arg(long, alias = "repetition-penalty", value_name = "X")]
    pub repeat_penalty: Option<f32>,

    /// Lower the logits of tokens in the answer by X; 0 is off [default: generation_config.json's, else 0]
    #[arg(long, value_name = "X")]
    pub presence_penalty: Option<f32>,

    /// Lower the logit of a token by X for every time it is in the answer; 0 is off [default:
    /// generation_config.json's, else 0]
    #[arg(long, value_name = "X")]
    pub frequency_penalty: Option<f32>,

    /// Add BIAS to the logit of a token, as in 128009=-inf; may be repeated [default: none;
    /// generation_config.json has no say]
    #[arg(long, value_name = "ID=BIAS", value_parser = logit_bias)]
    pub logit_bias: Vec<(u32, f32)>,

    /// Random seed: the same seed and options give the same text [default: random, and told]
    #[arg(short, long, value_parser = seed)]
    pub seed: Option<Seed>,
}

/// Where random numbers start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seed {
    Random,
    Given(u64),
}

impl Seed {
    pub fn given(self) -> Option<u64> {
        match self {
            Self::Random => None,
            Self::Given(seed) => Some(seed),
        }
    }
}

/// When an answer ends.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Stopping")]
pub struct StopArgs {
    /// Generate at most N tokens [default, and -1: until the model stops or the context is full]
    #[arg(short = 'n', long, value_name = "N", value_parser = unlimited)]
    #[arg(aliases = ["n-predict", "predict", "max-new-tokens"])]
    pub max_tokens: Option<usize>,

    /// Continue past end-of-generation tokens
    #[arg(long)]
    pub ignore_eos: bool,

    /// Stop before this text, or at the control token of this name; may be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = stop_text)]
    pub stop: Vec<String>,

    /// Stop at this token too; may be repeated
    #[arg(long, value_name = "ID")]
    pub stop_id: Vec<u32>,
}
