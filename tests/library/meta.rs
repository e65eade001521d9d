//! Llama 3 as Meta publishes it: the logits of the same weights in safetensors, whatever they are split over,
//! and files that break the rules, or would have something run, in one clear line.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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

use crate::pth::{Member, Said, pickle, put, text, zip};

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
    let options = Options { device: Device::Cpu, all_logits: true, split, ..Options::default() };
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
        tokenizer.decode(&ids, false).unwrap().as_str().lines().count(),
        5,
        "of Llama 3's format"
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
    // A config.json beside them says more than they do.
    let folder = copy("one");
    let own = fs::read(golden("one").join("transformers/config.json")).unwrap();
    let own = String::from_utf8(own).unwrap().replace("32.0", "16.0");
    fs::write(folder.path().join("config.json"), own).unwrap();
    assert_eq!(factor(Config::load(&find(folder.path()).unwrap()).unwrap()), Some(16.0));
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

fn good() -> Vec<Member> {
    let tensors = [Said::matrix("a", "0", [4, 3]), Said::matrix("b", "1", [2, 2])];
    of(pickle(&tensors))
}

fn of(pickle: Vec<u8>) -> Vec<Member> {
    vec![
        Member::new("m/data.pkl", pickle),
        Member::new("m/byteorder", "little"),
        Member::new("m/data/0", vec![0; 48]),
        Member::new("m/data/1", vec![1; 16]),
        Member::new("m/version", "3\n"),
    ]
}

/// What is said of a file, at once and in one line.
fn refused(name: &str, file: &[u8]) -> String {
    let start = Instant::now();
    let message = torch::parse(file).err().unwrap_or_else(|| panic!("{name}: it is read"));
    assert!(start.elapsed() < Duration::from_secs(1), "{name}");
    assert!(!message.contains(char::is_control) && message.len() < 500, "{name}: {message}");
    message
}

