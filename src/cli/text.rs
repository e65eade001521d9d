//! What goes in: prompts, ids, texts and conversations, as arguments and files have them.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::args::{PromptArgs, StyleArg, StyleArgs};
use super::output::note;
use crate::chat::{Chat, ChatStyle, Request as ChatRequest};
use crate::error::{Error, Result};
use crate::random::random_ids;
use crate::tokenizer::Tokenizer;

/// What is to be continued.
pub enum Prompt {
    Text(String),
    Ids(Vec<u32>),
    /// So many.
    Random(usize),
}

impl Prompt {
    /// As arguments and files have it.
    ///
    /// # Errors
    /// A file that cannot be read; what are no ids.
    pub fn read(args: &PromptArgs) -> Result<Self> {
        let PromptArgs { prompt, file, ids, ids_file, random_ids } = args;
        match (prompt, file, ids, ids_file, random_ids) {
            (Some(text), ..) => Ok(Self::Text(text.clone())),
            (_, Some(file), ..) => Ok(Self::Text(read_text(file)?)),
            (.., Some(ids), _, _) => parse_ids(ids, "--ids").map(Self::Ids),
            (.., Some(file), _) => {
                parse_ids(&read_text(file)?, &file.display().to_string()).map(Self::Ids)
            }
            (.., Some(count)) => Ok(Self::Random(*count)),
            (None, None, None, None, None) => unreachable!("clap requires one of them"),
        }
    }

    /// Its ids: those given, random ones, or the text's with BOS before them, where the tokenizer puts it.
    ///
    /// # Errors
    /// What is wrong with the tokenizer, which only a text needs.
    pub fn ids<'t>(
        self,
        tokenizer: impl FnOnce() -> Result<&'t Tokenizer>,
        vocab: usize,
    ) -> Result<Vec<u32>> {
        match self {
            Self::Text(text) => text_ids(tokenizer()?, &text),
            Self::Ids(ids) => Ok(ids),
            Self::Random(count) => Ok(random_ids(0, count, vocab)),
        }
    }
}

/// The ids of a text to be continued or scored, with a line where its BOS is not what one may expect.
pub fn text_ids(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let ids = tokenizer.surround(tokenizer.encode(text)?);
    if let Some(remark) = tokenizer.remark() {
        note(remark);
    }
    if let ([bos], [_, second, ..]) = (tokenizer.before_text(), &ids[..])
        && bos == second
    {
        note("the text begins with BOS itself, so there are two of it: leave it out of the text");
    }
    Ok(ids)
}

/// Ids separated by commas or white space; a JSON array will do.
pub fn parse_ids(text: &str, place: &str) -> Result<Vec<u32>> {
    let list = text.trim().trim_start_matches('[').trim_end_matches(']');
    list.split(|c: char| c == ',' || c.is_whitespace())
        .filter(|word| !word.is_empty())
        .map(|word| {
            word.parse().map_err(|_| {
                let word: String = word.chars().take(20).collect();
                Error::failed(format!("{place}: {word:?} is not a token id"))
            })
        })
        .collect()
}

/// A whole text file; `-` is standard input.
pub fn read_text(file: &Path) -> Result<String> {
    let failed = |error| Error::failed(format!("cannot read {}: {error}", file.display()));
    let mut bytes = Vec::new();
    let read = match file.as_os_str() == "-" {
        true => io::stdin().take(MOST_TEXT_BYTES + 1).read_to_end(&mut bytes),
        false => {
            File::open(file).and_then(|file| file.take(MOST_TEXT_BYTES + 1).read_to_end(&mut bytes))
        }
    };
    if read.map_err(failed)? as u64 > MOST_TEXT_BYTES {
        return Err(failed(io::Error::other(format!("over {} MiB", MOST_TEXT_BYTES >> 20))));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        failed(io::Error::other(format!("it is not UTF-8 text: byte {at}")))
    })
}

/// Texts are read whole: no more than this, so that `/dev/zero` has an end.
const MOST_TEXT_BYTES: u64 = 256 << 20;

/// A conversation from a JSON file; `-` is standard input.
pub fn read_chat(file: &Path) -> Result<ChatRequest> {
    ChatRequest::parse(&read_text(file)?)
        .map_err(|what| Error::failed(format!("{}: {what}", file.display())))
}

/// How a model's conversations are written.
pub fn chat_format(args: &StyleArgs, load: impl FnOnce(ChatStyle) -> Result<Chat>) -> Result<Chat> {
    let chat = load(match args.chat_style {
        StyleArg::Auto => ChatStyle::Auto,
        StyleArg::Native => ChatStyle::Native,
        StyleArg::Template => ChatStyle::Template,
    })?;
    match args.date {
        None => Ok(chat),
        Some(date) => chat.with_date(date),
    }
}
