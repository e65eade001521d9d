//! The tokenizer against tiktoken and transformers, its streams, and tokenizer files that are
//! broken.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use chaski::source::Source;
use chaski::tokenizer::{TextStream, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

mod hostile;

const BROKEN: char = char::REPLACEMENT_CHARACTER;

fn golden(file: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file)).unwrap()
}

fn directory(files: &[(&str, &[u8])]) -> (TempDir, Source) {
    let directory = TempDir::new().unwrap();
    for (name, bytes) in files {
        fs::write(directory.path().join(name), bytes).unwrap();
    }
    let source = Source::Directory(directory.path().to_owned());
    (directory, source)
}

fn load(files: &[(&str, &[u8])]) -> Tokenizer {
    Tokenizer::load(&directory(files).1).unwrap()
}

fn load_json(definition: &Value) -> Tokenizer {
    load(&[("tokenizer.json", definition.to_string().as_bytes())])
}

fn error_of(files: &[(&str, &[u8])]) -> String {
    let (_directory, source) = directory(files);
    Tokenizer::load(&source).err().expect("this tokenizer must be refused").to_string()
}

/// Some 600 ranks and Llama 3's pattern, as Meta ships a tokenizer.
fn tiny() -> &'static Tokenizer {
    static TINY: LazyLock<Tokenizer> =
        LazyLock::new(|| load(&[("tokenizer.model", &golden("tiny.tiktoken"))]));
    &TINY
}

/// The tokens "<unk>", "<s>", "</s>", the bytes from id 3, and some words.
fn small_llama2() -> &'static Tokenizer {
    static SMALL: LazyLock<Tokenizer> = LazyLock::new(|| load_json(&llama2(true)));
    &SMALL
}

/// A Llama 2 tokenizer in small, with the pre-tokenizer of old files (`Prepend` normalizer) or of
/// newer ones.
fn llama2(is_old: bool) -> Value {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>")));
    let words = "▁ h e l o w r d ▁h el lo ▁hel ▁hello ▁w or ld ▁wor ▁world";
    tokens.extend(words.split(' ').map(str::to_owned));
    let vocab: serde_json::Map<_, _> = tokens.into_iter().zip((0..).map(|id| json!(id))).collect();
    let special = |(id, content)| json!({"id": id, "content": content, "special": true});
    let added: Vec<_> = ["<unk>", "<s>", "</s>"].iter().enumerate().map(special).collect();
    let normalizer = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]});
    let metaspace = json!({
        "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false,
    });
    json!({
        "added_tokens": added,
        "normalizer": if is_old { normalizer } else { Value::Null },
        "pre_tokenizer": if is_old { Value::Null } else { metaspace },
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {
            "type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            "vocab": vocab,
            "merges": [
                "▁ h", "e l", "l o", "▁h el", "▁hel lo",
                "▁ w", "o r", "l d", "▁w or", "▁wor ld",
            ],
        },
    })
}

#[test]
fn ranks_give_the_ids_of_tiktoken() {
    let tokenizer = tiny();
    let golden: Value = serde_json::from_slice(&golden("text.json")).unwrap();
    let cases = golden["tiktoken"].as_array().unwrap();
    assert!(cases.len() > 200);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(tokenizer.encode_text(text).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
    }
    for (content, id) in golden["special"].as_object().unwrap() {
        let id = id.as_u64().unwrap() as u32;
        assert_eq!(tokenizer.id(content), Some(id));
        assert_eq!(tokenizer.encode(content).unwrap(), [id]);
        assert!(tokenizer.is_control(id));
        assert!(!tokenizer.encode_text(content).unwrap().contains(&id));
    }
    assert_eq!(tokenizer.vocab(), tokenizer.id("<|begin_of_text|>").unwrap() as usize + 256);
}

#[test]
fn control_tokens_are_found_in_text() {
    let tokenizer = tiny();
    let eot = tokenizer.id("<|eot_id|>").unwrap();
    let mut expected = tokenizer.encode_text("Hello <|eot_id").unwrap();
    expected.push(eot);
    expected.extend(tokenizer.encode_text(" world").unwrap());
    let ids = tokenizer.encode("Hello <|eot_id<|eot_id|> world").unwrap();
    assert_eq!(ids, expected);
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "Hello <|eot_id world");
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "Hello <|eot_id<|eot_id|> world");
}

