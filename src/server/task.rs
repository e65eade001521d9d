//! What HTTP hands to the engine's thread, and what comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::refusal::Refusal;
use crate::sampler::{Logprobs, SamplingOptions};
use crate::session::FinishReason;

/// One text to be continued.
pub struct Task {
    pub prompt: Vec<u32>,
    pub sampling: SamplingOptions,
    pub stop_ids: Vec<u32>,
    pub stop_texts: Vec<String>,
    pub max_tokens: usize,
    /// So many of the most probable tokens are told with each one.
    pub logprobs: Option<usize>,
    /// With each of the prompt's, too.
    pub scores_prompt: bool,
    /// The token before a tool's call, where its text is wanted.
    pub call_tag: Option<u32>,
    /// Which of a request's answers this is.
    pub index: usize,
    pub answer: TaskAnswers,
    pub arrived: Instant,
    /// What was asked, for the log.
    pub endpoint: &'static str,
}

/// What is told of a task, in this order: pieces, then one end. Where a client is slow to read they pile up,
/// no more of them than the context has tokens.
#[derive(Debug)]
pub enum TaskEvent {
    Piece(Piece),
    Done(Done),
    Refused(Refusal),
}

/// Text that is certain, and the tokens since the last piece.
#[derive(Debug, Default)]
pub struct Piece {
    pub text: String,
    pub tokens: Vec<TokenScore>,
}

/// A token with its probability, where that is asked for.
#[derive(Debug, Clone)]
pub struct TokenScore {
    pub id: u32,
    /// The natural logarithm of its probability, before bias, penalties and temperature; the first token of a
    /// prompt has none.
    pub logprob: Option<f64>,
    /// The most probable tokens in its place, and theirs.
    pub top: Vec<(u32, f64)>,
    /// Whether it ended the answer, and has no text.
    pub is_stop: bool,
}

/// To where a request's answers are told, each event with the answer's index.
pub type TaskAnswers = UnboundedSender<(usize, TaskEvent)>;
pub type TaskEvents = UnboundedReceiver<(usize, TaskEvent)>;

/// How an answer has ended.
#[derive(Debug, Clone)]
pub struct Done {
    pub finish: FinishReason,
    pub prompt_tokens: usize,
    /// Of those, what was in the cache.
    pub cached_tokens: usize,
    /// Generated ones, one that ended the answer included.
    pub tokens: usize,
    /// From the request's arrival to the first token.
    pub first_token: Duration,
    pub prefill: Duration,
    pub decode: Duration,
}

impl TokenScore {
    /// That of `id`, with `count` others in its place, where the model gives these `logits`, `[V]`.
    pub fn new(id: u32, logits: &[f32], count: usize) -> Self {
        let logprobs = Logprobs::new(logits);
        let top = logprobs.top(count).into_iter().map(|id| (id, logprobs.of(id))).collect();
        Self { id, logprob: Some(logprobs.of(id)), top, is_stop: false }
    }
}

impl Done {
    /// Tokens a second after the first one.
    pub fn rate(&self) -> f64 {
        let seconds = self.decode.as_secs_f64();
        if seconds > 0.0 { self.tokens.saturating_sub(1) as f64 / seconds } else { 0.0 }
    }
}

/// What the engine's thread is told.
pub enum ServerOrder {
    /// Answer this; the ticket is given back when it begins.
    Answer(Box<Task>, Ticket),
    /// Running answers end.
    Stop,
}

/// The way to the engine's thread.
pub struct TaskQueue {
    orders: Sender<ServerOrder>,
    waiting: Arc<AtomicUsize>,
    most: usize,
}

/// A place in the queue, given back when dropped.
pub struct Ticket(Arc<AtomicUsize>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl TaskQueue {
    /// A queue for so many tasks, and its end.
    pub fn new(most: usize) -> (Self, Receiver<ServerOrder>) {
        let (orders, received) = channel();
        (Self { orders, waiting: Arc::default(), most }, received)
    }

    /// Tasks that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Has the tasks of a request wait for their turn.
    ///
    /// # Errors
    /// 429 where there is no room for all of them; 503 where nothing is answered any more.
    pub fn push(&self, tasks: Vec<Task>) -> Result<(), Refusal> {
        let (count, most) = (tasks.len(), self.most);
        if count > most {
            let message = format!("a request for {count} answers: the queue holds {most}");
            return Err(Refusal::invalid(message));
        }
        let more = |waiting: usize| Some(waiting + count).filter(|sum| *sum <= most);
        if self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_err() {
            let message = format!("{} requests wait already: try again later", self.waiting());
            let refusal = Refusal::new(StatusCode::TOO_MANY_REQUESTS, message);
            return Err(refusal.with_code("queue_full"));
        }
        let tickets: Vec<_> = tasks.iter().map(|_| Ticket(self.waiting.clone())).collect();
        let send = |(task, ticket)| self.orders.send(ServerOrder::Answer(Box::new(task), ticket));
        let sent = tasks.into_iter().zip(tickets).try_for_each(send);
        sent.map_err(|_| Refusal::unavailable("the server ends"))
    }

    /// Has running answers end.
    pub fn stop(&self) {
        // Where nobody listens, all have.
        let _ = self.orders.send(ServerOrder::Stop);
    }
}
