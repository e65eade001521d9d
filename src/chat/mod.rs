//! A conversation as token ids: in the Llama 3 format itself, or through the model's own template.

mod guard;
mod llama3;
mod python;
mod template;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::json;
use crate::source::Source;
use crate::tokenizer::Tokenizer;
use llama3::Llama3;
use template::ChatTemplate;

/// The tokens that end an answer: the end of a turn, and that of a message which calls a tool.
const STOPS: [&str; 2] = ["<|eot_id|>", "<|eom_id|>"];

/// What one side says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, or what else the model knows.
    pub role: String,
    pub content: String,
}

impl Message {
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// Who lays a conversation out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChatStyle {
    /// Native if the tokenizer has the tokens of the Llama 3 format, else the model's template.
    Auto,
    /// The Llama 3 format, by Chaski. It adds no system message that nobody wrote.
    Native,
    /// The model's own template, with all that it adds, such as today's date.
    Template,
}

/// How a conversation is laid out for a model. Whatever the layout, what a message says is plain
/// text: no control token comes of it.
pub struct Chat {
    format: Format,
    stop_ids: Vec<u32>,
}

enum Format {
    Native(Llama3),
    Template(Box<ChatTemplate>),
}

impl Chat {
    /// The format for a model. A style that the model's files do not allow is an error.
    pub fn load(source: &Source, tokenizer: &Tokenizer, style: ChatStyle) -> Result<Self> {
        let native = || Llama3::new(tokenizer).map(Format::Native);
        let template = || {
            let special = tokenizer.special_tokens().clone();
            ChatTemplate::load(source, special).map(|template| Format::Template(Box::new(template)))
        };
        let format = match style {
            ChatStyle::Auto if Llama3::suits(tokenizer) => native()?,
            ChatStyle::Native => native()?,
            ChatStyle::Auto | ChatStyle::Template => template()?,
        };
        let eos = match &format {
            Format::Native(_) => None,
            Format::Template(_) => tokenizer.special_token("eos_token"),
        };
        let mut stop_ids: Vec<_> =
            STOPS.into_iter().chain(eos).filter_map(|text| tokenizer.id(text)).collect();
        stop_ids.sort_unstable();
        stop_ids.dedup();
        Ok(Self { format, stop_ids })
    }

    /// Makes it `date` in the template, so that a prompt does not change from day to day.
    pub fn with_date(mut self, date: jiff::civil::Date) -> Result<Self> {
        if let Format::Template(template) = &mut self.format {
            template.set_date(date)?;
        }
        Ok(self)
    }

    /// The ids of a conversation, with the header of the assistant's answer at the end if that is to
    /// follow. BOS is there if the format has it.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_assistant_header: bool,
    ) -> Result<Vec<u32>> {
        match &self.format {
            Format::Native(format) => {
                let more = format.encode(tokenizer, messages, add_assistant_header)?;
                Ok(tokenizer.bos().into_iter().chain(more).collect())
            }
            Format::Template(template) => {
                template.encode(tokenizer, messages, add_assistant_header)
            }
        }
    }

    /// The ids that come after those of a conversation when `messages` are added to it: those of
    /// the whole conversation begin with the former and end with the latter. `None` if the format
    /// does not promise that: a template may lay everything out anew.
    pub fn encode_more(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_assistant_header: bool,
    ) -> Result<Option<Vec<u32>>> {
        match &self.format {
            Format::Native(format) => {
                format.encode(tokenizer, messages, add_assistant_header).map(Some)
            }
            Format::Template(_) => Ok(None),
        }
    }

    /// The token that ends a message, to be put after an answer that was broken off; `None` as for
    /// [`Self::encode_more`].
    pub fn end_of_turn(&self) -> Option<u32> {
        match &self.format {
            Format::Native(format) => Some(format.end_of_turn()),
            Format::Template(_) => None,
        }
    }

    /// The ids that end an answer, sorted.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }
}

/// Why a file of a chat format is of no use.
fn failed(path: &str, what: &str) -> crate::error::Error {
    crate::error::Error::failed(format!("{path}: {}", json::one_line(what)))
}
