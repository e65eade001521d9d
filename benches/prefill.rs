//! How fast a prompt is taken in; with `--features peers`, beside candle on the same weights.

mod support;

use std::hint::black_box;

use chaski::model::Logits;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use support::{circumstances, measure, open, prompt, source};

const PROMPT_TOKENS: [usize; 2] = [128, 512];

fn prefill(criterion: &mut Criterion) {
    let mut rank = open(&source());
    #[cfg(feature = "peers")]
    let peers = support::candle::Candle::load_all(&support::directory());
    let mut group = criterion.benchmark_group("prefill");
    group.sample_size(10);
    for tokens in PROMPT_TOKENS {
        let throughput = || Throughput::Elements(tokens as u64);
        let ids = prompt(tokens, rank.vocab());
        let time = measure(&mut group, BenchmarkId::new("chaski", tokens), throughput(), || {
            rank.rewind(0);
            black_box(rank.prefill(&ids, Logits::Last).unwrap());
        });
        let rate = |time: std::time::Duration| tokens as f64 / time.as_secs_f64();
        if let Some(time) = time {
            println!("prefill of {tokens}: {:.1} tokens/s ({})", rate(time), circumstances());
        }
        #[cfg(feature = "peers")]
        for peer in &peers {
            rank.rewind(0);
            peer.assert_agrees(&ids, rank.prefill(&ids, Logits::Last).unwrap());
            let id = BenchmarkId::new(peer.name(), tokens);
            let theirs = measure(&mut group, id, throughput(), || {
                black_box(peer.prefill(&ids));
            });
            if let (Some(time), Some(theirs)) = (time, theirs) {
                println!(
                    "prefill of {tokens}: {:.1} tokens/s, {:.2} times the {:.1} of {} ({})",
                    rate(time),
                    rate(time) / rate(theirs),
                    rate(theirs),
                    peer.name(),
                    circumstances()
                );
            }
        }
    }
}

criterion_group!(benches, prefill);
criterion_main!(benches);
