//! The peer: candle's Llama on the same weights.

use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};

/// The file with all weights.
const WEIGHTS: &str = "model.safetensors";

/// How the peer may compute, and how far its logits may then be from ours, as relative L2.
const TYPES: [(DType, f64); 2] = [(DType::BF16, 0.1), (DType::F32, 1e-3)];

pub struct Candle {
    dtype: DType,
    tolerance: f64,
    model: Llama,
    /// Without tokens.
    cache: Cache,
}

impl Candle {
    /// The same weights once for each type that candle can compute them in. It reads all into
    /// memory; its product of bf16 matrices widens both to f32 and narrows the result.
    pub fn load_all(directory: &Path) -> Vec<Candle> {
        TYPES.map(|(dtype, tolerance)| Candle::load(directory, dtype, tolerance)).into()
    }

    fn load(directory: &Path, dtype: DType, tolerance: f64) -> Candle {
        let config = fs::read(directory.join("config.json")).unwrap();
        let config: LlamaConfig = serde_json::from_slice(&config).unwrap();
        let config = config.into_config(false);
        let weights = fs::read(directory.join(WEIGHTS)).unwrap();
        let weights = VarBuilder::from_buffered_safetensors(weights, dtype, &Device::Cpu).unwrap();
        let model = Llama::load(weights, &config).unwrap();
        let cache = Cache::new(true, dtype, &config, &Device::Cpu).unwrap();
        Candle { dtype, tolerance, model, cache }
    }

    /// `candle in f32`
    pub fn name(&self) -> String {
        format!("candle in {}", self.dtype.as_str())
    }

    /// The logits of the token after `ids`. `[V]`
    pub fn prefill(&self, ids: &[u32]) -> Vec<f32> {
        let ids = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let logits = self.model.forward(&ids, 0, &mut self.cache.clone()).unwrap();
        logits.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// That both compute the same thing.
    pub fn assert_agrees(&self, ids: &[u32], ours: &[f32]) {
        let theirs = self.prefill(ids);
        let square = |x: f32| f64::from(x).powi(2);
        let error: f64 = ours.iter().zip(&theirs).map(|(a, b)| square(a - b)).sum();
        let norm: f64 = ours.iter().copied().map(square).sum();
        let relative = (error / norm).sqrt();
        assert!(relative <= self.tolerance, "{}: relative L2 {relative:.1e}", self.name());
    }
}
