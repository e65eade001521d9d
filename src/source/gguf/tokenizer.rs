//! A GGUF's tokens as the tokenizer.json and tokenizer_config.json that the model had before.

use std::collections::HashMap;

use serde_json::{Map, Value as Json, json};

use crate::gguf::{Gguf, Value};
use crate::json::quote;

/// The longest token, or two that are merged, with a space between them: published ones have 1024 bytes, of
/// white space.
const MAX_TEXT_BYTES: usize = 1025;

/// How a text is taken apart before its pieces are merged, by `tokenizer.ggml.pre`: the expressions, one
/// after the other, and whether a piece that is a token needs no merges (`ignore_merges`).
///
/// llama.cpp names them (llama-vocab.cpp); the expressions are those of the models' own tokenizer.json.
struct Pre {
    names: &'static [&'static str],
    expressions: &'static [&'static str],
    ignore_merges: bool,
}

const GPT_2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// How Llama 3 splits a text before it merges bytes.
pub const LLAMA3_PATTERN: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const QWEN_2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// Latin, Greek, Cyrillic, Armenian, Georgian ... letters, as the model's tokenizer.json lists them.
const DEEPSEEK_LETTERS: &str = concat!(
    r"\s?[",
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-",
    "ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-",
    "ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃",
    "]+",
);
const CJK: &str = "[一-龥ࠀ-一가-\u{d7ff}]+";

const PRE: [Pre; 9] = [
    Pre {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
        ],
        expressions: &[LLAMA3_PATTERN],
        ignore_merges: true,
    },
    Pre { names: &["dbrx", "smaug-bpe"], expressions: &[LLAMA3_PATTERN], ignore_merges: false },
    Pre {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        expressions: &[r"\p{N}", GPT_2],
        ignore_merges: false,
    },
    Pre {
        names: &["gpt-2", "phi-2", "olmo", "mpt", "jais", "trillion"],
        expressions: &[GPT_2],
        ignore_merges: false,
    },
    Pre {
        names: &["qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan", "solar-open"],
        expressions: &[QWEN_2],
        ignore_merges: false,
    },
    Pre { names: &["tekken"], expressions: &[TEKKEN], ignore_merges: true },
    Pre {
        names: &["deepseek-llm"],
        expressions: &[
            r"[\r\n]",
            DEEPSEEK_LETTERS,
            "\\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+",
            r"\s+$",
            CJK,
            r"\p{N}",
        ],
        ignore_merges: false,
    },
    Pre {
        names: &["deepseek-coder"],
        expressions: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, r"\p{N}"],
        ignore_merges: false,
    },
    Pre {
        names: &["default"],
        expressions: &[r"[\p{P}\$\+<=>\^~\|]+", GPT_2, r"\p{N}+", "[0-9][0-9][0-9]"],
        ignore_merges: false,
    },
];

/// What llama.cpp calls this way to take a text apart.
pub fn pre_tokenizer_name(expressions: &[&str], ignore_merges: bool) -> Option<&'static str> {
    let is_it = |pre: &&Pre| pre.expressions == expressions && pre.ignore_merges == ignore_merges;
    PRE.iter().find(is_it).map(|pre| pre.names[0])
}

/// What a token is for (llama.h, `llama_token_type`).
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
const UNUSED: u64 = 5;

/// The tokens of a file.
struct Tokens<'a> {
    gguf: &'a Gguf,
    file: &'a [u8],
    texts: Vec<&'a str>,
    kinds: Vec<u64>,
}

/// The tokenizer.json; none, if the file says that it has no tokens.
///
/// # Errors
/// A kind of tokenizer or of pre-tokenizer that we do not have; lists of different lengths.
pub fn tokenizer(gguf: &Gguf, file: &[u8]) -> Result<Option<Json>, String> {
    let tokens = match text(gguf, "model") {
        Some("no_vocab" | "none") => return Ok(None),
        Some("gpt2" | "llama") => Tokens::read(gguf, file)?,
        Some(other) => {
            return Err(format!(
                "tokenizer.ggml.model is {}: gpt2 and llama are supported",
                quote(other)
            ));
        }
        None => return Err("tokenizer.ggml.model is missing".to_owned()),
    };
    let is_bytes = text(gguf, "model") == Some("gpt2");
    let mut json = if is_bytes { tokens.of_bytes()? } else { tokens.of_pieces()? };
    json["version"] = json!("1.0");
    json["added_tokens"] = tokens.added();
    json["post_processor"] = tokens.post_processor(is_bytes)?;
    Ok(Some(json))
}

