//! What can be wrong with config.json and generation_config.json.

use std::fs::{self, File};
use std::path::Path;

use super::tiny::{self, CONFIG, GENERATION};
use super::{BadModel, FoundBy, Spoil};

pub fn bad_configs() -> Vec<BadModel> {
    [sizes(), features(), rope(), missing_keys(), files()].into_iter().flatten().collect()
}

/// (key, JSON, trouble) of config.json.
fn keys(cases: &[(&'static str, &'static str, &'static str)]) -> Vec<BadModel> {
    let case = |&(key, value, trouble): &(&'static str, &'static str, &'static str)| BadModel {
        name: format!("{key}: {value}"),
        found_by: FoundBy::Config,
        file: CONFIG,
        trouble,
        spoil: Spoil::Key(key, value),
    };
    cases.iter().map(case).collect()
}

fn sizes() -> Vec<BadModel> {
    keys(&[
        ("num_hidden_layers", "0", "num_hidden_layers is 0"),
        ("num_hidden_layers", "1000000", "num_hidden_layers is 1000000"),
        ("num_hidden_layers", "-1", "num_hidden_layers is -1"),
        ("num_hidden_layers", "1.0", "num_hidden_layers is 1.0"),
        ("num_hidden_layers", "\"1\"", "num_hidden_layers is \"1\""),
        ("num_hidden_layers", "[1]", "num_hidden_layers is a list"),
        ("num_hidden_layers", "true", "num_hidden_layers is true"),
        ("hidden_size", "0", "hidden_size is 0"),
        ("hidden_size", "18446744073709551615", "hidden_size is 18446744073709551615"),
        ("hidden_size", "99999999999999999999", "hidden_size is 1e+20"),
        ("hidden_size", "17", "hidden_size is 17, which num_attention_heads 2 does not divide"),
        ("num_attention_heads", "0", "num_attention_heads is 0"),
        ("num_attention_heads", "5000", "num_attention_heads is 5000"),
        ("num_attention_heads", "16", "hidden_size / num_attention_heads is 1"),
        ("num_key_value_heads", "0", "num_key_value_heads is 0"),
        ("num_key_value_heads", "3", "num_key_value_heads is 3, which does not divide"),
        ("head_dim", "0", "head_dim is 0"),
        ("head_dim", "7", "head_dim is 7: an even"),
        ("head_dim", "1026", "head_dim is 1026"),
        ("intermediate_size", "-8", "intermediate_size is -8"),
        ("intermediate_size", "1e3", "intermediate_size is 1000.0"),
        ("vocab_size", "4294967296", "vocab_size is 4294967296"),
        ("max_position_embeddings", "0", "max_position_embeddings is 0"),
        ("max_position_embeddings", "1000000000", "max_position_embeddings is 1000000000"),
        ("rms_norm_eps", "0", "rms_norm_eps is 0"),
        ("rms_norm_eps", "-1e-5", "rms_norm_eps is -"),
        ("rms_norm_eps", "1e-300", "rms_norm_eps is 1e-300"),
        ("rms_norm_eps", "1e300", "rms_norm_eps is 1e+300"),
        ("rms_norm_eps", "NaN", "expected value"),
        ("rms_norm_eps", "1e999", "number out of range"),
        ("rms_norm_eps", "\"1e-5\"", "rms_norm_eps is \"1e-5\""),
        ("eos_token_id", "32", "eos_token_id holds 32: token ids below vocab_size 32"),
        ("eos_token_id", "[2, -1]", "eos_token_id holds -1"),
        ("eos_token_id", "\"</s>\"", "eos_token_id holds \"</s>\""),
        ("bos_token_id", "[1, 2]", "bos_token_id is a list"),
    ])
}

fn features() -> Vec<BadModel> {
    keys(&[
        ("model_type", "\"mistral\"", "model_type is \"mistral\""),
        ("model_type", "\"x\\ny\"", "model_type is \"x\\ny\""),
        ("architectures", "[\"LlamaForSequenceClassification\"]", "architectures"),
        ("architectures", "\"LlamaForCausalLM\"", "architectures"),
        ("hidden_act", "\"gelu\"", "hidden_act is \"gelu\""),
        ("attention_bias", "true", "attention_bias is true"),
        ("mlp_bias", "true", "mlp_bias is true"),
        ("sliding_window", "4096", "sliding_window is 4096"),
        ("attention_chunk_size", "8192", "attention_chunk_size is 8192"),
        ("quantization_config", "{\"quant_method\": \"awq\"}", "says \"awq\": compressed-tensors"),
        ("quantization_config", "{\"bits\": 4}", "quantization_config.quant_method is missing"),
        ("num_local_experts", "8", "num_local_experts is 8"),
        ("num_experts", "8", "num_experts is 8"),
        ("partial_rotary_factor", "0.5", "partial_rotary_factor is not 1"),
        ("layer_types", "[\"sliding_attention\"]", "layer_types"),
    ])
}

fn rope() -> Vec<BadModel> {
    keys(&[
        ("rope_theta", "0", "rope_theta is 0"),
        ("rope_theta", "-1e4", "rope_theta is -10000.0"),
        ("rope_theta", "1e13", "rope_theta is 10000000000000.0"),
        ("rope_theta", "\"10000\"", "rope_theta is \"10000\""),
        ("rope_scaling", "8.0", "rope_scaling is 8.0: an object is needed"),
        ("rope_scaling", r#"{"factor": 2}"#, "rope_scaling.rope_type is missing"),
        ("rope_scaling", r#"{"type": "longrope"}"#, "rope_scaling.type is \"longrope\": default"),
        ("rope_scaling", r#"{"type": "linear"}"#, "rope_scaling.factor is missing"),
        ("rope_scaling", r#"{"type": "linear", "factor": 0.5}"#, "rope_scaling.factor is 0.5"),
        (
            "rope_scaling",
            r#"{"type": "dynamic", "factor": null}"#,
            "rope_scaling.factor is missing",
        ),
        ("rope_scaling", r#"{"rope_type": "yarn"}"#, "rope_scaling.factor is missing"),
        (
            "rope_scaling",
            r#"{"rope_type": "yarn", "factor": 2, "truncate": 1}"#,
            "rope_scaling.truncate is 1",
        ),
        (
            "rope_scaling",
            r#"{"rope_type": "yarn", "factor": 2, "attention_factor": -1}"#,
            "rope_scaling.attention_factor is -1",
        ),
        ("rope_scaling", r#"{"rope_type": 3}"#, "rope_scaling.rope_type is 3"),
        (
            "rope_scaling",
            r#"{"rope_type": "default", "type": "llama3"}"#,
            "rope_scaling.type is \"llama3\" but rope_type is \"default\"",
        ),
        ("rope_scaling", r#"{"rope_type": "llama3"}"#, "rope_scaling.factor is missing"),
        ("rope_scaling", r#"{"type": "llama3", "factor": 0.5}"#, "rope_scaling.factor is 0.5"),
        (
            "rope_scaling",
            concat!(
                r#"{"type": "llama3", "factor": 8, "low_freq_factor": 4, "#,
                r#""high_freq_factor": 4, "original_max_position_embeddings": 32}"#
            ),
            "rope_scaling.high_freq_factor must be above",
        ),
        (
            "rope_scaling",
            r#"{"type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}"#,
            "rope_scaling.original_max_position_embeddings is missing",
        ),
        (
            "rope_parameters",
            r#"{"rope_type": "default", "rope_theta": 500000.0}"#,
            "rope_parameters.rope_theta contradicts",
        ),
        (
            "rope_parameters",
            r#"{"full_attention": {"rope_type": "default"}}"#,
            "rope_parameters.\"full_attention\" is an object",
        ),
        (
            "rope_parameters",
            r#"{"rope_type": "default", "partial_rotary_factor": 0.25}"#,
            "rope_parameters.partial_rotary_factor is not 1",
        ),
    ])
}

fn missing_keys() -> Vec<BadModel> {
    let case = |(key, trouble)| BadModel {
        name: format!("no {key}"),
        found_by: FoundBy::Config,
        file: CONFIG,
        trouble,
        spoil: Spoil::NoKey(key),
    };
    [
        ("model_type", "model_type is missing"),
        ("hidden_act", "hidden_act is missing"),
        ("hidden_size", "hidden_size is missing"),
        ("num_hidden_layers", "num_hidden_layers is missing"),
        ("num_attention_heads", "num_attention_heads is missing"),
        ("num_key_value_heads", "num_key_value_heads is missing"),
        ("intermediate_size", "intermediate_size is missing"),
        ("vocab_size", "vocab_size is missing"),
        ("max_position_embeddings", "max_position_embeddings is missing"),
        ("rms_norm_eps", "rms_norm_eps is missing"),
        ("rope_theta", "rope_theta is missing (and not in rope_parameters)"),
    ]
    .map(case)
    .into()
}

/// (name, file, trouble, what is done to the folder), found by the config.
fn files() -> Vec<BadModel> {
    type Case = (&'static str, &'static str, &'static str, fn(&Path));
    let cases: [Case; 13] = [
        ("no config", CONFIG, "no such file", |m| fs::remove_file(m.join(CONFIG)).expect("gone")),
        ("empty config", CONFIG, "EOF", |m| tiny::write(m, CONFIG, "")),
        ("truncated config", CONFIG, "EOF", |m| {
            let text = tiny::config().to_string();
            tiny::write(m, CONFIG, &text[..text.len() / 2]);
        }),
        ("config is a list", CONFIG, "a list in place", |m| tiny::write(m, CONFIG, "[]")),
        ("config is binary", CONFIG, "expected value", |m| tiny::write(m, CONFIG, [0, 255])),
        ("config with a key twice", CONFIG, "\"vocab_size\" is given twice", |m| {
            let text = tiny::config().to_string().replacen('{', "{\"vocab_size\":32,", 1);
            tiny::write(m, CONFIG, text);
        }),
        ("config nested deeply", CONFIG, "recursion limit", |m| {
            tiny::write_config_with(m, "x", Some(&"[".repeat(500_000)));
        }),
        ("config of 2 MiB", CONFIG, "over 1 MiB", |m| {
            tiny::write(m, CONFIG, " ".repeat(2 << 20));
        }),
        ("config of a terabyte", CONFIG, "over 256 MiB", |m| {
            let file = File::create(m.join(CONFIG)).expect("a file");
            file.set_len(1 << 40).expect("a sparse file");
        }),
        ("config is a directory", CONFIG, "not a regular file", |m| {
            fs::remove_file(m.join(CONFIG)).expect("gone");
            fs::create_dir(m.join(CONFIG)).expect("a directory");
        }),
        ("broken generation config", GENERATION, "EOF", |m| tiny::write(m, GENERATION, "{")),
        ("stop id outside", GENERATION, "eos_token_id holds 128001", |m| {
            tiny::write(m, GENERATION, r#"{"eos_token_id": [2, 128001]}"#);
        }),
        ("negative temperature", GENERATION, "temperature is -1", |m| {
            tiny::write(m, GENERATION, r#"{"temperature": -1}"#);
        }),
    ];
    let case = |(name, file, trouble, spoil): Case| BadModel {
        name: name.to_owned(),
        found_by: FoundBy::Config,
        file,
        trouble,
        spoil: Spoil::Folder(spoil),
    };
    cases.map(case).into()
}
