//! `chaski chat`: a conversation that keeps its KV cache from turn to turn.

mod commands;
mod talk;

use super::args::ChatArgs;
use super::input::Input;
use super::interrupt::interrupt;
use super::observer::note_load;
use super::open::{load, options};
use super::output::{note_timing, tell};
use super::sampling::{chat_sampling, sampling, stops};
use super::text::{chat_format, read_text};
use crate::engine::Model;
use crate::error::{Error, Result};
use crate::session::{Conversation, FinishReason, check_prompt};
use commands::converse;
use talk::Talk;

pub fn run(args: &ChatArgs) -> Result<()> {
    let system = args.system.as_deref().unwrap_or("");
    let question = || match (&args.prompt, &args.file) {
        (Some(text), _) => Ok(Some(text.clone())),
        (None, Some(file)) => read_text(file).map(Some),
        (None, None) => Ok(None),
    };
    let check = |model: &Model, question: Option<String>| {
        let (config, tokenizer) = (&model.config, model.tokenizer()?);
        let chat = chat_format(&args.style, |style| model.chat(style))?;
        let stops = stops(&args.stop, config, Some(tokenizer), chat.stop_ids())?;
        let sampling = match &question {
            None => chat_sampling(&args.sampling, config)?,
            Some(question) => {
                let mut alone = Conversation::new(tokenizer, &chat);
                alone.set_system(system);
                alone.ask(question.clone());
                check_prompt(&alone.prompt()?, model.plan()?.sizes.context, config.vocab)?;
                sampling(&args.sampling, config)?
            }
        };
        Ok((question, chat, stops, sampling))
    };
    let (model, mut engine, (question, chat, stops, sampling)) =
        load(&args.model, options(&args.model)?, question, check)?;
    if question.is_none() {
        // Nobody is asked for a line beside a bar that moves.
        engine.team.each(|rank| rank.device_mut().finish_loading())?;
    }
    let (tokenizer, load_time) = (model.tokenizer()?, engine.load_time.clone());
    let mut conversation = Conversation::new(tokenizer, &chat);
    conversation.set_system(system);
    let mut talk = Talk {
        conversation,
        tokenizer,
        session: engine.session(),
        sampling,
        max_tokens: args.stop.max_tokens.unwrap_or(usize::MAX),
        stops,
        show_special: args.show_special,
        interrupt: interrupt()?,
        unanswered: None,
        said: Vec::new(),
    };
    let Some(question) = question else {
        return converse(talk, Input::open(!args.no_history)?);
    };
    let answer = talk.ask(question)?;
    note_load(&load_time);
    note_timing(&answer.timing);
    match answer.finish {
        FinishReason::Interrupted => return Err(Error::Interrupted),
        FinishReason::Context => {
            tell(format_args!("the context of {} tokens is full", talk.session.context()));
        }
        FinishReason::StopId | FinishReason::StopString | FinishReason::Length => {}
    }
    Ok(())
}
