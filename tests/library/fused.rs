//! A fused op is the chain of simple ops that it replaces: equal to the bit on the CPU.

use chaski::case::{CachePlace, Case, Content, HALF, Judge, Numbers, Setup};
use chaski::checkpoint::Checkpoint;
use chaski::encoding::Float;
use chaski::executor::{Blueprint, Cpu, Threads};
use chaski::memory::{Activation, Slot, Weight};
use chaski::op::Program;
use chaski::ops::{
    AttendDecode, AttendPrefill, AttendScratch, Cache, GateUpSwiglu, Matmul, NormGateUp, NormHead,
    NormQkv, Project, RmsNorm, RopeAppend,
};

const WIDTH: usize = 264;
const EPS: f32 = 1e-5;
const HEAD_DIM: usize = 64;

/// Numbers in f32, as activations.
fn wide(slot: Slot<f32>) -> Activation {
    Activation { dtype: Float::F32, terms: 1, bytes: slot.cast() }
}

fn real(setup: &mut Setup, name: &'static str, shape: &[usize]) -> Slot<f32> {
    setup.read(name, shape, Content::Real(2.0))
}

fn output(setup: &mut Setup, name: &'static str, shape: &[usize]) -> Slot<f32> {
    setup.written(name, shape, Judge::Any)
}

fn matrix(setup: &mut Setup, dtype: Float, rows: usize) -> Weight {
    setup.weight(dtype, rows, WIDTH, Content::Real(1.0))
}

fn empty_cache(setup: &mut Setup, rows: usize, kv_heads: usize) -> Cache {
    let place = CachePlace { shape: [2, rows, kv_heads, HEAD_DIM], sequence: 1 };
    let mut part = |name| setup.appended(name, place, 0..rows, Judge::Any);
    Cache { dtype: Float::F16, context: rows, keys: part("keys"), values: part("values") }
}

/// That the fused op leaves in `outputs` what the chain leaves there.
fn assert_same(case: &Case, chain: &Program, outputs: &[Slot<u8>]) {
    let run = |program: &Program| {
        let weights = Checkpoint::in_memory(case.encoding(), case.weight_region());
        let blueprint = Blueprint::new(weights, &case.weights, &case.layout);
        let mut cpu = Cpu::new(&Threads::new(None).unwrap(), blueprint).unwrap();
        let state = case.state();
        cpu.write(case.layout.whole().cast(), &state);
        cpu.run(program).unwrap();
        outputs.iter().flat_map(|slot| cpu.read(*slot).to_vec()).collect::<Vec<u8>>()
    };
    let before = {
        let state = case.state();
        let bytes: &[u8] = bytemuck::cast_slice(&state);
        let of = |slot: &Slot<u8>| bytes[slot.offset()..][..slot.len()].to_vec();
        outputs.iter().flat_map(of).collect::<Vec<u8>>()
    };
    let fused = run(&case.program);
    assert!(fused == run(chain), "{}", case.name);
    assert!(fused != before, "{}: nothing was written", case.name);
}

#[test]
fn norm_qkv_is_its_chain() {
    for dtype in HALF {
        let (heads, kv_heads) = (6, 2);
        let mut s = Setup::new(Numbers::Real);
        let x = real(&mut s, "x", &[1, WIDTH]);
        let norm = real(&mut s, "norm", &[WIDTH]);
        let wq = matrix(&mut s, dtype, heads * HEAD_DIM);
        let [wk, wv] = [(); 2].map(|()| matrix(&mut s, dtype, kv_heads * HEAD_DIM));
        let placement = s.placement(5, 1);
        let frequencies = s.given("frequencies", &Numbers::Real.frequencies(HEAD_DIM));
        let q = output(&mut s, "q", &[1, heads, HEAD_DIM]);
        let cache = empty_cache(&mut s, 9, kv_heads);
        let normed = output(&mut s, "normed", &[1, WIDTH]);
        let raw = output(&mut s, "raw", &[1, heads, HEAD_DIM]);
        let [k, v] = ["k", "v"].map(|name| output(&mut s, name, &[1, kv_heads, HEAD_DIM]));

        let mut chain = Program::default();
        chain.push(RmsNorm { x, weight: norm, eps: EPS, y: wide(normed) });
        let products = [(wq, raw), (wk, k), (wv, v)];
        chain.push(Matmul { x: wide(normed), products, residual: false });
        let queries = wide(q);
        let magnitude = 1.25;
        chain.push(RopeAppend {
            q: raw,
            k,
            v,
            placement,
            frequencies,
            magnitude,
            queries,
            cache,
            kv_heads,
        });
        let fused =
            NormQkv { x, norm, eps: EPS, wq, wk, wv, placement, frequencies, magnitude, q, cache };
        let case = s.case("norm_qkv", fused);
        assert_same(&case, &chain, &[q.cast(), cache.keys, cache.values]);
    }
}

