//! Products and attention against their plain versions: `==`, in every instruction set, with any number
//! of threads, at every edge and at random sizes.

use half::{bf16, f16};
use proptest::prelude::*;
use rayon::ThreadPoolBuilder;

use super::*;
use crate::encoding::{Blocks, Encoding};
use crate::memory::{Layout, Memory, Scratch, StateRegion};
use oracle::{bits, numbers};

/// Gives `work` scratch of `bytes`, full of NaN.
fn with_scratch<R>(bytes: usize, work: impl FnOnce(&mut Scratch<'_>) -> R) -> R {
    let mut layout = Layout::default();
    layout.scratch(bytes);
    let mut state = StateRegion::allocate(&layout).unwrap();
    let weights = crate::checkpoint::Checkpoint::empty();
    let mut memory =
        Memory { weights: &weights, state: &mut state, comm: &crate::comm::SingleRank::default() };
    let (_, mut scratch) = memory.region_and_scratch();
    let count = scratch.bytes() / size_of::<f32>();
    scratch.take::<f32>(count).fill(f32::NAN);
    work(&mut memory.region_and_scratch().1)
}

/// In a pool of `threads`.
fn on<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

#[derive(Debug, Clone, Copy)]
struct Product {
    rows: usize,
    width: usize,
    gap: usize,
    tokens: usize,
    threads: usize,
}

impl Product {
    /// The two weights of a product with NaN between their rows, and the inputs.
    fn operands<W: Element>(self) -> ([Vec<W>; 2], Vec<f32>) {
        let Self { rows, width, gap, tokens, .. } = self;
        let weights = [1, 2].map(|seed| {
            let mut values = numbers(rows * (width + gap), seed);
            values.chunks_mut(width + gap).for_each(|row| row[width..].fill(f32::NAN));
            values.truncate(rows * (width + gap) - gap);
            values.into_iter().map(W::narrow).collect()
        });
        (weights, numbers(tokens * width, 3))
    }

    fn run<W: Element>(
        self,
        weights: &[Vec<W>; 2],
        pack: impl for<'s> Fn(&mut Scratch<'s>) -> Inputs<'s> + Sync,
    ) -> [Vec<f32>; 2] {
        self.run_stored(W::FLOAT.into(), weights.each_ref().map(|w| bytemuck::cast_slice(w)), pack)
    }

    /// Its outputs; those of both weights, the second one's doubled. The inputs are what `pack` makes.
    fn run_stored(
        self,
        encoding: Encoding,
        weights: [&[u8]; 2],
        pack: impl for<'s> Fn(&mut Scratch<'s>) -> Inputs<'s> + Sync,
    ) -> [Vec<f32>; 2] {
        let Self { rows, width, gap, tokens, threads } = self;
        let [a, b] = weights.map(|bytes| Rows::new(encoding, bytes, width, width + gap));
        let mut y = [vec![0.25; tokens * rows], vec![f32::NAN; tokens * rows]];
        let run = |scratch: &mut Scratch<'_>| {
            let inputs = pack(scratch);
            let [alone, together] = &mut y;
            matmul([([a], alone.as_mut_slice())], inputs, scratch, &add);
            let both = |y: &mut [f32], [a, b]: [&[f32]; 2]| {
                y.iter_mut().zip(a).zip(b).for_each(|((y, a), b)| *y = a + 2.0 * b);
            };
            matmul([([a, b], together.as_mut_slice())], inputs, scratch, &both);
        };
        on(threads, || with_scratch(2 * matmul_scratch(tokens, width, threads), run));
        y
    }

    fn check<W: Element>(self) {
        let (weights, x) = self.operands::<W>();
        let expected = self.expected(&weights, &x, oracle::dot);
        for set in sets() {
            let ours = self.run(&weights, |s| Inputs::pack_for(set, &x, self.width, s));
            let same = ours.map(|y| bits(&y)) == expected;
            assert!(same, "{self:?} {} {}", W::FLOAT.name(), set.name());
        }
    }

    /// Of blocks of any bytes, with scales of any sign.
    fn check_blocks(self, blocks: Blocks) {
        let Self { rows, width, gap, tokens, .. } = self;
        let (columns, size) = blocks.size();
        let count = (rows * (width + gap) - gap) / columns;
        let stored = [1, 2].map(|seed| {
            let mut bytes: Vec<u8> =
                numbers(count * size, seed).into_iter().map(|n| (n * 256.0) as i8 as u8).collect();
            for (i, block) in bytes.chunks_exact_mut(size).enumerate() {
                let halves: &[usize] = match blocks {
                    Blocks::Q6K => &[208],
                    Blocks::Q8_0 | Blocks::Q4_0 | Blocks::Q5_0 => &[0],
                    _ => &[0, 2],
                };
                for at in halves {
                    let half = f16::from_f32(numbers(1, (i * 7 + at) as u32)[0] / 64.0);
                    block[*at..at + 2].copy_from_slice(&half.to_le_bytes());
                }
            }
            bytes
        });
        let weights = stored.each_ref().map(|stored| {
            let mut numbers = vec![f32::NAN; count * columns];
            dequantise(blocks, stored, &mut numbers);
            numbers
        });
        let x = numbers(tokens * width, 3);
        let expected = self.expected(&weights, &x, oracle::dot);
        let stored = stored.each_ref().map(|stored| &stored[..]);
        for set in sets() {
            let ours = self.run_stored(Encoding::Blocks(blocks), stored, |s| {
                Inputs::pack_for(set, &x, width, s)
            });
            let same = ours.map(|y| bits(&y)) == expected;
            assert!(same, "{self:?} {} {}", blocks.name(), set.name());
        }
    }

    /// Of pairs: numbers as others are, and those whose products are as small as can be.
    fn check_pairs(self) {
        let (usual, x) = self.operands::<bf16>();
        let x: Vec<bf16> = x.into_iter().map(Element::narrow).collect();
        let tiny = usual.each_ref().map(|weights| oracle::tiny(weights.len(), 7));
        for (weights, x) in [(usual, x.clone()), (tiny, oracle::tiny(x.len(), 8))] {
            let expected = self.expected(&weights, &x, oracle::dot_pairs);
            for set in sets() {
                let ours = self.run(&weights, |s| Inputs::pack_pairs_for(set, &x, self.width, s));
                assert!(ours.map(|y| bits(&y)) == expected, "{self:?} pairs {}", set.name());
            }
        }
    }

    /// What [`Self::run`] comes to by a dot product.
    fn expected<W, X>(
        self,
        weights: &[Vec<W>; 2],
        x: &[X],
        dot: fn(&[W], &[X]) -> f32,
    ) -> [Vec<u32>; 2] {
        let Self { rows, width, gap, tokens, .. } = self;
        let dot = |w: &[W], t: usize, n: usize| {
            dot(&w[n * (width + gap)..][..width], &x[t * width..][..width])
        };
        let places = || (0..tokens).flat_map(|t| (0..rows).map(move |n| (t, n)));
        let alone: Vec<f32> = places().map(|(t, n)| 0.25 + dot(&weights[0], t, n)).collect();
        let both = places().map(|(t, n)| dot(&weights[0], t, n) + 2.0 * dot(&weights[1], t, n));
        [bits(&alone), bits(&both.collect::<Vec<_>>())]
    }

    /// In f64: the oracle itself is right.
    fn check_oracle(self) {
        let (weights, x) = self.operands::<bf16>();
        for (t, x) in x.chunks(self.width).enumerate() {
            for (n, w) in weights[0].chunks(self.width + self.gap).enumerate() {
                let terms = w.iter().zip(x).map(|(w, x)| w.to_f64() * f64::from(*x));
                let exact: f64 = terms.sum();
                assert!((exact - f64::from(oracle::dot(w, x))).abs() < 1e-5, "{self:?} {t} {n}");
                let x: Vec<bf16> = x.iter().map(|x| bf16::narrow(*x)).collect();
                let terms = w.iter().zip(&x).map(|(w, x)| w.to_f64() * x.to_f64());
                let (exact, w) = (terms.sum::<f64>(), &w[..self.width]);
                let pairs = f64::from(oracle::dot_pairs(w, &x));
                assert!((exact - pairs).abs() < 1e-5, "{self:?} {t} {n}, pairs");
            }
        }
    }
}