/// The tokenizer_config.json: the template and the tokens' roles.
pub fn settings(gguf: &Gguf, file: &[u8]) -> Result<Json, String> {
    let mut settings = Map::new();
    let texts = list(gguf, file, "tokens")?;
    for role in ["bos", "eos", "unk", "pad"] {
        let key = match role {
            "unk" => "unknown_token_id".to_owned(),
            "pad" => "padding_token_id".to_owned(),
            _ => format!("{role}_token_id"),
        };
        let id = number(gguf, &key).and_then(|id| usize::try_from(id).ok());
        if let Some(text) = id.and_then(|id| texts.as_ref()?.get(id)) {
            settings.insert(format!("{role}_token"), json!(text));
        }
    }
    if let Some(template) = gguf.get("tokenizer.chat_template").and_then(Value::as_text) {
        settings.insert("chat_template".to_owned(), json!(template));
    }
    Ok(Json::Object(settings))
}

fn get<'a>(gguf: &'a Gguf, key: &str) -> Option<&'a Value> {
    gguf.get(&format!("tokenizer.ggml.{key}"))
}

fn text<'a>(gguf: &'a Gguf, key: &str) -> Option<&'a str> {
    get(gguf, key).and_then(Value::as_text)
}

fn number(gguf: &Gguf, key: &str) -> Option<u64> {
    get(gguf, key).and_then(Value::as_u64)
}

/// A list of texts, if it is there.
fn list<'a>(gguf: &Gguf, file: &'a [u8], key: &str) -> Result<Option<Vec<&'a str>>, String> {
    let Some(value) = get(gguf, key) else { return Ok(None) };
    let texts = value.as_array().and_then(|array| array.texts(file));
    let texts: Vec<&str> =
        texts.ok_or_else(|| format!("tokenizer.ggml.{key} is no list of texts"))?.collect();
    match texts.iter().find(|text| text.len() > MAX_TEXT_BYTES) {
        None => Ok(Some(texts)),
        Some(long) => Err(format!("tokenizer.ggml.{key} has one of {} bytes", long.len())),
    }
}

impl<'a> Tokens<'a> {
    fn read(gguf: &'a Gguf, file: &'a [u8]) -> Result<Self, String> {
        let texts = list(gguf, file, "tokens")?.ok_or("tokenizer.ggml.tokens is missing")?;
        let kinds = match get(gguf, "token_type") {
            None => vec![1; texts.len()],
            Some(value) => {
                let array = value.as_array().filter(|array| array.len == texts.len());
                let array =
                    array.ok_or("tokenizer.ggml.token_type is no list as long as tokens")?;
                let kinds = array.values(file).map(|kind| kind.as_u64());
                kinds.collect::<Option<_>>().ok_or("tokenizer.ggml.token_type has no numbers")?
            }
        };
        Ok(Self { gguf, file, texts, kinds })
    }

    /// A text's place, but for those of the kinds in `without`.
    fn vocab(&self, without: &[u64]) -> Map<String, Json> {
        let tokens = self.texts.iter().zip(&self.kinds).enumerate();
        let tokens = tokens.filter(|(_, (_, kind))| !without.contains(kind));
        tokens.map(|(id, (text, _))| ((*text).to_owned(), json!(id))).collect()
    }

    /// Those that are found in a text before any merging.
    fn added(&self) -> Json {
        let tokens = self.texts.iter().zip(&self.kinds).enumerate();
        let added = tokens.filter(|(_, (_, kind))| [UNKNOWN, CONTROL, USER_DEFINED].contains(kind));
        let token = |(id, (text, kind)): (usize, (&&str, &u64))| {
            json!({
                "id": id, "content": text, "special": *kind != USER_DEFINED, "normalized": false,
                "lstrip": false, "rstrip": false, "single_word": false,
            })
        };
        added.map(token).collect()
    }

