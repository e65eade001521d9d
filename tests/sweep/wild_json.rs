//! JSON a few steps away from what it should be.

use serde_json::{Map, Value, json};

use crate::dice::Dice;

/// Steps of tokenizers that have ended a process, or might.
fn steps() -> Vec<Value> {
    let regex = |pattern: &str| json!({"Regex": pattern});
    let split = |pattern| json!({"type": "Split", "pattern": pattern, "behavior": "Isolated"});
    let replace =
        |pattern, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
    vec![
        split(regex("(a+)+$")),
        split(regex("a++a")),
        split(regex(&"[a".repeat(5000))),
        split(regex("(a{1000}){1000}")),
        split(regex("(?<a>a\\g<a>)")),
        split(regex("x*")),
        split(json!({"String": ""})),
        replace(regex("a|b|"), "aaaaaaaaaaaaaaaa"),
        replace(json!({"String": "a"}), "aaaaaaaaaaaaaaaa"),
        json!({"type": "FixedLength", "length": 0}),
        json!({"type": "Prepend", "prepend": ""}),
        json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        json!({"type": "Strip", "content": "a", "start": 9, "stop": 9}),
        json!({"type": "Strip", "strip_left": true, "strip_right": true}),
        json!({"type": "BPEDecoder", "suffix": ""}),
        json!({"type": "WordPiece", "prefix": "", "cleanup": true}),
        json!({"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": true}),
        json!({"type": "Metaspace", "replacement": "ab", "prepend_scheme": "first"}),
        json!({"type": "NFKD"}),
        json!({"type": "Lowercase"}),
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
        json!({"type": "Digits", "individual_digits": true}),
        json!({"type": "Punctuation"}),
        json!({"type": "BertProcessing", "sep": ["a", 1], "cls": ["b", 4294967295_u32]}),
    ]
}

fn evil(dice: &mut Dice) -> Value {
    match dice.below(20) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(0),
        3 => json!(-1),
        4 => json!(1),
        5 => json!(1e308),
        6 => json!(u64::MAX),
        7 => json!(u32::MAX),
        8 => json!(0.5),
        9 => json!(""),
        10 => json!("a"),
        11 => json!("<|eot_id|>"),
        12 => json!("\u{0}\u{1b}[31m\n\u{2028}"),
        13 => json!("é".repeat(70_000)),
        14 => json!([]),
        15 => json!({}),
        16 => (0..200).fold(json!(1), |inner, _| json!([inner])),
        17 => json!([["a", "b"], [1, 2]]),
        _ => dice.pick(&steps()).clone(),
    }
}

/// Somewhere in a value, rather high than deep.
fn place<'v>(mut value: &'v mut Value, dice: &mut Dice) -> &'v mut Value {
    loop {
        let parts = value.as_array().map(Vec::len).or(value.as_object().map(Map::len)).unwrap_or(0);
        if parts == 0 || dice.one_in(4) {
            return value;
        }
        let at = dice.below(parts);
        value = match value {
            Value::Array(items) => &mut items[at],
            Value::Object(fields) => fields.values_mut().nth(at).expect("a field"),
            _ => unreachable!("it has parts"),
        };
    }
}

fn mutate(value: &mut Value, dice: &mut Dice) {
    let place = place(value, dice);
    let parts = place.as_array().map(Vec::len).or(place.as_object().map(Map::len)).unwrap_or(0);
    let new = evil(dice);
    match place {
        Value::Array(items) if parts > 0 && !dice.one_in(4) => {
            let at = dice.below(parts);
            match dice.below(4) {
                0 => drop(items.remove(at)),
                1 => items.insert(at, items[at].clone()),
                2 => items.swap(0, at),
                _ => items.insert(at, new),
            }
        }
        Value::Object(fields) if parts > 0 && !dice.one_in(4) => {
            let key = fields.keys().nth(dice.below(parts)).cloned().expect("a key");
            let other = fields.values().nth(dice.below(parts)).cloned().expect("a value");
            match dice.below(4) {
                0 => drop(fields.shift_remove(&key)),
                1 => drop(fields.insert(key, other)),
                2 => drop(fields.insert("<|eot_id|>".to_owned(), other)),
                _ => drop(fields.insert(key, new)),
            }
        }
        place => *place = new,
    }
}

/// The text of a value some steps away from `value`; now and then a text that no value has.
pub fn wild_json(value: &Value, dice: &mut Dice) -> String {
    let mut value = value.clone();
    for _ in 0..1 + dice.below(3) {
        mutate(&mut value, dice);
    }
    let mut text = value.to_string();
    match dice.below(12) {
        0 => text = text.chars().take(dice.below(text.len() + 1)).collect(),
        // A key that is there twice.
        1 => text = text.replacen('{', "{\"type\": \"BPE\", \"type\": 1, ", 1 + dice.below(3)),
        2 => text.push_str(&"[".repeat(100_000)),
        _ => {}
    }
    text
}
