//! `chaski inspect`

use std::ops::Add;

use serde_json::{Value, json};

use super::args::InspectArgs;
use super::forecast::Outlook;
use super::open::{options, source};
use super::output::{note, print};
use crate::checkpoint::{Checkpoint, Tensor};
use crate::config::{Config, Dims, Llama3Scaling, RopeScaling, Yarn};
use crate::engine::{available_memory_bytes, one, plan, weights};
use crate::error::{Result, binary, count};
use crate::memory::Weight;
use crate::model::{self, Limit, Llama, Plan, Weights, cache_bytes_per_token};
use crate::op::Cost;

pub fn run(args: &InspectArgs) -> Result<()> {
    let report = Report::new(args)?;
    if args.json { print(&format!("{:#}\n", report.json())) } else { print(&report.text()) }
}

/// How the rotary frequencies are scaled, by its type's name in config.json.
fn scaling_json(scaling: &RopeScaling) -> Value {
    match scaling {
        RopeScaling::Linear { factor } => json!({ "type": "linear", "factor": factor }),
        RopeScaling::Dynamic { factor, original_context } => json!({
            "type": "dynamic",
            "factor": factor,
            "original_context": original_context,
        }),
        RopeScaling::Llama3(llama) => json!({
            "type": "llama3",
            "factor": llama.factor,
            "low_freq_factor": llama.low_freq_factor,
            "high_freq_factor": llama.high_freq_factor,
            "original_context": llama.original_context,
        }),
        RopeScaling::Yarn(yarn) => json!({
            "type": "yarn",
            "factor": yarn.factor,
            "magnitude": yarn.magnitude,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
            "truncate": yarn.truncate,
            "original_context": yarn.original_context,
        }),
    }
}

/// The same in words.
fn scaling_text(config: &Config) -> String {
    match &config.rope.scaling {
        None => String::new(),
        Some(RopeScaling::Linear { factor }) => format!(", scaled {factor}x"),
        Some(RopeScaling::Dynamic { factor, original_context }) => {
            format!(", scaled up to {factor}x past {original_context} tokens as the text grows")
        }
        Some(
            RopeScaling::Llama3(Llama3Scaling { factor, original_context, .. })
            | RopeScaling::Yarn(Yarn { factor, original_context, .. }),
        ) => format!(", scaled {factor}x from {original_context} tokens"),
    }
}

/// What there is to say about a model.
struct Report {
    name: String,
    config: Config,
    checkpoint: Checkpoint,
    weights: Parts,
    tied: bool,
    cache_bytes_per_token: usize,
    plan: Plan,
    available_bytes: usize,
    /// Of one token with the context empty, and full.
    decode: [Cost; 2],
    outlook: Option<Outlook>,
}

/// Weights by part of the model.
struct Parts {
    embedding: Amount,
    attention: Amount,
    feed_forward: Amount,
    norms: Amount,
    /// None where it is the embedding.
    head: Amount,
}

/// Parameters, and the bytes that they take.
#[derive(Clone, Copy, Default)]
struct Amount {
    parameters: usize,
    bytes: usize,
}

impl Amount {
    fn of(weights: &[Weight]) -> Self {
        weights.iter().fold(Self::default(), |sum, weight| {
            sum + Self { parameters: weight.rows * weight.cols, bytes: weight.bytes() }
        })
    }
}

impl Add for Amount {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { parameters: self.parameters + other.parameters, bytes: self.bytes + other.bytes }
    }
}

impl Parts {
    fn new(weights: &Weights) -> Self {
        let head = weights.head.filter(|_| !weights.tied()).map(|head| head.matrix);
        let mut parts = Self {
            embedding: Amount::of(weights.embedding.as_slice()),
            attention: Amount::default(),
            feed_forward: Amount::default(),
            norms: weights.head.map_or(Amount::default(), |head| Amount::of(&[head.norm])),
            head: Amount::of(head.as_slice()),
        };
        for layer in &weights.layers {
            let attention = Amount::of(&[layer.wq, layer.wk, layer.wv, layer.wo]);
            parts.attention = parts.attention + attention;
            let feed_forward = Amount::of(&[layer.w_gate, layer.w_up, layer.w_down]);
            parts.feed_forward = parts.feed_forward + feed_forward;
            parts.norms = parts.norms + Amount::of(&[layer.attention_norm, layer.ffn_norm]);
        }
        parts
    }

