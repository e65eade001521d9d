//! Text to tokens, tokens to text, and logits to the next token, on the CPU.

use std::hint::black_box;

use chaski::random::random_ids;
use chaski::sampler::{Sampler, SamplingOptions};
use chaski::source::Source;
use chaski::tokenizer::Tokenizer;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

/// Llama 3's.
const VOCAB: usize = 128_256;

fn tokenizer(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("tokenizer");
    group.sample_size(10);
    group.bench_function("load", |bencher| {
        bencher.iter(|| black_box(Tokenizer::load(&Source::Demo).unwrap()));
    });
    let tokenizer = Tokenizer::load(&Source::Demo).unwrap();
    let text = include_str!("../ARCHITECTURE.md");
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("encode", |bencher| {
        bencher.iter(|| black_box(tokenizer.encode_text(text).unwrap()));
    });
    let ids = tokenizer.encode_text(text).unwrap();
    group.bench_function("decode", |bencher| {
        bencher.iter(|| black_box(tokenizer.decode(&ids, true).unwrap()));
    });
}

fn sampler(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sampler");
    group.throughput(Throughput::Elements(VOCAB as u64));
    let logits: Vec<f32> =
        random_ids(1, VOCAB, 1 << 16).into_iter().map(|id| id as f32 / 4096.0 - 8.0).collect();
    let base = SamplingOptions { temperature: 0.6, seed: 1, ..SamplingOptions::default() };
    let ways = [
        ("greedy", SamplingOptions { temperature: 0.0, ..base.clone() }),
        ("temperature", SamplingOptions { top_p: 1.0, ..base.clone() }),
        ("top-p 0.9", SamplingOptions { top_p: 0.9, ..base.clone() }),
        ("top-k 50, repeat penalty", SamplingOptions { top_k: 50, repeat_penalty: 1.1, ..base }),
    ];
    for (name, options) in ways {
        let mut sampler = Sampler::new(options, VOCAB).unwrap();
        sampler.accept_prompt(&[1, 2, 3]);
        let mut position = 0;
        group.bench_function(name, |bencher| {
            let sample = |mut logits: Vec<f32>| {
                position += 1;
                black_box(sampler.sample(&mut logits, position).unwrap())
            };
            bencher.iter_batched(|| logits.clone(), sample, BatchSize::LargeInput);
        });
    }
}

criterion_group!(benches, tokenizer, sampler);
criterion_main!(benches);
