use std::collections::HashSet;

use crate::checkpoint::Checkpoint;
use crate::config::{Dims, Shard};
use crate::encoding::Encoding;
use crate::error::{Error, Result, count};
use crate::for_float;
use crate::memory::Weight;
use crate::vector::Element;

/// Where every weight lies in the weight region.
#[derive(Debug)]
pub struct Weights {
    /// Of the first stage. `[V, C]`
    pub embedding: Option<Weight>,
    /// Of the stage's layers.
    pub layers: Vec<Layer>,
    /// Of the last stage.
    pub head: Option<Head>,
}

/// What makes logits of the last layer's result.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    /// `[C]`
    pub norm: Weight,
    /// The LM head; the embedding itself where they are tied. `[V, C]`
    pub matrix: Weight,
}

/// The weights of one transformer layer.
#[derive(Debug, Clone, Copy)]
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
    /// Finds a rank's part of every weight by its Hugging Face name and checks its shape, reading none
    /// of it. A rank has rows of what makes heads, hidden units and logits, and the columns of what
    /// takes them up again; so only two products a layer, and the embedding, yield sums in parts. It has
    /// its stage's layers; the embedding is the first stage's, the head the last one's.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape, or has no place in a Llama.
    pub fn locate(checkpoint: &Checkpoint, dims: &Dims) -> Result<Self> {
        let mut table = Table { checkpoint, seen: HashSet::new() };
        let (rows, kv_rows) = (Split::Rows(dims.share), Split::Rows(dims.kv_share));
        let columns = Split::Columns(dims.share);
        let whole = |part: usize, share: Shard| part * share.parts;
        let (c, f, v) = (dims.width, whole(dims.ffn, dims.share), dims.whole_vocab);
        let q = whole(dims.heads, dims.share) * dims.head_dim;
        let kv = whole(dims.kv_heads, dims.kv_share) * dims.head_dim;

        let names = [EMBEDDING, HEAD].map(|name| checkpoint.tensor(&format!("{name}.weight")));
        // Tied embeddings are told by the tensor's absence: the config's flag is often wrong
        // ([`check_tie`]).
        let (first, last) = match names {
            [None, Some(_)] => (HEAD, HEAD),
            [_, None] => (EMBEDDING, EMBEDDING),
            _ => (EMBEDDING, HEAD),
        };
        let embedding = table.matrix(first, [v, c], rows)?;
        let layers = (0..dims.whole_layers).map(|l| {
            let name = |part: &str| format!("model.layers.{l}.{part}");
            Ok(Layer {
                attention_norm: table.vector(&name("input_layernorm"), c)?,
                wq: table.matrix(&name("self_attn.q_proj"), [q, c], rows)?,
                wk: table.matrix(&name("self_attn.k_proj"), [kv, c], kv_rows)?,
                wv: table.matrix(&name("self_attn.v_proj"), [kv, c], kv_rows)?,
                wo: table.matrix(&name("self_attn.o_proj"), [c, q], columns)?,
                ffn_norm: table.vector(&name("post_attention_layernorm"), c)?,
                w_gate: table.matrix(&name("mlp.gate_proj"), [f, c], rows)?,
                w_up: table.matrix(&name("mlp.up_proj"), [f, c], rows)?,
                w_down: table.matrix(&name("mlp.down_proj"), [c, f], columns)?,
            })
        });
        let layers = layers.collect::<Result<Vec<Layer>>>()?;
        let norm = table.vector("model.norm", c)?;
        let matrix = table.matrix(last, [v, c], rows)?;
        table.refuse_the_rest()?;
        let stage = dims.stage;
        Ok(Self {
            embedding: (stage.part == 0).then_some(embedding),
            layers: layers[stage.of(layers.len())].to_vec(),
            head: stage.is_last().then_some(Head { norm, matrix }),
        })
    }

    /// Whether the LM head is the embedding.
    pub fn tied(&self) -> bool {
        self.head.map(|head| head.matrix) == self.embedding
    }

    /// Every distinct matrix, in the order in which a step uses them: what ops read of the weight region. The
    /// norms' weights become state ([`Llama::initial_state`](super::Llama::initial_state)).
    pub fn matrices(&self) -> impl Iterator<Item = Weight> + '_ {
        let layers = self.layers.iter().flat_map(Layer::matrices);
        let head = self.head.map(|head| head.matrix).filter(|_| !self.tied());
        self.embedding.into_iter().chain(layers).chain(head)
    }
}

impl Layer {
    fn matrices(&self) -> [Weight; 7] {
        [self.wq, self.wk, self.wv, self.wo, self.w_gate, self.w_up, self.w_down]
    }
}

const EMBEDDING: &str = "model.embed_tokens";
const HEAD: &str = "lm_head";