/// What a file names is a control token, which plain text never becomes, also where the
/// tokenizer.json does not call it special.
#[test]
fn what_the_folder_names_is_a_control_token() {
    let mut definition = llama2(true);
    definition["added_tokens"] = json!([{"id": 2, "content": "</s>", "special": false}]);
    let definition = definition.to_string();
    let config = json!({
        "bos_token": "<s>", "eos_token": "</s>", "pad_token": "h", "unk_token": "<unk>",
        "added_tokens_decoder": {
            "277": {"content": "[turn]", "special": true},
            "278": {"content": "[word]", "special": false, "normalized": false},
        },
    })
    .to_string();
    let files =
        [("tokenizer.json", definition.as_bytes()), ("tokenizer_config.json", config.as_bytes())];
    let tokenizer = load(&files);
    for (text, id) in [("<s>", 1), ("</s>", 2), ("[turn]", 277)] {
        assert_eq!(tokenizer.id(text), Some(id));
        assert!(!tokenizer.encode_text(&format!("a {text} b")).unwrap().contains(&id), "{text}");
    }
    assert!(tokenizer.encode_text("hello[word]").unwrap().ends_with(&[278]));
    assert_eq!(tokenizer.decode(&tokenizer.encode_text("hh").unwrap(), false).unwrap(), "hh");
    assert_eq!(tokenizer.special_token("pad_token"), Some("h"));
}

