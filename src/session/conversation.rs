//! A conversation that keeps the ids of what was said, so that the cache serves the next turn.

use super::{Answer, FinishReason};
use crate::chat::{Chat, Message, Request};
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// Messages, and how they become ids.
pub struct Conversation<'a> {
    tokenizer: &'a Tokenizer,
    chat: &'a Chat,
    /// The messages, and what a file that was loaded says beside them.
    request: Request,
    /// Those of the answered messages, as they went in and came out; empty if unknown.
    ids: Vec<u32>,
}

impl<'a> Conversation<'a> {
    pub fn new(tokenizer: &'a Tokenizer, chat: &'a Chat) -> Self {
        Self { tokenizer, chat, request: Request::default(), ids: Vec::new() }
    }

    /// The messages so far.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Goes on with these messages instead.
    pub fn replace(&mut self, request: Request) {
        self.request = request;
        self.ids.clear();
    }

    /// Adds the user's next message, to be answered or [taken back](Self::take_back).
    pub fn ask(&mut self, question: String) {
        self.request.messages.push(Message::new("user", question));
    }

    /// Takes the last message back.
    pub fn take_back(&mut self) {
        self.request.messages.pop();
    }

    /// Has the last question be answered anew. Returns the old answer, if there is one, for
    /// [`Self::restore`].
    ///
    /// # Errors
    /// Where there is no question.
    pub fn reopen(&mut self) -> Result<Option<Message>> {
        let old = self.request.messages.pop_if(|last| last.role() == "assistant");
        if self.request.messages.last().is_none_or(|last| last.role() == "system") {
            self.request.messages.extend(old);
            return Err(Error::usage("there is no question yet"));
        }
        self.ids.clear();
        Ok(old)
    }

    /// Puts an answer back that [`Self::reopen`] has taken out.
    pub fn restore(&mut self, answer: Option<Message>) {
        self.request.messages.extend(answer);
    }

    /// The ids up to the answer: where the format allows, the very ids so far, which the cache holds, and
    /// those of the question.
    ///
    /// # Errors
    /// What the format refuses.
    pub fn prompt(&self) -> Result<Vec<u32>> {
        if !self.ids.is_empty()
            && let Some(more) = self.chat.encode_more(self.tokenizer, &self.request, 1, true)?
        {
            return Ok([&self.ids[..], &more].concat());
        }
        self.chat.encode(self.tokenizer, &self.request, true)
    }

    /// Adds what was answered to `prompt`, whose text is this.
    pub fn answered(&mut self, prompt: &[u32], answer: &Answer, text: &str) {
        self.request.messages.push(Message::new("assistant", text.trim()));
        self.ids = match (answer.finish, self.chat.end_of_turn()) {
            // The text was cut inside a token, or the format wants to be laid out anew.
            (FinishReason::StopString, _) | (_, None) => Vec::new(),
            (finish, Some(end)) => {
                let said = answer.ids.len() - usize::from(finish == FinishReason::StopId);
                [prompt, &answer.ids[..said], &[end]].concat()
            }
        };
    }

    /// Has the model be told this before the conversation; nothing, if it is empty.
    pub fn set_system(&mut self, text: &str) {
        self.ids.clear();
        self.request.messages.retain(|message| message.role() != "system");
        if !text.trim().is_empty() {
            self.request.messages.insert(0, Message::new("system", text.trim()));
        }
    }

    /// How often the user has said something.
    pub fn turns(&self) -> usize {
        self.request.messages.iter().filter(|message| message.role() == "user").count()
    }

    /// Tokens of the messages so far.
    ///
    /// # Errors
    /// What the format refuses.
    pub fn tokens(&self) -> Result<usize> {
        match (&self.ids[..], &self.request.messages[..]) {
            (_, []) => Ok(0),
            ([], _) => Ok(self.chat.encode(self.tokenizer, &self.request, false)?.len()),
            (ids, _) => Ok(ids.len()),
        }
    }

    /// Forgets the first thing that the user has said, and what came of it: all up to the second.
    pub fn drop_oldest(&mut self) {
        self.ids.clear();
        let mut turn = 0;
        self.request.messages.retain(|message| {
            turn += usize::from(message.role() == "user");
            turn != 1 || message.role() == "system"
        });
    }

    /// Forgets all messages but what the model is told before them.
    pub fn clear(&mut self) {
        self.ids.clear();
        let mut messages = std::mem::take(&mut self.request).messages;
        messages.retain(|message| message.role() == "system");
        self.request.messages = messages;
    }
}
