use super::gemv::Gemv;
use super::matmul::matmul_cost;
use super::rms_norm::{normed, normed_scratch};
use super::rope_append::{Cache, append, rotate, rotation};
use super::{launch, size};
use crate::case::{CachePlace, Case, F32_NMSE, HALF, HALF_NMSE, NUMBERS, Setup};
use crate::encoding::Float;
use crate::kernel::{self, Launch};
use crate::memory::{Memory, Scratch, Slot, Weight};
use crate::op::{Cost, Op, Operands, Placement, Target};
use crate::vector::{Rows, matmul, set};

/// Each token from the residual stream to its rotated queries and its place in the cache: the chain
/// `rms_norm`, three `matmul`, `rope_append`.
pub struct NormQkv {
    /// `[R, C]`
    pub x: Slot<f32>,
    /// `[C]`
    pub norm: Slot<f32>,
    pub eps: f32,
    /// `[H D, C]`
    pub wq: Weight,
    /// `[G D, C]`
    pub wk: Weight,
    /// `[G D, C]`
    pub wv: Weight,
    pub placement: Placement,
    /// Radians per position. `[D/2]`
    pub frequencies: Slot<f32>,
    /// What cosines and sines are multiplied with: 1 but for YaRN.
    pub magnitude: f32,
    /// Out. `[R, H, D]`
    pub q: Slot<f32>,
    /// Out: the tokens' own rows.
    pub cache: Cache,
}

impl Op for NormQkv {
    fn name(&self) -> &'static str {
        "norm_qkv"
    }

    fn cost(&self, _position: usize) -> Cost {
        let norm = Cost { weight_bytes: self.norm.bytes() as u64, ..Cost::default() };
        [self.wq, self.wk, self.wv]
            .iter()
            .fold(norm, |sum, w| sum + matmul_cost(*w, self.placement.rows()))
    }

    fn scratch(&self, threads: usize) -> usize {
        let rows = self.placement.rows();
        let [k, v] = [self.wk, self.wv].map(|weight| Scratch::bytes_of::<f32>(rows * weight.rows));
        normed_scratch(self.x, self.norm, threads) + k + v
    }

    fn reference(&self, memory: &mut Memory<'_>) {
        let weights = memory.weights;
        let (mut region, mut scratch) = memory.region_and_scratch();
        let (x, norm, positions, sequences, frequencies, q, keys, values) = region.slots((
            self.x,
            self.norm,
            self.placement.positions,
            self.placement.sequences,
            self.frequencies,
            self.q,
            self.cache.keys,
            self.cache.values,
        ));
        let rows = positions.len();
        let [k, v] = [self.wk, self.wv].map(|weight| scratch.take::<f32>(rows * weight.rows));
        let inputs = normed(x, norm, self.eps, &mut scratch);
        let [wq, wk, wv] = [self.wq, self.wk, self.wv].map(|weight| [Rows::of(weights, weight)]);
        matmul([(wq, q), (wk, &mut *k), (wv, &mut *v)], inputs, &mut scratch, &set);
        let [q_width, kv_width] = [self.wq.rows, self.wk.rows];
        let placed = positions.iter().zip(&*sequences);
        let rotated = q.chunks_exact_mut(q_width).zip(k.chunks_exact_mut(kv_width));
        for (((position, sequence), (q, k)), v) in placed.zip(rotated).zip(v.chunks(kv_width)) {
            let rotation = rotation(*position as usize, frequencies, self.magnitude);
            rotate(q, &rotation);
            rotate(k, &rotation);
            let at = self.cache.row(*sequence, *position) * kv_width;
            append(self.cache.dtype, k, keys, at);
            append(self.cache.dtype, v, values, at);
        }
    }

    fn operands(&self) -> Operands {
        let (input, norm) = (vec![self.placement.rows(), self.norm.len()], Some(self.norm));
        Operands { input, matrices: vec![self.wq, self.wk, self.wv], norm }
    }

    fn launch(&self, target: &Target) -> Launch {
        let (width, head_dim) = (self.norm.len(), 2 * self.frequencies.len());
        assert_eq!(self.placement.rows(), 1);
        let gemv = Gemv::of_rows(self.wq.rows + self.wk.rows + self.wv.rows, width);
        let arguments = kernel::NormQkv {
            x: self.x,
            norm: self.norm,
            wq: self.wq,
            wk: self.wk,
            wv: self.wv,
            positions: self.placement.positions,
            sequences: self.placement.sequences,
            frequencies: self.frequencies,
            q: self.q,
            keys: self.cache.keys,
            values: self.cache.values,
            context: size(self.cache.context),
            width: size(width),
            heads: size(self.wq.rows / head_dim),
            kv_heads: size(self.wk.rows / head_dim),
            parts: gemv.parts(self.name(), target),
            flow: target.tuning.flow(),
            eps: self.eps,
            magnitude: self.magnitude,
        }
        .arguments();
        launch(
            kernel::NormQkv::KERNEL,
            (self.wq.encoding, head_dim),
            Gemv::grid(target),
            gemv.normed_shared_bytes(),
            arguments,
        )
    }
}

impl NormQkv {
    /// `(C, H, G, D, position, S)`: widths below, at and past what a warp takes at once, those of real
    /// models with few heads; the first position, the last, and others.
    pub fn cases() -> Vec<Case> {
        let sizes = [
            (8, 1, 1, 64, 0, 1),
            (40, 3, 1, 64, 1, 3),
            (264, 4, 2, 128, 7, 8),
            (1032, 6, 2, 64, 63, 100),
            (1024, 1, 1, 128, 5, 9),
            (2048, 4, 1, 64, 131_071, 131_072),
            (4096, 1, 1, 128, 64, 65),
            (8192, 1, 1, 64, 2, 3),
            (2048, 32, 8, 64, 500, 512),
        ];
        let mut cases = Vec::new();
        for (width, heads, kv_heads, head_dim, position, capacity) in sizes {
            for (dtype, numbers) in HALF.into_iter().flat_map(|d| NUMBERS.map(|n| (d, n))) {
                let mut setup = Setup::new(numbers);
                let (x, eps) = numbers.to_norm();
                let mut projection =
                    |heads| setup.weight(dtype, heads * head_dim, width, numbers.upto(4));
                let (wq, wk, wv) = (projection(heads), projection(kv_heads), projection(kv_heads));
                let place = CachePlace::of_case(capacity, [kv_heads, head_dim], heads);
                let mut appended = |name| {
                    let judge = numbers.judge(HALF_NMSE);
                    setup.appended(name, place, position..position + 1, judge)
                };
                let (keys, values) = (appended("keys"), appended("values"));
                let op = Self {
                    x: setup.read("x", &[1, width], x),
                    norm: setup.read("norm", &[width], numbers.upto(3)),
                    eps,
                    wq,
                    wk,
                    wv,
                    placement: setup.placement(position, place.sequence),
                    frequencies: setup.given("frequencies", &numbers.frequencies(head_dim)),
                    magnitude: numbers.pick(0.5, 1.25),
                    q: setup.written("q", &[1, heads, head_dim], numbers.judge(F32_NMSE)),
                    cache: Cache { dtype: Float::F16, context: capacity, keys, values },
                };
                let heads = format!("{heads}/{kv_heads} heads of {head_dim}");
                let name = format!("{} {heads}, width {width}, position {position}", dtype.name());
                cases.push(setup.case(name, op));
            }
        }
        cases
    }
}
