//! Models whose matrices are made into blocks: while they are loaded, and into files, with the same bits.

use std::path::Path;

use chaski::checkpoint::{Checkpoint, Tensor};
use chaski::config::{Config, RopeScaling};
use chaski::encoding::Encoding;
use chaski::engine::{Device, Model, Options, Split, silent};
use chaski::export::{GgufExport, file_type};
use chaski::model::Logits;
use chaski::quantise::Quantisation;
use chaski::source::Source;
use chaski::tokenizer::Tokenizer;
use serde_json::{Value, json};
use tempfile::tempdir;

use crate::golden::{cases, expected, worst};

fn source(model: &Path) -> Source {
    Source::find(model.to_str().unwrap()).unwrap()
}

/// Of each of `ids`.
fn logits(model: &Path, ids: &[u32], quantise: Option<Quantisation>, ranks: usize) -> Vec<f32> {
    let split = Split { tensor_parallel: Some(ranks), ..Split::default() };
    let options =
        Options { device: Device::Cpu, scored: usize::MAX, quantise, split, ..Options::default() };
    let mut team = Model::of(source(model), options).unwrap().load(&silent()).unwrap().team;
    team.expect(ids.len()).unwrap();
    team.prefill(ids, Logits::All).unwrap().to_vec()
}

fn write(
    model: &Source,
    config: &Config,
    checkpoint: &Checkpoint,
    path: &Path,
) -> chaski::Result<()> {
    let mut file = Vec::new();
    let number = file_type(checkpoint.encoding()).unwrap();
    let export = GgufExport::new(model, config, checkpoint, number)?;
    export.write(&mut |piece| {
        file.extend(piece);
        Ok(())
    })?;
    std::fs::write(path, file).unwrap();
    Ok(())
}

#[test]
fn a_file_has_the_bits_of_a_model_that_is_quantised_while_it_is_loaded() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let (mut tried, mut refused) = (0, 0);
    for case in cases() {
        let model = source(&case);
        let config = Config::load(&model).unwrap();
        let is_known = matches!(
            config.rope.scaling,
            None | Some(RopeScaling::Linear { .. } | RopeScaling::Llama3(_))
        );
        let expected = expected(&case);
        for to in Quantisation::ALL {
            let checkpoint = Checkpoint::open(&model).unwrap().quantised(to).unwrap();
            if !is_known {
                let message = write(&model, &config, &checkpoint, &path).unwrap_err().to_string();
                assert!(message.ends_with("are not written to GGUF"), "{message}");
                refused += 1;
                continue;
            }
            write(&model, &config, &checkpoint, &path).unwrap();
            let made = logits(&case, &expected.ids, Some(to), 1);
            let read = logits(&path, &expected.ids, None, 1);
            // A file has Llama 3.1's frequencies as divisors, of which some give another last bit.
            let has_divisors = matches!(config.rope.scaling, Some(RopeScaling::Llama3(_)));
            let (apart, _) = worst(&read, &made, expected.ids.len());
            let is_same = if has_divisors { apart < 1e-4 } else { read == made };
            assert!(is_same, "{} {to:?}: {apart:.1e}", case.display());
            let (error, _) = worst(&made, &expected.logits, expected.ids.len());
            // Random weights are sensitive: beside four bits little is left of what they say.
            let is_in_blocks = |tensor: &Tensor| matches!(tensor.encoding, Encoding::Blocks(_));
            let is_changed = checkpoint.tensors().any(|(_, tensor)| is_in_blocks(tensor));
            let bound = if to == Quantisation::Q8_0 { 0.3 } else { 1.3 };
            let expected = if is_changed { 1e-3..bound } else { 0.0..1e-4 };
            assert!(expected.contains(&error), "{} {to:?}: {error:.1e}", case.display());
            tried += usize::from(is_changed);
        }
    }
    assert!(tried >= 12 && refused >= 4, "{tried} {refused}");
}