#[test]
fn norm_gate_up_and_norm_head_are_their_chains() {
    for dtype in HALF {
        let mut s = Setup::new(Numbers::Real);
        let x = real(&mut s, "x", &[1, WIDTH]);
        let norm = real(&mut s, "norm", &[WIDTH]);
        let [w_gate, w_up] = [(); 2].map(|()| matrix(&mut s, dtype, 72));
        let normed = output(&mut s, "normed", &[1, WIDTH]);
        let y = output(&mut s, "y", &[1, 72]);
        let norms = || RmsNorm { x, weight: norm, eps: EPS, y: wide(normed) };

        let (mut gates, mut head) = (Program::default(), Program::default());
        gates.push(norms());
        gates.push(GateUpSwiglu { x: wide(normed), w_gate, w_up, hidden: wide(y) });
        head.push(norms());
        head.push(Matmul { x: wide(normed), products: [(w_up, y)], residual: false });
        let fused = NormGateUp { x, norm, eps: EPS, w_gate, w_up, hidden: y };
        let mut case = s.case("gates", fused);
        assert_same(&case, &gates, &[y.cast()]);
        case.program = Program::default();
        case.program.push(NormHead { x, norm, eps: EPS, head: w_up, logits: y });
        assert_same(&case, &head, &[y.cast()]);
    }
}

#[test]
fn project_is_a_product_onto_the_residual_stream() {
    for dtype in HALF {
        let mut s = Setup::new(Numbers::Real);
        let x = real(&mut s, "x", &[1, WIDTH]);
        let weight = matrix(&mut s, dtype, 33);
        let y = s.changed("y", &[1, 33], Content::Real(1.0), Judge::Any);
        let mut chain = Program::default();
        chain.push(Matmul { x: wide(x), products: [(weight, y)], residual: true });
        assert_same(&s.case("project", Project { x, weight, y }), &chain, &[y.cast()]);
    }
}

#[test]
fn attend_decode_is_attention_of_one_token() {
    let (heads, kv_heads, rows) = (6, 2, 100);
    let mut s = Setup::new(Numbers::Real);
    let q = real(&mut s, "q", &[1, heads, HEAD_DIM]);
    let place = CachePlace { shape: [3, rows + 3, kv_heads, HEAD_DIM], sequence: 1 };
    let mut part = |name| s.cached(name, place, (rows, false), Content::Real(1.0));
    let cache =
        Cache { dtype: Float::F16, context: rows + 3, keys: part("keys"), values: part("values") };
    let placement = s.placement(rows - 1, 1);
    let y = output(&mut s, "y", &[1, heads, HEAD_DIM]);
    let scratch = AttendScratch {
        partial: output(&mut s, "partial", &[1, heads, HEAD_DIM]),
        statistics: output(&mut s, "statistics", &[1, heads, 2]),
        tickets: s.given("tickets", &vec![0; AttendDecode::tickets(heads, kv_heads)]),
    };
    let mut chain = Program::default();
    let (queries, head_dim) = (wide(q), HEAD_DIM);
    chain.push(AttendPrefill { queries, cache, placement, heads, kv_heads, head_dim, y: wide(y) });
    let fused = AttendDecode { q, cache, placement, kv_heads, head_dim, y, scratch };
    assert_same(&s.case("attend_decode", fused), &chain, &[y.cast()]);
}