/// Nothing names a BOS where only Meta's ranks are: they have it, unless the configuration says no.
#[test]
fn ranks_begin_with_bos() {
    let ranks = golden("tiny.tiktoken");
    let with = |config: &str| {
        load(&[("tokenizer.model", &ranks), ("tokenizer_config.json", config.as_bytes())])
    };
    let bos = tiny().id("<|begin_of_text|>").unwrap();
    assert_eq!((tiny().bos(), tiny().before_text()), (Some(bos), &[bos][..]));
    assert_eq!(with("{}").surround(vec![bos, 7]), [bos, bos, 7]);
    assert_eq!(with(r#"{"add_bos_token": false}"#).surround(vec![7]), [7]);
    let eot = tiny().id("<|eot_id|>").unwrap();
    let listed = format!(r#"{{"added_tokens_decoder": {{"{eot}": {{"content": "<end>"}}}}}}"#);
    assert_eq!(with(&listed).encode("<end>").unwrap().len(), 1);
}

/// Expected ids and texts are those of the Python `tokenizers` package for the same files.
#[test]
fn llama_2_tokenizers_work() {
    let [old, new] = [true, false].map(|is_old| load_json(&llama2(is_old)));
    for tokenizer in [&old, &new] {
        assert_eq!(tokenizer.encode("hello world").unwrap(), [271, 276]);
        assert_eq!(tokenizer.encode("é!").unwrap(), [259, 198, 172, 36]);
        assert!(tokenizer.encode("").unwrap().is_empty());
        let plain = [259, 63, 118, 65, 260, 268, 269, 63, 50, 118, 65];
        assert_eq!(tokenizer.encode_text("<s>hello</s>").unwrap(), plain);
        assert_eq!(tokenizer.decode(&[271, 276], false).unwrap(), "hello world");
        assert_eq!(tokenizer.decode(&[198, 172], false).unwrap(), "é");
    }
    assert_eq!(old.encode("<s>hello world").unwrap(), [1, 271, 276]);
    assert_eq!(old.encode("hello</s> world").unwrap(), [271, 2, 259, 276]);
    assert_eq!(old.decode(&[1, 271, 276], true).unwrap(), "<s> hello world");
    assert_eq!(new.encode("<s>hello world").unwrap(), [1, 260, 268, 269, 276]);
    assert_eq!(new.encode("hello</s> world").unwrap(), [271, 2, 276]);
}

#[test]
fn merges_that_make_control_tokens_do_nothing() {
    let mut definition = llama2(true);
    definition["model"]["vocab"]["o▁w"] = json!(277);
    definition["model"]["merges"].as_array_mut().unwrap().insert(0, json!(["o", "▁w"]));
    let without = load_json(&llama2(true)).encode_text("hello world").unwrap();
    let token = json!({"id": 277, "content": "o▁w", "special": true});
    definition["added_tokens"].as_array_mut().unwrap().push(token);
    assert_eq!(load_json(&definition).encode_text("hello world").unwrap(), without);
}

#[test]
fn flags_of_added_tokens_count() {
    let mut definition = llama2(true);
    let mut add = |id: u32, content: &str, flag: &str| {
        let token = json!({"id": id, "content": content, "special": true, flag: true});
        definition["added_tokens"].as_array_mut().unwrap().push(token);
    };
    add(300, "<left>", "lstrip");
    add(301, "<right>", "rstrip");
    add(302, "word", "single_word");
    let tokenizer = load_json(&definition);
    assert_eq!(tokenizer.encode("hello  <left>").unwrap(), [271, 300]);
    assert_eq!(tokenizer.encode("<right>  hello").unwrap(), [301, 271]);
    assert!(tokenizer.encode("hello word!").unwrap().contains(&302));
    assert!(!tokenizer.encode("hello words").unwrap().contains(&302));
    // What is not special is found in plain text too, and shown.
    definition["added_tokens"]
        .as_array_mut()
        .unwrap()
        .push(json!({"id": 303, "content": "[hero]"}));
    let tokenizer = load_json(&definition);
    assert_eq!(tokenizer.encode_text("hello[hero]").unwrap(), [271, 303]);
    assert_eq!(tokenizer.decode(&[271, 303], false).unwrap(), "hello[hero]");
}

#[test]
fn long_texts_are_encoded_in_pieces() {
    let tokenizer = tiny();
    // Cut or not, a text of lines has the ids of its lines.
    let line = "The ferry was in the river, and 1234 ships:\n";
    let expected = tokenizer.encode_text(line).unwrap().repeat(5_000);
    assert_eq!(tokenizer.encode_text(&line.repeat(5_000)).unwrap(), expected);
    for (run, count) in [(" ", 3 << 19), ("a", 1 << 19), ("河", 1 << 18)] {
        let text = run.repeat(count);
        let ids = tokenizer.encode_text(&text).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap().len(), text.len());
    }
}

#[test]
fn ids_that_are_no_tokens_are_refused() {
    let error = tiny().decode(&[1, 847, u32::MAX], false).unwrap_err().to_string();
    assert!(
        error.contains("tokenizer.model: the id 847 is not a token; ids are below 847"),
        "{error}"
    );
}

/// The pieces of a stream of ids.
fn stream(tokenizer: &Tokenizer, ids: &[u32], show_control: bool) -> Vec<String> {
    let mut stream = TextStream::new(tokenizer, show_control);
    let mut pieces: Vec<_> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
    pieces.push(stream.finish().unwrap());
    pieces
}

#[test]
fn a_stream_never_prints_a_broken_character() {
    for tokenizer in [tiny(), small_llama2(), &load_json(&llama2(false))] {
        let text = "hello 👨‍👩‍👧 world, 河水 é!".repeat(30);
        let ids = tokenizer.encode_text(&text).unwrap();
        let pieces = stream(tokenizer, &ids, false);
        assert_eq!(pieces.concat(), text);
        assert!(pieces.iter().all(|piece| !piece.contains(BROKEN)));
        assert!(pieces.last().unwrap().is_empty());
    }
}

#[test]
fn a_stream_flushes_what_is_left() {
    let tokenizer = tiny();
    let mut ids = tokenizer.encode_text("ok 🜁").unwrap();
    ids.pop();
    let pieces = stream(tokenizer, &ids, false);
    assert_eq!(pieces.concat(), tokenizer.decode(&ids, false).unwrap());
    assert!(pieces.last().unwrap().ends_with(BROKEN));
}

#[test]
fn a_stream_hides_control_tokens_and_ids_without_text() {
    let tokenizer = tiny();
    let eot = tokenizer.id("<|eot_id|>").unwrap();
    let mut ids = tokenizer.encode_text("🜁").unwrap();
    ids.splice(1..1, [eot, 1_000_000]);
    assert_eq!(stream(tokenizer, &ids, false).concat(), "🜁");
    assert_eq!(stream(tokenizer, &ids[..2], true).concat(), "\u{fffd}<|eot_id|>");
}

#[test]
fn a_stream_of_noise_stays_quick() {
    let tokenizer = tiny();
    let first_byte = tokenizer.encode_text("🜁").unwrap()[0];
    let ids = vec![first_byte; 20_000];
    let text = stream(tokenizer, &ids, false).concat();
    assert!(text == BROKEN.to_string().repeat(ids.len()), "{} bytes", text.len());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    /// Any bytes, cut anywhere: the ranks 0..256 of the golden file are the single bytes.
    #[test]
    fn a_stream_is_the_decoding_in_pieces(ids in prop::collection::vec(0u32..600, 0..200)) {
        let tokenizer = tiny();
        for show_control in [false, true] {
            let pieces = stream(tokenizer, &ids, show_control);
            prop_assert_eq!(pieces.concat(), tokenizer.decode(&ids, show_control).unwrap());
        }
    }

    #[test]
    fn bytes_stream_as_the_text_they_are(text in "\\PC{0,40}") {
        prop_assume!(!text.contains(BROKEN));
        let tokenizer = small_llama2();
        let ids: Vec<u32> = text.bytes().map(|byte| u32::from(byte) + 3).collect();
        let pieces = stream(tokenizer, &ids, false);
        prop_assert!(pieces.iter().all(|piece| !piece.contains(BROKEN)));
        prop_assert_eq!(pieces.concat(), text.strip_prefix(' ').unwrap_or(&text));
    }

    #[test]
    fn plain_text_is_never_a_control_token(parts in prop::collection::vec(0usize..6, 0..20)) {
        let tokenizer = tiny();
        let spelled = ["<|eot_id|>", "<|start_header_id|>", "<|", "|>", "eot_id", " "];
        let text: String = parts.iter().map(|part| spelled[*part]).collect();
        let ids = tokenizer.encode_text(&text).unwrap();
        prop_assert!(ids.iter().all(|id| !tokenizer.is_control(*id)));
        prop_assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
}
