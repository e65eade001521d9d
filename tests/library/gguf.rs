//! Models in GGUF: the logits of the safetensors that they were made of, blocks as the numbers that they
//! stand for, and files that break the rules in one clear line.

use std::path::Path;
use std::time::{Duration, Instant};

use chaski::checkpoint::Checkpoint;
use chaski::config::Config;
use chaski::encoding::Blocks;
use chaski::engine::{Device, Model, Options, Split, silent};
use chaski::model::Logits;
use chaski::source::Source;
use chaski::vector::dequantise;
use tempfile::tempdir;

use crate::gguf_file::{Gguf, Tensor, f32, text, u32};
use crate::golden::{cases, expected, worst};

/// Of each of `ids`.
fn logits(model: &Path, ids: &[u32]) -> Vec<f32> {
    let options = Options { device: Device::Cpu, scored: usize::MAX, ..Options::default() };
    let source = Source::find(model.to_str().unwrap()).unwrap();
    let mut team = Model::of(source, options).unwrap().load(&silent()).unwrap().team;
    team.expect(ids.len()).unwrap();
    team.prefill(ids, Logits::All).unwrap().to_vec()
}

/// Without scaling, of which GGUF keeps the frequencies in another form.
#[test]
fn a_gguf_has_the_logits_of_the_folder_that_it_was_made_of() {
    let folder = tempdir().unwrap();
    let mut tried = 0;
    for case in cases() {
        let config = Config::load(&Source::Directory(case.clone())).unwrap();
        if config.rope.scaling.is_some() {
            continue;
        }
        let ids = expected(&case).ids;
        let path = folder.path().join("model.gguf");
        Gguf::of_folder(&case).write(&path);
        assert!(logits(&path, &ids) == logits(&case, &ids), "{}", case.display());
        assert!(logits(folder.path(), &ids) == logits(&case, &ids), "{}", case.display());
        tried += 1;
    }
    assert!(tried >= 5);
}

/// As llama.cpp has Llama 3.1's scaling: each frequency is divided.
#[test]
fn rotary_frequencies_are_divided_by_what_the_file_says() {
    let folder = tempdir().unwrap();
    let scaled = |case: &std::path::PathBuf| {
        let config = Config::load(&Source::Directory(case.clone())).unwrap();
        let is_llama3 = matches!(config.rope.scaling, Some(chaski::config::RopeScaling::Llama3(_)));
        is_llama3.then_some(config)
    };
    let (case, config) =
        cases().into_iter().find_map(|case| scaled(&case).map(|config| (case, config))).unwrap();
    let plain = chaski::config::Rope { scaling: None, ..config.rope.clone() };
    let frequencies = [plain, config.rope].map(|rope| rope.frequencies(config.head_dim, 0));
    let divisors = frequencies[0].iter().zip(&frequencies[1]).map(|(plain, slow)| plain / slow);
    let bytes = divisors.flat_map(f32::to_le_bytes).collect();
    let mut gguf = Gguf::of_folder(&case);
    let shape = vec![config.head_dim as u64 / 2];
    let name = "rope_freqs.weight".to_owned();
    gguf.tensors.push(Tensor { name, kind: 0, shape, bytes, offset: None });
    let path = folder.path().join("model.gguf");
    gguf.write(&path);
    let expected = expected(&case);
    let ours = logits(&path, &expected.ids);
    let (error, position) = worst(&ours, &expected.logits, expected.ids.len());
    assert!(error < 1e-4, "{}: {error:.1e} at {position}", case.display());
}

/// ggml's number of each type, and where its blocks have f16 numbers.
const BLOCKS: [(Blocks, u32, &[usize]); 8] = [
    (Blocks::Q8_0, 8, &[0]),
    (Blocks::Q4_0, 2, &[0]),
    (Blocks::Q4_1, 3, &[0, 2]),
    (Blocks::Q5_0, 6, &[0]),
    (Blocks::Q5_1, 7, &[0, 2]),
    (Blocks::Q4K, 12, &[0, 2]),
    (Blocks::Q5K, 13, &[0, 2]),
    (Blocks::Q6K, 14, &[208]),
];

