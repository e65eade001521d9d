//! What a tokenizer is, before it is built: the same for a `tokenizer.json` and for Meta's
//! `tokenizer.model`. Everything that the `tokenizers` crate would trip over is refused here.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use tokenizers::models::bpe::{BPE, Vocab};

use crate::json;

/// The longest file. Published ones have up to 35 MB.
const MAX_FILE_BYTES: usize = 64 << 20;
/// The most tokens of the vocabulary, added tokens, and merges each: published files have half a
/// million merges.
const MAX_ENTRIES: usize = 1 << 20;
/// The longest added token: published ones have some forty bytes.
const MAX_ADDED_TOKEN_BYTES: usize = 512;
/// All that is found in a text as it stands, together: published files have some hundred kB of it.
const MAX_ADDED_BYTES: usize = 2 << 20;
/// No model has rows for more.
const MAX_ID: u32 = 1 << 28;

/// A byte-pair encoding, the steps around it, and the tokens added to it.
///
/// The fields are those of a `tokenizer.json`. Its truncation and padding are left out on purpose:
/// a prompt is never cut or filled up.
#[derive(Deserialize)]
pub(super) struct Definition {
    #[serde(default, deserialize_with = "list")]
    pub added_tokens: Vec<AddedToken>,
    #[serde(default, deserialize_with = "json::value")]
    pub normalizer: Option<Value>,
    #[serde(default, deserialize_with = "json::value")]
    pub pre_tokenizer: Option<Value>,
    /// What stands around a text, as BOS does.
    #[serde(default, deserialize_with = "json::value")]
    pub post_processor: Option<Value>,
    #[serde(default, deserialize_with = "json::value")]
    pub decoder: Option<Value>,
    pub model: TokenModel,
}

/// A token beside the byte-pair encoding: found in a text as it stands, before any merging.
#[derive(Deserialize, Clone)]
pub(super) struct AddedToken {
    pub id: u32,
    pub content: String,
    #[serde(default)]
    pub special: bool,
    /// Only where no letter or digit is beside it.
    #[serde(default)]
    pub single_word: bool,
    /// Swallows the white space on its left.
    #[serde(default)]
    pub lstrip: bool,
    /// Swallows the white space on its right.
    #[serde(default)]
    pub rstrip: bool,
    /// Is looked for after the normalizer has run.
    #[serde(default)]
    pub normalized: bool,
}

impl AddedToken {
    /// Whether this token steers the model. Beside those marked special, these are the ones written
    /// like a control token: DeepSeek's distilled Llamas do not mark `<｜User｜>` special.
    pub fn is_control(&self) -> bool {
        let delimited =
            |open, close| self.content.starts_with(open) && self.content.ends_with(close);
        self.special || delimited("<|", "|>") || delimited("<｜", "｜>")
    }
}

#[derive(Deserialize)]
pub(super) struct TokenModel {
    /// Absent in old files; then it is a BPE if it has merges.
    #[serde(rename = "type", default)]
    pub kind: Option<String>,
    #[serde(deserialize_with = "vocab")]
    pub vocab: Vocab,
    #[serde(deserialize_with = "list")]
    pub merges: Vec<Merge>,
    #[serde(default)]
    pub unk_token: Option<String>,
    #[serde(default)]
    pub continuing_subword_prefix: Option<String>,
    #[serde(default)]
    pub end_of_word_suffix: Option<String>,
    #[serde(default)]
    pub dropout: Option<f32>,
    #[serde(default)]
    pub fuse_unk: bool,
    #[serde(default)]
    pub byte_fallback: bool,
    /// A piece of text that is a token needs no merges to become one (Llama 3: 97 of 18,093 strings
    /// differ without).
    #[serde(default)]
    pub ignore_merges: bool,
}

/// A list of no more than [`MAX_ENTRIES`].
fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    struct List<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while let Some(item) = items.next_element()? {
                list.push(item);
                check_entries(list.len())?;
            }
            Ok(list)
        }
    }

    deserializer.deserialize_seq(List(PhantomData))
}

