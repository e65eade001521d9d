//! Llama 3 as Meta publishes it has the logits of the same weights in safetensors, in one file or several.

use std::fs;
use std::path::{Path, PathBuf};

use chaski::chat::{Chat, ChatStyle, Message};
use chaski::checkpoint::Checkpoint;
use chaski::config::{Config, RopeScaling};
use chaski::engine::{Device, Model, Options, Split, silent};
use chaski::model::Logits;
use chaski::source::Source;
use chaski::tokenizer::Tokenizer;
use chaski::torch;
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

/// Of `scripts/golden_meta.py`.
fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/meta").join(name)
}

fn find(folder: &Path) -> chaski::Result<Source> {
    Source::find(folder.to_str().unwrap())
}

/// Of each of `ids`, on so many ranks.
fn logits(folder: &Path, ids: &[u32], ranks: usize) -> Vec<f32> {
    let split = Split { tensor_parallel: Some(ranks), ..Split::default() };
    let options = Options { device: Device::Cpu, scored: usize::MAX, split, ..Options::default() };
    let model = Model::of(find(folder).unwrap(), options).unwrap();
    let mut team = model.load(&silent()).unwrap().team;
    team.expect(ids.len()).unwrap();
    team.prefill(ids, Logits::All).unwrap().to_vec()
}

#[test]
fn files_of_torch_have_the_logits_of_safetensors() {
    let ids: Vec<u32> = (0..40).map(|i| i * 37 % 96).collect();
    for name in ["one", "split"] {
        let [ours, theirs] = ["meta", "transformers"].map(|form| golden(name).join(form));
        assert!(matches!(find(&ours), Ok(Source::Meta(_))));
        for ranks in [1, 2] {
            let [ours, theirs] = [&ours, &theirs].map(|folder| logits(folder, &ids, ranks));
            assert!(ours.iter().all(|logit| logit.is_finite()) && ours[0] != ours[1]);
            assert!(ours == theirs, "{name} on {ranks}");
        }
    }
}

/// Byte by byte, from any place on, as loaders read it.
#[test]
fn tensors_read_as_those_of_safetensors() {
    for name in ["one", "split"] {
        let [mut ours, mut theirs] = ["meta", "transformers"]
            .map(|form| Checkpoint::open(&find(&golden(name).join(form)).unwrap()).unwrap());
        assert_eq!(ours.tensors().len(), theirs.tensors().len());
        let read = |of: &Checkpoint, tensor: &str| {
            let tensor = of.tensor(tensor).unwrap();
            let mut bytes = vec![0; tensor.bytes - 3];
            of.read(tensor.offset + 3, &mut bytes).unwrap();
            (tensor.encoding, tensor.shape.clone(), bytes)
        };
        let names: Vec<String> = theirs.tensors().map(|(name, _)| name.to_owned()).collect();
        let all = |of: &Checkpoint| names.iter().map(|name| read(of, name)).collect::<Vec<_>>();
        assert!(all(&ours) == all(&theirs), "{name}");
        for of in [&mut ours, &mut theirs] {
            of.make(&|_| Ok(())).unwrap();
        }
        for name in &names {
            let whole = |of: &Checkpoint| {
                let tensor = of.tensor(name).unwrap();
                of.bytes(tensor.offset, tensor.bytes).to_vec()
            };
            assert!(whole(&ours) == whole(&theirs), "{name}");
        }
        assert!(ours.path_of("lm_head.weight").contains("consolidated.00.pth"));
    }
}