/// Names of matrices and their shapes, fastest dimension first, and those of vectors. `[C, F, V]`
fn tensors_of([width, ffn, vocab]: [u64; 3]) -> (Vec<(String, [u64; 2])>, Vec<String>) {
    let mut matrices =
        vec![("token_embd".to_owned(), [width, vocab]), ("output".to_owned(), [width, vocab])];
    let mut vectors = vec!["output_norm".to_owned()];
    for layer in 0..2 {
        for (name, shape) in [
            ("attn_q", [width, width]),
            ("attn_k", [width, width / 2]),
            ("attn_v", [width, width / 2]),
            ("attn_output", [width, width]),
            ("ffn_gate", [width, ffn]),
            ("ffn_up", [width, ffn]),
            ("ffn_down", [ffn, width]),
        ] {
            matrices.push((format!("blk.{layer}.{name}"), shape));
        }
        vectors.extend(["attn_norm", "ffn_norm"].map(|name| format!("blk.{layer}.{name}")));
    }
    (matrices, vectors)
}

/// A model of which all matrices are in blocks of any bytes, with scales that keep its numbers small; and the
/// same with the numbers that they stand for.
fn in_blocks(kinds: &[(Blocks, u32, &[usize])]) -> [Gguf; 2] {
    let [width, ffn, vocab] = [256u64, 512, 96];
    let mut gguf = Gguf::of_ids();
    for (key, number) in [
        ("context_length", 64),
        ("embedding_length", width),
        ("block_count", 2),
        ("feed_forward_length", ffn),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("vocab_size", vocab),
    ] {
        gguf.set(&format!("llama.{key}"), u32(number as u32));
    }
    gguf.set("llama.attention.layer_norm_rms_epsilon", f32(1e-5));
    let mut numbers = gguf.clone();
    let (matrices, vectors) = tensors_of([width, ffn, vocab]);
    let mut state = 1u32;
    for (i, (name, shape)) in matrices.into_iter().enumerate() {
        let (blocks, kind, halves) = kinds[i % kinds.len()];
        let (columns, size) = blocks.size();
        let count = (shape[0] * shape[1]) as usize / columns;
        let mut bytes: Vec<u8> = (0..count * size)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        for block in bytes.chunks_exact_mut(size) {
            for at in halves {
                let scale = half::f16::from_f32(f32::from(block[*at]) * 2e-6);
                block[*at..*at + 2].copy_from_slice(&scale.to_le_bytes());
            }
        }
        let mut stood_for = vec![0.0; count * columns];
        dequantise(blocks, &bytes, &mut stood_for);
        let stood_for = stood_for.into_iter().flat_map(f32::to_le_bytes).collect();
        let name = format!("{name}.weight");
        for (gguf, kind, bytes) in [(&mut gguf, kind, bytes), (&mut numbers, 0, stood_for)] {
            let (name, shape) = (name.clone(), shape.to_vec());
            gguf.tensors.push(Tensor { name, kind, shape, bytes, offset: None });
        }
    }
    for name in vectors {
        let bytes: Vec<u8> =
            (0..width).flat_map(|i| (0.5 + i as f32 / 256.0).to_le_bytes()).collect();
        let tensor = Tensor {
            name: format!("{name}.weight"),
            kind: 0,
            shape: vec![width],
            bytes,
            offset: None,
        };
        gguf.tensors.push(tensor.clone());
        numbers.tensors.push(tensor);
    }
    [gguf, numbers]
}

