//! How long an analysis takes per token, on a random model of a small real model's width.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sharp_infer::Model;
use sharp_progress::Silent;
use sharp_similarity::{Options, analyze};

const TOKENS: usize = 512;

fn bench(c: &mut Criterion) {
    // The golden model is small enough to show what everything but the matrix products costs.
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/similarity");
    let model = Model::open(folder, &sharp_infer::Options::default()).expect("the golden model opens");
    let sequence: Vec<u32> = (0..TOKENS as u32).map(|i| i * 7919 % 50).collect();
    let mut group = c.benchmark_group("analyze");
    group.throughput(Throughput::Elements(TOKENS as u64)).sample_size(10);
    for window in [1, 2] {
        group.bench_function(format!("window {window}"), |b| {
            let options = Options { window, ..Options::default() };
            b.iter(|| analyze(&model, std::slice::from_ref(&sequence), &options, &Silent).expect("analysis"));
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
