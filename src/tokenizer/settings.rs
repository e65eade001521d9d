//! What the files beside a tokenizer.json make of it, as `transformers` 5 reads them:
//! tokenizer_config.json and, of older folders, special_tokens_map.json and added_tokens.json.
//!
//! They name the special tokens, which are added where the tokenizer.json lacks them, and the class:
//! Llama 2's takes no more from the file than vocabulary, merges and post-processor. So does that of
//! GPT-2 in `transformers` 5, but not in 4, and not here: the steps that it would put in place of the
//! file's take SmolLM2's text apart otherwise than the model, and llama.cpp, know it.
//!
//! `add_bos_token` and `add_eos_token` count for nothing beside a tokenizer.json: there the
//! post-processor alone says what stands around a text.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Map, Value, json};

use super::definition::{AddedToken, Definition};
use crate::error::{Error, Result};
use crate::json;
use crate::source::Source;

const CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
const ADDED_TOKENS: &str = "added_tokens.json";

/// The special tokens with a role, in the order in which they are added.
const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// All of it. The default is that of a folder without any of the files.
#[derive(Default)]
pub(super) struct TokenizerSettings {
    /// By role, as in `bos_token`; an empty text is none.
    pub special: BTreeMap<String, AddedToken>,
    /// Special tokens without a role of [`ROLES`].
    extra: Vec<AddedToken>,
    /// By id, where tokenizer_config.json or added_tokens.json list them.
    added: BTreeMap<u32, AddedToken>,
    /// Whether `added` is all of the added tokens.
    lists_all: bool,
    class: Class,
    pub add_bos_token: Option<bool>,
}

/// The class of a tokenizer, as far as it matters.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Takes a tokenizer.json as it is.
    #[default]
    Any,
    /// Puts a space before a text; before what follows a special token too if it is `legacy`.
    Llama { legacy: bool, add_prefix_space: bool },
    /// Puts a space before a text, if it says so.
    Gpt2 { add_prefix_space: Option<bool> },
}