#[test]
fn pickles_that_are_no_tensors_are_refused_by_name() {
    let program = |code: &[u8]| [b"\x80\x02", code, b"."].concat();
    let tensor = |change: fn(&mut Said)| {
        let mut said = Said::matrix("a", "0", [4, 3]);
        change(&mut said);
        pickle(&[said])
    };
    let nested = [b"(".repeat(100_000), b"t".repeat(100_000)].concat();
    let bomb = [&b")q\0"[..], &b"h\0h\0\x86q\0".repeat(100)].concat();
    let two = |a: Said, b: Said| pickle(&[a, b]);
    let part = |name, first| Said {
        first,
        ..Said { shape: vec![2, 3], ..Said::matrix(name, "0", [4, 3]) }
    };
    for (name, code, expected) in [
        (
            "os.system",
            program(&[&b"cos\nsystem\n"[..], &text("id"), b"\x85R"].concat()),
            "os.system",
        ),
        ("eval", program(b"c__builtin__\neval\n)R"), "__builtin__.eval"),
        ("a class of torch", program(b"ctorch\nLongStorage\n"), "torch.LongStorage"),
        ("a call of a text", program(&[&text("x")[..], b")R"].concat()), "calls something"),
        ("a call with items", program(b"ccollections\nOrderedDict\nN\x85R"), "calls something"),
        (
            "a call of a number",
            program(b"ctorch._utils\n_rebuild_tensor_v2\nK\x01R"),
            "without arg",
        ),
        (
            "a tensor of nothing",
            program(b"ctorch._utils\n_rebuild_tensor_v2\n)R"),
            "calls something",
        ),
        ("INST", program(b"(ios\nsystem\n"), "opcode 0x69"),
        ("OBJ", program(b"(o"), "opcode 0x6f"),
        ("STACK_GLOBAL", program(b"\x93"), "opcode 0x93"),
        ("EXT1", program(b"\x82\x01"), "opcode 0x82"),
        ("an id of text", program(&[&text("storage")[..], b"Q"].concat()), "no storage's"),
        ("an id without numbers", program(b")Q"), "no storage's"),
        ("protocol 4", b"\x80\x04}.".to_vec(), "protocol 4"),
        ("nothing", Vec::new(), "cut off"),
        ("no end", b"\x80\x02}".to_vec(), "cut off"),
        ("two values", program(b"}}"), "left over"),
        ("more after the end", b"\x80\x02}.}".to_vec(), "left over"),
        ("no dictionary", program(b"K\x01"), "no dictionary of tensors"),
        (
            "a number in it",
            program(&[&b"}"[..], &text("a"), b"K\x01s"].concat()),
            "\"a\" is no tensor",
        ),
        ("keys of numbers", program(b"}K\x01K\x01s"), "no texts"),
        ("a long text", program(b"X\xff\xff\xff\xff"), "cut off"),
        ("a long number", program(b"\x8a\xff"), "no size"),
        ("an empty stack", program(b"\x86"), "more values than there are"),
        ("no mark", program(b"t"), "more values than there are"),
        ("through a mark", program(b"N(\x85"), "more values than there are"),
        ("no memo", program(b"h\x05"), "takes value 5"),
        ("no dictionary to set", program(b"NNNs"), "sets what is no dictionary"),
        ("odd items", program(b"}(Nu"), "more values than there are"),
        ("deep tuples", program(&nested), "deep"),
        ("a bomb", program(&bomb), "deep"),
        ("a long name", program(&text(&"x".repeat(3 << 20))), "over 2 MiB"),
        ("other strides", tensor(|t| t.stride = vec![1, 4]), "does not lie row after row"),
        ("negative strides", tensor(|t| t.stride = vec![3, -1]), "does not lie row after row"),
        ("fewer strides", tensor(|t| t.stride = vec![3]), "2 dimensions and 1 strides"),
        ("no rows", tensor(|t| t.shape = vec![0, 3]), "is empty"),
        ("negative rows", tensor(|t| t.shape = vec![-4, -3]), "is empty"),
        (
            "huge",
            tensor(|t| (t.shape, t.stride) = (vec![2, i64::MAX], vec![i64::MAX, 1])),
            "too large",
        ),
        (
            "many dimensions",
            tensor(|t| (t.shape, t.stride) = (vec![1; 9], vec![1; 9])),
            "9 dimensions",
        ),
        ("past the end", tensor(|t| t.first = 1), "has 12 numbers from 1 on, of 12"),
        ("before the start", tensor(|t| t.first = -1), "from -1 on"),
        ("wraps", tensor(|t| t.first = i64::MAX), "from 9223372036854775807 on"),
        ("more than the member", tensor(|t| t.len = 13), "in a member of 48 bytes"),
        ("many more", tensor(|t| t.len = i64::MAX), "in a member of 48 bytes"),
        ("another type", tensor(|t| t.class = "torch\nHalfStorage"), "in a member of 48 bytes"),
        ("no member", tensor(|t| t.member = "9"), "data/9, which is not there"),
        ("a member elsewhere", tensor(|t| t.member = "../../x"), "which is not there"),
        ("twice", two(part("a", 0), part("a", 6)), "\"a\" is there twice"),
        ("overlapping", two(part("a", 0), part("b", 3)), "\"b\" overlaps \"a\""),
    ] {
        let message = refused(name, &zip(&of(code), false));
        assert!(message.contains(expected), "{name}: {message}");
    }
    let shared = two(part("a", 6), part("b", 6));
    assert_eq!(torch::parse(&zip(&of(shared), false)).unwrap().len(), 2);
}

/// What is done to a good file, and what is said of it.
type Change = (&'static str, fn(&mut Vec<Member>), &'static str);

