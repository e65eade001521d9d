//! An answer that is being generated, at its place in the cache.

use std::time::{Duration, Instant};

use super::log::ServerLog;
use super::metrics::Metrics;
use super::task::{Done, Piece, Task, TaskAnswers, TaskEvent, TokenScore};
use super::tools::CALL_TAG;
use crate::error::Result;
use crate::session::{
    Advance, AnswerText, FinishReason, Generation, Next, Scored, Session, StopCriteria,
};
use crate::tokenizer::Tokenizer;

pub struct RunningAnswer<'t> {
    pub place: usize,
    task: Task,
    generation: Generation<'static>,
    text: AnswerText<'t>,
    cached_tokens: usize,
    /// Tokens of the prompt after which the logits have come.
    scored: usize,
    /// V
    vocab: usize,
    tokens: usize,
    first_token: Option<Instant>,
    has_left: bool,
}

impl<'t> RunningAnswer<'t> {
    /// # Errors
    /// What is wrong with the prompt or the options; a device that fails.
    pub fn begin(
        task: Task,
        place: usize,
        tokenizer: &'t Tokenizer,
        session: &mut Session,
    ) -> Result<Self> {
        let stop = StopCriteria { max_tokens: task.max_tokens, ..StopCriteria::default() };
        let stop = StopCriteria { stop_ids: &task.stop_ids, ..stop };
        let scored = match task.logprobs {
            None => Scored::Nothing,
            Some(_) if task.scores_prompt => Scored::All,
            Some(_) => Scored::Answer,
        };
        let generation = session.begin_at(place, &task.prompt, &task.sampling, stop, scored)?;
        Ok(Self {
            place,
            text: AnswerText::new(tokenizer, &task.stop_texts, false),
            cached_tokens: session.cached(place).len(),
            generation,
            scored: 0,
            vocab: session.vocab(),
            task,
            tokens: 0,
            first_token: None,
            has_left: false,
        })
    }

    /// Where the client is told, as which answer.
    pub fn tell(&self) -> (TaskAnswers, usize) {
        (self.task.answer.clone(), self.task.index)
    }

    pub fn prompt_tokens(&self) -> usize {
        self.task.prompt.len()
    }

    /// One step. Whether there is another.
    ///
    /// # Errors
    /// A device that fails; logits that leave no choice.
    pub fn step(&mut self, session: &mut Session) -> Result<bool> {
        self.has_left = self.task.answer.is_closed();
        if self.has_left {
            return Ok(false);
        }
        let advance = self.generation.advance(session)?;
        self.score_prompt();
        if advance == Advance::Token {
            self.token()?;
        }
        if !self.generation.has_ended(session) {
            return Ok(true);
        }
        let text = self.text.finish()?;
        self.send(TaskEvent::Piece(Piece { text, tokens: Vec::new() }));
        Ok(false)
    }

    /// Tells of the prompt's tokens that can be judged since the last step.
    fn score_prompt(&mut self) {
        let logits = self.generation.prompt_logits();
        let (Some(count), false) = (self.task.logprobs, logits.is_empty()) else { return };
        let mut tokens = Vec::new();
        if self.scored == 0 {
            tokens.push(TokenScore {
                id: self.task.prompt[0],
                logprob: None,
                top: Vec::new(),
                is_stop: false,
            });
        }
        let rest = &self.task.prompt[self.scored + 1..];
        let rows = logits.chunks_exact(self.vocab);
        self.scored += rows.len();
        tokens.extend(rest.iter().zip(rows).map(|(id, row)| TokenScore::new(*id, row, count)));
        self.send(TaskEvent::Piece(Piece { text: String::new(), tokens }));
    }

    /// Tells of the token that was generated last.
    fn token(&mut self) -> Result<()> {
        let step = self.generation.step().expect("there is one");
        self.tokens += 1;
        self.first_token.get_or_insert_with(Instant::now);
        let score = self.task.logprobs.map(|count| TokenScore {
            is_stop: step.is_stop,
            ..TokenScore::new(step.id, step.logits, count)
        });
        if step.is_stop {
            let tokens = score.into_iter().collect();
            self.send(TaskEvent::Piece(Piece { text: String::new(), tokens }));
            return Ok(());
        }
        let (mut text, next) = self.text.push(step.id)?;
        if self.task.call_tag == Some(step.id) {
            text.push_str(CALL_TAG);
        }
        if next == Next::Stop {
            self.generation.stop();
        }
        if !text.is_empty() || score.is_some() {
            self.send(TaskEvent::Piece(Piece { text, tokens: score.into_iter().collect() }));
        }
        Ok(())
    }

    /// Ends it before its time.
    pub fn interrupt(mut self, session: &mut Session, metrics: &Metrics, log: &ServerLog) {
        // What is held back is text as well; one that cannot be decoded has been told of before.
        let text = self.text.finish().unwrap_or_default();
        self.send(TaskEvent::Piece(Piece { text, tokens: Vec::new() }));
        session.forget(self.place, 0);
        self.end(metrics, log);
    }

    /// Tells of the end.
    pub fn end(self, metrics: &Metrics, log: &ServerLog) {
        let since = |start: Instant, end: Option<Instant>| {
            end.map_or(Duration::ZERO, |end| end.duration_since(start))
        };
        let (task, tokens, has_left) = (self.task, self.tokens, self.has_left);
        let answer = self.generation.answer();
        let done = Done {
            finish: answer.finish,
            prompt_tokens: task.prompt.len(),
            cached_tokens: self.cached_tokens,
            tokens,
            first_token: since(task.arrived, self.first_token),
            prefill: answer.timing.prefill,
            decode: answer.timing.decode,
        };
        metrics.ended(&done, task.arrived.elapsed());
        let end = if has_left { "the client has left" } else { finish_name(done.finish) };
        log(&format!(
            "{}: {} tokens in, {} cached, {tokens} out; first token after {:.3} s, {:.1} tokens/s; {end}",
            task.endpoint,
            done.prompt_tokens,
            done.cached_tokens,
            done.first_token.as_secs_f64(),
            done.rate()
        ));
        let _ = task.answer.send((task.index, TaskEvent::Done(done)));
    }

    /// Whoever has left wants to know nothing.
    fn send(&self, event: TaskEvent) {
        let is_nothing = match &event {
            TaskEvent::Piece(Piece { text, tokens }) => text.is_empty() && tokens.is_empty(),
            TaskEvent::Done(_) | TaskEvent::Refused(_) => false,
        };
        if !is_nothing {
            let _ = self.task.answer.send((self.task.index, event));
        }
    }
}

fn finish_name(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::StopId => "stop",
        FinishReason::StopString => "stop text",
        FinishReason::Length => "as many tokens as asked for",
        FinishReason::Context => "the context is full",
        FinishReason::Interrupted => "interrupted",
    }
}
