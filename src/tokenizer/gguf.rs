//! A model's tokenizer as the keys that llama.cpp reads it from.

use std::collections::HashMap;

use super::around::around;
use super::definition::{AddedToken, Definition, Merge};
use super::settings::TokenizerSettings;
use super::step::PipelineStep;
use super::steps::GPT2_PATTERN;
use super::{Tokenizer, source_definition};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::gguf::NewValue;
use crate::json::quote;
use crate::source::{Source, pre_tokenizer_name};

/// llama.h, `llama_token_type`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// The keys, without the `tokenizer.ggml.` that all begin with.
type Keys = Vec<(&'static str, NewValue)>;

impl Tokenizer {
    /// The keys of a model of this config; where there is no tokenizer, that there is none.
    ///
    /// # Errors
    /// What is wrong with the files; a tokenizer of which llama.cpp has no like.
    pub fn gguf_keys(source: &Source, config: &Config) -> Result<Vec<(String, NewValue)>> {
        let with_prefix = |keys: Keys| {
            let prefixed = |(key, value)| (format!("tokenizer.ggml.{key}"), value);
            keys.into_iter().map(prefixed).collect::<Vec<_>>()
        };
        if !source.has("tokenizer.json") && !source.has("tokenizer.model") {
            let mut keys = vec![("model", NewValue::Text("no_vocab".to_owned()))];
            keys.extend(
                ends(&config.stop_ids)
                    .map_err(|what| Error::failed(format!("{source}: {what}")))?,
            );
            keys.extend(config.bos_id.map(|id| ("bos_token_id", NewValue::U32(id))));
            return Ok(with_prefix(keys));
        }
        let (file, definition, settings) = source_definition(source)?;
        let keys = definition.and_then(|definition| {
            definition.check()?;
            let tokens = Tokens::of(&definition, config.vocab)?;
            let is_bytes = definition.mentions("ByteLevel");
            let mut keys = match is_bytes {
                true => of_bytes(&definition)?,
                false => of_pieces(&definition, &tokens)?,
            };
            keys.extend(roles(&definition, &settings, config)?);
            keys.push(("tokens", NewValue::Texts(tokens.texts)));
            keys.push(("token_type", NewValue::I32s(tokens.kinds)));
            Ok(keys)
        });
        let path = source.path(file);
        keys.map(with_prefix).map_err(|what| Error::failed(format!("{path}: {what}")))
    }
}

/// All tokens, by id.
struct Tokens {
    texts: Vec<String>,
    kinds: Vec<i32>,
}

impl Tokens {
    /// Ids without a token are padding.
    fn of(definition: &Definition, vocab: usize) -> std::result::Result<Self, String> {
        let mut texts: Vec<String> = (0..vocab).map(|id| format!("[PAD{id}]")).collect();
        let mut kinds = vec![UNUSED; vocab];
        let model = &definition.model;
        let kind_of = |text: &str| match () {
            () if model.byte_fallback && is_byte(text) => BYTE,
            () if model.unk_token.as_deref() == Some(text) => UNKNOWN,
            () => NORMAL,
        };
        let own = model.vocab.iter().map(|(text, id)| (text, *id, kind_of(text)));
        let kind_of = |token: &AddedToken| if token.is_control() { CONTROL } else { USER_DEFINED };
        let added = &definition.added_tokens;
        let added = added.iter().map(|token| (&token.content, token.id, kind_of(token)));
        for (text, id, kind) in own.chain(added) {
            let Some(place) = texts.get_mut(id as usize) else {
                let text = quote(text);
                return Err(format!("{text} has the id {id}, and the model has {vocab} tokens"));
            };
            *place = text.clone();
            kinds[id as usize] = kind;
        }
        Ok(Self { texts, kinds })
    }
}

/// `<0x0A>`
fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

/// A byte-pair encoding of bytes: how a text is taken apart has a name.
fn of_bytes(definition: &Definition) -> std::result::Result<Keys, String> {
    if definition.normalizer.is_some() {
        return Err("has a normalizer, for which GGUF has no key".to_owned());
    }
    let mut expressions = Vec::new();
    for step in PipelineStep::all(definition.pre_tokenizer.as_ref(), "pretokenizers")? {
        let isolates = || {
            step.text("behavior") == Ok("Isolated") && step.flag("invert", Some(false)) == Ok(false)
        };
        match step.kind {
            "Split" if isolates() => {
                let pattern =
                    step.fields.get("pattern").and_then(|pattern| pattern["Regex"].as_str());
                expressions
                    .push(pattern.ok_or("pre_tokenizer: Split by a text has no name in GGUF")?);
            }
            "Digits" if step.flag("individual_digits", None)? => expressions.push(r"\p{N}"),
            "ByteLevel" if !step.flag("add_prefix_space", None)? => {
                expressions.extend(step.flag("use_regex", Some(true))?.then_some(GPT2_PATTERN));
            }
            kind => {
                return Err(format!("pre_tokenizer: {kind}, as it is here, has no name in GGUF"));
            }
        }
    }
    let name = pre_tokenizer_name(&expressions, definition.model.ignore_merges);
    let name = name.ok_or("pre_tokenizer: its expressions have no name in GGUF")?;
    let merge = |Merge(left, right): &Merge| format!("{left} {right}");
    Ok(vec![
        ("model", NewValue::Text("gpt2".to_owned())),
        ("pre", NewValue::Text(name.to_owned())),
        ("merges", NewValue::Texts(definition.model.merges.iter().map(merge).collect())),
    ])
}

/// SentencePiece's: the sooner a token comes of a merge, the higher its score. llama.cpp puts a space before
/// a text that begins with one as well, which Metaspace does not.
fn of_pieces(definition: &Definition, tokens: &Tokens) -> std::result::Result<Keys, String> {
    if !definition.model.byte_fallback {
        return Err(
            "model: neither of bytes nor with byte_fallback, for which GGUF has no name".to_owned()
        );
    }
    let (mut spaces, mut prefix) = (false, false);
    let normalizers = PipelineStep::all(definition.normalizer.as_ref(), "normalizers")?;
    let pre_tokenizers = PipelineStep::all(definition.pre_tokenizer.as_ref(), "pretokenizers")?;
    for step in normalizers.iter().chain(&pre_tokenizers) {
        match step.kind {
            "Prepend" if step.text("prepend")? == "▁" => prefix = true,
            "Replace"
                if step.text("content")? == "▁"
                    && step.fields.get("pattern").is_some_and(|p| p["String"] == " ") =>
            {
                spaces = true
            }
            "Metaspace" if step.text("replacement")? == "▁" => {
                spaces = true;
                prefix = step.text("prepend_scheme")? != "never";
            }
            kind => return Err(format!("{kind}, as it is here, has no name in GGUF")),
        }
    }
    if !spaces {
        return Err("a space does not become ▁, for which GGUF has no name".to_owned());
    }
    let mut ranks = HashMap::new();
    for (rank, Merge(left, right)) in definition.model.merges.iter().enumerate() {
        ranks.entry(format!("{left}{right}")).or_insert(rank);
    }
    let last = definition.model.merges.len();
    let score = |text: &String| -(*ranks.get(text).unwrap_or(&last) as f32);
    Ok(vec![
        ("model", NewValue::Text("llama".to_owned())),
        ("pre", NewValue::Text("default".to_owned())),
        ("scores", NewValue::F32s(tokens.texts.iter().map(score).collect())),
        ("add_space_prefix", NewValue::Bool(prefix)),
    ])
}

/// The tokens that end an answer: GGUF has places for three.
fn ends(ids: &[u32]) -> std::result::Result<Keys, String> {
    let keys = ["eos_token_id", "eot_token_id", "eom_token_id"];
    if ids.len() > keys.len() {
        return Err(format!("the model ends at {} tokens: GGUF has keys for 3", ids.len()));
    }
    Ok(keys.into_iter().zip(ids).map(|(key, id)| (key, NewValue::U32(*id))).collect())
}

/// Which tokens begin and end what.
fn roles(
    definition: &Definition,
    settings: &TokenizerSettings,
    config: &Config,
) -> std::result::Result<Keys, String> {
    let id_of = |text: &str| {
        let added = definition.added_tokens.iter().find(|token| token.content == text);
        added.map(|token| token.id).or_else(|| definition.model.vocab.get(text).copied())
    };
    let of_role = |role: &str| settings.special.get(role).and_then(|token| id_of(&token.content));
    let mut stops: Vec<u32> = of_role("eos_token").into_iter().collect();
    stops.extend(config.stop_ids.iter().filter(|id| Some(**id) != of_role("eos_token")));
    let bos = of_role("bos_token").or(config.bos_id);
    let mut keys = ends(&stops)?;
    for (key, id) in [
        ("bos_token_id", bos),
        ("unknown_token_id", of_role("unk_token")),
        ("padding_token_id", of_role("pad_token")),
    ] {
        keys.extend(id.map(|id| (key, NewValue::U32(id))));
    }
    let (before, after) = around(definition.post_processor.as_ref())?;
    let eos = stops.first().copied();
    for (key, tokens, own) in [("add_bos_token", before, bos), ("add_eos_token", after, eos)] {
        if !tokens.is_empty() && (tokens.len() > 1 || tokens.first().copied() != own) {
            let what = "other tokens than BOS before a text and EOS after it have no key in GGUF";
            return Err(format!("post_processor: {what}"));
        }
        keys.push((key, NewValue::Bool(!tokens.is_empty())));
    }
    Ok(keys)
}