impl TokenizerSettings {
    pub fn load(source: &Source) -> Result<Self> {
        let object = |file: &str| match source.read(file)? {
            Some(text) => {
                json::parse_object(&text).map(Some).map_err(|what| wrong(source, file, &what))
            }
            None => Ok(None),
        };
        let mut config = object(CONFIG)?.unwrap_or_default();
        let mut settings =
            Self { lists_all: config.contains_key("added_tokens_decoder"), ..Self::default() };
        if settings.lists_all {
            settings.added = listed(&config).map_err(|what| wrong(source, CONFIG, &what))?;
        } else {
            config.extend(object(SPECIAL_TOKENS_MAP)?.unwrap_or_default());
        }
        settings.read(&config).map_err(|what| wrong(source, CONFIG, &what))?;
        if !settings.lists_all {
            let names: HashSet<String> = settings.names().into_iter().map(str::to_owned).collect();
            for (content, id) in object(ADDED_TOKENS)?.unwrap_or_default() {
                let id = id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
                    wrong(source, ADDED_TOKENS, &format!("{} has no id", json::quote(&content)))
                })?;
                let special = names.contains(&content);
                let token =
                    AddedToken { id, special, normalized: !special, ..special_token(&content) };
                settings.added.insert(id, token);
            }
        }
        Ok(settings)
    }

    fn read(&mut self, config: &Map<String, Value>) -> std::result::Result<(), String> {
        self.class = Class::of(config);
        self.add_bos_token = config.get("add_bos_token").and_then(Value::as_bool);
        for (role, text) in self.class.roles() {
            self.special.insert((*role).to_owned(), special_token(text));
        }
        for role in ROLES {
            match config.get(role) {
                None => {}
                Some(Value::Null) => drop(self.special.remove(role)),
                Some(value) => {
                    let token = added_token(value).ok_or_else(|| {
                        format!("{role} is {}: a text is needed", json::show(value))
                    })?;
                    self.special.insert(role.to_owned(), AddedToken { special: true, ..token });
                }
            }
        }
        let own = config.iter().filter(|(key, value)| {
            key.ends_with("_token") && !ROLES.contains(&key.as_str()) && value.is_string()
        });
        self.extra.extend(own.filter_map(|(_, value)| added_token(value)));
        let extra = ["extra_special_tokens", "additional_special_tokens"]
            .iter()
            .filter_map(|key| config.get(*key))
            .find(|value| {
                !matches!(value, Value::Null) && **value != json!([]) && **value != json!({})
            });
        let values: Vec<&Value> = match extra {
            Some(Value::Array(values)) => values.iter().collect(),
            Some(Value::Object(values)) => values.values().collect(),
            _ => Vec::new(),
        };
        self.extra.extend(values.into_iter().filter_map(added_token));
        Ok(())
    }

    /// The texts of the tokens that are special by name.
    fn names(&self) -> HashSet<&str> {
        self.special.values().chain(&self.extra).map(|token| token.content.as_str()).collect()
    }

    /// The special tokens to add where they are missing, in order.
    fn named(&self) -> impl Iterator<Item = &AddedToken> {
        ROLES.iter().filter_map(|role| self.special.get(*role)).chain(&self.extra)
    }

    /// Makes of a tokenizer.json what its class and the settings make of it.
    pub fn apply(&self, definition: &mut Definition) {
        let is_rebuilt = self.class.rebuild(definition);
        if is_rebuilt && self.lists_all {
            definition.added_tokens.clear();
        }
        let vocab = &definition.model.vocab;
        let added = &mut definition.added_tokens;
        let after = added.iter().map(|token| token.id.saturating_add(1)).max().unwrap_or(0);
        let mut next = after.max(vocab.len() as u32);
        let mut places: HashMap<String, usize> =
            added.iter().enumerate().rev().map(|(at, token)| (token.content.clone(), at)).collect();
        let listed = self.added.values().map(|token| (token, true));
        for (token, replaces) in listed.chain(self.named().map(|token| (token, false))) {
            match places.get(&token.content).copied() {
                Some(at) if replaces => {
                    added[at] = AddedToken { id: added[at].id, ..token.clone() }
                }
                Some(_) => {}
                None if token.content.is_empty() => {}
                None => {
                    let id = vocab.get(&token.content).copied().unwrap_or_else(|| {
                        let id = next;
                        next = next.saturating_add(1);
                        id
                    });
                    places.insert(token.content.clone(), added.len());
                    added.push(AddedToken { id, ..token.clone() });
                }
            }
        }
        self.mark(added);
    }

    /// As [`Self::apply`], for Meta's ranks, after which come control tokens without names: those
    /// that the settings list get theirs.
    pub fn apply_to_ranks(&mut self, definition: &mut Definition) {
        let there = |token: &AddedToken| (token.id, token.clone());
        let mut by_id: BTreeMap<u32, AddedToken> =
            definition.added_tokens.iter().map(there).collect();
        by_id.extend(
            self.added.iter().map(|(id, token)| (*id, AddedToken { id: *id, ..token.clone() })),
        );
        definition.added_tokens = by_id.into_values().collect();
        self.mark(&mut definition.added_tokens);
        let bos = special_token(super::tiktoken::BOS);
        let bos = self.special.entry("bos_token".to_owned()).or_insert(bos);
        let id = definition.added_tokens.iter().find(|token| token.content == bos.content);
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        let special = json!({"SpecialToken": {"id": "bos", "type_id": 0}});
        definition.post_processor = id.filter(|_| self.add_bos_token != Some(false)).map(|token| {
            json!({
                "type": "TemplateProcessing", "single": [special, text], "pair": [special, text],
                "special_tokens": {
                    "bos": {"id": "bos", "ids": [token.id], "tokens": [token.content]},
                },
            })
        });
    }

    /// Marks special what is named so. A single character is text by whatever name.
    fn mark(&self, added: &mut [AddedToken]) {
        let names = self.names();
        for token in added {
            token.special |=
                token.content.chars().nth(1).is_some() && names.contains(token.content.as_str());
        }
    }
}

impl Class {
    fn of(config: &Map<String, Value>) -> Self {
        let flag = |key: &str| config.get(key).and_then(Value::as_bool);
        let class = config.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
        match class.strip_suffix("Fast").unwrap_or(class) {
            "LlamaTokenizer" => Self::Llama {
                legacy: flag("legacy").unwrap_or(false),
                add_prefix_space: flag("add_prefix_space").unwrap_or(true),
            },
            "GPT2Tokenizer" => Self::Gpt2 { add_prefix_space: flag("add_prefix_space") },
            _ => Self::Any,
        }
    }

    /// The special tokens that the class has when nobody names them.
    fn roles(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Any => &[],
            Self::Llama { .. } => {
                &[("unk_token", "<unk>"), ("bos_token", "<s>"), ("eos_token", "</s>")]
            }
            Self::Gpt2 { .. } => &[
                ("unk_token", "<|endoftext|>"),
                ("bos_token", "<|endoftext|>"),
                ("eos_token", "<|endoftext|>"),
            ],
        }
    }

    /// Puts the class's own steps around the encoding in place of the file's; false if it has none.
    fn rebuild(self, definition: &mut Definition) -> bool {
        match self {
            Self::Any => return false,
            // Llama 3's files that name the class of Llama 2.
            Self::Llama { .. } if definition.mentions("ByteLevel") => return false,
            Self::Llama { legacy, add_prefix_space } => {
                let scheme = match (add_prefix_space, legacy) {
                    (false, _) => "never",
                    (true, true) => "always",
                    (true, false) => "first",
                };
                definition.pre_tokenizer = Some(json!({
                    "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false,
                }));
                let mut decoders = vec![
                    json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
                    json!({"type": "ByteFallback"}),
                    json!({"type": "Fuse"}),
                ];
                if add_prefix_space {
                    decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
                }
                definition.decoder = Some(json!({"type": "Sequence", "decoders": decoders}));
            }
            Self::Gpt2 { add_prefix_space } => {
                if let (Some(adds), Some(step)) = (add_prefix_space, &mut definition.pre_tokenizer)
                {
                    set_prefix_space(step, adds);
                }
                return false;
            }
        }
        definition.normalizer = None;
        let model = &mut definition.model;
        (model.fuse_unk, model.byte_fallback) = (true, true);
        (model.unk_token, model.ignore_merges) = (None, false);
        true
    }
}