/// Weights are made once for all ranks; what each reads of a row is whole blocks.
#[test]
fn ranks_share_what_is_made() {
    let case = cases().into_iter().find(|case| case.ends_with("split-gqa2-hd64-bf16")).unwrap();
    let ids = expected(&case).ids;
    let [one, two] = [1, 2].map(|ranks| logits(&case, &ids, Some(Quantisation::Q8_0), ranks));
    let (error, _) = worst(&two, &one, ids.len());
    assert!(error < 1e-5, "{error:.1e}");
}

/// Any part of a tensor, wherever it begins and ends.
#[test]
fn parts_are_those_of_the_whole() {
    let case = cases().into_iter().find(|case| case.ends_with("gqa4-hd64-bf16-tied")).unwrap();
    let plain = Checkpoint::open(&source(&case)).unwrap();
    let read = plain.clone().quantised(Quantisation::Q4_0).unwrap();
    let mut made = read.clone();
    made.make(&|_| Ok(())).unwrap();
    let mut kinds = Vec::new();
    for (name, tensor) in read.tensors() {
        kinds.push(tensor.encoding.name());
        let whole = made.bytes(tensor.offset, tensor.bytes);
        for (from, to) in
            [(0, tensor.bytes), (1, 40), (17, 18), (tensor.bytes / 2 - 5, tensor.bytes)]
        {
            let step = if matches!(tensor.encoding, Encoding::Blocks(_)) { 1 } else { 4 };
            let (from, to) = (from / step * step, to / step * step);
            let mut part = vec![0; to - from];
            read.read(tensor.offset + from, &mut part).unwrap();
            assert!(part == whole[from..to], "{name} {from} {to}");
        }
    }
    for kind in ["Q8_0", "Q4_0", "BF16"] {
        assert!(kinds.contains(&kind), "{kinds:?}");
    }
    let message = made.quantised(Quantisation::Q8_0).unwrap_err().to_string();
    assert!(message.contains("already") && !message.contains('\n'), "{message}");
}

/// A folder of a config and these files.
fn folder(files: &[(&str, Value)]) -> tempfile::TempDir {
    let folder = tempdir().unwrap();
    let case = cases().into_iter().find(|case| case.ends_with("mha-hd64-f32")).unwrap();
    let config = std::fs::read(case.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["vocab_size"] = json!(400);
    config["eos_token_id"] = json!([1, 7]);
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    std::fs::copy(case.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content.to_string()).unwrap();
    }
    folder
}