#[test]
fn products_are_those_of_plain_loops_at_every_edge() {
    let edges = [
        (1, 1, 1),
        (3, 5, 2),
        (4, 16, 1),
        (5, 17, 1),
        (17, 31, 3),
        (65, 40, 4),
        (257, 48, 1),
        (67, 333, 5),
        (300, 15, 6),
        (70, 33, 7),
        (129, 33, 14),
        (259, 50, 10),
        (19, 130, 131),
        (64, 64, 132),
        (66, 47, 133),
        (9, 1024, 9),
        (3, 1025, 12),
        (6, 2047, 8),
        (9, 2048, 13),
        (65, 2049, 66),
        (5, 4099, 3),
        (5, 4097, 7),
        (7, 4096, 265),
    ];
    for (i, (rows, width, tokens)) in edges.into_iter().enumerate() {
        let product = Product { rows, width, gap: i % 3 * 7, tokens, threads: 1 + i % 3 };
        product.check_oracle();
        product.check_pairs();
        product.check::<bf16>();
        product.check::<f16>();
        product.check::<f32>();
    }
}

/// Rows in blocks: what their numbers, stored as f32, come to.
#[test]
fn products_of_blocks_are_those_of_their_numbers() {
    let sizes =
        [(1, 256, 1), (5, 768, 3), (67, 512, 6), (259, 1024, 1), (9, 1280, 7), (19, 2304, 135)];
    for (i, blocks) in Blocks::ALL.into_iter().enumerate() {
        for (j, (rows, width, tokens)) in sizes.into_iter().enumerate() {
            // Those of 256 columns have any stride of whole blocks.
            let product =
                Product { rows, width, gap: j % 2 * 256, tokens, threads: 1 + (i + j) % 3 };
            product.check_blocks(blocks);
        }
    }
}

