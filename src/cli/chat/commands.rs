//! What is said in a conversation: questions, and commands that begin with a slash.

use std::path::PathBuf;

use super::talk::Talk;
use crate::cli::input::{Input, Said};
use crate::cli::output::tell;
use crate::error::{Error, Result};
use crate::session::{Answer, FinishReason};

const HELP: &str = "\
/retry          answer the last question again (also /regen)
/drop [N]       forget the N oldest turns; without N, as many as free half of the context
/clear          forget the conversation
/system TEXT    set the system prompt; without TEXT, remove it
/save FILE      write the conversation as JSON; /save! also over a file that is there
/load FILE      resume a saved conversation
/stats          how full the context is, and how fast answers are
/exit           leave, as Ctrl-D does
//TEXT          say TEXT with one slash before it
A line that ends in \\ continues on the next. Ctrl-C stops an answer.
What is typed is kept for the arrow keys: --no-history or CHASKI_HISTORY=off keeps nothing.";

/// Reads messages and answers them until the input ends.
///
/// # Errors
/// What ends the conversation before.
pub(super) fn converse(mut talk: Talk<'_>, mut input: Input) -> Result<()> {
    if input.is_for_people() {
        tell("/help lists the commands");
    }
    let ended = loop {
        let said = match input.message() {
            Ok(said) => said,
            Err(error) => break Err(error),
        };
        match said {
            Said::Message(line) if line.trim().is_empty() => {}
            Said::Message(line) => {
                let unechoed = input.unechoed();
                let outcome = handle(&mut talk, &line);
                drop(unechoed);
                match outcome {
                    Ok(Next::Leave) => break Ok(()),
                    // A person goes on with something else; a script is ended as a whole.
                    Ok(Next::Stopped) if !input.is_for_people() => break Err(Error::Interrupted),
                    Ok(Next::Stopped) => tell("stopped"),
                    Ok(Next::GoOn) => {}
                    // Nobody is left to answer, or to be answered.
                    Err(error) if talk.session.has_ended() => break Err(error),
                    Err(error @ Error::ReaderLeft) => break Err(error),
                    Err(error) => tell(format_args!("chaski: {error}")),
                }
            }
            Said::Interrupted => tell("/exit or Ctrl-D leaves"),
            Said::End => break Ok(()),
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
    let said = line.trim();
    if let Some(text) = said.strip_prefix('/').filter(|text| text.starts_with('/')) {
        return talk.ask(text.to_owned()).map(|answer| told(talk, &answer));
    }
    let (command, rest) = said.split_once(char::is_whitespace).unwrap_or((said, ""));
    let rest = rest.trim();
    let file = || match rest {
        "" => Err(Error::usage(format!("{command} needs a file"))),
        file => Ok(PathBuf::from(file)),
    };
    match command {
        "/exit" | "/quit" => return Ok(Next::Leave),
        "/help" => HELP.lines().for_each(tell),
        "/clear" => talk.clear(),
        "/system" => talk.set_system(rest),
        "/save" => talk.save(&file()?, false)?,
        "/save!" => talk.save(&file()?, true)?,
        "/load" => talk.load(&file()?)?,
        "/stats" => talk.tell_statistics()?,
        "/drop" => talk.drop_oldest(turns(rest)?)?,
        "/retry" | "/regen" => return talk.retry().map(|answer| told(talk, &answer)),
        _ if command.starts_with('/') => {
            return Err(Error::usage(format!(
                "there is no command {command}: /help lists them, and /{command} says it"
            )));
        }
        _ => return talk.ask(line.to_owned()).map(|answer| told(talk, &answer)),
    }
    Ok(Next::GoOn)
}

/// How many turns are to be forgotten; none, where nothing is said.
fn turns(text: &str) -> Result<Option<usize>> {
    let wrong = |_| Error::usage(format!("/drop {text}: a number of turns is needed, or nothing"));
    Some(text).filter(|text| !text.is_empty()).map(|text| text.parse().map_err(wrong)).transpose()
}

/// What comes of an answer; a full context is told.
fn told(talk: &Talk<'_>, answer: &Answer) -> Next {
    match answer.finish {
        FinishReason::Interrupted => return Next::Stopped,
        FinishReason::Context => {
            let drop = match talk.conversation.turns() {
                0 | 1 => "",
                _ => "/drop forgets the oldest turns, ",
            };
            let context = talk.session.context();
            tell(format_args!("the context of {context} tokens is full: {drop}/clear all of them"));
        }
        FinishReason::StopId | FinishReason::StopString | FinishReason::Length => {}
    }
    Next::GoOn
}
