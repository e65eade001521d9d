//! How tokens are chosen and what ends an answer: as the arguments say, else the model's makers.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use super::args::{SamplingArgs, Seed, StopArgs};
use super::output::note;
use crate::config::{Config, SamplingDefaults};
use crate::error::{Error, Result};
use crate::sampler::SamplingOptions;
use crate::tokenizer::Tokenizer;

/// llama.cpp's, for a conversation with a model whose makers say nothing: the most probable tokens
/// alone have small models repeat themselves for ever.
const FOR_CHAT: SamplingDefaults = SamplingDefaults {
    do_sample: Some(true),
    temperature: Some(0.8),
    top_k: Some(40),
    top_p: Some(0.95),
    min_p: Some(0.05),
    repetition_penalty: None,
    presence_penalty: None,
    frequency_penalty: None,
    ignored: Vec::new(),
};

/// The sampler's options: the arguments', else the model's own, else off.
///
/// # Errors
/// Options without meaning.
pub fn sampling(args: &SamplingArgs, config: &Config) -> Result<SamplingOptions> {
    options(args, &config.defaults, config.vocab)
}

/// As [`sampling`], for a conversation, where the default is to draw. A line tells of that.
///
/// # Errors
/// As [`sampling`].
pub fn chat_sampling(args: &SamplingArgs, config: &Config) -> Result<SamplingOptions> {
    let models = &config.defaults;
    if args.temp.is_some() || models.do_sample.is_some() {
        return sampling(args, config);
    }
    let defaults = SamplingDefaults {
        do_sample: Some(true),
        temperature: models.temperature.or(FOR_CHAT.temperature),
        top_k: models.top_k.or(FOR_CHAT.top_k),
        top_p: models.top_p.or(FOR_CHAT.top_p),
        min_p: models.min_p.or(FOR_CHAT.min_p),
        ..models.clone()
    };
    let options = options(args, &defaults, config.vocab)?;
    let SamplingOptions { temperature, top_k, top_p, min_p, .. } = options;
    note(format_args!(
        "the model does not say how to sample: --temp {temperature} --top-k {top_k} --top-p {top_p} \
         --min-p {min_p}, as llama.cpp does (--temp 0 for the most probable tokens)"
    ));
    Ok(options)
}

fn options(
    args: &SamplingArgs,
    models: &SamplingDefaults,
    vocab: usize,
) -> Result<SamplingOptions> {
    if !models.ignored.is_empty() {
        let keys = models.ignored.join(", ");
        note(format_args!("generation_config.json: not supported, so without effect: {keys}"));
    }
    let draws = models.do_sample == Some(true);
    let drawing = if draws { models.clone() } else { SamplingDefaults::default() };
    let makers_temperature = if draws { drawing.temperature.unwrap_or(1.0) } else { 0.0 };
    let temperature = args.temp.unwrap_or(makers_temperature);
    let given = args.seed.and_then(Seed::given);
    let seed = given.unwrap_or_else(|| RandomState::new().hash_one(0u8) & 0xffff_ffff);
    // Penalties have a meaning without a draw, too.
    let penalty = |given: Option<f32>, models: Option<f32>, off| given.or(models).unwrap_or(off);
    let options = SamplingOptions {
        temperature,
        top_k: args.top_k.or(drawing.top_k).unwrap_or(0),
        top_p: args.top_p.or(drawing.top_p).unwrap_or(1.0),
        min_p: args.min_p.or(drawing.min_p).unwrap_or(0.0),
        repeat_penalty: penalty(args.repeat_penalty, models.repetition_penalty, 1.0),
        presence_penalty: penalty(args.presence_penalty, models.presence_penalty, 0.0),
        frequency_penalty: penalty(args.frequency_penalty, models.frequency_penalty, 0.0),
        logit_bias: args.logit_bias.clone(),
        seed,
    };
    options.validate(vocab)?;
    if temperature > 0.0 && given.is_none() {
        note(format_args!("seed         {seed}"));
    } else if temperature == 0.0 {
        note_without_effect(args);
    }
    Ok(options)
}

