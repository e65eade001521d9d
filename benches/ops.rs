//! Every op with each of its cases, on the CPU and on the first GPU, against the bytes that it must
//! move. `CHASKI_BENCH_EMULATE=1` tries the latter on an emulated GPU, which says nothing of speed.

mod support;

use std::time::Duration;

use chaski::case::Case;
use chaski::checkpoint::Checkpoint;
use chaski::conformance::{Effort, cases};
use chaski::executor::cuda::{self, Emulation, Gpu};
use chaski::executor::{Blueprint, Executor, Hardware};
use chaski::ops::CASES;
use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
};
use support::nothing_is_measured;

fn ops(criterion: &mut Criterion) {
    let emulated = std::env::var_os("CHASKI_BENCH_EMULATE").is_some();
    let gpu = match emulated {
        true => Emulation::from_variables(1, std::env::vars_os())
            .and_then(|emulation| cuda::emulate(&emulation, &|_| ()))
            .and_then(|()| Gpu::open(0)),
        false => Gpu::open(0),
    };
    let effort = match nothing_is_measured() {
        false => Effort::Thorough,
        true if emulated => Effort::Few,
        true => Effort::Quick,
    };
    let mut places = vec![("cpu", Hardware::cpu().unwrap())];
    match gpu {
        Ok(gpu) => {
            println!("on the CPU and on {}", gpu.name);
            places.push(("gpu", Hardware::Gpu(gpu)));
        }
        Err(error) => println!("on the CPU alone: {error}"),
    }
    for (op, _) in CASES {
        let mut group = criterion.benchmark_group(op);
        group.sample_size(10).warm_up_time(Duration::from_millis(100));
        group.measurement_time(Duration::from_millis(500));
        for case in cases(op, effort) {
            for (place, hardware) in &places {
                measure(&mut group, place, hardware, &case);
            }
        }
    }
}

/// The op's own time: between two events on a GPU. Its memory holds the same before every run.
fn measure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    place: &str,
    hardware: &Hardware,
    case: &Case,
) {
    let cost = case.cost();
    group.throughput(match cost.weight_bytes + cost.cache_bytes {
        0 => Throughput::Elements(cost.flops.max(1)),
        bytes => Throughput::Bytes(bytes),
    });
    group.bench_function(BenchmarkId::new(place, &case.name), |bencher| {
        let weights = Checkpoint::in_memory(case.encoding(), case.weight_region());
        let mut device =
            Executor::new(hardware, Blueprint::new(weights, &case.weights, &case.layout)).unwrap();
        let before = case.state();
        let before: &[u8] = &bytemuck::cast_slice(&before)[..case.layout.bytes()];
        bencher.iter_custom(|runs| {
            let run = |_| {
                device.write(case.layout.whole(), before).unwrap();
                device.run_timed(&case.program).unwrap().into_iter().sum::<Duration>()
            };
            (0..runs).map(run).sum()
        });
    });
}

criterion_group!(benches, ops);
criterion_main!(benches);