/// Makes a pre-tokenizer of bytes put a space before a text, or not.
fn set_prefix_space(step: &mut Value, adds: bool) {
    if step["type"] == "ByteLevel" {
        step["add_prefix_space"] = adds.into();
    }
    if let Some(steps) = step.get_mut("pretokenizers").and_then(Value::as_array_mut) {
        steps.iter_mut().for_each(|step| set_prefix_space(step, adds));
    }
}

/// The `added_tokens_decoder` of a tokenizer_config.json: tokens by id.
fn listed(config: &Map<String, Value>) -> std::result::Result<BTreeMap<u32, AddedToken>, String> {
    let trouble = || "added_tokens_decoder does not map ids to tokens".to_owned();
    let listed = config["added_tokens_decoder"].as_object().ok_or_else(trouble)?;
    let token = |(id, value): (&String, &Value)| {
        let id = id.parse().ok()?;
        let token = added_token(value).filter(|_| value.is_object())?;
        let special = value.get("special").and_then(Value::as_bool).unwrap_or(false);
        let normalized = value.get("normalized").and_then(Value::as_bool).unwrap_or(!special);
        Some((id, AddedToken { id, special, normalized, ..token }))
    };
    listed.iter().map(|entry| token(entry).ok_or_else(trouble)).collect()
}

/// A token from its text, or from an object with its `content` and flags.
fn added_token(value: &Value) -> Option<AddedToken> {
    let flag = |key: &str| value.get(key).and_then(Value::as_bool).unwrap_or(false);
    Some(AddedToken {
        single_word: flag("single_word"),
        lstrip: flag("lstrip"),
        rstrip: flag("rstrip"),
        normalized: flag("normalized"),
        ..special_token(value.as_str().or_else(|| value.get("content")?.as_str())?)
    })
}

/// A special token without an id yet.
fn special_token(content: &str) -> AddedToken {
    AddedToken {
        id: 0,
        content: content.to_owned(),
        special: true,
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: false,
    }
}

fn wrong(source: &Source, file: &str, what: &str) -> Error {
    Error::failed(format!("{}: {what}", source.path(file)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::tokenizer::Tokenizer;

    fn load(files: &[(&str, &Value)]) -> Tokenizer {
        let folder = tempfile::TempDir::new().unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content.to_string()).unwrap();
        }
        Tokenizer::load(&Source::Directory(folder.path().to_owned())).unwrap()
    }

    fn golden() -> Value {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizers.json");
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    /// Around a text stands what `AutoTokenizer` puts there, and in it are the tokens that all of a
    /// folder's files name.
    #[test]
    fn texts_have_the_ids_of_auto_tokenizer() {
        let golden = golden();
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() > 40);
        let mut wrong = Vec::new();
        for case in cases {
            let mut definition = golden["bases"][case["base"].as_str().unwrap()].clone();
            for (key, value) in case["tokenizer"].as_object().unwrap() {
                definition[key] = value.clone();
            }
            let mut files = vec![("tokenizer.json", &definition)];
            let others = case["files"].as_object().unwrap();
            files.extend(others.iter().map(|(name, content)| (name.as_str(), content)));
            let tokenizer = load(&files);
            for (text, ids) in case["encoded"].as_object().unwrap() {
                let ours = json!(tokenizer.surround(tokenizer.encode(text).unwrap()));
                if ours != *ids {
                    wrong.push(format!("{}: {text:?} is {ids}, not {ours}", case["name"]));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn what_counts_for_nothing_is_told() {
        let definition = &golden()["bases"]["bytes"];
        let remark = |config: Value| {
            let files = [("tokenizer.json", definition), (CONFIG, &config)];
            load(&files).remark().map(str::to_owned)
        };
        assert_eq!(remark(json!({})), None);
        assert_eq!(remark(json!({"add_bos_token": false})), None);
        let told = remark(json!({"add_bos_token": true})).unwrap();
        assert!(told.contains("puts no BOS before a text"), "{told}");
    }
}
