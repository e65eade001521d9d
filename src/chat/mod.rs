//! A conversation as token ids: in the Llama 3 format itself, or through the model's own template.

mod charged;
mod files;
mod guard;
mod jinja;
mod llama3;
mod python;
mod request;
mod template;
mod tojson;

use crate::error::{Error, Result};
use crate::json;
use crate::source::Source;
use crate::tokenizer::Tokenizer;
use llama3::Llama3;
pub use request::{Message, Request};
use template::ChatTemplate;

/// The text of a model's own template, where it has one.
///
/// # Errors
/// What is wrong with the file that holds it.
pub fn default_template(source: &Source) -> Result<Option<String>> {
    let found = files::templates(source)?;
    Ok(found.and_then(|(_, mut templates)| templates.remove(files::DEFAULT)))
}

/// The roles that the native format and a template are compared in.
const COMPARED_ROLES: [&str; 3] = ["system", "user", "assistant"];

/// Who lays a conversation out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChatStyle {
    /// The model's own template. Native where that gives the same ids, or where there is no template.
    Auto,
    /// The Llama 3 format, by Chaski. It adds no system message that nobody wrote.
    Native,
    /// The model's own template, with all that it adds, such as today's date.
    Template,
}

/// How a conversation is laid out for a model. Whatever the layout, what a message says is plain
/// text: no control token comes of it.
pub struct Chat {
    native: Option<Llama3>,
    /// Beside the native format, it is for what that has no place for.
    template: Option<Box<ChatTemplate>>,
    stop_ids: Vec<u32>,
}

impl Chat {
    /// The format for a model. A style that the model's files do not allow is an error.
    pub fn load(source: &Source, tokenizer: &Tokenizer, style: ChatStyle) -> Result<Self> {
        let suits = Llama3::suits(tokenizer);
        let template = match style {
            ChatStyle::Native => None,
            ChatStyle::Auto => ChatTemplate::load(source, tokenizer)?,
            ChatStyle::Template => {
                Some(ChatTemplate::load(source, tokenizer)?.ok_or_else(|| no_template(source))?)
            }
        };
        let native = match (style, &template) {
            (ChatStyle::Native, _) => Some(Llama3::new(tokenizer)?),
            (ChatStyle::Auto, None) if !suits => return Err(no_template(source)),
            (ChatStyle::Auto, None) => Some(Llama3::new(tokenizer)?),
            (ChatStyle::Auto, Some(template)) if suits => {
                let native = Llama3::new(tokenizer)?;
                is_native(tokenizer, &native, template).then_some(native)
            }
            (ChatStyle::Auto | ChatStyle::Template, _) => None,
        };
        let eos = tokenizer.special_token("eos_token").and_then(|text| tokenizer.id(text));
        let mut stop_ids = tokenizer.end_of_generation();
        stop_ids.extend(eos.filter(|_| template.is_some()));
        stop_ids.sort_unstable();
        stop_ids.dedup();
        Ok(Self { native, template: template.map(Box::new), stop_ids })
    }

    /// Makes it `date` in the template, so that a prompt does not change from day to day.
    pub fn with_date(mut self, date: jiff::civil::Date) -> Result<Self> {
        if let Some(template) = &mut self.template {
            template.set_date(date)?;
        }
        Ok(self)
    }

    /// The ids of a conversation, with the header of the assistant's answer at the end if that is to
    /// follow. BOS is there if the format has it.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        request: &Request,
        add_assistant_header: bool,
    ) -> Result<Vec<u32>> {
        if let Some(native) = self.native_for(request)? {
            return native.encode_all(tokenizer, &request.messages, add_assistant_header);
        }
        let template = self.template.as_ref().expect("a format that is not native is a template");
        template.encode(tokenizer, request, add_assistant_header)
    }

    /// The ids that come after those of a conversation when the last `count` of its messages are added
    /// to it: those of the whole conversation begin with the former and end with the latter. `None` if
    /// the format does not promise that: a template may lay everything out anew.
    pub fn encode_more(
        &self,
        tokenizer: &Tokenizer,
        request: &Request,
        count: usize,
        add_assistant_header: bool,
    ) -> Result<Option<Vec<u32>>> {
        let more = &request.messages[request.messages.len() - count..];
        self.native_for(request)?
            .map(|native| native.encode(tokenizer, more, add_assistant_header))
            .transpose()
    }

    /// The native format, where it is the one for a request.
    fn native_for(&self, request: &Request) -> Result<Option<&Llama3>> {
        let Some(native) = &self.native else {
            return Ok(None);
        };
        let is_compared = |message: &Message| COMPARED_ROLES.contains(&message.role());
        match (Llama3::refusal(request), &self.template) {
            (None, None) => Ok(Some(native)),
            (None, Some(_)) if request.messages.iter().all(is_compared) => Ok(Some(native)),
            (_, Some(_)) => Ok(None),
            (Some(refusal), None) => Err(Error::failed(refusal)),
        }
    }

    /// The token that ends a message, to be put after an answer that was broken off; `None` as for
    /// [`Self::encode_more`].
    pub fn end_of_turn(&self) -> Option<u32> {
        self.native.as_ref().map(Llama3::end_of_turn)
    }

    /// The ids that end an answer, sorted.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }
}

/// Whether a template lays a conversation out as the native format does: also white space at the edges
/// of what is said, and control tokens in it.
fn is_native(tokenizer: &Tokenizer, native: &Llama3, template: &ChatTemplate) -> bool {
    let says = Message::new;
    let messages = [
        says("system", "Be brief.\n"),
        says("user", "  What is <|eot_id|><|begin_of_text|>? \n"),
        says("assistant", " That ends\na turn.\t"),
        says("user", "And <|im_end|></s>?"),
    ];
    // The second and the last message stand for a conversation without a system message.
    [&messages[..], &messages[1..2]].into_iter().all(|messages| {
        let ids = native.encode_all(tokenizer, messages, true);
        ids == template.encode(tokenizer, &messages.into(), true)
    })
}

fn no_template(source: &Source) -> Error {
    Error::failed(format!(
        "{}: has no chat_template, and there is no chat_template.jinja beside it: this may be a base \
         model, which only continues text",
        source.path(files::CONFIG)
    ))
}

/// Why a file of a chat format is of no use.
fn failed(path: &str, what: &str) -> Error {
    Error::failed(format!("{path}: {}", json::one_line(what)))
}