/// Ids by token: no more than [`MAX_ENTRIES`], and no token twice.
fn vocab<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vocab, D::Error> {
    struct Ids;

    impl<'de> Visitor<'de> for Ids {
        type Value = Vocab;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a vocabulary: ids by token")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Vocab, A::Error> {
            let mut vocab = Vocab::new();
            while let Some((token, id)) = entries.next_entry::<String, u32>()? {
                if vocab.contains_key(&token) {
                    return Err(A::Error::custom(format!(
                        "{} is in the vocabulary twice",
                        json::quote(&token)
                    )));
                }
                vocab.insert(token, id);
                check_entries(vocab.len())?;
            }
            Ok(vocab)
        }
    }

    deserializer.deserialize_map(Ids)
}

fn check_entries<E: serde::de::Error>(count: usize) -> Result<(), E> {
    if count <= MAX_ENTRIES {
        Ok(())
    } else {
        Err(E::custom(format!("a list of over {MAX_ENTRIES} entries")))
    }
}

/// Two tokens that become one. Files write `"a b"` or `["a", "b"]`.
#[derive(Debug, PartialEq)]
pub(super) struct Merge(pub String, pub String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MergeVisitor)
    }
}

struct MergeVisitor;

impl<'de> Visitor<'de> for MergeVisitor {
    type Value = Merge;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a merge: \"a b\" or [\"a\", \"b\"]")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Merge, E> {
        let (left, right) =
            text.split_once(' ').filter(|(_, right)| !right.contains(' ')).ok_or_else(|| {
                E::custom(format!("{} is not a merge of two tokens", json::quote(text)))
            })?;
        Ok(Merge(left.to_owned(), right.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<Merge, A::Error> {
        let mut next = || pair.next_element::<String>();
        match (next()?, next()?, next()?) {
            (Some(left), Some(right), None) => Ok(Merge(left, right)),
            _ => Err(A::Error::custom("a merge is not of two tokens")),
        }
    }
}

impl Definition {
    /// Reads a `tokenizer.json`. The error is what is wrong, without the name of the file.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        if text.len() > MAX_FILE_BYTES {
            return Err(format!("has over {} MiB", MAX_FILE_BYTES >> 20));
        }
        serde_json::from_slice(text).map_err(json::describe)
    }

    /// Whether a step around the encoding is of this type.
    pub fn mentions(&self, kind: &str) -> bool {
        let steps = [&self.normalizer, &self.pre_tokenizer, &self.post_processor, &self.decoder];
        let kind = json::quote(kind);
        steps.into_iter().flatten().any(|step| step.to_string().contains(&kind))
    }

    /// Checks what the builder below relies on, and what we do not have.
    pub fn check(&self) -> Result<(), String> {
        let model = &self.model;
        if let Some(kind) = model.kind.as_deref().filter(|kind| *kind != "BPE") {
            return Err(format!("model.type {} is not supported: only BPE is", json::quote(kind)));
        }
        let is_set = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
        for (key, set) in [
            ("continuing_subword_prefix", is_set(&model.continuing_subword_prefix)),
            ("end_of_word_suffix", is_set(&model.end_of_word_suffix)),
            ("dropout", model.dropout.is_some_and(|dropout| dropout != 0.0)),
        ] {
            if set {
                return Err(format!("model.{key} is set, which is not supported"));
            }
        }
        if model.vocab.is_empty() {
            return Err("model.vocab is empty".to_owned());
        }
        if let Some(unknown) =
            model.unk_token.as_ref().filter(|token| !model.vocab.contains_key(*token))
        {
            return Err(format!(
                "model.unk_token {} is not in the vocabulary",
                json::quote(unknown)
            ));
        }
        self.check_ids()?;
        self.check_unknown()
    }

    /// Every id has one text, and every text one id.
    fn check_ids(&self) -> Result<(), String> {
        let mut tokens: HashMap<u32, &str> = HashMap::with_capacity(self.model.vocab.len());
        for (token, id) in &self.model.vocab {
            let quoted = json::quote(token);
            if let Some(other) = tokens.insert(*id, token) {
                return Err(format!("{quoted} has an id, {id}, that {} has", json::quote(other)));
            }
            check_id(token, *id)?;
        }
        let (mut contents, mut added_ids) = (HashSet::new(), HashSet::new());
        let mut bytes = 0;
        for token in &self.added_tokens {
            let quoted = json::quote(&token.content);
            if token.content.is_empty() {
                return Err(format!("the added token {} is empty", token.id));
            }
            if token.content.len() > MAX_ADDED_TOKEN_BYTES {
                return Err(format!(
                    "the added token {quoted} has over {MAX_ADDED_TOKEN_BYTES} bytes"
                ));
            }
            check_id(&token.content, token.id)?;
            if !contents.insert(token.content.as_str()) || !added_ids.insert(token.id) {
                return Err(format!(
                    "the added token {quoted} with id {} is there twice",
                    token.id
                ));
            }
            if self.model.vocab.get(&token.content).is_some_and(|id| *id != token.id) {
                return Err(format!(
                    "{quoted} has one id in the vocabulary and another as an added token"
                ));
            }
            if let Some(other) = tokens.get(&token.id).filter(|other| **other != token.content) {
                let (id, other) = (token.id, json::quote(other));
                return Err(format!(
                    "the added token {quoted} has an id, {id}, that {other} of the vocabulary has"
                ));
            }
            bytes += token.content.len();
        }
        if bytes > MAX_ADDED_BYTES {
            return Err(format!("the added tokens have over {} MiB", MAX_ADDED_BYTES >> 20));
        }
        Ok(())
    }

    /// A control token comes of no text, so it cannot be what the encoding makes of unknown
    /// characters. Llama 2's files name one that is never needed: each byte is a token.
    fn check_unknown(&self) -> Result<(), String> {
        let Some(unknown) = &self.model.unk_token else { return Ok(()) };
        let is_control = |token: &AddedToken| token.content == *unknown && token.is_control();
        if self.added_tokens.iter().any(is_control) && !self.model.has_all_bytes() {
            let quoted = json::quote(unknown);
            return Err(format!(
                "model.unk_token {quoted} is a control token, which no text may become, and there are \
                 bytes without a token"
            ));
        }
        Ok(())
    }
}

