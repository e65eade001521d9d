//! Tokenizer files that are broken, or would end the process.

use super::*;

/// Each tokenizer.json is refused in one line.
fn refused(cases: &[(String, &str)]) {
    for (text, what) in cases {
        let error = error_of(&[("tokenizer.json", text.as_bytes())]);
        assert!(error.contains("/tokenizer.json: ") && error.contains(what), "{error}");
        assert!(!error.contains('\n') && error.len() < 500, "{error}");
    }
}

#[test]
fn broken_files_are_refused_in_one_line() {
    refused(&[
        ("{\"model\": ".to_owned(), "EOF"),
        ("[".repeat(100_000), "expected u32"),
        (format!("{{\"model\": {}", "{\"vocab\":".repeat(100_000)), "invalid type"),
        (format!("{{\"decoder\": {}", "[".repeat(100_000)), "recursion limit"),
        ("[]".to_owned(), "invalid length"),
        (edited("/model/type", json!("Unigram")), "only BPE is"),
        (edited("/model/vocab", json!({"a": 5_000_000_000u64})), "u32"),
        (edited("/model/vocab", json!({"a": -1})), "u32"),
        (edited("/model/vocab/world", json!(3)), "has an id, 3, that "),
        (edited("/model/merges/0", json!("a b c")), "is not a merge of two tokens"),
        (edited("/model/merges/0", json!(["a"])), "a merge is not of two tokens"),
        (edited("/model/merges/0", json!(["x".repeat(500), "y"])), "is not in the vocabulary"),
        (edited("/model/merges/0", json!("world world")), "is not in the vocabulary"),
        (edited("/model/unk_token", json!("what")), "unk_token \"what\" is not in the vocabulary"),
        (edited("/model/continuing_subword_prefix", json!("####")), "continuing_subword_prefix"),
        (edited("/model/dropout", json!(0.5)), "dropout"),
        (edited("/pre_tokenizer", json!({"type": "Unheard"})), "pre_tokenizer: "),
        (edited("/post_processor", json!({"type": "Unheard"})), "post_processor: "),
        (
            edited("/post_processor", template(&["A", "A"])),
            "post_processor: does not keep a text once",
        ),
        (edited("/pre_tokenizer", split("(")), "pre_tokenizer: "),
        (edited("/normalizer", json!([1])), "normalizer: "),
        (edited("/decoder", Value::Null), "has no decoder"),
    ]);
}

/// Every id has one text, every text one id, and no control token comes of a text.
#[test]
fn ids_that_two_tokens_share_are_refused() {
    let many =
        (300..5000).map(|id| json!({"id": id, "content": format!("{id}{}", "x".repeat(500))}));
    refused(&[
        (edited("/added_tokens/0/content", json!("")), "is empty"),
        (edited("/added_tokens/0", json!({"id": 1, "content": "<s>"})), "is there twice"),
        (edited("/added_tokens/0/id", json!(9)), "one id in the vocabulary and another"),
        (edited("/model/vocab", json!({})), "model.vocab is empty"),
        (edited("/model/vocab/world", json!(u32::MAX)), "has the id 4294967295, which is too high"),
        (edited("/added_tokens/0", json!({"id": 1 << 28, "content": "x"})), "which is too high"),
        (
            edited("/added_tokens/0", json!({"id": 9, "content": "<|x|>"})),
            "that \"<0x06>\" of the vocabulary has",
        ),
        (edited("/model/byte_fallback", json!(false)), "unk_token \"<unk>\" is a control token"),
        (twice("\"▁world\":", "\"▁world\":3,\"▁world\":"), "\"▁world\" is in the vocabulary twice"),
        (twice("\"fuse_unk\":", "\"fuse_unk\":true,\"fuse_unk\":"), "duplicate field `fuse_unk`"),
        (
            twice("\"decoders\":", "\"decoders\":[],\"decoders\":"),
            "key \"decoders\" is given twice",
        ),
        (twice("\"decoder\":", "\"decoder\":null,\"decoder\":"), "duplicate field `decoder`"),
        (
            edited("/added_tokens", json!([{"id": 300, "content": "x".repeat(513)}])),
            "has over 512 bytes",
        ),
        (edited("/added_tokens", many.collect()), "the added tokens have over 2 MiB"),
    ]);
}

