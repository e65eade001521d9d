//! The Llama 3 format: BOS, then for each message its role between header tokens, an empty line,
//! what it says, and the token that ends a turn.
//!
//! Role and content are encoded apart from the control tokens around them, as Meta's ChatFormat
//! does, so text cannot become a control token, and each message has the same ids whatever stands
//! before it. White space around the content is taken off, as the templates on Hugging Face and
//! the ChatFormat of Llama 3.0 do (that of 3.1 does not): it is what the models are used with, and
//! nobody types it on purpose.

use super::{Message, Request};
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

const BOS: &str = "<|begin_of_text|>";
const START_HEADER: &str = "<|start_header_id|>";
const END_HEADER: &str = "<|end_header_id|>";
const END_OF_TURN: &str = "<|eot_id|>";

pub(super) struct Llama3 {
    start_header: u32,
    end_header: u32,
    end_of_turn: u32,
    /// What the tokenizer calls BOS, else Llama 3's.
    bos: Option<u32>,
    /// The ids of the empty line after a header.
    empty_line: Vec<u32>,
}

impl Llama3 {
    /// Whether a tokenizer has the tokens of the format.
    pub fn suits(tokenizer: &Tokenizer) -> bool {
        [START_HEADER, END_HEADER, END_OF_TURN].iter().all(|text| tokenizer.id(text).is_some())
    }

    pub fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let id = |text| {
            tokenizer.id(text).ok_or_else(|| {
                Error::failed(format!(
                    "the tokenizer has no {text}, so the Llama 3 format is not the model's: \
                     use its own template"
                ))
            })
        };
        Ok(Self {
            start_header: id(START_HEADER)?,
            end_header: id(END_HEADER)?,
            end_of_turn: id(END_OF_TURN)?,
            bos: tokenizer.bos().or_else(|| tokenizer.id(BOS)),
            empty_line: tokenizer.encode_text("\n\n")?,
        })
    }

    /// What of a request has no place in the format; `None` if all of it has.
    pub fn refusal(request: &Request) -> Option<String> {
        let what = request.first_extra().map(str::to_owned).or_else(|| {
            (1..).zip(&request.messages).find_map(|(number, message)| match message.first_extra() {
                Some(key) => Some(format!("{key} (message {number})")),
                None if message.role() == "tool" => {
                    Some(format!("the role tool (message {number})"))
                }
                None => None,
            })
        })?;
        Some(format!(
            "the Llama 3 format has no place for {what}: a chat template of the model's may"
        ))
    }

    /// The ids of a whole conversation.
    pub fn encode_all(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_assistant_header: bool,
    ) -> Result<Vec<u32>> {
        let ids = self.encode(tokenizer, messages, add_assistant_header)?;
        Ok(self.bos.into_iter().chain(ids).collect())
    }

    /// The ids of messages, without BOS.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_assistant_header: bool,
    ) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for message in messages {
            self.push_header(tokenizer, message.role(), &mut ids)?;
            ids.extend(tokenizer.encode_text(message.text().trim_matches(is_python_space))?);
            ids.push(self.end_of_turn);
        }
        if add_assistant_header {
            self.push_header(tokenizer, "assistant", &mut ids)?;
        }
        Ok(ids)
    }

    pub fn end_of_turn(&self) -> u32 {
        self.end_of_turn
    }

    fn push_header(&self, tokenizer: &Tokenizer, role: &str, ids: &mut Vec<u32>) -> Result<()> {
        ids.push(self.start_header);
        ids.extend(tokenizer.encode_text(role)?);
        ids.push(self.end_header);
        ids.extend(&self.empty_line);
        Ok(())
    }
}

/// What Python's `strip`, and so the templates' `trim`, takes off.
fn is_python_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1c'..='\x1f')
}
