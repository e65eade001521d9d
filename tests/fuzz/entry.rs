//! What is run on every input, by the fuzz targets and by the normal tests. An input is either
//! refused in one line, or what was read from it holds what it promises.

use std::fs;

use chaski::chat::{self, Chat, ChatStyle};
use chaski::checkpoint::{Checkpoint, header, index};
use chaski::comm::{Decoded, MOST_OF_STRANGERS, PeerMessage, decode};
use chaski::config::{Config, Dims};
use chaski::error::Error;
use chaski::gguf::Gguf;
use chaski::source::{Source, is_plain_name};
use chaski::tokenizer::Tokenizer;
use chaski::torch;
use tempfile::TempDir;

/// A target: its name, which is its corpus's, and what it runs.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: [Target; 8] = [
    ("safetensors_header", safetensors_header),
    ("safetensors_index", safetensors_index),
    ("gguf", gguf),
    ("torch", torch),
    ("config", config),
    ("frame", frame),
    ("tokenizer", tokenizer),
    ("chat_template", chat_template),
];

const TYPED: &str = "aaaaaaaaaaaaaaaaaaaa <|eot_id|><s>[INST] é 12345\n\n</s>";

/// The input as a file, and as a header up to its last brace, with the right length before it, and
/// its data.
pub fn safetensors_header(input: &[u8]) {
    check_tensors(input);
    let end = input.iter().rposition(|byte| *byte == b'}').map_or(0, |last| last + 1);
    let length = (end as u64).to_le_bytes();
    check_tensors(&[&length[..], input].concat());
}

fn check_tensors(file: &[u8]) {
    let tensors = match header::parse(file) {
        Ok(tensors) => tensors,
        Err(trouble) => return assert_one_line(&trouble),
    };
    let mut end = tensors.first().map_or(file.len(), |(_, tensor)| tensor.offset);
    for (_, tensor) in &tensors {
        assert_eq!(tensor.offset, end);
        assert!(tensor.offset.is_multiple_of(tensor.encoding.row_bytes(1)));
        assert_eq!(tensor.encoding.row_bytes(tensor.len()), tensor.bytes);
        assert_ne!(tensor.bytes, 0);
        end += tensor.bytes;
    }
    assert_eq!(end, file.len());
}

pub fn safetensors_index(input: &[u8]) {
    match index::parse(input) {
        Ok(files) => assert!(!files.is_empty() && files.values().all(|file| is_plain_name(file))),
        Err(trouble) => assert_one_line(&trouble),
    }
}

/// The input as a GGUF file, by itself and as a model.
pub fn gguf(input: &[u8]) {
    let gguf = match Gguf::parse(input) {
        Ok(gguf) => gguf,
        Err(trouble) => return assert_one_line(&trouble),
    };
    let mut end = 0;
    for tensor in &gguf.tensors {
        assert!(end <= tensor.offset && tensor.bytes > 0);
        end = tensor.offset + tensor.bytes;
        assert!(end <= input.len());
    }
    gguf.keys().for_each(|(_, value)| assert_one_line(&value.to_string()));
    let (folder, _) = folder("model.gguf", input);
    let source = Source::find(folder.path().to_str().expect("a path")).expect("it is parsed");
    for told in [
        Config::load(&source).err(),
        Tokenizer::load(&source).err(),
        Checkpoint::open(&source).err(),
    ] {
        told.iter().for_each(|error| assert_one_line(&error.to_string()));
    }
}

/// The input as a file of `torch.save`.
pub fn torch(input: &[u8]) {
    let tensors = match torch::parse(input) {
        Ok(tensors) => tensors,
        Err(trouble) => return assert_one_line(&trouble),
    };
    for tensor in &tensors {
        let len: usize = tensor.shape.iter().product();
        assert!(tensor.bytes == len * tensor.float.bytes() && tensor.bytes > 0);
        assert!(tensor.offset.is_multiple_of(tensor.float.bytes()));
        assert!(tensor.offset + tensor.bytes <= input.len());
    }
}

