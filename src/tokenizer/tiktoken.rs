//! Meta's own `tokenizer.model`: one line a token, its bytes in base64 and its rank, as `tiktoken`
//! reads it.
//!
//! `tiktoken` merges, at every step, the two neighbours whose concatenation has the lowest rank.
//! The same encoding as a list of merges: for every token, each way to cut it into two tokens,
//! ordered by the token's rank and then by the ranks of the two parts; this is how `transformers`
//! converts such files. Together with `ignore_merges` the ids are those of `tiktoken`.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::definition::{AddedToken, Definition, Merge, TokenModel};
use super::pieces::LLAMA3_PATTERN;

/// The file holds no names for the ids after the ranks; Meta's code does. Meta counts 256, the rest
/// are reserved.
const CONTROL_TOKENS: usize = 256;
pub(super) const BOS: &str = "<|begin_of_text|>";
const NAMED_CONTROL_TOKENS: [&str; 12] = [
    BOS,
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
];

/// More ranks than this would leave no ids for the control tokens, or no sense in any of it.
const MAX_RANKS: usize = 1 << 24;

/// Meta's longest token has 128 bytes. Finding a token's cuts takes time with the square of its
/// length.
const MAX_TOKEN_BYTES: usize = 1024;

/// Reads a `tokenizer.model` of ranks. The error is what is wrong, without the name of the file.
pub(super) fn parse(file: &[u8]) -> Result<Definition, String> {
    let tokens = ranked_tokens(file)?;
    let spelling = byte_spelling();
    let spell =
        |bytes: &[u8]| bytes.iter().map(|byte| spelling[usize::from(*byte)]).collect::<String>();
    let vocab = tokens.iter().zip(0u32..).map(|(token, rank)| (spell(token), rank)).collect();
    let merges = merges(&tokens)
        .into_iter()
        .map(|(left, right)| Merge(spell(&tokens[left as usize]), spell(&tokens[right as usize])))
        .collect();
    Ok(Definition {
        added_tokens: control_tokens(tokens.len() as u32),
        normalizer: None,
        pre_tokenizer: Some(json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": LLAMA3_PATTERN},
             "behavior": "Isolated", "invert": false},
            byte_level(),
        ]})),
        post_processor: None,
        decoder: Some(byte_level()),
        model: TokenModel {
            kind: None,
            vocab,
            merges,
            unk_token: None,
            continuing_subword_prefix: None,
            end_of_word_suffix: None,
            dropout: None,
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: true,
        },
    })
}

fn byte_level() -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    })
}

/// The bytes of every token, by rank. Ranks are 0, 1, 2 ... in any order of lines; every single
/// byte has one.
fn ranked_tokens(file: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    if file.first() == Some(&0x0a) || file.contains(&0) {
        return Err("is a sentencepiece model (Llama 2), not tiktoken ranks: \
                    put the tokenizer.json of the same model beside it"
            .to_owned());
    }
    let mut by_rank: HashMap<usize, Vec<u8>> = HashMap::new();
    for (number, line) in (1..).zip(file.split(|byte| *byte == b'\n')) {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        let (rank, token) = ranked_token(line)
            .ok_or_else(|| format!("line {number} is not a token in base64 and its rank"))?;
        if by_rank.insert(rank, token).is_some() {
            return Err(format!("line {number} gives the rank {rank} again"));
        }
    }
    let tokens: Vec<Vec<u8>> =
        (0..by_rank.len().min(MAX_RANKS)).map_while(|rank| by_rank.remove(&rank)).collect();
    if !by_rank.is_empty() {
        return Err(format!("no token has the rank {}", tokens.len()));
    }
    let ranks: HashMap<&[u8], usize> =
        tokens.iter().enumerate().map(|(rank, token)| (token.as_slice(), rank)).collect();
    if ranks.len() != tokens.len() {
        return Err("a token has two ranks".to_owned());
    }
    match (0..=u8::MAX).find(|byte| !ranks.contains_key([*byte].as_slice())) {
        Some(byte) => Err(format!("the byte {byte:#04x} has no rank")),
        None => Ok(tokens),
    }
}

fn ranked_token(line: &[u8]) -> Option<(usize, Vec<u8>)> {
    let (token, rank) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    let token = STANDARD.decode(token).ok()?;
    let rank = rank.trim().parse().ok()?;
    (1..=MAX_TOKEN_BYTES).contains(&token.len()).then_some((rank, token))
}

/// Every way to cut a token into two tokens, as pairs of ranks.
fn merges(tokens: &[Vec<u8>]) -> Vec<(u32, u32)> {
    let ranks: HashMap<&[u8], u32> = tokens.iter().map(Vec::as_slice).zip(0..).collect();
    let mut merges = Vec::new();
    for token in tokens {
        let first = merges.len();
        merges.extend((1..token.len()).filter_map(|cut| {
            let (left, right) = token.split_at(cut);
            Some((*ranks.get(left)?, *ranks.get(right)?))
        }));
        merges[first..].sort_unstable();
    }
    merges
}

fn control_tokens(first_id: u32) -> Vec<AddedToken> {
    let reserved = (2..).map(|number| format!("<|reserved_special_token_{number}|>"));
    let contents = NAMED_CONTROL_TOKENS.iter().map(|name| (*name).to_owned()).chain(reserved);
    contents
        .take(CONTROL_TOKENS)
        .zip(first_id..)
        .map(|(content, id)| AddedToken {
            id,
            content,
            special: true,
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
        })
        .collect()
}

/// How byte-level encodings write each byte as a printable character: itself where it is one in
/// Latin-1, else one of U+0100, U+0101 ... in order.
pub(super) fn byte_spelling() -> [char; 256] {
    let mut spelling = ['\0'; 256];
    let mut next = '\u{100}'..;
    for (byte, spelled) in (0..=u8::MAX).zip(&mut spelling) {
        let printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        *spelled = if printable { char::from(byte) } else { next.next().unwrap_or_default() };
    }
    spelling
}