#[test]
fn blocks_of_every_type_and_all_together_have_the_logits_of_their_numbers() {
    let folder = tempdir().unwrap();
    let ids: Vec<u32> = (0..40).map(|i| i * 37 % 96).collect();
    let each = BLOCKS.map(|one| vec![one]);
    for kinds in each.iter().chain([&BLOCKS.to_vec()]) {
        let [blocks, numbers] = in_blocks(kinds);
        let [blocks_file, numbers_file] =
            ["blocks", "numbers"].map(|name| folder.path().join(format!("{name}.gguf")));
        blocks.write(&blocks_file);
        numbers.write(&numbers_file);
        for ids in [&ids[..], &ids[..1], &ids[..5]] {
            let [ours, theirs] = [&blocks_file, &numbers_file].map(|file| logits(file, ids));
            assert!(ours.iter().all(|logit| logit.is_finite()) && ours[0] != ours[1]);
            assert!(ours == theirs, "{} and others, {} tokens", kinds[0].0.name(), ids.len());
        }
    }
}

/// Two ranks have 128 columns of the attention's output each.
#[test]
fn blocks_that_a_rank_would_cut_are_refused() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let open = |blocks: (Blocks, u32, &'static [usize])| {
        in_blocks(&[blocks])[0].write(&path);
        let split = Split { tensor_parallel: Some(2), ..Split::default() };
        let options = Options { device: Device::Cpu, split, ..Options::default() };
        Model::of(Source::find(path.to_str().unwrap()).unwrap(), options)
    };
    let message = open(BLOCKS[5]).err().unwrap().to_string();
    let said = "is Q4_K, whose blocks of 256 columns cannot be split into 2 parts of 128";
    assert!(message.contains(said) && !message.contains('\n'), "{message}");
    open(BLOCKS[0]).unwrap().load(&silent()).unwrap();
}

/// How each file is changed, and what is said of it.
type Change = (&'static str, fn(&mut Gguf), &'static str);

const CHANGES: [Change; 31] = [
    ("version", |g| g.version = 1, "version 1 is not supported"),
    ("big-endian", |g| g.version = 3u32.swap_bytes(), "big-endian"),
    ("many keys", |g| g.counts[1] = Some(u64::MAX), "no Llama has over"),
    ("more keys", |g| g.counts[1] = Some(200), "key"),
    ("many tensors", |g| g.counts[0] = Some(1 << 60), "no Llama has over"),
    ("more tensors", |g| g.counts[0] = Some(60), "tensor"),
    ("a key twice", |g| g.keys.push(g.keys[0].clone()), "is there twice"),
    ("alignment", |g| g.set("general.alignment", u32(24)), "a power of two is needed"),
    ("no alignment", |g| g.set("general.alignment", u32(0)), "a power of two is needed"),
    ("architecture", |g| g.set("general.architecture", text("qwen2")), "only llama is supported"),
    ("experts", |g| g.set("llama.expert_count", u32(8)), "a mixture of experts"),
    ("no width", |g| g.keys.retain(|(key, _)| !key.ends_with("embedding_length")), "is missing"),
    (
        "no heads",
        |g| g.set("llama.attention.head_count", u32(0)),
        "model.gguf: llama.attention.head_count is 0",
    ),
    (
        "KV heads",
        |g| g.set("llama.attention.head_count_kv", u32(3)),
        "llama.attention.head_count_kv is 3, which does not divide llama.attention.head_count 2",
    ),
    ("no turns", |g| g.set("llama.rope.freq_base", f32(-1.0)), "model.gguf: llama.rope.freq_base"),
    ("an IQ type", |g| as_type(g, 20, [32, 18]), "is in IQ4_NL, which is not supported"),
    ("another IQ type", |g| as_type(g, 19, [256, 50]), "is in IQ1_S, which is not supported"),
    ("FP4", |g| as_type(g, 39, [32, 17]), "is in MXFP4, which is not supported"),
    ("partial rotation", |g| g.set("llama.rope.dimension_count", u32(32)), "where a head has"),
    ("scaling", |g| g.set("llama.rope.scaling.type", text("longrope")), "none, linear and yarn"),
    ("a tensor twice", |g| g.tensors.push(g.tensors[0].clone()), "is there twice"),
    ("no dimensions", |g| g.tensors[0].shape.clear(), "0 dimensions"),
    ("five dimensions", |g| g.tensors[0].shape = vec![1; 5], "5 dimensions"),
    ("an overflow", |g| g.tensors[0].shape = vec![1 << 32, 1 << 32], "larger than any file"),
    ("a zero", |g| g.tensors[0].shape[0] = 0, "whole blocks"),
    ("an unknown type", |g| g.tensors[0].kind = 99, "not a type of ggml's"),
    ("a type of others", |g| g.tensors[0].kind = 10, "whole blocks"),
    ("past the end", |g| g.tensors.last_mut().unwrap().offset = Some(1 << 40), "not all are there"),
    (
        "an offset that wraps",
        |g| g.tensors.last_mut().unwrap().offset = Some(u64::MAX - 31),
        "not all are there",
    ),
    ("an overlap", |g| g.tensors[1].offset = Some(0), "overlaps tensor"),
    ("in the middle", |g| g.tensors[1].offset = Some(33), "not at a multiple of 32"),
];