    fn named(&self) -> [(&'static str, Amount); 5] {
        [
            ("embedding", self.embedding),
            ("attention", self.attention),
            ("feed_forward", self.feed_forward),
            ("norms", self.norms),
            ("lm_head", self.head),
        ]
    }

    fn total(&self) -> Amount {
        self.named().into_iter().fold(Amount::default(), |sum, (_, amount)| sum + amount)
    }
}

impl Report {
    fn new(args: &InspectArgs) -> Result<Self> {
        let source = source(&args.model)?;
        let config = Config::load(&source)?;
        let dims = Dims::new(&config, 1)?;
        let options = options(&args.model)?;
        let (checkpoint, mut remarks) = weights(&source, &config, options.quantise)?;
        let located = Weights::locate(&checkpoint, &dims)?;
        let parts = Parts::new(&located);
        let tied = located.tied();
        let hardware = [one(&options, options.device, &dims, &checkpoint, &mut remarks)?];
        remarks.iter().for_each(note);
        let plan = plan(&options, &hardware, &config, &dims, &checkpoint)?;
        let (llama, _) = Llama::lay_out(&config, dims, located, plan.sizes);
        let decode = model::decode(&llama, 1);
        Ok(Self {
            name: source.to_string(),
            weights: parts,
            tied,
            cache_bytes_per_token: cache_bytes_per_token(&dims, plan.sizes.cache),
            plan,
            available_bytes: available_memory_bytes()?,
            outlook: Outlook::new(args, &options.split, &config, &checkpoint)?,
            decode: [0, plan.sizes.context - 1].map(|position| decode.cost(position)),
            config,
            checkpoint,
        })
    }

    fn limit(&self) -> &'static str {
        match self.plan.limit {
            Limit::Request => "request",
            Limit::Model => "model",
            Limit::Memory => "memory",
        }
    }

    fn json(&self) -> Value {
        let (config, plan) = (&self.config, &self.plan);
        let parts = |count: fn(&Amount) -> usize| -> Value {
            let parts = self.weights.named();
            parts.iter().map(|(name, part)| (name.to_string(), json!(count(part)))).collect()
        };
        let total = self.weights.total();
        json!({
            "model": self.name,
            "config": {
                "width": config.width,
                "layers": config.layers,
                "heads": config.heads,
                "kv_heads": config.kv_heads,
                "head_dim": config.head_dim,
                "ffn": config.ffn,
                "vocab": config.vocab,
                "max_context": config.max_context,
                "norm_eps": config.norm_eps,
                "rope_theta": config.rope.theta,
                "rope_scaling": config.rope.scaling.as_ref().map(scaling_json),
                "tied_embeddings": self.tied,
                "bos_id": config.bos_id,
                "stop_ids": config.stop_ids,
            },
            "dtype": self.checkpoint.types(),
            "parameters": total.parameters,
            "parameters_by_part": parts(|part| part.parameters),
            "weight_bytes": total.bytes,
            "weight_bytes_by_part": parts(|part| part.bytes),
            "kv_type": plan.sizes.cache.name(),
            "kv_bytes_per_token": self.cache_bytes_per_token,
            "decode_bytes_per_token": {
                "weights": self.decode[0].weight_bytes,
                "kv_cache_at_full_context": self.decode[1].cache_bytes,
            },
            "plan": {
                "context": plan.sizes.context,
                "context_limited_by": self.limit(),
                "weight_bytes_mapped": plan.weight_bytes,
                "kv_cache_bytes": plan.cache_bytes,
                "activation_bytes": plan.activation_bytes,
                "available_bytes": self.available_bytes,
            },
            "prediction": self.outlook.as_ref().map(Outlook::json),
            "tensors": self.checkpoint.tensors().map(|(name, tensor)| json!({
                "name": name,
                "dtype": tensor.encoding.name(),
                "shape": tensor.shape,
                "bytes": tensor.bytes,
            })).collect::<Vec<_>>(),
        })
    }