/// That the embedding and the LM head are as `tied`, config.json's `tie_word_embeddings`, says; where they
/// are not, what is done instead. As `transformers`: one that is missing is the other one if they are
/// tied, and two that differ are both used whatever the config says.
///
/// # Errors
/// One of the two is missing and the config says that they are not tied.
pub fn check_tie(tied: Option<bool>, checkpoint: &Checkpoint) -> Result<Option<String>> {
    let [embedding, head] = [EMBEDDING, HEAD].map(|name| format!("{name}.weight"));
    let (missing, there) = match (checkpoint.tensor(&embedding), checkpoint.tensor(&head)) {
        (Some(first), Some(last)) if tied == Some(true) && !checkpoint.is_synthetic() => {
            let same = first.encoding == last.encoding
                && checkpoint.bytes(first.offset, first.bytes)
                    == checkpoint.bytes(last.offset, last.bytes);
            let message = || {
                format!(
                    "config.json says tie_word_embeddings true, but {head} differs from \
                     {embedding}: {head} is used"
                )
            };
            return Ok((!same).then(message));
        }
        (Some(_), None) => (head, embedding),
        (None, Some(_)) => (embedding, head),
        _ => return Ok(None),
    };
    match tied {
        Some(true) => Ok(None),
        None => Ok(Some(format!(
            "config.json does not say tie_word_embeddings and there is no {missing}: {there} is used \
             for it"
        ))),
        Some(false) => Err(Error::failed(format!(
            "{}: tensor {missing} is missing and config.json says tie_word_embeddings false: fetch the \
             files again, or set it to true if the model's LM head is its embedding",
            checkpoint.path_of(&there)
        ))),
    }
}

/// The elements of a vector, as f32.
///
/// # Errors
/// A file that cannot be read, or has become shorter.
pub(super) fn floats(checkpoint: &Checkpoint, vector: Weight) -> Result<Vec<f32>> {
    let mut bytes = vec![0; vector.bytes()];
    checkpoint.read(vector.offset, &mut bytes)?;
    let Encoding::Plain(float) = vector.encoding else {
        return Err(Error::failed(format!("a norm's weights are {}", vector.encoding.name())));
    };
    Ok(for_float!(float, W => {
        bytemuck::pod_collect_to_vec::<u8, W>(&bytes).into_iter().map(W::widen).collect()
    }))
}

/// Which part of a matrix a rank has.
#[derive(Debug, Clone, Copy)]
enum Split {
    Rows(Shard),
    Columns(Shard),
}

/// The checkpoint's tensors, and which of them have found their place.
struct Table<'a> {
    checkpoint: &'a Checkpoint,
    seen: HashSet<String>,
}

impl Table<'_> {
    /// A vector, which every rank has whole.
    fn vector(&mut self, module: &str, len: usize) -> Result<Weight> {
        let (encoding, offset) = self.find(module, &[len])?;
        Ok(Weight::whole(encoding, offset, 1, len))
    }

    /// A rank's part of a matrix that has `[rows, cols]` in the checkpoint.
    fn matrix(&mut self, module: &str, [rows, cols]: [usize; 2], split: Split) -> Result<Weight> {
        let (encoding, offset) = self.find(module, &[rows, cols])?;
        let whole = Weight::whole(encoding, offset, rows, cols);
        Ok(match split {
            Split::Rows(share) => {
                let part = share.of(rows);
                let offset = offset + part.start * encoding.row_bytes(cols);
                Weight { offset, rows: part.len(), ..whole }
            }
            Split::Columns(share) => {
                let part = share.of(cols);
                let (block, _) = encoding.block();
                if !part.start.is_multiple_of(block) || !part.end.is_multiple_of(block) {
                    let name = format!("{module}.weight");
                    let path = self.checkpoint.path_of(&name);
                    return Err(Error::failed(format!(
                        "{path}: tensor {name} is {}, whose blocks of {block} columns cannot be split \
                         into {} parts of {}: use fewer ranks",
                        encoding.name(),
                        share.parts,
                        part.len()
                    )));
                }
                let offset = offset + encoding.row_bytes(part.start);
                Weight { offset, cols: part.len(), ..whole }
            }
        })
    }

    /// Encoding and place of a tensor, which must have this shape.
    fn find(&mut self, module: &str, shape: &[usize]) -> Result<(Encoding, usize)> {
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
        let found = (tensor.encoding, tensor.offset);
        self.seen.insert(name);
        Ok(found)
    }

    /// A tensor that nothing reads belongs to a model that is computed in another way.
    fn refuse_the_rest(&self) -> Result<()> {
        let mut names = self.checkpoint.tensors().map(|(name, _)| name);
        match names.find(|name| !self.seen.contains(*name)) {
            None => Ok(()),
            Some(name) => Err(Error::failed(format!(
                "{}: tensor {name} has no place in a Llama of {} without biases",
                self.checkpoint.path_of(name),
                count(
                    self.seen.iter().filter(|name| name.ends_with("q_proj.weight")).count(),
                    "layer"
                )
            ))),
        }
    }
}