/// Where an input or a weight is no number, exactly those outputs are none that read it.
#[test]
fn what_is_no_number_goes_where_it_belongs() {
    let product = Product { rows: 37, width: 83, gap: 0, tokens: 9, threads: 2 };
    let (mut weights, mut x) = product.operands::<bf16>();
    weights[0][5 * 83 + 82] = bf16::NAN;
    x[3 * 83 + 1] = f32::INFINITY;
    x[8 * 83 + 82] = f32::NAN;
    let rounded: Vec<bf16> = x.iter().map(|x| bf16::narrow(*x)).collect();
    for set in sets() {
        let singles = product.run(&weights, |s| Inputs::pack_for(set, &x, 83, s));
        let pairs = product.run(&weights, |s| Inputs::pack_pairs_for(set, &rounded, 83, s));
        for (i, y) in singles[0].iter().enumerate().chain(pairs[0].iter().enumerate()) {
            let (token, row) = (i / 37, i % 37);
            assert_eq!(y.is_nan(), row == 5 || token == 8, "{token} {row}");
            assert_eq!(y.is_infinite(), row != 5 && token == 3, "{token} {row}");
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Attend {
    first: usize,
    tokens: usize,
    group: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Attend {
    /// Against plain loops; with any number of threads, and token by token.
    fn check<E: Element>(self, poison: f32) {
        let Self { first, tokens, group, kv_heads, head_dim } = self;
        let (heads, row, len) = (group * kv_heads, kv_heads * head_dim, first + tokens);
        let q: Vec<f32> =
            numbers(tokens * heads * head_dim, 4).into_iter().map(|q| 8.0 * q).collect();
        let cache = |seed| {
            let mut cache: Vec<E> =
                numbers(len * row, seed).into_iter().map(|e| E::narrow(4.0 * e)).collect();
            cache.extend(vec![E::narrow(f32::NAN); 2 * row]);
            cache
        };
        let (keys, mut values) = (cache(5), cache(6));
        // Seen by the last token alone.
        values[(len - 1) * row] = E::narrow(poison);
        let attention =
            Attention { q: &q, keys: &keys, values: &values, first, heads, kv_heads, head_dim };
        let plain = (0..tokens * heads).flat_map(|i| {
            let (token, offset) = (i / heads, i % heads / group * head_dim);
            let q = &q[i * head_dim..][..head_dim];
            oracle::attend(q, &keys[offset..], &values[offset..], row, first + token + 1)
        });
        let expected = bits(&plain.collect::<Vec<_>>());
        for (set, threads) in sets().zip([1, 2, 3, 2]) {
            let bytes = |tokens| attention_scratch(tokens, heads, head_dim, len, threads);
            let mut y = vec![f32::NAN; q.len()];
            on(threads, || with_scratch(bytes(tokens), |s| attention.run_for(set.arch, &mut y, s)));
            assert!(bits(&y) == expected, "{self:?} {} {}", E::FLOAT.name(), set.name());
            let width = heads * head_dim;
            for (t, (q, y)) in q.chunks(width).zip(y.chunks_mut(width)).enumerate() {
                y.fill(f32::NAN);
                let alone = Attention { q, first: first + t, ..attention };
                on(threads, || with_scratch(bytes(1), |s| alone.run_for(set.arch, y, s)));
            }
            assert!(bits(&y) == expected, "{self:?} {} token by token", set.name());
        }
    }
}

#[test]
fn attention_is_that_of_plain_loops_at_every_edge() {
    let edges = [
        (0, 1, 1, 1, 6),
        (0, 3, 3, 2, 16),
        (125, 7, 3, 2, 64),
        (127, 1, 4, 2, 64),
        (128, 2, 1, 3, 80),
        (383, 3, 5, 1, 128),
        (0, 131, 2, 2, 24),
        (250, 70, 1, 1, 36),
        (30, 130, 5, 1, 16),
        (1000, 1, 8, 2, 64),
    ];
    for (first, tokens, group, kv_heads, head_dim) in edges {
        let attend = Attend { first, tokens, group, kv_heads, head_dim };
        for poison in [0.5, f32::NAN] {
            attend.check::<f32>(poison);
            attend.check::<f16>(poison);
        }
    }
}

/// In f64: the oracle itself is right.
#[test]
fn the_oracle_of_attention_follows_the_formula() {
    let (d, row, len) = (16, 32, 300);
    let [q, keys, values] = [d, len * row, len * row].map(|count| numbers(count, count as u32));
    let score = |s: usize| {
        let terms = q.iter().zip(&keys[s * row..]).map(|(q, k)| f64::from(*q) * f64::from(*k));
        (terms.sum::<f64>() / (d as f64).sqrt()).exp()
    };
    let total: f64 = (0..len).map(score).sum();
    for (i, y) in oracle::attend(&q, &keys, &values, row, len).into_iter().enumerate() {
        let terms = (0..len).map(|s| score(s) / total * f64::from(values[s * row + i]));
        assert!((f64::from(y) - terms.sum::<f64>()).abs() < 1e-6, "{i}");
    }
}

/// Scores of minus infinity weigh nothing, also where a whole block has no others.
#[test]
fn a_score_of_minus_infinity_weighs_nothing() {
    let (d, len) = (16, 3 * attention::BLOCK);
    let q = vec![1.0; d];
    let mut keys = numbers(len * d, 1);
    keys[..2 * attention::BLOCK * d].fill(f32::NEG_INFINITY);
    let values = numbers(len * d, 2);
    let ours = |first: usize| {
        let (keys, values) = (&keys[first * d..], &values[first * d..]);
        let len = len - first;
        let attention =
            Attention { q: &q, keys, values, first: len - 1, heads: 1, kv_heads: 1, head_dim: d };
        let mut y = vec![f32::NAN; d];
        with_scratch(attention_scratch(1, 1, d, len, 1), |scratch| attention.run(&mut y, scratch));
        y
    };
    assert_eq!(ours(0), ours(2 * attention::BLOCK));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]

    #[test]
    fn products_of_any_size_are_those_of_plain_loops(
        rows in 1usize..150, width in 1usize..300, gap in 0usize..20, tokens in 1usize..80,
        threads in 1usize..4, dtype in 0..4,
    ) {
        let product = Product { rows, width, gap, tokens, threads };
        match dtype {
            0 => product.check::<f32>(),
            1 => product.check::<f16>(),
            2 => product.check_pairs(),
            _ => product.check::<bf16>(),
        }
    }

    #[test]
    fn attention_of_any_size_is_that_of_plain_loops(
        first in 0usize..300, tokens in 1usize..20, group in 1usize..6, kv_heads in 1usize..4,
        head_dim in 1usize..100, half in any::<bool>(),
    ) {
        let attend = Attend { first, tokens, group, kv_heads, head_dim };
        if half { attend.check::<f16>(0.5) } else { attend.check::<f32>(0.5) }
    }
}