    fn text(&self) -> String {
        let (config, plan) = (&self.config, &self.plan);
        let mut lines = vec![
            self.name.clone(),
            format!("  layers {}, width {}, FFN {}", config.layers, config.width, config.ffn),
            format!(
                "  {} over {} of {}",
                count(config.heads, "query head"),
                count(config.kv_heads, "key/value head"),
                config.head_dim
            ),
            format!(
                "  vocabulary {}{}",
                config.vocab,
                if self.tied { ", LM head tied to the embedding" } else { "" }
            ),
            format!("  stop ids {:?}, context up to {}", config.stop_ids, config.max_context),
            format!("  rope theta {}{}", config.rope.theta, scaling_text(config)),
            String::new(),
            format!("{:<22}{:>16}{:>14}", self.checkpoint.types(), "parameters", "bytes"),
        ];
        let total = [("total", self.weights.total())];
        for (name, Amount { parameters, bytes }) in self.weights.named().into_iter().chain(total) {
            lines.push(format!("  {name:<20}{parameters:>16}{:>14}", binary(bytes)));
        }
        let memory = [
            ("weights, mapped", plan.weight_bytes),
            ("KV cache", plan.cache_bytes),
            ("activations", plan.activation_bytes),
            ("available now", self.available_bytes),
        ];
        lines.push(String::new());
        lines.push(format!(
            "memory on one device of this machine, at a context of {} (limited by the {})",
            plan.sizes.context,
            self.limit()
        ));
        for (name, bytes) in memory {
            lines.push(format!("  {name:<36}{:>14}", binary(bytes)));
        }
        let per_token = [
            (format!("KV cache, {}", plan.sizes.cache.name()), self.cache_bytes_per_token),
            ("read to decode, weights".to_owned(), self.decode[0].weight_bytes as usize),
            ("read to decode, full KV cache".to_owned(), self.decode[1].cache_bytes as usize),
        ];
        lines.push(String::new());
        lines.push("per token".to_owned());
        for (name, bytes) in per_token {
            lines.push(format!("  {name:<36}{:>14}", binary(bytes)));
        }
        lines.extend(self.outlook.iter().flat_map(Outlook::lines));
        lines.push(String::new());
        lines.extend(self.tensor_lines());
        lines.push(String::new());
        lines.join("\n")
    }

    /// Tensors whose names differ by the layer's number alone are a line.
    fn tensor_lines(&self) -> Vec<String> {
        let mut kinds: Vec<(String, &Tensor, usize)> = Vec::new();
        for (name, tensor) in self.checkpoint.tensors() {
            let part = |part| if str::parse::<u32>(part).is_ok() { "*" } else { part };
            let name = name.split('.').map(part).collect::<Vec<_>>().join(".");
            let same = |(known, of, _): &&mut (String, &Tensor, usize)| {
                *known == name && (&of.shape, of.encoding) == (&tensor.shape, tensor.encoding)
            };
            match kinds.iter_mut().find(same) {
                Some((.., count)) => *count += 1,
                None => kinds.push((name, tensor, 1)),
            }
        }
        let line = |(name, tensor, count): &(String, &Tensor, usize)| {
            let shape = format!("{count} x {:?}", tensor.shape);
            format!("  {name:<50} {shape:>20} {:>12}", binary(count * tensor.bytes))
        };
        let title = count(self.checkpoint.tensors().len(), "tensor");
        [title].into_iter().chain(kinds.iter().map(line)).collect()
    }
}
