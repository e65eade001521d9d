//! `chaski chat`: a conversation that keeps its KV cache from turn to turn.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::args::ChatArgs;
use super::file::write_file;
use super::input::{Input, Said};
use super::load::{Loaded, load};
use super::model::{chat_format, interrupt, needed, read_chat, read_text};
use super::output::{Printer, note, note_timing};
use super::sampling::{Stops, chat_sampling, sampling, stops};
use crate::chat::{Chat, Message, Request};
use crate::error::{Error, Result};
use crate::sampler::SamplingOptions;
use crate::session::{Answer, Finish, Limits, Session};
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
    let Loaded { source, config, mut team, tokenizer, load } = load(&args.model, false, None)?;
    if args.prompt.is_none() && args.file.is_none() {
        // Nobody is asked for a line beside a bar that moves.
        team.each(|rank| rank.device_mut().finish_loading())?;
    }
    let chat = chat_format(&args.style, &source, needed(&tokenizer)?)?;
    let stops = stops(&args.stop, &config, &tokenizer, chat.stop_ids())?;
    let (sampling, first_line) = match args.prompt.is_none() && args.file.is_none() {
        true => chat_sampling(&args.sampling, &config),
        false => (sampling(&args.sampling, &config), None),
    };
    let tokenizer = needed(&tokenizer)?;
    let mut conversation = Conversation {
        tokenizer,
        chat: &chat,
        session: Session::new(team),
        sampling,
        max_tokens: args.stop.max_tokens.unwrap_or(usize::MAX),
        stops,
        show_special: args.show_special,
        interrupt: interrupt()?,
        request: Request::default(),
        ids: Vec::new(),
    };
    conversation.set_system(args.system.as_deref().unwrap_or(""));
    let question = match (&args.prompt, &args.file) {
        (Some(text), _) => Some(text.clone()),
        (None, Some(file)) => Some(read_text(file)?),
        (None, None) => None,
    };
    let Some(question) = question else {
        if let Some(line) = first_line {
            note(line);
        }
        return converse(conversation);
    };
    let answer = conversation.ask(question)?;
    load.note();
    note_timing(&answer.timing);
    if answer.finish == Finish::Interrupted { Err(Error::Interrupted) } else { Ok(()) }
}

/// The messages so far, and all it takes to go on.
struct Conversation<'a> {
    tokenizer: &'a Tokenizer,
    chat: &'a Chat,
    session: Session,
    sampling: SamplingOptions,
    max_tokens: usize,
    stops: Stops,
    show_special: bool,
    interrupt: &'static AtomicBool,
    /// The messages, and what a file that was loaded says beside them.
    request: Request,
    /// Those of the answered messages, as they went in and came out; empty if unknown.
    ids: Vec<u32>,
}