#[test]
fn steps_that_are_not_known_are_refused() {
    refused(&[
        (
            edited("/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "!"})),
            "\"Precompiled\" is not",
        ),
        (
            edited("/normalizer", json!({"type": "Prepend", "prepend": ""})),
            "Prepend: prepend is empty",
        ),
        (
            edited("/normalizer", json!({"type": "Prepend", "prepend": "x".repeat(17)})),
            "prepend has over 16 bytes",
        ),
        (
            edited("/normalizer", json!({"type": "Strip", "strip_left": 1})),
            "strip_left is neither true nor false",
        ),
        (edited("/normalizer", replace(json!({"String": ""}), "x")), "Replace: pattern is empty"),
        (
            edited("/normalizer", replace(json!({"Regex": "(a{1000}){1000}"}), "x")),
            "repeats more than",
        ),
        (
            edited("/normalizer", replace(json!({"Regex": "[a".repeat(5000)}), "x")),
            "has over 4096 bytes",
        ),
        (
            edited(
                "/normalizer",
                json!({"type": "Sequence", "normalizers": vec![json!({"type": "NFC"}); 17]}),
            ),
            "more than 16 steps",
        ),
        (edited("/normalizer", nested(20)), "sequences nest too deeply"),
        (edited("/normalizer", json!({"normalizers": []})), "a step has no type"),
    ]);
}

#[test]
fn fields_of_steps_are_checked() {
    refused(&[
        (
            edited("/pre_tokenizer", json!({"type": "FixedLength", "length": 0})),
            "\"FixedLength\" is not supported",
        ),
        (
            edited(
                "/pre_tokenizer",
                json!({"type": "Metaspace", "replacement": "", "split": true}),
            ),
            "is not one character",
        ),
        (
            edited(
                "/pre_tokenizer",
                json!({"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Odd"}),
            ),
            "Split: ",
        ),
        (
            edited(
                "/pre_tokenizer",
                json!({"type": "Sequence", "pretokenizers": vec![bytes(); 2]}),
            ),
            "ByteLevel is there twice",
        ),
        (
            edited("/pre_tokenizer", json!({"type": "ByteLevel"})),
            "add_prefix_space is neither true nor false",
        ),
        (
            edited("/decoder", json!({"type": "Strip", "content": " ", "start": 0, "stop": 1})),
            "stop above 0",
        ),
        (
            edited("/decoder", json!({"type": "Strip", "content": "ab", "start": 0, "stop": 0})),
            "is not one character",
        ),
        (
            edited("/decoder", json!({"type": "CTC", "pad_token": "", "word_delimiter_token": ""})),
            "\"CTC\" is not",
        ),
        (edited("/decoder", json!(5)), "decoder: is 5, no step"),
        (edited("/post_processor", unknown_special()), "special_tokens has no ids of \"x\""),
        (
            edited(
                "/post_processor",
                json!({"type": "BertProcessing", "sep": ["a"], "cls": ["b", 1]}),
            ),
            "is not a token and its id",
        ),
    ]);
}

#[test]
fn other_broken_files_are_refused_in_one_line() {
    let good = golden("tiny.tiktoken");
    let lines: Vec<_> = good.split_inclusive(|byte| *byte == b'\n').collect();
    let rank_cases: [(Vec<u8>, &str); 8] = [
        (Vec::new(), "the byte 0x00 has no rank"),
        (b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00".to_vec(), "put the tokenizer.json"),
        (b"not base64 at all\n".to_vec(), "line 1 is not a token"),
        (b"IQ== 99999999999999999999999\n".to_vec(), "line 1 is not a token"),
        ([&good, lines[3]].concat(), "gives the rank 3 again"),
        (lines[1..].concat(), "no token has the rank 0"),
        ([&good, &b"IQ== 100000\n"[..]].concat(), "no token has the rank 591"),
        ([&good, &b"IQ== 591\n"[..]].concat(), "a token has two ranks"),
    ];
    for (text, what) in rank_cases {
        let error = error_of(&[("tokenizer.model", &text)]);
        assert!(error.contains("/tokenizer.model: ") && error.contains(what), "{error}");
    }
    assert!(error_of(&[]).contains("tokenizer.json: no such file"));
    let configs = [
        (r#"{"bos_token": 5}"#, "bos_token is 5: a text is needed"),
        (r#"{"added_tokens_decoder": {"x": {"content": "y"}}}"#, "does not map ids to tokens"),
        ("[]", "a list in place of a JSON object"),
    ];
    for (config, what) in configs {
        let files = [("tokenizer.model", &good[..]), ("tokenizer_config.json", config.as_bytes())];
        let error = error_of(&files);
        assert!(error.contains("/tokenizer_config.json: ") && error.contains(what), "{error}");
    }
}

/// A definition in which a piece of its text is replaced, as no value could be.
fn twice(old: &str, new: &str) -> String {
    let definition = llama2(true).to_string();
    assert!(definition.contains(old), "{old}");
    definition.replacen(old, new, 1)
}

fn replace(pattern: Value, content: &str) -> Value {
    json!({"type": "Replace", "pattern": pattern, "content": content})
}

fn bytes() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true})
}

/// Sequences in sequences.
fn nested(depth: usize) -> Value {
    (0..depth)
        .fold(json!({"type": "NFC"}), |step, _| json!({"type": "Sequence", "normalizers": [step]}))
}

/// A post-processor with a special token of no ids.
fn unknown_special() -> Value {
    let mut processor = template(&["A"]);
    processor["single"]
        .as_array_mut()
        .unwrap()
        .push(json!({"SpecialToken": {"id": "x", "type_id": 0}}));
    processor
}

/// What a stranger's steps make of a text ends, in time and in one line.
#[test]
fn costly_steps_are_refused_in_one_line() {
    let multiplied = |times| {
        let steps = vec![replace(json!({"String": "a"}), "aaaaaaaaaaaaaaaa"); times];
        json!({"type": "Sequence", "normalizers": steps})
    };
    let run = "a".repeat(1 << 16) + "b";
    for (key, step, what) in [
        ("normalizer", multiplied(8), "its steps make a text too long"),
        ("normalizer", replace(json!({"Regex": "(a+)+$"}), "x"), "too costly to find"),
        ("pre_tokenizer", split("(a+)+$"), "too costly to find"),
        ("pre_tokenizer", split("(a|a)*c"), "too costly to find"),
    ] {
        let tokenizer =
            load_json(&serde_json::from_str(&edited(&format!("/{key}"), step)).unwrap());
        let error = tokenizer.encode_text(&run).unwrap_err().to_string();
        assert!(error.contains("cannot encode a text: ") && error.contains(what), "{error}");
        assert!(!error.contains('\n') && error.len() < 500, "{error}");
    }
    let decoders = vec![replace(json!({"String": "e"}), "eeeeeeeeeeeeeeee"); 8];
    let decoder = json!({"type": "Sequence", "decoders": decoders});
    let tokenizer = load_json(&serde_json::from_str(&edited("/decoder", decoder)).unwrap());
    let error = tokenizer.decode(&[261, 261], false).unwrap_err().to_string();
    assert!(error.contains("cannot decode ids: its steps make a text too long"), "{error}");
}

/// Decoders of the crate that count on a token, or on text in it.
#[test]
fn nothing_decodes_to_nothing() {
    let decoders = [
        json!({"type": "BPEDecoder", "suffix": "</w>"}),
        json!({"type": "Strip", "content": "x", "start": 9999999, "stop": 0}),
        bytes(),
    ];
    for decoder in decoders {
        let tokenizer = load_json(&serde_json::from_str(&edited("/decoder", decoder)).unwrap());
        assert_eq!(tokenizer.decode(&[], true).unwrap(), "");
        assert_eq!(tokenizer.decode(&[1], false).unwrap(), "");
        assert_eq!(tokenizer.decode(&[261], false).unwrap(), "e");
    }
}

fn edited(pointer: &str, value: Value) -> String {
    let mut definition = llama2(true);
    match definition.pointer_mut(pointer) {
        Some(place) => *place = value,
        None => {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            definition.pointer_mut(parent).unwrap()[key] = value;
        }
    }
    definition.to_string()
}

fn split(pattern: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
}

/// A post-processor of nothing but sequences.
fn template(single: &[&str]) -> Value {
    let sequence = |name: &&str| json!({"Sequence": {"id": name, "type_id": 0}});
    let single: Vec<_> = single.iter().map(sequence).collect();
    let pair: Vec<_> = ["A", "B"].iter().map(sequence).collect();
    json!({
        "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {},
    })
}
