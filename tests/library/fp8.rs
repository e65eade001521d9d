//! Checkpoints of eight-bit floats with scales, as vLLM's users have them: the logits of the numbers that
//! they stand for, and scales and configs that make no sense in one clear line.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use chaski::checkpoint::Checkpoint;
use chaski::config::Config;
use chaski::encoding::Encoding;
use chaski::engine::{Device, Model, Options, Split, silent};
use chaski::model::Logits;
use chaski::source::Source;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

/// C, F, V; four heads over two of 16.
const WIDTH: usize = 64;
const FFN: usize = 160;
const VOCAB: usize = 96;

/// A tensor of a file in the making.
#[derive(Clone)]
struct Made {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Made {
    fn of(shape: &[usize], numbers: impl IntoIterator<Item = f32>) -> Self {
        let bytes = numbers.into_iter().flat_map(f32::to_le_bytes).collect();
        Self { dtype: Dtype::F32, shape: shape.to_vec(), bytes }
    }
}

type Tensors = HashMap<String, Made>;

/// How a weight's scales are stored.
#[derive(Clone, Copy, Debug)]
enum Scales {
    /// `[N, 1]`, in f32.
    Rows,
    /// `[N, 1]`, in bf16.
    Halves,
    /// `[N]`
    List,
    /// `[1]`
    One,
    /// `[]`
    Scalar,
}

/// As its specification says.
fn number(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let magnitude = match exponent {
        0 => mantissa / 8.0 * 2f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

/// A model of any eight-bit numbers but NaN, and the same of the numbers that they stand for.
fn models(kind: Scales) -> [Tensors; 2] {
    let (mut eights, mut numbers) = (Tensors::new(), Tensors::new());
    let mut state = 1u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let unit = |byte: u8| (f32::from(byte) - 127.5) / 1024.0;
    let mut both = |name: &str, made: Made| {
        eights.insert(name.to_owned(), made.clone());
        numbers.insert(name.to_owned(), made);
    };
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        both(name, Made::of(&[VOCAB, WIDTH], (0..VOCAB * WIDTH).map(|_| unit(random()))));
    }
    let norms = ["model.norm", "model.layers.0.input_layernorm"];
    for name in norms.into_iter().chain(["model.layers.0.post_attention_layernorm"]) {
        let weight = (0..WIDTH).map(|_| 1.0 + unit(random()));
        both(&format!("{name}.weight"), Made::of(&[WIDTH], weight));
    }
    for (name, [rows, columns]) in [
        ("self_attn.q_proj", [WIDTH, WIDTH]),
        ("self_attn.k_proj", [WIDTH / 2, WIDTH]),
        ("self_attn.v_proj", [WIDTH / 2, WIDTH]),
        ("self_attn.o_proj", [WIDTH, WIDTH]),
        ("mlp.gate_proj", [FFN, WIDTH]),
        ("mlp.up_proj", [FFN, WIDTH]),
        ("mlp.down_proj", [WIDTH, FFN]),
    ] {
        let module = format!("model.layers.0.{name}");
        let bytes: Vec<u8> = (0..rows * columns)
            .map(|_| random())
            .map(|b| if b & 127 == 127 { 0 } else { b })
            .collect();
        let is_one = matches!(kind, Scales::One | Scales::Scalar);
        let count = if is_one { 1 } else { rows };
        // Of eight bits, so that bf16 has them, too.
        let scales: Vec<f32> =
            (0..count).map(|_| (129.0 + f32::from(random() / 2)) * 2f32.powi(-17)).collect();
        let shape = match kind {
            Scales::Rows | Scales::Halves => vec![rows, 1],
            Scales::List => vec![rows],
            Scales::One => vec![1],
            Scales::Scalar => vec![],
        };
        let mut scale = Made::of(&shape, scales.iter().copied());
        if let Scales::Halves = kind {
            let halves = scale.bytes.as_chunks::<4>().0.iter().flat_map(|word| [word[2], word[3]]);
            scale = Made { dtype: Dtype::BF16, shape, bytes: halves.collect() };
        }
        eights.insert(format!("{module}.weight_scale"), scale);
        let stood_for = bytes.iter().enumerate().map(|(at, byte)| {
            number(*byte) * if is_one { scales[0] } else { scales[at / columns] }
        });
        numbers.insert(format!("{module}.weight"), Made::of(&[rows, columns], stood_for));
        let shape = vec![rows, columns];
        eights.insert(format!("{module}.weight"), Made { dtype: Dtype::F8_E4M3, shape, bytes });
    }
    [eights, numbers]
}

fn compressed() -> Value {
    json!({
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": true},
            "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": true},
        }},
        "ignore": ["lm_head"],
        "kv_cache_scheme": null,
        "sparsity_config": {},
    })
}