impl Conversation<'_> {
    /// Streams the answer to `question`. Both stay in the conversation, unless the question fails.
    fn ask(&mut self, question: String) -> Result<Answer> {
        self.interrupt.store(false, Ordering::Relaxed);
        self.request.messages.push(Message::new("user", question));
        let answered = self.answer();
        if answered.is_err() {
            self.request.messages.pop();
        }
        answered
    }

    /// Streams another answer to the last question. The old one stays if that fails.
    fn ask_again(&mut self) -> Result<Answer> {
        self.interrupt.store(false, Ordering::Relaxed);
        let old = self.request.messages.pop_if(|last| last.role() == "assistant");
        if self.request.messages.last().is_none_or(|last| last.role() == "system") {
            self.request.messages.extend(old);
            return Err(Error::usage("there is no question yet"));
        }
        if self.sampling.temperature == 0.0 {
            note("the most probable tokens are always the same: --temp is for others");
        }
        self.sampling.seed = self.sampling.seed.wrapping_add(1);
        self.ids.clear();
        let answered = self.answer();
        if answered.is_err() {
            self.request.messages.extend(old);
        }
        answered
    }

    fn answer(&mut self) -> Result<Answer> {
        let prompt = self.prompt()?;
        let limits = Limits {
            max_tokens: self.max_tokens,
            stop_ids: &self.stops.ids,
            interrupt: self.interrupt,
        };
        let mut printer = Printer::new(self.tokenizer, &self.stops.texts, true, self.show_special);
        let answer =
            self.session.generate(&prompt, &self.sampling, limits, |id| printer.push(id))?;
        if let (Finish::StopId, Some(id)) = (answer.finish, answer.ids.last()) {
            printer.push_stop(*id)?;
        }
        printer.finish()?;
        self.request.messages.push(Message::new("assistant", printer.text.trim()));
        self.ids = match (answer.finish, self.chat.end_of_turn()) {
            // The text was cut inside a token, or the format wants to be laid out anew.
            (Finish::Receiver, _) | (_, None) => Vec::new(),
            (finish, Some(end)) => {
                let said = answer.ids.len() - usize::from(finish == Finish::StopId);
                [&prompt[..], &answer.ids[..said], &[end]].concat()
            }
        };
        if answer.finish == Finish::Context {
            let context = self.session.context();
            note(format_args!("the context of {context} tokens is full: /clear starts anew"));
        }
        Ok(answer)
    }

    /// The ids of the conversation up to the answer: where the format allows, the very ids so far,
    /// which the cache holds, and those of the question.
    fn prompt(&self) -> Result<Vec<u32>> {
        if !self.ids.is_empty()
            && let Some(more) = self.chat.encode_more(self.tokenizer, &self.request, 1, true)?
        {
            return Ok([&self.ids[..], &more].concat());
        }
        self.chat.encode(self.tokenizer, &self.request, true)
    }

    fn set_system(&mut self, text: &str) {
        self.ids.clear();
        self.request.messages.retain(|message| message.role() != "system");
        if !text.trim().is_empty() {
            self.request.messages.insert(0, Message::new("system", text.trim()));
        }
    }

    fn load(&mut self, file: &Path) -> Result<()> {
        self.request = read_chat(file)?;
        self.ids.clear();
        note(format_args!("{} messages", self.request.messages.len()));
        Ok(())
    }

    fn clear(&mut self) {
        self.ids.clear();
        let mut messages = std::mem::take(&mut self.request).messages;
        messages.retain(|message| message.role() == "system");
        self.request.messages = messages;
    }
}

/// Reads messages and answers them until the input ends.
fn converse(mut conversation: Conversation<'_>) -> Result<()> {
    let mut input = Input::open()?;
    if input.is_for_people() {
        note("/help lists the commands");
    }
    let ended = loop {
        match input.message() {
            Ok(Said::Message(line)) if line.trim().is_empty() => {}
            Ok(Said::Message(line)) => match handle(&mut conversation, &line) {
                Ok(Next::Leave) => break Ok(()),
                // A person goes on with something else; a script is ended as a whole.
                Ok(Next::Stopped) if !input.is_for_people() => break Err(Error::Interrupted),
                Ok(Next::Stopped) => note("stopped"),
                Ok(Next::GoOn) => {}
                // Nobody is left to answer, or to be answered.
                Err(error) if conversation.session.has_ended() => break Err(error),
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
fn handle(conversation: &mut Conversation<'_>, line: &str) -> Result<Next> {
    let (command, rest) = line.trim().split_once(char::is_whitespace).unwrap_or((line.trim(), ""));
    let file = || match rest.trim() {
        "" => Err(Error::usage(format!("{command} needs a file"))),
        file => Ok(PathBuf::from(file)),
    };
    match command {
        "/exit" | "/quit" => return Ok(Next::Leave),
        "/help" => note(HELP),
        "/clear" => conversation.clear(),
        "/system" => conversation.set_system(rest),
        "/save" => write_file(&file()?, &format!("{:#}\n", conversation.request.to_json()))?,
        "/load" => conversation.load(&file()?)?,
        "/regen" => return Ok(told(&conversation.ask_again()?)),
        _ if command.starts_with('/') => {
            return Err(Error::usage(format!("no command {command}; /help lists them")));
        }
        _ => {
            let answer = conversation.ask(line.to_owned())?;
            return Ok(told(&answer));
        }
    }
    Ok(Next::GoOn)
}

fn told(answer: &Answer) -> Next {
    if answer.finish == Finish::Interrupted { Next::Stopped } else { Next::GoOn }
}
