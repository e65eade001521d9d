//! Text to token ids and back.
//!
//! Control tokens (`<|eot_id|>` and the like) are kept apart from the byte-pair encoding: the
//! encoding's vocabulary does not hold them, so plain text cannot become one, however it is
//! written.

mod definition;
mod pieces;
mod stop;
mod stream;
mod tiktoken;

use std::collections::HashMap;

use aho_corasick::{AhoCorasick, MatchKind};
use rayon::prelude::*;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::{
    AddedVocabulary, Decoder as _, DecoderWrapper, Model as _, NormalizerWrapper,
    OffsetReferential, OffsetType, PreTokenizer as _, PreTokenizerWrapper,
};

use crate::error::{Error, Result};
use crate::json;
use crate::source::Source;
use definition::{AddedToken, Definition};
pub use stop::StopStrings;
pub use stream::TextStream;

/// The texts of tokens that begin a sequence, where tokenizer_config.json names none: Llama 3's,
/// Llama 2's.
const BOS_TEXTS: [&str; 2] = ["<|begin_of_text|>", "<s>"];

/// A byte-pair encoding with its control tokens.
pub struct Tokenizer {
    encoding: BPE,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    /// As `pre_tokenizer`, for text that does not stand at the beginning, where the two differ.
    pre_tokenizer_inside: Option<PreTokenizerWrapper>,
    decoder: DecoderWrapper,
    /// The added tokens that are not control tokens.
    added: AddedVocabulary,
    control: ControlTokens,
    bos: Option<u32>,
    vocab: usize,
    /// Whether a long text can be cut into [`pieces`] without changing its ids.
    can_cut: bool,
    /// The file, for messages.
    path: String,
}

/// The tokens that steer the model, and how to find them in a text.
struct ControlTokens {
    /// Leftmost-longest; its patterns are `tokens`.
    finder: AhoCorasick,
    tokens: Vec<AddedToken>,
    by_id: HashMap<u32, usize>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, or else Meta's `tokenizer.model`, and from `tokenizer_config.json`
    /// what begins a sequence.
    pub fn load(source: &Source) -> Result<Self> {
        let (file, definition) = if let Some(text) = source.read("tokenizer.json")? {
            ("tokenizer.json", Definition::parse(&text))
        } else if let Some(ranks) = source.read("tokenizer.model")? {
            ("tokenizer.model", tiktoken::parse(&ranks))
        } else {
            return Err(source.missing("tokenizer.json"));
        };
        let path = source.path(file);
        let mut tokenizer = definition
            .and_then(|definition| Self::build(definition, &path))
            .map_err(|what| Error::failed(format!("{path}: {what}")))?;
        let config = "tokenizer_config.json";
        tokenizer.bos = match source.read(config)? {
            Some(text) => tokenizer.named_bos(&text, &source.path(config))?,
            None => None,
        }
        .or_else(|| BOS_TEXTS.iter().find_map(|text| tokenizer.id(text)));
        Ok(tokenizer)
    }

    fn build(definition: Definition, path: &str) -> std::result::Result<Self, String> {
        definition.check()?;
        let Definition { added_tokens, normalizer, pre_tokenizer, decoder, model } = definition;
        let highest =
            model.vocab.values().copied().chain(added_tokens.iter().map(|token| token.id)).max();
        let (control, plain): (Vec<_>, Vec<_>) =
            added_tokens.into_iter().partition(AddedToken::is_control);
        let control_ids = control.iter().map(|token| (token.content.as_str(), token.id)).collect();
        let encoding = model
            .build(&control_ids, plain.iter().map(|token| (token.content.clone(), token.id)))?;
        let normalizer: Option<NormalizerWrapper> = step("normalizer", normalizer)?;
        let mut added = AddedVocabulary::new();
        added
            .add_tokens(plain.into_iter().map(Into::into), &encoding, normalizer.as_ref())
            .map_err(|error| format!("added_tokens: {}", json::one_line(&error.to_string())))?;
        let inside = pre_tokenizer.clone().and_then(without_first_space);
        Ok(Self {
            can_cut: normalizer.is_none() && pre_tokenizer.as_ref().is_some_and(is_llama3),
            encoding,
            normalizer,
            pre_tokenizer: step("pre_tokenizer", pre_tokenizer)?,
            pre_tokenizer_inside: step("pre_tokenizer", inside)?,
            decoder: step("decoder", decoder)?.ok_or("has no decoder")?,
            added,
            control: ControlTokens::new(control)?,
            bos: None,
            vocab: highest.map_or(0, |id| id as usize + 1),
            path: path.to_owned(),
        })
    }

