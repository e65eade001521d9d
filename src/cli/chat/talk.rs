//! A conversation on a model, and all it takes to go on.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::cli::file::write_file;
use crate::cli::output::{Printer, tell, timing_lines};
use crate::cli::text::read_chat;
use crate::error::{Error, Result, count};
use crate::sampler::SamplingOptions;
use crate::session::{Answer, Conversation, FinishReason, Session, StopCriteria, Stops, Timing};
use crate::tokenizer::Tokenizer;

pub(super) struct Talk<'a> {
    pub conversation: Conversation<'a>,
    pub tokenizer: &'a Tokenizer,
    pub session: Session,
    pub sampling: SamplingOptions,
    pub max_tokens: usize,
    pub stops: Stops,
    pub show_special: bool,
    pub interrupt: &'static AtomicBool,
    /// The last question, if it failed and so is not in the conversation.
    pub unanswered: Option<String>,
    /// What every answer took.
    pub said: Vec<Timing>,
}

impl Talk<'_> {
    /// Streams the answer to `question`. Both stay in the conversation, unless the question fails.
    pub fn ask(&mut self, question: String) -> Result<Answer> {
        self.unanswered = Some(question.clone());
        self.conversation.ask(question);
        let answer = self.answer().inspect_err(|_| self.conversation.take_back())?;
        self.unanswered = None;
        Ok(answer)
    }

    /// Asks the question again that failed, or streams another answer to the last one. The old one stays if
    /// that fails.
    pub fn retry(&mut self) -> Result<Answer> {
        if let Some(question) = self.unanswered.take() {
            return self.ask(question);
        }
        let old = self.conversation.reopen()?;
        if self.sampling.temperature == 0.0 {
            tell("the most probable tokens are always the same: --temp is for others");
        }
        self.sampling.seed = self.sampling.seed.wrapping_add(1);
        self.answer().inspect_err(|_| self.conversation.restore(old))
    }

    fn answer(&mut self) -> Result<Answer> {
        self.interrupt.store(false, Ordering::Relaxed);
        let prompt = self.conversation.prompt()?;
        let context = self.session.context();
        if prompt.len() > context && self.conversation.turns() > 1 {
            return Err(Error::failed(format!(
                "with this question the conversation has {} tokens, and the context holds {context}: /drop \
                 forgets the oldest turns, and /retry asks again",
                prompt.len()
            )));
        }
        let stop = StopCriteria {
            max_tokens: self.max_tokens,
            stop_ids: &self.stops.ids,
            interrupt: self.interrupt,
        };
        let mut printer =
            Printer::new(self.tokenizer, &self.stops.texts, true, self.show_special).wrapped();
        let answer = self.session.generate(&prompt, &self.sampling, stop, |id| printer.push(id))?;
        if let (FinishReason::StopId, Some(id)) = (answer.finish, answer.ids.last()) {
            printer.push_stop(*id)?;
        }
        printer.finish()?;
        self.conversation.answered(&prompt, &answer, &printer.text);
        self.said.push(answer.timing);
        Ok(answer)
    }

    /// Forgets the oldest turns: so many, or as many as free half of the context; never the last one.
    pub fn drop_oldest(&mut self, turns: Option<usize>) -> Result<()> {
        let half = self.session.context() / 2;
        let mut dropped = 0;
        while self.conversation.turns() > 1
            && match turns {
                Some(turns) => dropped < turns,
                None => dropped == 0 || self.conversation.tokens()? > half,
            }
        {
            self.conversation.drop_oldest();
            dropped += 1;
        }
        let (left, tokens) = (self.conversation.turns(), self.conversation.tokens()?);
        tell(format_args!(
            "{} forgotten; {} left, {tokens} of {} tokens",
            count(dropped, "turn"),
            count(left, "turn"),
            self.session.context()
        ));
        Ok(())
    }

    pub fn clear(&mut self) {
        let had = self.conversation.request().messages.len();
        self.conversation.clear();
        let kept = self.conversation.request().messages.len();
        self.unanswered = None;
        let system = if kept > 0 { "; the system prompt stays" } else { "" };
        tell(format_args!("{} forgotten{system}", count(had - kept, "message")));
    }

    pub fn set_system(&mut self, text: &str) {
        let is_system = |talk: &Self| {
            talk.conversation.request().messages.iter().any(|message| message.role() == "system")
        };
        let had = is_system(self);
        self.conversation.set_system(text);
        tell(match (is_system(self), had) {
            (true, false) => "system prompt set, for the conversation as a whole",
            (true, true) => "system prompt replaced, for the conversation as a whole",
            (false, true) => "system prompt removed",
            (false, false) => "there is no system prompt",
        });
    }

    /// Writes the conversation; over what is there only if that is wanted.
    pub fn save(&self, file: &Path, may_overwrite: bool) -> Result<()> {
        // What is no regular file, as a pipe, is not overwritten.
        if file.is_file() && !may_overwrite {
            let file = file.display();
            return Err(Error::usage(format!(
                "{file} is there already: /save! {file} overwrites it"
            )));
        }
        let request = self.conversation.request();
        write_file(file, &format!("{:#}\n", request.to_json()))?;
        let messages = count(request.messages.len(), "message");
        tell(format_args!("{}: {messages} written", file.display()));
        Ok(())
    }

    pub fn load(&mut self, file: &Path) -> Result<()> {
        self.conversation.replace(read_chat(file)?);
        self.unanswered = None;
        let messages = count(self.conversation.request().messages.len(), "message");
        tell(format_args!("{}: {messages}", file.display()));
        Ok(())
    }

    /// How full the context is, what answers took, and how they are drawn.
    pub fn tell_statistics(&self) -> Result<()> {
        let SamplingOptions { temperature, top_k, top_p, min_p, seed, .. } = &self.sampling;
        let (tokens, context) = (self.conversation.tokens()?, self.session.context());
        let turns = count(self.conversation.turns(), "turn");
        tell(format_args!("context      {turns}, {tokens} of {context} tokens"));
        tell(match temperature {
            0.0 => "sampling     the most probable token".to_owned(),
            _ => format!(
                "sampling     temperature {temperature}, top-k {top_k}, top-p {top_p}, min-p {min_p}, \
                 seed {seed}"
            ),
        });
        let Some(last) = self.said.last() else { return Ok(()) };
        tell("the last answer");
        timing_lines(last).iter().for_each(tell);
        let sum = self.said.iter().fold(Timing::default(), |sum, timing| sum + *timing);
        let all = count(self.said.len(), "answer");
        tell(format_args!(
            "{all}: {} read, {} generated in {:.3} s",
            count(sum.prefill_tokens, "token"),
            count(sum.decode_tokens + self.said.len(), "token"),
            (sum.first_token + sum.decode).as_secs_f64()
        ));
        Ok(())
    }
}
