//! `chaski chat`: a conversation that keeps its KV cache from turn to turn.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::args::ChatArgs;
use super::file::write_file;
use super::input::{Input, Said};
use super::interrupt::interrupt;
use super::observer::note_load;
use super::open::{load, options};
use super::output::{Printer, note, note_timing};
use super::sampling::{Stops, chat_sampling, sampling, stops};
use super::text::{chat_format, read_chat, read_text};
use crate::error::{Error, Result};
use crate::sampler::SamplingOptions;
use crate::session::{Answer, Conversation, FinishReason, Session, StopCriteria};
use crate::tokenizer::Tokenizer;

const HELP: &str = "\
/clear          forget the conversation
/system TEXT    set the system prompt; without TEXT, remove it
/regen          answer the last question again
/save FILE      write the conversation as JSON
/load FILE      resume a saved conversation
/exit           leave, as Ctrl-D does
A line that ends in \\ continues on the next. Ctrl-C stops an answer.";

pub fn run(args: &ChatArgs) -> Result<()> {
    let (model, mut engine) = load(&args.model, options(&args.model)?)?;
    if args.prompt.is_none() && args.file.is_none() {
        // Nobody is asked for a line beside a bar that moves.
        engine.team.each(|rank| rank.device_mut().finish_loading())?;
    }
    let (config, tokenizer) = (&model.config, model.tokenizer()?);
    let chat = chat_format(&args.style, |style| model.chat(style))?;
    let stops = stops(&args.stop, config, Some(tokenizer), chat.stop_ids())?;
    let (sampling, first_line) = match args.prompt.is_none() && args.file.is_none() {
        true => chat_sampling(&args.sampling, config),
        false => (sampling(&args.sampling, config), None),
    };
    let load_time = engine.load_time.clone();
    let mut talk = Talk {
        conversation: Conversation::new(tokenizer, &chat),
        tokenizer,
        session: engine.session(),
        sampling,
        max_tokens: args.stop.max_tokens.unwrap_or(usize::MAX),
        stops,
        show_special: args.show_special,
        interrupt: interrupt()?,
    };
    talk.conversation.set_system(args.system.as_deref().unwrap_or(""));
    let question = match (&args.prompt, &args.file) {
        (Some(text), _) => Some(text.clone()),
        (None, Some(file)) => Some(read_text(file)?),
        (None, None) => None,
    };
    let Some(question) = question else {
        if let Some(line) = first_line {
            note(line);
        }
        return converse(talk);
    };
    let answer = talk.ask(question)?;
    note_load(&load_time);
    note_timing(&answer.timing);
    if answer.finish == FinishReason::Interrupted { Err(Error::Interrupted) } else { Ok(()) }
}

/// A conversation, and all it takes to go on.
struct Talk<'a> {
    conversation: Conversation<'a>,
    tokenizer: &'a Tokenizer,
    session: Session,
    sampling: SamplingOptions,
    max_tokens: usize,
    stops: Stops,
    show_special: bool,
    interrupt: &'static AtomicBool,
}

impl Talk<'_> {
    /// Streams the answer to `question`. Both stay in the conversation, unless the question fails.
    fn ask(&mut self, question: String) -> Result<Answer> {
        self.interrupt.store(false, Ordering::Relaxed);
        self.conversation.ask(question);
        self.answer().inspect_err(|_| self.conversation.take_back())
    }

    /// Streams another answer to the last question. The old one stays if that fails.
    fn ask_again(&mut self) -> Result<Answer> {
        self.interrupt.store(false, Ordering::Relaxed);
        let old = self.conversation.reopen()?;
        if self.sampling.temperature == 0.0 {
            note("the most probable tokens are always the same: --temp is for others");
        }
        self.sampling.seed = self.sampling.seed.wrapping_add(1);
        self.answer().inspect_err(|_| self.conversation.restore(old))
    }

    fn answer(&mut self) -> Result<Answer> {
        let prompt = self.conversation.prompt()?;
        let stop = StopCriteria {
            max_tokens: self.max_tokens,
            stop_ids: &self.stops.ids,
            interrupt: self.interrupt,
        };
        let mut printer = Printer::new(self.tokenizer, &self.stops.texts, true, self.show_special);
        let answer = self.session.generate(&prompt, &self.sampling, stop, |id| printer.push(id))?;
        if let (FinishReason::StopId, Some(id)) = (answer.finish, answer.ids.last()) {
            printer.push_stop(*id)?;
        }
        printer.finish()?;
        self.conversation.answered(&prompt, &answer, &printer.text);
        if answer.finish == FinishReason::Context {
            let context = self.session.context();
            note(format_args!("the context of {context} tokens is full: /clear starts anew"));
        }
        Ok(answer)
    }

    fn load(&mut self, file: &Path) -> Result<()> {
        self.conversation.replace(read_chat(file)?);
        note(format_args!("{} messages", self.conversation.request().messages.len()));
        Ok(())
    }
}

/// Reads messages and answers them until the input ends.
fn converse(mut talk: Talk<'_>) -> Result<()> {
    let mut input = Input::open()?;
    if input.is_for_people() {
        note("/help lists the commands");
    }
    let ended = loop {
        match input.message() {
            Ok(Said::Message(line)) if line.trim().is_empty() => {}
            Ok(Said::Message(line)) => match handle(&mut talk, &line) {
                Ok(Next::Leave) => break Ok(()),
                // A person goes on with something else; a script is ended as a whole.
                Ok(Next::Stopped) if !input.is_for_people() => break Err(Error::Interrupted),
                Ok(Next::Stopped) => note("stopped"),
                Ok(Next::GoOn) => {}
                // Nobody is left to answer, or to be answered.
                Err(error) if talk.session.has_ended() => break Err(error),
                Err(error @ Error::ReaderLeft) => break Err(error),
                Err(error) => note(format_args!("chaski: {error}")),
            },
            Ok(Said::Interrupted) => note("/exit or Ctrl-D leaves"),
            Ok(Said::End) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    input.keep_history();
    ended
}

/// What comes of a message.
enum Next {
    GoOn,
    /// Its answer was.
    Stopped,
    Leave,
}

/// Carries out a command or asks a question.
fn handle(talk: &mut Talk<'_>, line: &str) -> Result<Next> {
    let (command, rest) = line.trim().split_once(char::is_whitespace).unwrap_or((line.trim(), ""));
    let file = || match rest.trim() {
        "" => Err(Error::usage(format!("{command} needs a file"))),
        file => Ok(PathBuf::from(file)),
    };
    match command {
        "/exit" | "/quit" => return Ok(Next::Leave),
        "/help" => HELP.lines().for_each(note),
        "/clear" => talk.conversation.clear(),
        "/system" => talk.conversation.set_system(rest),
        "/save" => write_file(&file()?, &format!("{:#}\n", talk.conversation.request().to_json()))?,
        "/load" => talk.load(&file()?)?,
        "/regen" => return Ok(told(&talk.ask_again()?)),
        _ if command.starts_with('/') => {
            return Err(Error::usage(format!("no command {command}; /help lists them")));
        }
        _ => {
            let answer = talk.ask(line.to_owned())?;
            return Ok(told(&answer));
        }
    }
    Ok(Next::GoOn)
}

fn told(answer: &Answer) -> Next {
    if answer.finish == FinishReason::Interrupted { Next::Stopped } else { Next::GoOn }
}