fn fbgemm() -> Value {
    json!({
        "quant_method": "fbgemm_fp8",
        "activation_scale_ub": 1200.0,
        "modules_to_not_convert": ["lm_head"],
    })
}

fn write(folder: &Path, tensors: &Tensors, quantization: &Value) {
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "intermediate_size": FFN,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": false,
        "quantization_config": quantization,
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let views = tensors.iter().map(|(name, made)| {
        (name, TensorView::new(made.dtype, made.shape.clone(), &made.bytes).unwrap())
    });
    let file = safetensors::serialize(views, None).unwrap();
    fs::write(folder.join("model.safetensors"), file).unwrap();
}

fn find(folder: &TempDir) -> Source {
    Source::find(folder.path().to_str().unwrap()).unwrap()
}

fn logits(folder: &TempDir, ids: &[u32], ranks: usize) -> Vec<f32> {
    let split = Split { tensor_parallel: Some(ranks), ..Split::default() };
    let options = Options { device: Device::Cpu, scored: usize::MAX, split, ..Options::default() };
    let mut team = Model::of(find(folder), options).unwrap().load(&silent()).unwrap().team;
    team.expect(ids.len()).unwrap();
    team.prefill(ids, Logits::All).unwrap().to_vec()
}

#[test]
fn eight_bit_floats_have_the_logits_of_their_numbers() {
    let all: Vec<u32> = (0..40).map(|i| i * 37 % VOCAB as u32).collect();
    for (kind, config) in [
        (Scales::Rows, compressed()),
        (Scales::Halves, compressed()),
        (Scales::One, compressed()),
        (Scales::Scalar, compressed()),
        (Scales::Rows, fbgemm()),
        (Scales::List, fbgemm()),
    ] {
        let [eights, numbers] = [tempdir().unwrap(), tempdir().unwrap()];
        let [tensors, stood_for] = models(kind);
        write(eights.path(), &tensors, &config);
        write(numbers.path(), &stood_for, &Value::Null);
        assert!(Checkpoint::open(&find(&eights)).unwrap().types().contains("F8_E4M3"));
        for (ids, ranks) in [(&all[..], 1), (&all[..5], 2), (&all[..1], 1), (&all[..], 2)] {
            let [ours, theirs] = [&eights, &numbers].map(|folder| logits(folder, ids, ranks));
            assert!(ours.iter().all(|logit| logit.is_finite()) && ours[0] != ours[1]);
            assert!(ours == theirs, "{kind:?}, {} tokens on {ranks}", ids.len());
        }
    }
}

/// What static quantisation of activations, which there is none of here, has beside a weight.
#[test]
fn scales_of_inputs_are_of_no_use() {
    let folder = tempdir().unwrap();
    let [mut tensors, _] = models(Scales::One);
    let module = "model.layers.0.mlp.up_proj";
    for name in ["input_scale", "input_scale_ub"] {
        tensors.insert(format!("{module}.{name}"), Made::of(&[1], [0.5]));
    }
    write(folder.path(), &tensors, &compressed());
    let checkpoint = Checkpoint::open(&find(&folder)).unwrap();
    assert_eq!(checkpoint.tensors().len(), 12);
    let weight = checkpoint.tensor(&format!("{module}.weight")).unwrap();
    assert_eq!(weight.encoding, Encoding::E4m3);
    assert_eq!(checkpoint.scales(weight.offset + 3 * WIDTH, 2, WIDTH).len(), 2);
}