/// The tokenizers of `tests/golden/tokenizers.json`, by what llama.cpp calls their steps; those of bytes with
/// the steps of models that it knows.
fn known_tokenizers() -> [(Value, &'static str); 5] {
    let golden = std::fs::read(crate::golden::folder().join("tokenizers.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    let bytes = |steps: Value, ignore_merges: bool| {
        let mut tokenizer = golden["bases"]["bytes"].clone();
        tokenizer["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": steps});
        tokenizer["model"]["ignore_merges"] = json!(ignore_merges);
        tokenizer
    };
    let split = json!({
        "type": "Split", "pattern": {"Regex": chaski::source::LLAMA3_PATTERN},
        "behavior": "Isolated", "invert": false,
    });
    let spell = |splits: bool| {
        let mut step = json!({"type": "ByteLevel", "add_prefix_space": false});
        step["use_regex"] = json!(splits);
        step
    };
    let digits = json!({"type": "Digits", "individual_digits": true});
    [
        (bytes(json!([split, spell(false)]), true), "llama-bpe"),
        (bytes(json!([digits, spell(true)]), false), "smollm"),
        (bytes(json!([spell(true)]), false), "gpt-2"),
        (golden["bases"]["spm"].clone(), "default"),
        (golden["bases"]["metaspace"].clone(), "default"),
    ]
}

#[test]
fn a_file_has_the_tokens_of_the_folder() {
    let texts = [
        "",
        " ",
        "Hello world",
        "It's 12345 quipus\n\n  and   ñandú 🦙",
        "<|eos|>x<s>y</s>",
        " a  b",
    ];
    let template = json!({
        "chat_template": "{{ messages[0].content }}", "eos_token": "<|eos|>", "pad_token": "<pad>",
    });
    for (tokenizer, name) in known_tokenizers() {
        let folder =
            folder(&[("tokenizer.json", tokenizer), ("tokenizer_config.json", template.clone())]);
        let model = source(folder.path());
        let config = Config::load(&model).unwrap();
        let checkpoint = Checkpoint::open(&model).unwrap().quantised(Quantisation::Q8_0).unwrap();
        let path = folder.path().join("model.gguf");
        write(&model, &config, &checkpoint, &path).unwrap();
        let file = source(&path);
        let [ours, theirs] = [&model, &file].map(|model| Tokenizer::load(model).unwrap());
        // Of a text that begins with a space, Metaspace makes no second one; llama.cpp does.
        let adds_spaces = name == "default";
        for text in texts.into_iter().filter(|text| !(adds_spaces && text.starts_with(' '))) {
            let ids = ours.encode(text).unwrap();
            assert_eq!(theirs.encode(text).unwrap(), ids, "{name}: {text:?}");
            assert_eq!(theirs.encode_text(text).unwrap(), ours.encode_text(text).unwrap());
            assert_eq!(theirs.surround(ids.clone()), ours.surround(ids.clone()), "{name}");
            assert_eq!(
                theirs.decode(&ids, true).unwrap(),
                ours.decode(&ids, true).unwrap(),
                "{name}"
            );
        }
        for role in ["bos_token", "eos_token"] {
            let own = ours.special_token(role);
            assert!(own.is_none() || theirs.special_token(role) == own, "{name} {role}");
        }
        let Source::Gguf(gguf) = &file else { panic!("a GGUF") };
        let keys = &gguf.parts()[0].gguf;
        assert_eq!(keys.get("tokenizer.ggml.pre").and_then(|pre| pre.as_text()), Some(name));
        let template = keys.get("tokenizer.chat_template").and_then(|template| template.as_text());
        assert_eq!(template, Some("{{ messages[0].content }}"));
        let stops = Config::load(&file).unwrap().stop_ids;
        assert!(config.stop_ids.iter().all(|id| stops.contains(id)), "{stops:?}");
    }
}

#[test]
fn tokenizers_that_gguf_has_no_name_for_are_refused_in_one_line() {
    let golden = std::fs::read(crate::golden::folder().join("tokenizers.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    let base = &golden["bases"]["bytes"];
    let edited = |key: &str, value: Value| {
        let mut tokenizer = base.clone();
        tokenizer[key] = value;
        tokenizer
    };
    let split = json!({
        "type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated", "invert": false,
    });
    let spell = json!({"type": "ByteLevel", "add_prefix_space": true, "use_regex": true});
    let sequence = |steps| json!({"type": "Sequence", "pretokenizers": steps});
    for (tokenizer, said) in [
        (edited("normalizer", json!({"type": "NFC"})), "a normalizer"),
        (edited("pre_tokenizer", sequence(json!([split, base["pre_tokenizer"]]))), "expressions"),
        (edited("pre_tokenizer", spell), "ByteLevel, as it is here"),
    ] {
        let folder = folder(&[("tokenizer.json", tokenizer)]);
        let model = source(folder.path());
        let config = Config::load(&model).unwrap();
        let message = Tokenizer::gguf_keys(&model, &config).unwrap_err().to_string();
        assert!(message.contains(said) && message.contains("tokenizer.json"), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }
    let folder = folder(&[("tokenizer.json", base.clone())]);
    let model = source(folder.path());
    let mut config = Config::load(&model).unwrap();
    config.stop_ids = vec![1, 2, 3, 4];
    let message = Tokenizer::gguf_keys(&model, &config).unwrap_err().to_string();
    assert!(message.contains("GGUF has keys for 3"), "{message}");
    config.vocab = 100;
    let message = Tokenizer::gguf_keys(&model, &config).unwrap_err().to_string();
    assert!(message.contains("the model has 100 tokens"), "{message}");
}