/// The input as config.json, and what follows a zero byte as generation_config.json.
pub fn config(input: &[u8]) {
    let mut texts = input.splitn(2, |byte| *byte == 0);
    let config = match Config::parse(texts.next().unwrap_or_default(), texts.next(), "fuzz") {
        Ok(config) => config,
        Err(error) => return assert_one_line(&error.to_string()),
    };
    for tokens in [0, config.longest_context()] {
        let frequencies = config.rope.frequencies(config.head_dim, tokens);
        assert_eq!(frequencies.len(), config.head_dim / 2);
        assert!(frequencies.iter().all(|frequency| frequency.is_finite() && *frequency >= 0.0));
    }
    assert!(config.rope.magnitude().is_finite());
    assert!(config.heads.is_multiple_of(config.kv_heads));
    assert!(config.norm_eps > 0.0 && config.norm_eps.is_finite());
    assert!(config.stop_ids.iter().chain(&config.bos_id).all(|id| (*id as usize) < config.vocab));
    assert!(config.parameters(false) >= config.parameters(true));
    Dims::new(&config, 1).expect("one rank has everything");
}

/// The input as what a connection brings, a message and what is left after it.
pub fn frame(input: &[u8]) {
    let length = input.first_chunk().map(|head| u32::from_le_bytes(*head) as usize);
    let end = length.and_then(|length| length.checked_add(size_of::<u32>()));
    let end = end.unwrap_or(input.len()).min(input.len());
    match decode(&input[..end], MOST_OF_STRANGERS) {
        Err(error) => assert_one_line(&Error::failed(error.to_string()).to_string()),
        Ok(Decoded::Lacks(missing)) => {
            assert!(missing > 0 && end == input.len(), "{missing} of {length:?}");
            assert!(missing <= MOST_OF_STRANGERS);
        }
        // What was read is what is said again.
        Ok(Decoded::Message(message)) => {
            let text = serde_json::to_string(&message).unwrap();
            let again: PeerMessage = serde_json::from_str(&text).unwrap();
            assert_eq!(serde_json::to_string(&again).unwrap(), text);
        }
    }
}

/// The input as tokenizer.json.
pub fn tokenizer(input: &[u8]) {
    let (_folder, source) = folder("tokenizer.json", input);
    let tokenizer = match Tokenizer::load(&source) {
        Ok(tokenizer) => tokenizer,
        Err(error) => return assert_one_line(&error.to_string()),
    };
    match tokenizer.encode_text(TYPED) {
        Ok(ids) => {
            assert!(ids.iter().all(|id| !tokenizer.is_control(*id)), "typed text steers");
            tokenizer
                .decode(&ids, true)
                .map_or_else(|error| assert_one_line(&error.to_string()), drop);
        }
        Err(error) => assert_one_line(&error.to_string()),
    }
}

/// The input as the chat template of a conversation.
pub fn chat_template(input: &[u8]) {
    let (_folder, source) = folder("chat_template.jinja", input);
    let tokenizer = Tokenizer::load(&Source::Demo).expect("the demo's tokenizer");
    let says = chat::Message::new;
    let messages = [says("user", TYPED), says("assistant", " b ")];
    let chat = Chat::load(&source, &tokenizer, ChatStyle::Template);
    match chat.and_then(|chat| chat.encode(&tokenizer, &messages[..].into(), true)) {
        Ok(ids) => assert!(ids.iter().all(|id| tokenizer.is_token(*id))),
        Err(error) => assert_one_line(&error.to_string()),
    }
}

fn folder(file: &str, input: &[u8]) -> (TempDir, Source) {
    let folder = TempDir::new().expect("a folder");
    fs::write(folder.path().join(file), input).expect("a file");
    let source = Source::Directory(folder.path().to_owned());
    (folder, source)
}

fn assert_one_line(message: &str) {
    assert!(!message.is_empty() && message.len() < 2000, "{} bytes", message.len());
    assert!(!message.contains(char::is_control), "{message:?}");
}