/// A copy, to be changed.
fn copy(name: &str) -> TempDir {
    let folder = tempdir().unwrap();
    for entry in fs::read_dir(golden(name).join("meta")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

#[test]
fn the_config_is_that_of_transformers_and_the_control_tokens_are_metas() {
    for name in ["one", "split"] {
        let [ours, theirs] = ["meta", "transformers"]
            .map(|form| Config::load(&find(&golden(name).join(form)).unwrap()).unwrap());
        assert_eq!(ours, theirs);
    }
    let folder = copy("one");
    let ranks = golden("..").join("tiny.tiktoken");
    fs::copy(ranks, folder.path().join("tokenizer.model")).unwrap();
    let source = find(folder.path()).unwrap();
    let (config, tokenizer) = (Config::load(&source).unwrap(), Tokenizer::load(&source).unwrap());
    assert_eq!(config.bos_id, tokenizer.id("<|begin_of_text|>"));
    let ends =
        ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"].map(|end| tokenizer.id(end).unwrap());
    assert_eq!(config.stop_ids, ends);
    let chat = Chat::load(&source, &tokenizer, ChatStyle::Auto).unwrap();
    let messages = [Message::new("user", "27 + 58")];
    let ids = chat.encode(&tokenizer, &messages[..].into(), true).unwrap();
    assert_eq!(ids.first().copied(), config.bos_id);
    assert_eq!(
        tokenizer.decode(&ids, true).unwrap(),
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n27 + 58<|eot_id|>\
         <|start_header_id|>assistant<|end_header_id|>\n\n"
    );
}

/// params.json with this key, or without it.
fn with(folder: &Path, key: &str, value: &Value) {
    let path = folder.join("params.json");
    let mut params: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    match value {
        Value::Null => drop(params.as_object_mut().unwrap().remove(key)),
        value => params[key] = value.clone(),
    }
    fs::write(path, params.to_string()).unwrap();
}

#[test]
fn params_say_the_rest_of_the_config() {
    let config = |name: &str, changes: &[(&str, Value)]| {
        let folder = copy(name);
        changes.iter().for_each(|(key, value)| with(folder.path(), key, value));
        Config::load(&find(folder.path()).unwrap())
    };
    // As models/llama3/model.py computes them of the published params.json.
    for (width, multiple, factor, ffn) in [
        (4096, 1024, Some(1.3), 14336),
        (8192, 4096, Some(1.3), 28672),
        (16384, 4096, Some(1.2), 53248),
        (2048, 256, Some(1.5), 8192),
        (3072, 256, Some(1.0), 8192),
        (4096, 256, None, 11008),
    ] {
        let changes = [
            ("dim", json!(width)),
            ("n_heads", json!(width / 128)),
            ("multiple_of", json!(multiple)),
            ("ffn_dim_multiplier", factor.map_or(Value::Null, Value::from)),
        ];
        assert_eq!(config("split", &changes).unwrap().ffn, ffn);
    }
    let factor = |config: Config| match config.rope.scaling {
        Some(RopeScaling::Llama3(scaling)) => Some(scaling.factor),
        _ => None,
    };
    assert_eq!(factor(config("one", &[]).unwrap()), Some(32.0));
    let scaled = config("split", &[("use_scaled_rope", json!(true))]).unwrap();
    assert_eq!((scaled.max_context, factor(scaled)), (131_072, Some(8.0)));
    assert_eq!(config("split", &[("n_kv_heads", Value::Null)]).unwrap().kv_heads, 4);
    assert_eq!(config("split", &[("vocab_size", json!(-1))]).unwrap().vocab, 96);
    for (key, value, expected) in [
        ("dim", Value::Null, "\"dim\" is missing"),
        ("dim", json!(-1), "dim is -1: out of range"),
        ("rope_theta", Value::Null, "\"rope_theta\" is missing"),
        ("multiple_of", json!(0), "multiple_of is 0: out of range"),
        ("ffn_dim_multiplier", json!(1e300), "out of range"),
        ("use_scaled_rope", json!(1), "use_scaled_rope is 1"),
        ("quantization_args", json!({"group_size": 32}), "quantization_args is"),
        ("lora_args", json!({"rank": 16}), "lora_args is"),
        ("vision_chunk_size", json!(448), "vision_chunk_size is 448: not supported"),
    ] {
        let message = config("split", &[(key, value)]).unwrap_err().to_string();
        assert!(message.contains("params.json") && message.contains(expected), "{message}");
    }
    // A folder with a config.json is one of transformers'.
    let folder = copy("one");
    fs::copy(golden("one/transformers/config.json"), folder.path().join("config.json")).unwrap();
    let source = find(folder.path()).unwrap();
    assert!(matches!(source, Source::Directory(_)));
    let message = Checkpoint::open(&source).map(drop).unwrap_err().to_string();
    assert!(message.contains("give the directory that holds its params.json"), "{message}");
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let open = |change: fn(&Path)| {
        let folder = copy("split");
        change(folder.path());
        let opened = find(folder.path()).and_then(|source| Checkpoint::open(&source));
        let message = opened.map(drop).unwrap_err().to_string();
        assert!(!message.contains('\n'), "{message}");
        message
    };
    let message = open(|folder| fs::remove_file(folder.join("consolidated.00.pth")).unwrap());
    assert!(message.contains("consolidated.00.pth: no such file, of 2"), "{message}");
    let message = open(|folder| {
        fs::copy(golden("one/meta/consolidated.00.pth"), folder.join("consolidated.01.pth"))
            .map(drop)
            .unwrap();
    });
    assert!(message.contains("has another type or shape than in"), "{message}");
    let message = open(|folder| {
        let path = folder.join("consolidated.01.pth");
        let mut file = fs::read(&path).unwrap();
        let norm = torch::parse(&file).unwrap().into_iter().find(|t| t.name == "norm.weight");
        file[norm.unwrap().offset] ^= 1;
        fs::write(path, file).unwrap();
    });
    assert!(message.contains("norm.weight\" has other numbers than in"), "{message}");
}