/// Tells of options that only a draw heeds.
fn note_without_effect(args: &SamplingArgs) {
    let of_draws = [
        ("--top-k", args.top_k.is_some()),
        ("--top-p", args.top_p.is_some()),
        ("--min-p", args.min_p.is_some()),
        ("--seed", args.seed.is_some()),
    ];
    let given: Vec<_> =
        of_draws.iter().filter(|(_, given)| *given).map(|(flag, _)| *flag).collect();
    if !given.is_empty() {
        let have = if given.len() == 1 { "has" } else { "have" };
        note(format_args!(
            "{} {have} no effect at temperature 0, which takes the most probable token: --temp 0.8 draws",
            given.join(", ")
        ));
    }
}

/// What ends an answer.
pub struct Stops {
    pub ids: Vec<u32>,
    pub texts: Vec<String>,
}

/// The tokens that end an answer: the model's, those that end one in any model, the chat format's and
/// the user's; and the user's texts. A line tells of tokens that the model's files do not name.
///
/// # Errors
/// An id that is no token's; a text to stop at that holds a control token beside other text: it would never
/// be seen.
pub fn stops(
    args: &StopArgs,
    config: &Config,
    tokenizer: Option<&Tokenizer>,
    of_chat: &[u32],
) -> Result<Stops> {
    let mut stops = Stops { ids: args.stop_id.clone(), texts: Vec::new() };
    if let Some(id) = args.stop_id.iter().find(|id| **id as usize >= config.vocab) {
        let vocab = config.vocab;
        return Err(Error::usage(format!("--stop-id {id}: the model's ids are below {vocab}")));
    }
    if !args.ignore_eos {
        let of_vocabulary = tokenizer.map(Tokenizer::end_of_generation).unwrap_or_default();
        stops.ids.extend(&config.stop_ids);
        let mut unnamed: Vec<u32> = of_vocabulary.into_iter().chain(of_chat.to_vec()).collect();
        unnamed.retain(|id| !config.stop_ids.contains(id));
        unnamed.sort_unstable();
        unnamed.dedup();
        let texts = unnamed.iter().filter_map(|id| tokenizer?.control_text(*id));
        let texts = texts.collect::<Vec<_>>().join(" ");
        if !texts.is_empty() {
            note(format_args!("ends         at {texts} too, which config.json does not name"));
        }
        stops.ids.extend(unnamed);
    }
    for text in &args.stop {
        let Some(tokenizer) = tokenizer else {
            stops.texts.push(text.clone());
            continue;
        };
        match (tokenizer.id(text), tokenizer.find_control(text)) {
            (Some(id), _) => stops.ids.push(id),
            (None, None) => stops.texts.push(text.clone()),
            (None, Some(_)) => {
                return Err(Error::usage(format!(
                    "--stop {text:?} holds a control token beside other text, which an answer's text \
                     never does: give the token alone"
                )));
            }
        }
    }
    Ok(stops)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::command;

    #[test]
    fn help_names_the_defaults_of_a_conversation() {
        let mut command = command();
        let chat = command.find_subcommand_mut("chat").unwrap();
        let SamplingDefaults { temperature, top_k, top_p, min_p, .. } = FOR_CHAT;
        for (flag, default) in [
            ("temp", temperature.unwrap().to_string()),
            ("top_k", top_k.unwrap().to_string()),
            ("top_p", top_p.unwrap().to_string()),
            ("min_p", min_p.unwrap().to_string()),
        ] {
            let help = chat.get_arguments().find(|arg| arg.get_id() == flag).unwrap().get_help();
            let help = help.unwrap().to_string();
            assert!(help.contains(&format!("or {default} in a conversation]")), "{flag}: {help}");
        }
    }
}
