//! How near decoding comes to the speed of memory: tokens one by one, against a plain parallel read,
//! both as `chaski bench` measures them.

mod support;

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use chaski::bench::{Bench, Ceilings, Conditions, Fill, Row, Test, TestKind, row};
use chaski::checkpoint::Checkpoint;
use chaski::encoding::Float;
use chaski::executor::Hardware;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use support::{circumstances, nothing_is_measured, open, source};

const TEST: Test = Test { kind: TestKind::Generation, prompt: 0, generate: 8, depth: 64 };

fn decode(criterion: &mut Criterion) {
    let source = source();
    let weight_bytes = Checkpoint::open(&source).unwrap().total_bytes();
    let ceilings = Ceilings::measure(&Hardware::cpu().unwrap(), Float::F32, weight_bytes).unwrap();
    let interrupt = AtomicBool::new(false);
    let mut bench = Bench::new(open(&source), Fill::Prefill, &interrupt);
    bench.warm_up(&TEST).unwrap();
    let mut group = criterion.benchmark_group("decode");
    group.sample_size(10);
    group.throughput(Throughput::Elements(TEST.tokens() as u64));
    group.bench_function(TEST.name(), |bencher| {
        bencher.iter_custom(|runs| {
            let times = (0..runs).map(|_| bench.sample(&TEST).unwrap().time);
            Duration::from_secs_f64(times.sum())
        });
    });
    if nothing_is_measured() {
        return;
    }
    let samples: Vec<_> = (0..5).map(|_| bench.sample(&TEST).unwrap()).collect();
    let cost = bench.cost(&TEST).unwrap();
    let row = row(&TEST, &samples, cost, &ceilings, &Conditions::default(), &Row::new());
    let number = |field: &str| row[field].as_f64().unwrap();
    println!(
        "decode reads at {:.1} GB/s, {:.0}% of a plain parallel read of {:.1} GB/s; {:.1} tokens/s ({})",
        number("gb_per_s"),
        100.0 * number("bandwidth_fraction"),
        number("read_gb_per_s"),
        number("avg_ts"),
        circumstances()
    );
}

criterion_group!(benches, decode);
criterion_main!(benches);