#[test]
fn scales_that_make_no_sense_are_refused() {
    const WEIGHT: &str = "model.layers.0.mlp.up_proj.weight";
    const SCALE: &str = "model.layers.0.mlp.up_proj.weight_scale";
    type Change = fn(&mut Tensors);
    let changes: [(Change, &str); 10] = [
        (|t| drop(t.remove(SCALE)), "has no scales"),
        (|t| drop(t.insert(SCALE.to_owned(), Made::of(&[FFN - 1], vec![1.0; FFN - 1]))), "[159]"),
        (|t| drop(t.insert(SCALE.to_owned(), Made::of(&[1, FFN], vec![1.0; FFN]))), "[1, 160]"),
        (|t| drop(t.insert(SCALE.to_owned(), Made::of(&[2, 80], vec![1.0; FFN]))), "[2, 80]"),
        (|t| drop(t.insert(SCALE.to_owned(), Made::of(&[2], [1.0; 2]))), "the shape [2]"),
        (|t| drop(t.insert(SCALE.to_owned(), Made::of(&[1], [f32::NAN]))), "the scale NaN"),
        (|t| drop(t.insert(SCALE.to_owned(), Made::of(&[1], [f32::INFINITY]))), "the scale inf"),
        (
            |t| {
                let bytes = vec![0; FFN];
                let eights = Made { dtype: Dtype::F8_E4M3, shape: vec![FFN], bytes };
                t.insert(SCALE.to_owned(), eights);
            },
            "is no matrix with scales of",
        ),
        (|t| t.get_mut(WEIGHT).unwrap().shape = vec![FFN * WIDTH], "is no matrix with scales"),
        (
            |t| t.get_mut(WEIGHT).unwrap().dtype = Dtype::I8,
            "\"I8\": BF16, F16, F32 and F8_E4M3 are",
        ),
    ];
    for (change, expected) in changes {
        let folder = tempdir().unwrap();
        let [mut tensors, _] = models(Scales::Rows);
        change(&mut tensors);
        write(folder.path(), &tensors, &compressed());
        let message = Checkpoint::open(&find(&folder)).map(drop).unwrap_err().to_string();
        assert!(message.contains("model.safetensors") && message.contains(expected), "{message}");
        assert!(message.contains("up_proj") && !message.contains('\n'), "{message}");
    }
}

#[test]
fn other_configs_of_quantised_weights_are_refused_by_name() {
    let folder = tempdir().unwrap();
    let changed = |pointer: &str, value: Value| {
        let mut config = compressed();
        *config.pointer_mut(pointer).unwrap() = value;
        config
    };
    let weights = "/config_groups/group_0/weights";
    for (config, expected) in [
        (json!({"quant_method": "fp8", "weight_block_size": [128, 128]}), "says \"fp8\""),
        (json!({"quant_method": "gptq", "bits": 4}), "says \"gptq\""),
        (json!({"quant_method": 8}), "quant_method is 8"),
        (json!([]), "quantization_config is a list"),
        (changed("/format", json!("pack-quantized")), "format is \"pack-quantized\""),
        (changed("/kv_cache_scheme", json!({"num_bits": 8})), "kv_cache_scheme is an object"),
        (
            changed("/sparsity_config", json!({"format": "sparse-24"})),
            "sparsity_config is an object",
        ),
        (changed(&format!("{weights}/num_bits"), json!(4)), "weights.num_bits is 4"),
        (changed(&format!("{weights}/type"), json!("int")), "weights.type is \"int\""),
        (changed(&format!("{weights}/strategy"), json!("block")), "weights.strategy is \"block\""),
        (changed(&format!("{weights}/symmetric"), json!(false)), "weights.symmetric is false"),
        (changed(weights, Value::Null), "\"group_0\" has no weights"),
    ] {
        write(folder.path(), &Tensors::new(), &config);
        let message = Config::load(&find(&folder)).unwrap_err().to_string();
        assert!(message.contains("config.json") && message.contains(expected), "{message}");
        assert!(message.contains("quantization_config"), "{message}");
    }
}
