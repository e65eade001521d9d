//! Text to token ids and back.
//!
//! Control tokens (`<|eot_id|>` and the like) are kept apart from the byte-pair encoding: the
//! encoding's vocabulary does not hold them, so plain text cannot become one, however it is
//! written.

mod around;
mod control;
mod definition;
mod gguf;
mod pattern;
mod pieces;
mod settings;
mod step;
mod steps;
mod stop;
mod stream;
mod tiktoken;

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::resume_unwind;
use std::thread;

use serde_json::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::{AddedVocabulary, Model as _, OffsetReferential, OffsetType};

use crate::error::{Error, Result};
use crate::json;
use crate::source::Source;
use control::{ControlTokens, stands_alone};
use definition::{AddedToken, Definition};
use pattern::Time;
use settings::TokenizerSettings;
use steps::{Decoders, Normalizers, PreTokenizers};
pub use stop::StopStrings;
pub use stream::TextStream;

/// A byte-pair encoding with its control tokens.
pub struct Tokenizer {
    encoding: BPE,
    normalizers: Normalizers,
    pre_tokenizers: PreTokenizers,
    /// As `pre_tokenizers`, for text that does not stand at the beginning, where the two differ.
    pre_tokenizers_inside: Option<PreTokenizers>,
    decoders: Decoders,
    /// The added tokens that are not control tokens.
    added: AddedVocabulary,
    control: ControlTokens,
    /// The ids that stand before and after a text.
    around: (Vec<u32>, Vec<u32>),
    /// The texts of special tokens by their role, as in `bos_token`.
    special: BTreeMap<String, String>,
    /// What in the folder counts for nothing, though its author may think that it does.
    remark: Option<String>,
    vocab: usize,
    /// Whether a long text can be cut into [`pieces`] without changing its ids.
    can_cut: bool,
    /// The file, for messages.
    path: String,
}

/// What a model's tokenizer is, or what is wrong with it; its file, and what those beside it say.
fn source_definition(
    source: &Source,
) -> Result<(&'static str, std::result::Result<Definition, String>, TokenizerSettings)> {
    let mut settings = TokenizerSettings::load(source)?;
    if let Some(text) = source.read("tokenizer.json")? {
        let mut definition = Definition::parse(&text);
        definition.iter_mut().for_each(|definition| settings.apply(definition));
        return Ok(("tokenizer.json", definition, settings));
    }
    if let Some(ranks) = source.read("tokenizer.model")? {
        let mut definition = tiktoken::parse(&ranks);
        definition.iter_mut().for_each(|definition| settings.apply_to_ranks(definition));
        return Ok(("tokenizer.model", definition, settings));
    }
    Err(source.missing("tokenizer.json"))
}

impl Tokenizer {
    /// Reads `tokenizer.json`, or else Meta's `tokenizer.model`, and what the files beside it say.
    pub fn load(source: &Source) -> Result<Self> {
        let (file, definition, settings) = source_definition(source)?;
        let path = source.path(file);
        let mut tokenizer = definition
            .and_then(|definition| Self::build(definition, &path))
            .map_err(|what| Error::failed(format!("{path}: {what}")))?;
        let adds_bos = !tokenizer.around.0.is_empty();
        tokenizer.remark = settings.add_bos_token.filter(|says| *says != adds_bos).map(|says| {
            let does =
                if adds_bos { "puts BOS before a text" } else { "puts no BOS before a text" };
            format!("{path} {does}, whatever add_bos_token {says} says, as in transformers")
        });
        let special = settings.special.into_iter().map(|(role, token)| (role, token.content));
        tokenizer.special = special.collect();
        Ok(tokenizer)
    }

    fn build(definition: Definition, path: &str) -> std::result::Result<Self, String> {
        definition.check()?;
        let Definition { added_tokens, normalizer, pre_tokenizer, post_processor, decoder, model } =
            definition;
        let highest =
            model.vocab.values().copied().chain(added_tokens.iter().map(|token| token.id)).max();
        let (control, plain): (Vec<_>, Vec<_>) =
            added_tokens.into_iter().partition(AddedToken::is_control);
        let control_ids = control.iter().map(|token| (token.content.as_str(), token.id)).collect();
        let encoding = model
            .build(&control_ids, plain.iter().map(|token| (token.content.clone(), token.id)))?;
        let of = |key: &'static str| move |what| format!("{key}: {what}");
        let normalizers = Normalizers::read(normalizer.as_ref()).map_err(of("normalizer"))?;
        let mut added = AddedVocabulary::new();
        let time = Time::for_text(plain.iter().map(|token| token.content.len()).sum());
        added
            .add_tokens(
                plain.into_iter().map(Into::into),
                &encoding,
                Some(&normalizers.within(&time)),
            )
            .map_err(|error| format!("added_tokens: {}", json::one_line(&error.to_string())))?;
        let split = |steps| PreTokenizers::read(steps).map_err(of("pre_tokenizer"));
        let inside = pre_tokenizer.clone().and_then(without_first_space);
        let decoder = decoder.as_ref().ok_or("has no decoder")?;
        Ok(Self {
            can_cut: normalizers.is_empty()
                && pre_tokenizer.as_ref().is_some_and(pieces::is_llama3),
            encoding,
            normalizers,
            pre_tokenizers: split(pre_tokenizer.as_ref())?,
            pre_tokenizers_inside: inside.as_ref().map(|steps| split(Some(steps))).transpose()?,
            decoders: Decoders::read(decoder).map_err(of("decoder"))?,
            added,
            control: ControlTokens::new(control)?,
            around: around::around(post_processor.as_ref()).map_err(of("post_processor"))?,
            special: BTreeMap::new(),
            remark: None,
            vocab: highest.map_or(0, |id| id as usize + 1),
            path: path.to_owned(),
        })
    }

