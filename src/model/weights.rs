use std::collections::HashSet;

use crate::checkpoint::{Checkpoint, Dtype};
use crate::config::Dims;
use crate::error::{Error, Result};
use crate::memory::Weight;

/// Where every weight lies in the weight region.
#[derive(Debug)]
pub struct Weights {
    /// `[V, C]`
    pub embedding: Weight,
    pub layers: Vec<Layer>,
    /// `[C]`
    pub norm: Weight,
    /// The LM head; the embedding itself where they are tied. `[V, C]`
    pub head: Weight,
}

/// The weights of one transformer layer.
#[derive(Debug)]
pub struct Layer {
    /// `[C]`
    pub attention_norm: Weight,
    /// `[H D, C]`
    pub wq: Weight,
    /// `[G D, C]`
    pub wk: Weight,
    /// `[G D, C]`
    pub wv: Weight,
    /// `[C, H D]`
    pub wo: Weight,
    /// `[C]`
    pub ffn_norm: Weight,
    /// `[F, C]`
    pub w_gate: Weight,
    /// `[F, C]`
    pub w_up: Weight,
    /// `[C, F]`
    pub w_down: Weight,
}

impl Weights {
    /// Finds every weight by its Hugging Face name and checks its shape, reading none of it.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape, or has no place in a Llama.
    pub fn locate(checkpoint: &Checkpoint, dims: &Dims) -> Result<Self> {
        let mut table = Table { checkpoint, seen: HashSet::new() };
        let (c, f, v) = (dims.width, dims.ffn, dims.vocab);
        let (q_rows, kv_rows) = (dims.heads * dims.head_dim, dims.kv_heads * dims.head_dim);

        let embedding = table.matrix("model.embed_tokens", v, c)?;
        let layers = (0..dims.layers).map(|l| {
            let name = |part: &str| format!("model.layers.{l}.{part}");
            Ok(Layer {
                attention_norm: table.vector(&name("input_layernorm"), c)?,
                wq: table.matrix(&name("self_attn.q_proj"), q_rows, c)?,
                wk: table.matrix(&name("self_attn.k_proj"), kv_rows, c)?,
                wv: table.matrix(&name("self_attn.v_proj"), kv_rows, c)?,
                wo: table.matrix(&name("self_attn.o_proj"), c, q_rows)?,
                ffn_norm: table.vector(&name("post_attention_layernorm"), c)?,
                w_gate: table.matrix(&name("mlp.gate_proj"), f, c)?,
                w_up: table.matrix(&name("mlp.up_proj"), f, c)?,
                w_down: table.matrix(&name("mlp.down_proj"), c, f)?,
            })
        });
        let layers = layers.collect::<Result<_>>()?;
        let norm = table.vector("model.norm", c)?;
        // Tied embeddings are told by the tensor's absence: the config's flag is often wrong.
        let head = match checkpoint.tensor("lm_head.weight") {
            Some(_) => table.matrix("lm_head", v, c)?,
            None => embedding,
        };
        table.refuse_the_rest()?;
        Ok(Self { embedding, layers, norm, head })
    }

    /// Whether the LM head is the embedding.
    pub fn tied(&self) -> bool {
        self.head == self.embedding
    }

    /// The type that all weights share.
    pub fn dtype(&self) -> Dtype {
        self.embedding.dtype
    }

    /// Every distinct weight.
    pub fn iter(&self) -> impl Iterator<Item = Weight> + '_ {
        let layers = self.layers.iter().flat_map(Layer::iter);
        let head = (!self.tied()).then_some(self.head);
        [self.embedding].into_iter().chain(layers).chain([self.norm]).chain(head)
    }
}

impl Layer {
    pub fn iter(&self) -> impl Iterator<Item = Weight> + use<> {
        let attention = [self.attention_norm, self.wq, self.wk, self.wv, self.wo];
        attention.into_iter().chain([self.ffn_norm, self.w_gate, self.w_up, self.w_down])
    }
}

/// The checkpoint's tensors, and which of them have found their place.
struct Table<'a> {
    checkpoint: &'a Checkpoint,
    seen: HashSet<String>,
}

impl Table<'_> {
    fn vector(&mut self, module: &str, len: usize) -> Result<Weight> {
        self.weight(module, &[len]).map(|offset_and_type| Weight {
            rows: 1,
            cols: len,
            ..offset_and_type
        })
    }

    fn matrix(&mut self, module: &str, rows: usize, cols: usize) -> Result<Weight> {
        self.weight(module, &[rows, cols]).map(|found| Weight { rows, cols, ..found })
    }

    fn weight(&mut self, module: &str, shape: &[usize]) -> Result<Weight> {
        let name = format!("{module}.weight");
        let Some(tensor) = self.checkpoint.tensor(&name) else {
            let path = self.checkpoint.path_of(&name);
            return Err(Error::failed(format!("{path}: tensor {name} is missing")));
        };
        if tensor.shape != shape {
            return Err(Error::failed(format!(
                "{}: tensor {name} has shape {:?} where config.json implies {shape:?}",
                self.checkpoint.path_of(&name),
                tensor.shape
            )));
        }
        let weight = Weight { dtype: tensor.dtype, offset: tensor.offset, rows: 0, cols: 0 };
        self.seen.insert(name);
        Ok(weight)
    }

    /// A tensor that nothing reads belongs to a model that is computed in another way.
    fn refuse_the_rest(&self) -> Result<()> {
        let mut names = self.checkpoint.tensors().map(|(name, _)| name);
        match names.find(|name| !self.seen.contains(*name)) {
            None => Ok(()),
            Some(name) => Err(Error::failed(format!(
                "{}: tensor {name} has no place in a Llama of {} layers without biases",
                self.checkpoint.path_of(name),
                self.seen.iter().filter(|name| name.ends_with("q_proj.weight")).count()
            ))),
        }
    }
}
