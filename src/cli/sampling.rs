//! How tokens are chosen and what ends an answer: as the arguments say, else the model's makers.

use super::args::{SamplingArgs, Seed, StopArgs};
use super::output::note;
use crate::config::{Config, SamplingDefaults};
use crate::error::{Error, Result};
use crate::random::random_seed;
use crate::sampler::{SamplingChoice, SamplingOptions, for_conversation};
use crate::session::Stops;
use crate::tokenizer::Tokenizer;

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
    let options = options(args, &for_conversation(models), config.vocab)?;
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
    let given = args.seed.and_then(Seed::given);
    let seed = given.unwrap_or_else(random_seed);
    let choice = SamplingChoice {
        temperature: args.temp,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        repeat_penalty: args.repeat_penalty,
        presence_penalty: args.presence_penalty,
        frequency_penalty: args.frequency_penalty,
        logit_bias: args.logit_bias.clone(),
        seed,
    };
    let options = choice.options(models, vocab)?;
    let temperature = options.temperature;
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
    if let Some(id) = args.stop_id.iter().find(|id| **id as usize >= config.vocab) {
        let vocab = config.vocab;
        return Err(Error::usage(format!("--stop-id {id}: the model's ids are below {vocab}")));
    }
    let mut stops = Stops::default();
    if !args.ignore_eos {
        let unnamed;
        (stops, unnamed) = Stops::usual(&config.stop_ids, tokenizer, of_chat);
        let texts = unnamed.iter().filter_map(|id| tokenizer?.control_text(*id));
        let texts = texts.collect::<Vec<_>>().join(" ");
        if !texts.is_empty() {
            note(format_args!("ends         at {texts} too, which config.json does not name"));
        }
    }
    stops.ids.extend(&args.stop_id);
    for text in &args.stop {
        match tokenizer {
            None => stops.texts.push(text.clone()),
            Some(tokenizer) => stops.add_text(text, tokenizer)?,
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
        let defaults = for_conversation(&SamplingDefaults::default());
        let SamplingDefaults { temperature, top_k, top_p, min_p, .. } = defaults;
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
