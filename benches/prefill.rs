//! How fast a prompt is taken in. `scripts/peers_cpu.py` measures beside llama.cpp.

mod support;

use std::hint::black_box;

use chaski::model::Logits;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use support::{circumstances, measure, open, prompt, source};

const PROMPT_TOKENS: [usize; 2] = [128, 512];

fn prefill(criterion: &mut Criterion) {
    let mut team = open(&source());
    let mut group = criterion.benchmark_group("prefill");
    group.sample_size(10);
    for tokens in PROMPT_TOKENS {
        let throughput = Throughput::Elements(tokens as u64);
        let ids = prompt(tokens, team.vocab());
        let time = measure(&mut group, BenchmarkId::new("chaski", tokens), throughput, || {
            team.rewind(0).unwrap();
            black_box(team.prefill(&ids, Logits::Last).unwrap());
        });
        if let Some(time) = time {
            let rate = tokens as f64 / time.as_secs_f64();
            println!("prefill of {tokens}: {rate:.1} tokens/s ({})", circumstances());
        }
    }
}

criterion_group!(benches, prefill);
criterion_main!(benches);
