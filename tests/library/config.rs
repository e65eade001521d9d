//! The configs of the real models, in the spellings of transformers 4 and 5.

use chaski::config::{Config, Dims, Llama3Scaling, Rope, RopeScaling};
use serde_json::{Value, json};

/// A released model's numbers.
struct Release {
    name: &'static str,
    width: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    ffn: usize,
    vocab: usize,
    context: usize,
    norm_eps: f64,
    theta: f64,
    /// Of rope scaling, over an original context of 8192.
    factor: Option<f64>,
    tied: bool,
    parameters: u64,
}

const LLAMA_3_8B: Release = Release {
    name: "Llama 3 8B",
    width: 4096,
    layers: 32,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    ffn: 14336,
    vocab: 128256,
    context: 8192,
    norm_eps: 1e-5,
    theta: 500000.0,
    factor: None,
    tied: false,
    parameters: 8_030_261_248,
};

const LLAMA_3_70B: Release = Release {
    name: "Llama 3 70B",
    width: 8192,
    layers: 80,
    heads: 64,
    ffn: 28672,
    parameters: 70_553_706_496,
    ..LLAMA_3_8B
};

const LLAMA_2_7B: Release = Release {
    name: "Llama 2 7B",
    kv_heads: 32,
    ffn: 11008,
    vocab: 32000,
    context: 4096,
    theta: 10000.0,
    parameters: 6_738_415_616,
    ..LLAMA_3_8B
};

const RELEASES: [Release; 10] = [
    LLAMA_3_8B,
    LLAMA_3_70B,
    Release { name: "Llama 3.1 8B", context: 131072, factor: Some(8.0), ..LLAMA_3_8B },
    Release { name: "Llama 3.1 and 3.3 70B", context: 131072, factor: Some(8.0), ..LLAMA_3_70B },
    Release {
        name: "Llama 3.1 405B",
        width: 16384,
        layers: 126,
        heads: 128,
        ffn: 53248,
        context: 131072,
        factor: Some(8.0),
        parameters: 405_853_388_800,
        ..LLAMA_3_8B
    },
    Release {
        name: "Llama 3.2 1B",
        width: 2048,
        layers: 16,
        head_dim: 64,
        ffn: 8192,
        context: 131072,
        factor: Some(32.0),
        tied: true,
        parameters: 1_235_814_400,
        ..LLAMA_3_8B
    },
    Release {
        name: "Llama 3.2 3B",
        width: 3072,
        layers: 28,
        heads: 24,
        ffn: 8192,
        context: 131072,
        factor: Some(32.0),
        tied: true,
        parameters: 3_212_749_824,
        ..LLAMA_3_8B
    },
    LLAMA_2_7B,
    Release {
        name: "Llama 2 13B",
        width: 5120,
        layers: 40,
        heads: 40,
        kv_heads: 40,
        ffn: 13824,
        parameters: 13_015_864_320,
        ..LLAMA_2_7B
    },
    Release {
        name: "Llama 2 70B",
        width: 8192,
        layers: 80,
        heads: 64,
        kv_heads: 8,
        ffn: 28672,
        parameters: 68_976_648_192,
        ..LLAMA_2_7B
    },
];