    /// The id of the `bos_token` that a tokenizer_config.json names, which is a text or an object
    /// with its `content`.
    fn named_bos(&self, config: &[u8], path: &str) -> Result<Option<u32>> {
        let failed = |what: String| Error::failed(format!("{path}: {what}"));
        let config = json::parse_object(config).map_err(failed)?;
        let Some(bos) = config.get("bos_token").filter(|bos| !bos.is_null()) else {
            return Ok(None);
        };
        let id = token_text(bos).and_then(|text| self.id(text));
        let missing = || {
            failed(format!("bos_token {} is no control token of {}", json::show(bos), self.path))
        };
        id.map(Some).ok_or_else(missing)
    }

    /// The ids of plain text: no control token, whatever the text says, and no BOS.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_gap(text, true)
    }

    /// The ids of a text in which control tokens may be written out; no BOS is added.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_gaps(text, |gap, at_start| self.encode_gap(gap, at_start))
    }

    /// As [`Self::encode`], but without the character `guard`, which keeps what it stands in from
    /// being a control token.
    pub fn encode_guarded(&self, text: &str, guard: char) -> Result<Vec<u32>> {
        self.encode_gaps(text, |gap, at_start| self.encode_gap(&gap.replace(guard, ""), at_start))
    }

    /// Where the first control token in a text begins.
    pub fn find_control(&self, text: &str) -> Option<usize> {
        self.control.finder.find(text).map(|found| found.start())
    }

    /// The control tokens in a text, and between them what `encode_gap` makes of the text there,
    /// which it is told is at the start or not.
    fn encode_gaps(
        &self,
        text: &str,
        encode_gap: impl Fn(&str, bool) -> Result<Vec<u32>>,
    ) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        let mut end = 0;
        for found in self.control.finder.find_iter(text) {
            let token = &self.control.tokens[found.pattern().as_usize()];
            // The token before may have swallowed the white space that this one is found in.
            if found.start() < end || (token.single_word && !stands_alone(text, found.range())) {
                continue;
            }
            let gap = &text[end..found.start()];
            let gap = if token.lstrip { gap.trim_end() } else { gap };
            ids.extend(encode_gap(gap, end == 0)?);
            ids.push(token.id);
            let rest = &text[found.end()..];
            let swallowed = if token.rstrip { rest.len() - rest.trim_start().len() } else { 0 };
            end = found.end() + swallowed;
        }
        ids.extend(encode_gap(&text[end..], end == 0)?);
        Ok(ids)
    }

    /// Plain text between control tokens; `at_start` if it begins the whole text.
    fn encode_gap(&self, text: &str, at_start: bool) -> Result<Vec<u32>> {
        if !self.can_cut {
            return self.encode_piece(text, at_start);
        }
        let pieces: Vec<_> = pieces::pieces(text).collect();
        let ids: Result<Vec<_>> = pieces
            .into_par_iter()
            .map(|piece| self.encode_piece(&text[piece.clone()], at_start && piece.start == 0))
            .collect();
        Ok(ids?.concat())
    }

    fn encode_piece(&self, text: &str, at_start: bool) -> Result<Vec<u32>> {
        let inside = self.pre_tokenizer_inside.as_ref().filter(|_| !at_start);
        let mut pieces = self.added.extract_and_normalize(self.normalizer.as_ref(), text);
        inside
            .or(self.pre_tokenizer.as_ref())
            .map_or(Ok(()), |pre_tokenizer| pre_tokenizer.pre_tokenize(&mut pieces))
            .and_then(|()| pieces.tokenize(|piece| self.encoding.tokenize(piece.get())))
            .map_err(|error| {
                let error = json::one_line(&error.to_string());
                Error::failed(format!("{}: cannot encode a text: {error}", self.path))
            })?;
        let pieces = pieces.get_splits(OffsetReferential::Original, OffsetType::None);
        Ok(pieces
            .into_iter()
            .filter_map(|(_, _, tokens)| tokens.as_ref())
            .flatten()
            .map(|t| t.id)
            .collect())
    }

    /// The text of `ids`, with or without that of the control tokens among them. An incomplete
    /// character is shown as U+FFFD. An id that is no token is an error.
    pub fn decode(&self, ids: &[u32], show_control: bool) -> Result<String> {
        if let Some(unknown) = ids.iter().find(|id| !self.is_token(**id)) {
            let (path, vocab) = (&self.path, self.vocab);
            return Err(Error::failed(format!(
                "{path}: the id {unknown} is no token; ids are below {vocab}"
            )));
        }
        self.decode_part(ids, show_control, true)
    }

    /// The text of ids that stand at the start of a text, or somewhere inside one.
    fn decode_part(&self, ids: &[u32], show_control: bool, at_start: bool) -> Result<String> {
        // Some decoders take a space off the first token, so inside a text another token has to
        // come first.
        const FIRST: &str = "x";
        let first = (!at_start).then(|| FIRST.to_owned());
        let shown = ids.iter().filter(|id| show_control || !self.is_control(**id));
        let tokens = first.into_iter().chain(shown.filter_map(|id| self.spelling(*id))).collect();
        let text = self.decoder.decode(tokens).map_err(|error| {
            let error = json::one_line(&error.to_string());
            Error::failed(format!("{}: cannot decode ids: {error}", self.path))
        })?;
        if at_start {
            return Ok(text);
        }
        Ok(text.strip_prefix(FIRST).map(str::to_owned).unwrap_or(text))
    }

    /// A token as the encoding spells it, before decoding.
    fn spelling(&self, id: u32) -> Option<String> {
        let control = self.control_text(id).map(str::to_owned);
        control
            .or_else(|| self.added.simple_id_to_token(id))
            .or_else(|| self.encoding.id_to_token(id))
    }

    /// Whether `id` is a token at all. A model's vocabulary may be padded beyond its tokenizer's.
    pub fn is_token(&self, id: u32) -> bool {
        self.is_control(id) || self.encoding.id_to_token(id).is_some()
    }

    /// The id of the token that begins a sequence.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// `ids` with exactly one BOS before them, however many there were; as they are if the
    /// tokenizer has no BOS.
    pub fn with_bos(&self, mut ids: Vec<u32>) -> Vec<u32> {
        if let Some(bos) = self.bos {
            let there = ids.iter().take_while(|id| **id == bos).count();
            ids.splice(..there, [bos]);
        }
        ids
    }

    /// The id of a control token by its text.
    pub fn id(&self, control: &str) -> Option<u32> {
        self.control.tokens.iter().find(|token| token.content == control).map(|token| token.id)
    }

    pub fn is_control(&self, id: u32) -> bool {
        self.control.by_id.contains_key(&id)
    }

    /// The text of a control token by its id.
    pub fn control_text(&self, id: u32) -> Option<&str> {
        self.control.by_id.get(&id).map(|index| self.control.tokens[*index].content.as_str())
    }

    /// The texts of all control tokens.
    pub fn control_texts(&self) -> impl Iterator<Item = &str> {
        self.control.tokens.iter().map(|token| token.content.as_str())
    }

    /// One more than the highest id.
    pub fn vocab(&self) -> usize {
        self.vocab
    }
}

