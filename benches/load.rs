//! How long until the first token, with the weights in the page cache.

mod support;

use std::hint::black_box;

use chaski::model::Logits;
use chaski::source::Source;
use criterion::{Criterion, criterion_group, criterion_main};
use support::{directory, open};

fn load(criterion: &mut Criterion) {
    let source = Source::Directory(directory());
    let mut group = criterion.benchmark_group("load");
    group.sample_size(10);
    group.bench_function("open and plan", |bencher| bencher.iter(|| black_box(open(&source))));
    group.bench_function("open, plan and first token", |bencher| {
        bencher.iter(|| open(&source).prefill(&[0], Logits::Last).unwrap()[0]);
    });
}

criterion_group!(benches, load);
criterion_main!(benches);