impl Release {
    /// config.json but for the rope keys, with the keys that do not concern us, too.
    fn common(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": self.width,
            "initializer_range": 0.02,
            "intermediate_size": self.ffn,
            "max_position_embeddings": self.context,
            "mlp_bias": false,
            "model_type": "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "pretraining_tp": 1,
            "rms_norm_eps": self.norm_eps,
            "tie_word_embeddings": self.tied,
            "torch_dtype": "bfloat16",
            "use_cache": true,
            "vocab_size": self.vocab,
        })
    }

    fn scaling(&self, type_key: &str) -> Value {
        match self.factor {
            None => Value::Null,
            Some(factor) => json!({
                type_key: "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            }),
        }
    }

    /// The config in every spelling there is: transformers 4 with `rope_type` and with the older
    /// `type`, transformers 5, with and without an explicit head width.
    fn spellings(&self) -> Vec<Value> {
        let mut spellings = Vec::new();
        for type_key in ["rope_type", "type"] {
            let mut config = self.common();
            config["rope_theta"] = json!(self.theta);
            config["rope_scaling"] = self.scaling(type_key);
            spellings.push(config);
        }
        let mut config = self.common();
        config["head_dim"] = json!(self.head_dim);
        config["rope_parameters"] = match self.scaling("rope_type") {
            Value::Null => json!({ "rope_type": "default" }),
            scaling => scaling,
        };
        config["rope_parameters"]["rope_theta"] = json!(self.theta);
        spellings.push(config);
        spellings
    }

    fn expected(&self) -> Config {
        let scaling = self.factor.map(|factor| {
            RopeScaling::Llama3(Llama3Scaling {
                factor,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_context: 8192,
            })
        });
        Config {
            width: self.width,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            ffn: self.ffn,
            vocab: self.vocab,
            max_context: self.context,
            norm_eps: self.norm_eps as f32,
            rope: Rope { theta: self.theta, scaling, divisors: Vec::new() },
            tied: Some(self.tied),
            bos_id: Some(1),
            stop_ids: vec![2],
            defaults: Default::default(),
        }
    }
}

fn parse(config: &Value, generation: Option<&Value>) -> chaski::Result<Config> {
    let generation = generation.map(Value::to_string);
    Config::parse(
        config.to_string().as_bytes(),
        generation.as_ref().map(|text| text.as_bytes()),
        "m",
    )
}

#[test]
fn every_release_loads_in_every_spelling() {
    for release in RELEASES {
        for spelling in release.spellings() {
            let config = parse(&spelling, None).expect(release.name);
            assert_eq!(config, release.expected(), "{} from {spelling}", release.name);
            assert_eq!(config.parameters(release.tied), release.parameters, "{}", release.name);
        }
    }
}

#[test]
fn stop_ids_are_the_union_of_both_files() {
    let mut config = LLAMA_3_8B.spellings().remove(0);
    config["bos_token_id"] = json!(128000);
    for (own, generation, union) in [
        (json!(128001), json!({}), vec![128001]),
        (json!(128001), json!({ "eos_token_id": [128009, 128001] }), vec![128001, 128009]),
        (
            json!([128009, 128001, 128008]),
            json!({ "eos_token_id": 128001 }),
            vec![128001, 128008, 128009],
        ),
        (Value::Null, json!({ "eos_token_id": null }), vec![]),
    ] {
        config["eos_token_id"] = own;
        let parsed = parse(&config, Some(&generation)).expect("a config");
        assert_eq!(parsed.stop_ids, union);
        assert_eq!(parsed.bos_id, Some(128000));
    }
}

#[test]
fn sampling_defaults_come_from_the_generation_config() {
    let config = LLAMA_3_8B.spellings().remove(0);
    let generation = json!({
        "do_sample": true, "temperature": 0.6, "top_k": 0, "top_p": 0.9, "other": [1],
        "min_p": 0.1, "repetition_penalty": 1.1, "typical_p": 1.0, "num_beams": 4, "bad_words_ids": [],
        "suppress_tokens": [5], "epsilon_cutoff": 0.0, "guidance_scale": null,
    });
    let defaults = parse(&config, Some(&generation)).expect("a config").defaults;
    assert_eq!(defaults.do_sample, Some(true));
    assert_eq!(defaults.temperature, Some(0.6));
    assert_eq!(defaults.top_k, Some(0));
    assert_eq!(defaults.top_p, Some(0.9));
    assert_eq!(defaults.min_p, Some(0.1));
    assert_eq!(defaults.repetition_penalty, Some(1.1));
    assert_eq!(defaults.ignored, ["suppress_tokens", "num_beams"]);
}

#[test]
fn early_llama_2_configs_are_told_what_they_lack() {
    let mut config = LLAMA_2_7B.spellings().remove(0);
    for absent in ["attention_bias", "mlp_bias", "architectures"] {
        config.as_object_mut().expect("an object").remove(absent);
    }
    config["rope_scaling"] = Value::Null;
    parse(&config, None).expect("what a config says by silence");

    config.as_object_mut().expect("an object").remove("rope_theta");
    let error = parse(&config, None).expect_err("a missing theta").to_string();
    assert!(error.starts_with("m/config.json: rope_theta is missing"), "{error}");
    assert!(error.contains("10000.0"), "{error}");
}

#[test]
fn ranks_share_evenly_or_not_at_all() {
    let config = parse(&RELEASES[6].spellings()[0], None).expect("Llama 3.2 3B");
    let whole = Dims::new(&config, 1).expect("one rank");
    assert_eq!([whole.heads, whole.kv_heads, whole.ffn, whole.vocab], [24, 8, 8192, 128256]);
    let eighth = Dims::new(&config, 8).expect("eight ranks");
    assert_eq!([eighth.heads, eighth.kv_heads, eighth.ffn, eighth.vocab], [3, 1, 1024, 16032]);
    assert_eq!([eighth.width, eighth.layers, eighth.head_dim], [3072, 28, 128]);
    for (world, key) in
        [(16, "num_attention_heads"), (12, "num_key_value_heads"), (0, "num_attention_heads")]
    {
        let error = Dims::new(&config, world).expect_err("an uneven split").to_string();
        assert!(error.contains(key) && error.contains(&format!("{world} ranks")), "{error}");
    }
}

/// More ranks than KV heads share them; a vocabulary is split as evenly as it can be.
#[test]
fn ranks_past_the_kv_heads_hold_the_same_ones() {
    let mut config = parse(&LLAMA_3_8B.spellings()[0], None).expect("Llama 3 8B");
    config.vocab = 128_257;
    let dims = Dims::new(&config, 32).expect("32 ranks");
    assert_eq!([dims.heads, dims.kv_heads, dims.ffn], [1, 1, 448]);
    let ranks: Vec<Dims> = (0..32).map(|rank| dims.of_rank(rank)).collect();
    let kv_heads: Vec<_> = ranks.iter().map(|dims| dims.kv_share.of(8).start).collect();
    assert_eq!(kv_heads, (0..32).map(|rank| rank / 4).collect::<Vec<_>>());
    let mut next = 0;
    for dims in &ranks {
        assert_eq!(dims.first_id(), next);
        assert!([4008, 4009].contains(&dims.vocab), "{dims:?}");
        next += dims.vocab;
    }
    assert_eq!((next, ranks[31].vocab), (128_257, 4009));
    config.vocab = 7;
    let error = Dims::new(&config, 8).expect_err("a rank without a token").to_string();
    assert!(error.contains("vocab_size is 7"), "{error}");
}

/// The largest sizes that load: whatever is derived from them must fit.
#[test]
fn the_largest_sizes_do_not_overflow() {
    let mut config = LLAMA_3_8B.spellings().remove(0);
    for (key, size) in [
        ("hidden_size", 1 << 20),
        ("num_attention_heads", 4096),
        ("num_key_value_heads", 4096),
        ("head_dim", 1024),
        ("num_hidden_layers", 1024),
        ("intermediate_size", 1 << 22),
        ("vocab_size", 1 << 24),
        ("max_position_embeddings", 1 << 24),
    ] {
        config[key] = json!(size);
    }
    let config = parse(&config, None).expect("the largest config");
    assert!(config.parameters(false).checked_mul(4).is_some());
    let kv_bytes = [2, config.layers, config.kv_heads, config.head_dim, config.max_context, 4];
    assert!(
        kv_bytes.iter().try_fold(1_usize, |product, size| product.checked_mul(*size)).is_some()
    );
}

/// As transformers reads them: null is absent, and keys that a type does not have are passed over.
#[test]
fn rope_parameters_may_hold_nulls_and_keys_of_other_types() {
    let with = |rope: Value| {
        let mut config = LLAMA_2_7B.common();
        config["rope_parameters"] = rope;
        parse(&config, None).expect("a config").rope
    };
    let plain = Rope { theta: 10000.0, scaling: None, divisors: Vec::new() };
    for rope in [
        json!({ "rope_theta": 10000.0, "rope_type": "default", "factor": null, "mscale": null }),
        json!({ "rope_theta": 10000.0, "rope_type": "default", "factor": 8.0, "mscale": 1 }),
        json!({ "rope_theta": 10000.0, "rope_type": null, "type": null }),
        json!({ "rope_theta": 10000.0 }),
    ] {
        assert_eq!(with(rope.clone()), plain, "{rope}");
    }
    let scaling = Some(RopeScaling::Linear { factor: 4.0 });
    let linear = Rope { theta: 10000.0, scaling, divisors: Vec::new() };
    let rope = json!({ "rope_theta": 10000.0, "type": "linear", "factor": 4, "finetuned": true });
    assert_eq!(with(rope), linear);
}

/// A context may be as long as its way to scale says.
#[test]
fn some_scalings_stretch_the_context() {
    let longest = |scaling: Value| {
        let mut config = LLAMA_2_7B.spellings().remove(0);
        config["rope_scaling"] = scaling;
        let config = parse(&config, None).expect("a config");
        (config.max_context, config.longest_context())
    };
    assert_eq!(longest(json!({ "type": "linear", "factor": 2.5 })), (4096, 10240));
    assert_eq!(longest(json!({ "type": "dynamic", "factor": 8.0 })), (32768, 32768));
    assert_eq!(longest(json!({ "type": "yarn", "factor": 8.0 })), (4096, 4096));
    assert_eq!(longest(json!({ "type": "linear", "factor": 1e6 })), (4096, 1 << 24));
    assert_eq!(longest(Value::Null), (4096, 4096));
}