impl ControlTokens {
    fn new(tokens: Vec<AddedToken>) -> std::result::Result<Self, String> {
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|token| token.content.as_bytes()))
            .map_err(|error| format!("added_tokens: {error}"))?;
        let by_id = tokens.iter().enumerate().map(|(index, token)| (token.id, index)).collect();
        Ok(Self { finder, tokens, by_id })
    }
}

impl From<AddedToken> for tokenizers::AddedToken {
    fn from(token: AddedToken) -> Self {
        Self::from(token.content, token.special)
            .single_word(token.single_word)
            .lstrip(token.lstrip)
            .rstrip(token.rstrip)
            .normalized(token.normalized)
    }
}

/// The text of a token in a tokenizer_config.json, which is a string or an object with `content`.
pub fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// Builds one of the steps around the encoding from its JSON.
fn step<T: DeserializeOwned>(
    key: &str,
    value: Option<Value>,
) -> std::result::Result<Option<T>, String> {
    value
        .map(|value| serde_json::from_value(value))
        .transpose()
        .map_err(|error| format!("{key}: {}", json::one_line(&error.to_string())))
}

/// A pre-tokenizer that puts a space before the first word, made not to; `None` if it does no such
/// thing.
fn without_first_space(mut pre_tokenizer: Value) -> Option<Value> {
    fn edit(value: &mut Value) -> bool {
        match value {
            Value::Object(object) => {
                let mut edited = false;
                for (key, value) in object {
                    let is_first = key == "prepend_scheme" && value == "first";
                    if is_first {
                        *value = "never".into();
                    }
                    edited |= is_first | edit(value);
                }
                edited
            }
            Value::Array(values) => {
                values.iter_mut().fold(false, |edited, value| edited | edit(value))
            }
            _ => false,
        }
    }
    edit(&mut pre_tokenizer).then_some(pre_tokenizer)
}

/// Whether this is Llama 3's pre-tokenizer: its split, then bytes without a space put before them.
fn is_llama3(pre_tokenizer: &Value) -> bool {
    let Some([split, bytes]) = pre_tokenizer["pretokenizers"].as_array().map(Vec::as_slice) else {
        return false;
    };
    split["type"] == "Split"
        && split["pattern"]["Regex"].as_str().is_some_and(pieces::is_llama3_pattern)
        && split["behavior"] == "Isolated"
        && split["invert"] == false
        && bytes["type"] == "ByteLevel"
        && bytes["add_prefix_space"] == false
        && bytes["use_regex"] == false
}

/// Whether no letter or digit touches a range of the text.
fn stands_alone(text: &str, range: std::ops::Range<usize>) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    !text[..range.start].ends_with(is_word) && !text[range.end..].starts_with(is_word)
}