/// Makes the last matrix one of another type, in blocks of so many columns and bytes.
fn as_type(gguf: &mut Gguf, kind: u32, [columns, bytes]: [u64; 2]) {
    let tensor = gguf.tensors.iter_mut().rfind(|tensor| tensor.shape.len() == 2).unwrap();
    let rows = tensor.shape[1];
    (tensor.kind, tensor.shape[0]) = (kind, columns);
    tensor.bytes = vec![0; (rows * bytes) as usize];
}

#[test]
fn files_that_break_the_rules_are_refused_in_one_line() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let case = cases().into_iter().find(|case| case.ends_with("mha-hd64-f32")).unwrap();
    let good = Gguf::of_folder(&case);
    let load = |bytes: &[u8]| -> chaski::Result<()> {
        std::fs::write(&path, bytes).unwrap();
        let source = Source::find(path.to_str().unwrap())?;
        Config::load(&source)?;
        Checkpoint::open(&source).map(drop)
    };
    load(&good.bytes()).unwrap();
    for (name, change, expected) in CHANGES {
        let mut gguf = good.clone();
        change(&mut gguf);
        let start = Instant::now();
        let message =
            load(&gguf.bytes()).err().unwrap_or_else(|| panic!("{name}: it loads")).to_string();
        assert!(start.elapsed() < Duration::from_secs(1), "{name}");
        assert!(message.contains("model.gguf") && message.contains(expected), "{name}: {message}");
        assert!(!message.contains('\n'), "{message}");
    }
    // Cut anywhere, it is no longer whole; of any wrong byte it says something, or nothing is wrong.
    let bytes = good.bytes();
    for end in (0..bytes.len()).step_by(bytes.len() / 97) {
        assert!(load(&bytes[..end]).is_err(), "{end} bytes");
    }
    for at in 0..1500 {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1 << (at % 8);
        let _ = load(&bytes);
    }
}

#[test]
fn parts_are_one_model_and_several_models_are_not_guessed() {
    let folder = tempdir().unwrap();
    let case = cases().into_iter().find(|case| case.ends_with("mha-hd64-f32")).unwrap();
    let ids = expected(&case).ids;
    let [first, second] = Gguf::of_folder(&case).parts();
    let path = |name: &str| folder.path().join(name);
    first.write(&path("m-00001-of-00002.gguf"));
    let message = |model: &Path| Source::find(model.to_str().unwrap()).unwrap_err().to_string();
    assert!(message(folder.path()).contains("m-00002-of-00002.gguf"));
    second.write(&path("m-00002-of-00002.gguf"));
    let whole = logits(&case, &ids);
    assert!(logits(folder.path(), &ids) == whole);
    assert!(logits(&path("m-00002-of-00002.gguf"), &ids) == whole);
    first.write(&path("m-00002-of-00002.gguf"));
    assert!(message(folder.path()).contains("part 2 of 2"));
    Gguf::of_folder(&case).write(&path("other.gguf"));
    assert!(message(folder.path()).contains("2 models in GGUF"));
}