fn check_id(token: &str, id: u32) -> Result<(), String> {
    if id < MAX_ID {
        Ok(())
    } else {
        Err(format!("{} has the id {id}, which is too high", json::quote(token)))
    }
}

impl TokenModel {
    /// Whether a character that has no token is spelled in bytes.
    fn has_all_bytes(&self) -> bool {
        self.byte_fallback
            && (0..=u8::MAX).all(|byte| self.vocab.contains_key(&format!("<0x{byte:02X}>")))
    }

    /// Builds the encoding. Tokens in `control` cannot come out of it: they leave the vocabulary,
    /// and so do the merges that would make them; `plain` tokens enter it, for their ids.
    pub fn build(
        mut self,
        control: &HashMap<&str, u32>,
        plain: impl Iterator<Item = (String, u32)>,
    ) -> Result<BPE, String> {
        self.vocab.retain(|token, _| !control.contains_key(token.as_str()));
        let unknown = self.unk_token.take().filter(|token| !control.contains_key(token.as_str()));
        self.vocab.extend(plain);
        let mut merges = Vec::with_capacity(self.merges.len());
        let mut merged = String::new();
        for Merge(left, right) in self.merges {
            merged.clear();
            merged.push_str(&left);
            merged.push_str(&right);
            let missing =
                [&left, &right, &merged].into_iter().find(|token| !self.vocab.contains_key(*token));
            match missing {
                None => merges.push((left, right)),
                Some(token) if control.contains_key(token.as_str()) => {}
                Some(token) => {
                    let (left, right, token) =
                        (json::quote(&left), json::quote(&right), json::quote(token));
                    return Err(format!(
                        "the merge of {left} and {right}: {token} is not in the vocabulary"
                    ));
                }
            }
        }
        let mut builder = BPE::builder()
            .vocab_and_merges(self.vocab, merges)
            .fuse_unk(self.fuse_unk)
            .byte_fallback(self.byte_fallback)
            .ignore_merges(self.ignore_merges);
        if let Some(unknown) = unknown {
            builder = builder.unk_token(unknown);
        }
        builder.build().map_err(|error| json::one_line(&error.to_string()))
    }
}