#[test]
fn zips_that_are_not_whole_are_refused_by_name() {
    for wide in [false, true] {
        let tensors = torch::parse(&zip(&good(), wide)).unwrap();
        let places: Vec<_> = tensors.iter().map(|t| (t.name.as_str(), t.bytes)).collect();
        assert_eq!(places, [("a", 48), ("b", 16)]);
        assert!(tensors.iter().all(|tensor| tensor.offset.is_multiple_of(64)));
        let changes: [Change; 12] = [
            ("deflated", |m| m[2].method = 8, "\"m/data/0\" is compressed"),
            ("encrypted", |m| m[2].flags = 1, "\"m/data/0\" is encrypted"),
            ("twice", |m| m.push(m[2].clone()), "\"m/data/0\" is there twice"),
            ("two pickles", |m| m.push(Member::new("n/data.pkl", "")), "one member data.pkl"),
            ("no pickle", |m| drop(m.remove(0)), "one member data.pkl"),
            ("big-endian", |m| m[1].bytes = b"big".to_vec(), "not little-endian"),
            ("a long member", |m| m[2].size = Some(1 << 20), "has 1048576 bytes, of which not all"),
            ("a short member", |m| m[2].size = Some(44), "in a member of 44 bytes"),
            ("an overlap", |m| m[2].size = Some(150), "overlaps member"),
            ("a header elsewhere", |m| m[2].header = Some(3), "is not where the list"),
            ("another's header", |m| m[2].header = Some(0), "is not where the list"),
            ("a header past the end", |m| m[2].header = Some(1 << 31), "is not where the list"),
        ];
        for (name, change, expected) in changes {
            let mut members = good();
            change(&mut members);
            let message = refused(name, &zip(&members, wide));
            assert!(message.contains(expected), "{name}: {message}");
        }
    }
    let mut huge = good();
    (huge[2].size, huge[3].header) = (Some(u64::MAX), Some(u64::MAX));
    let message = refused("zip64 lies", &zip(&huge, true));
    assert!(message.contains("of which not all are there"), "{message}");

    let whole = zip(&good(), true);
    let at = |file: &[u8], back: usize| file.len() - back;
    for (name, back, bytes, expected) in [
        ("its record elsewhere", 34, u64::MAX, "zip64 record is not where"),
        ("many members", 66, 1 << 40, "no Llama has over 65536"),
        ("more members", 66, 6, "its list of members ends at 5"),
        ("fewer members", 66, 4, "follow its list of members"),
        ("a long list", 58, 1 << 40, "its list of members is not where"),
        ("a list elsewhere", 50, u64::MAX, "its list of members is not where"),
    ] {
        let (mut file, mut number) = (whole.clone(), Vec::new());
        put(&mut number, &[(8, bytes)]);
        let place = at(&file, back);
        file[place..place + 8].copy_from_slice(&number);
        let message = refused(name, &file);
        assert!(message.contains(expected), "{name}: {message}");
    }
    assert!(refused("before torch 1.6", b"\x80\x02\x8a\nl\xfc\x9cF").contains("it is no zip file"));
}

/// Cut anywhere, a file is no longer whole; of any wrong bit it says something, or nothing is wrong.
#[test]
fn cuts_and_flips_are_refused_or_make_no_difference() {
    let file = fs::read(golden("split/meta/consolidated.00.pth")).unwrap();
    let whole = torch::parse(&file).unwrap();
    for end in 0..file.len() {
        refused("a cut", &file[..end]);
    }
    let data = whole.iter().map(|tensor| tensor.offset..tensor.offset + tensor.bytes);
    let data: Vec<_> = data.collect();
    let mut told = 0;
    for place in (0..file.len()).filter(|place| !data.iter().any(|data| data.contains(place))) {
        for bit in 0..8 {
            let mut file = file.clone();
            file[place] ^= 1 << bit;
            match torch::parse(&file) {
                Ok(tensors) => assert!(tensors.iter().all(|t| t.offset + t.bytes <= file.len())),
                Err(message) => {
                    assert!(!message.contains(char::is_control), "{message}");
                    told += 1;
                }
            }
        }
    }
    assert!(told > 10_000, "{told}");
}
