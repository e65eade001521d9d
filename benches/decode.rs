//! How near decoding comes to the speed of memory: one token against a plain parallel read of the
//! same bytes.

mod support;

use std::hint::black_box;

use chaski::checkpoint::Checkpoint;
use chaski::model::Logits;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rayon::prelude::*;
use support::{circumstances, gb_per_s, measure, open, prompt, synthetic};

/// Tokens before the one that is decoded.
const POSITION: usize = 64;

fn decode(criterion: &mut Criterion) {
    let source = synthetic::source();
    let mut rank = open(&source);
    let cost = rank.decode_cost(POSITION);
    let mut group = criterion.benchmark_group("decode");
    group.sample_size(20);

    let checkpoint = Checkpoint::open(&source).unwrap();
    let weights: Vec<&[u8]> = checkpoint
        .tensors()
        .map(|(_, weight)| checkpoint.bytes(weight.offset, weight.bytes))
        .collect();
    let read_bytes = weights.iter().map(|weight| weight.len() as u64).sum();
    assert!(cost.weight_bytes.abs_diff(read_bytes) < read_bytes / 100, "decode reads other bytes");
    let id = BenchmarkId::from_parameter("plain parallel read");
    let read_time = measure(&mut group, id, Throughput::Bytes(read_bytes), || {
        black_box(sum_of_words(&weights));
    });

    let ids = prompt(POSITION + 1, rank.vocab());
    rank.prefill(&ids[..POSITION], Logits::None).unwrap();
    let id = BenchmarkId::from_parameter("one token");
    let time = measure(&mut group, id, Throughput::Bytes(cost.weight_bytes), || {
        rank.rewind(POSITION);
        black_box(rank.decode(ids[POSITION]).unwrap());
    });

    if let (Some(time), Some(read_time)) = (time, read_time) {
        let rate = gb_per_s(cost.weight_bytes, time);
        let read_rate = gb_per_s(read_bytes, read_time);
        println!(
            "decode reads weights at {rate:.1} GB/s, {:.0}% of a plain parallel read of \
             {read_rate:.1} GB/s; {:.1} tokens/s ({})",
            100.0 * rate / read_rate,
            1.0 / time.as_secs_f64(),
            circumstances()
        );
    }
}

/// Reads every byte and does next to nothing else.
fn sum_of_words(weights: &[&[u8]]) -> u64 {
    const TASK_BYTES: usize = 1 << 20;
    let sum = |bytes: &[u8]| {
        let words: &[u64] = bytemuck::cast_slice(bytes);
        words.iter().fold(0u64, |sum, word| sum.wrapping_add(*word))
    };
    let tasks = weights.par_iter().flat_map(|weight| weight.par_chunks(TASK_BYTES));
    tasks.map(sum).reduce(|| 0, u64::wrapping_add)
}

criterion_group!(benches, decode);
criterion_main!(benches);