    /// The ids of plain text: no control token, whatever the text says, and no BOS.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_gap(text, true)
    }

    /// The ids of a text in which control tokens may be written out; no BOS is added.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_gaps(text, |gap, at_start| self.encode_gap(gap, at_start))
    }

    /// The ids of a text to be continued, from those that it encodes to: with what stands before
    /// and after a text, as `AutoTokenizer` gives them.
    pub fn surround(&self, ids: Vec<u32>) -> Vec<u32> {
        let (before, after) = &self.around;
        [before, &ids, after].map(Vec::as_slice).concat()
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
        let encode = |pieces: &[Range<usize>]| -> Result<Vec<u32>> {
            let mut ids = Vec::new();
            for piece in pieces {
                ids.extend(self.encode_piece(&text[piece.clone()], at_start && piece.start == 0)?);
            }
            Ok(ids)
        };
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let parts = pieces.chunks(pieces.len().div_ceil(threads).max(1));
        if parts.len() < 2 {
            return encode(&pieces);
        }
        // Threads of its own: no pool, which others in the process might share.
        let ids: Result<Vec<_>> = thread::scope(|scope| {
            let parts: Vec<_> = parts.map(|part| scope.spawn(|| encode(part))).collect();
            parts
                .into_iter()
                .map(|part| part.join().unwrap_or_else(|why| resume_unwind(why)))
                .collect()
        });
        Ok(ids?.concat())
    }

    fn encode_piece(&self, text: &str, at_start: bool) -> Result<Vec<u32>> {
        let inside = self.pre_tokenizers_inside.as_ref().filter(|_| !at_start);
        let time = Time::for_text(text.len());
        let normalizing = self.normalizers.within(&time);
        let mut pieces = self.added.extract_and_normalize(Some(&normalizing), text);
        normalizing
            .failure()
            .and_then(|()| inside.unwrap_or(&self.pre_tokenizers).pre_tokenize(&mut pieces, &time))
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
                "{path}: the id {unknown} is not a token; ids are below {vocab}"
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
        let text = self.decoders.decode(tokens).map_err(|error| {
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

    /// The id of the token called BOS. Whether a text begins with it is another matter: see
    /// [`Self::before_text`].
    pub fn bos(&self) -> Option<u32> {
        self.special_token("bos_token").and_then(|text| self.id(text))
    }

    /// What stands before every text: BOS, or nothing.
    pub fn before_text(&self) -> &[u32] {
        &self.around.0
    }

    /// The texts of the special tokens by their role: `bos_token`, `eos_token`, ...
    pub fn special_tokens(&self) -> &BTreeMap<String, String> {
        &self.special
    }

    pub fn special_token(&self, role: &str) -> Option<&str> {
        self.special.get(role).map(String::as_str)
    }

    /// The ids of control tokens that end an answer in any model, as llama.cpp has them.
    pub fn end_of_generation(&self) -> Vec<u32> {
        let has_both = |pair: [&str; 2]| pair.iter().all(|text| self.id(text).is_some());
        let ends_messages = has_both(stop::RETURN_AND_CALL) || has_both(stop::CALLS_AND_FLUSH);
        let texts = stop::END_OF_GENERATION.iter();
        let texts = texts.filter(|text| !(ends_messages && **text == stop::END));
        texts.filter_map(|text| self.id(text)).collect()
    }

    /// What a user should know about how this tokenizer treats BOS.
    pub fn remark(&self) -> Option<&str> {
        self.remark.as_deref()
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

impl From<AddedToken> for tokenizers::AddedToken {
    fn from(token: AddedToken) -> Self {
        Self::from(token.content, token.special)
            .single_word(token.single_word)
            .lstrip(token.lstrip)
            .rstrip(token.rstrip)
            .normalized(token.normalized)
    }
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