    /// A byte-pair encoding of bytes, as GPT-2's.
    fn of_bytes(&self) -> Result<Json, String> {
        let merges =
            list(self.gguf, self.file, "merges")?.ok_or("tokenizer.ggml.merges is missing")?;
        let name = text(self.gguf, "pre").ok_or(
            "tokenizer.ggml.pre is missing, without which nobody knows how a text is taken apart: \
             convert the model again, by a llama.cpp of May 2024 or later",
        )?;
        let pre = PRE.iter().find(|pre| pre.names.contains(&name)).ok_or_else(|| {
            format!("tokenizer.ggml.pre is {}, which is not supported", quote(name))
        })?;
        let split = |expression| {
            let pattern = json!({"Regex": expression});
            json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false})
        };
        let mut steps: Vec<Json> = pre.expressions.iter().map(split).collect();
        let bytes = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
        });
        steps.push(bytes.clone());
        Ok(json!({
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
            "decoder": bytes,
            "model": {
                "type": "BPE",
                "vocab": self.vocab(&[UNKNOWN, CONTROL, USER_DEFINED, UNUSED]),
                "merges": merges,
                "ignore_merges": pre.ignore_merges,
            },
        }))
    }

    /// SentencePiece's byte-pair encoding, as Llama 2's: a space is `▁`, a character without a token is its
    /// bytes.
    fn of_pieces(&self) -> Result<Json, String> {
        let prefix = get(self.gguf, "add_space_prefix").and_then(Value::as_bool).unwrap_or(true);
        let space = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let prepend = json!({"type": "Prepend", "prepend": "▁"});
        let normalizers = if prefix { vec![prepend, space] } else { vec![space] };
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if prefix {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let unknown = self.kinds.iter().position(|kind| *kind == UNKNOWN);
        Ok(json!({
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {
                "type": "BPE",
                "vocab": self.vocab(&[UNUSED]),
                "merges": self.merges()?,
                "unk_token": unknown.map(|id| self.texts[id]),
                "fuse_unk": true,
                "byte_fallback": true,
            },
        }))
    }

    /// SentencePiece joins the two neighbours whose token has the highest score; as a list of merges, best
    /// first. (Of one token's several, in the order of their parts' ids, as transformers' `generate_merges`.)
    fn merges(&self) -> Result<Vec<[&'a str; 2]>, String> {
        let scores = get(self.gguf, "scores").and_then(Value::as_array);
        let scores = scores.filter(|scores| scores.len == self.texts.len());
        let scores = scores.ok_or("tokenizer.ggml.scores is no list as long as tokens")?;
        let scores: Option<Vec<f64>> =
            scores.values(self.file).map(|score| score.as_f64().filter(|s| !s.is_nan())).collect();
        let scores = scores.ok_or("tokenizer.ggml.scores has no numbers")?;
        let ids: HashMap<&str, usize> =
            self.texts.iter().enumerate().map(|(id, text)| (*text, id)).collect();
        let mut merges = Vec::new();
        for (id, text) in self.texts.iter().enumerate() {
            if [UNKNOWN, CONTROL].contains(&self.kinds[id]) {
                continue;
            }
            for (at, _) in text.char_indices().skip(1) {
                let (left, right) = text.split_at(at);
                if let (Some(first), Some(second)) = (ids.get(left), ids.get(right)) {
                    merges.push((scores[id], id, [*first, *second], [left, right]));
                }
            }
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
        Ok(merges.into_iter().map(|(.., pair)| pair).collect())
    }

    /// BOS before a text and EOS after it, where the file says so, or llama.cpp would without its saying.
    fn post_processor(&self, is_bytes: bool) -> Result<Json, String> {
        // Llama 3's and Mistral's, which take whole pieces first, have BOS without saying it.
        let is_of_these = |pre: &Pre| {
            pre.ignore_merges
                && text(self.gguf, "pre").is_some_and(|name| pre.names.contains(&name))
        };
        let has_bos = !is_bytes || PRE.iter().any(is_of_these);
        let says = |role: &str, usual: bool| {
            let key = format!("add_{role}_token");
            get(self.gguf, &key).and_then(Value::as_bool).unwrap_or(usual)
        };
        let (mut single, mut special) =
            (vec![json!({"Sequence": {"id": "A", "type_id": 0}})], Map::new());
        for (role, usual, at) in [("bos", has_bos, 0), ("eos", false, 1)] {
            if !says(role, usual) {
                continue;
            }
            let id = number(self.gguf, &format!("{role}_token_id"));
            let text = id.and_then(|id| self.texts.get(usize::try_from(id).ok()?));
            let Some((id, text)) = id.zip(text) else {
                return Err(format!("tokenizer.ggml.{role}_token_id is no token's"));
            };
            let at = if at == 0 { 0 } else { single.len() };
            single.insert(at, json!({"SpecialToken": {"id": text, "type_id": 0}}));
            special.insert((*text).to_owned(), json!({"id": text, "ids": [id], "tokens": [text]}));
        }
        Ok(json!({
            "type": "TemplateProcessing",
            "single": single,
            "pair": single,
            "special_tokens": special,
        }))
    }
}
