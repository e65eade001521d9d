//! `chaski tokenize` and `chaski detokenize`

use std::io::{BufReader, Read};
use std::path::Path;

use super::args::{DetokenizeArgs, TokenizeArgs};
use super::input::read_line;
use super::output::print;
use super::pull::cached;
use super::text::{chat_format, parse_ids, read_chat, read_text};
use crate::chat::Chat;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

pub fn tokenize(args: &TokenizeArgs) -> Result<()> {
    let source = cached(&args.model)?;
    let tokenizer = Tokenizer::load(&source)?;
    if let Some(file) = &args.source.chat {
        let request = read_chat(file)?;
        let chat = chat_format(&args.style, |style| Chat::load(&source, &tokenizer, style))?;
        return print_array(&chat.encode(&tokenizer, &request, true)?);
    }
    let encode = |text: &str| {
        let ids = if args.plain { tokenizer.encode_text(text)? } else { tokenizer.encode(text)? };
        Ok(if args.bos { tokenizer.surround(ids) } else { ids })
    };
    let text = args.source.text.as_ref().or(args.source.prompt.as_ref());
    match (text, &args.source.file, &args.source.jsonl) {
        (Some(text), _, _) => print_array(&encode(text)?),
        (None, Some(file), _) => print_array(&encode(&read_text(file)?)?),
        (None, None, Some(file)) => tokenize_lines(file, encode),
        (None, None, None) => print_array(&encode(&read_text(Path::new("-"))?)?),
    }
}

/// One JSON string a line in, one array a line out.
fn tokenize_lines(file: &Path, encode: impl Fn(&str) -> Result<Vec<u32>>) -> Result<()> {
    let failed = |error| Error::failed(format!("cannot read {}: {error}", file.display()));
    let reader: Box<dyn Read> = match file.to_str() {
        Some("-") => Box::new(std::io::stdin()),
        _ => Box::new(std::fs::File::open(file).map_err(failed)?),
    };
    let (mut reader, mut line) = (BufReader::new(reader), Vec::new());
    for number in 1.. {
        line.clear();
        if read_line(&mut reader, &mut line).map_err(failed)? == 0 {
            break;
        }
        let text: String = serde_json::from_slice(&line).map_err(|error| {
            Error::failed(format!("{} line {number}: not a JSON string: {error}", file.display()))
        })?;
        print_array(&encode(&text)?)?;
    }
    Ok(())
}

fn print_array(ids: &[u32]) -> Result<()> {
    print(&format!("{}\n", serde_json::json!(ids)))
}

pub fn detokenize(args: &DetokenizeArgs) -> Result<()> {
    let tokenizer = Tokenizer::load(&cached(&args.model)?)?;
    let ids = match (&args.file, &args.ids[..]) {
        (Some(file), _) => parse_ids(&read_text(file)?, &file.display().to_string())?,
        (None, []) => parse_ids(&read_text(Path::new("-"))?, "standard input")?,
        (None, words) => parse_ids(&words.join(","), "IDS")?,
    };
    if let Some(id) = ids.iter().find(|id| !tokenizer.is_token(**id)) {
        return Err(Error::failed(format!("token id {id} is not in the model's tokenizer")));
    }
    print(&format!("{}\n", tokenizer.decode(&ids, !args.skip_control)?))
}
