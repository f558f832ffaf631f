//! Every kernel on every instruction set that this machine has: decode in bytes of weights a second, prefill
//! in operations (two for a multiply-add) a second. `cargo bench -p sharp-quant -- decode/avx2` runs a part.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sharp_quant::*;
use std::time::Duration;

fn vector(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 % 1000) as f32 / 500.0 - 1.0) * 0.05).collect()
}

/// Matrices of one shape, in turn: together either as large as a cache or much larger.
struct Weights {
    format: PackedFormat,
    rows: usize,
    cols: usize,
    copies: Vec<Vec<u8>>,
}

impl Weights {
    fn new(format: PackedFormat, rows: usize, cols: usize, copies: usize) -> Self {
        let one = pack_f32(format, ScaleRule::Max, rows, cols, &vector(rows * cols)).expect("a valid shape");
        Weights { format, rows, cols, copies: vec![one; copies] }
    }

    fn get(&self, i: usize) -> PackedRef<'_> {
        let data = &self.copies[i % self.copies.len()];
        PackedRef::new(self.format, self.rows, self.cols, data).expect("a packed matrix")
    }
}

fn product(team: &Team, weights: &Weights, i: usize, x: &Activations, out: &mut [f32]) {
    let op = MatOp { linear: weights.get(i).into(), out };
    matmul(team, &mut [op], x, &mut Scratch::none()).expect("shapes that fit");
}

fn activations(n: usize, cols: usize) -> Activations {
    let mut x = Activations::new(n, cols).expect("a valid shape");
    x.quantize(&vector(n * cols), n, cols).expect("room");
    x
}

fn teams() -> Vec<Team> {
    let isas = Isa::available();
    let pairs = isas.into_iter().flat_map(|isa| [1, physical_cores()].map(|threads| (threads, isa)));
    let mut all: Vec<Team> = Vec::new();
    for (threads, isa) in pairs {
        if !all.iter().any(|t| t.threads() == threads && t.isa() == isa) {
            all.push(Team::with_isa(threads, isa).expect("threads"));
        }
    }
    all
}

fn decode(c: &mut Criterion) {
    let (rows, cols) = (2048, 2048);
    for team in teams() {
        let mut group = c.benchmark_group(format!("decode/{}/{} threads", team.isa(), team.threads()));
        for format in PackedFormat::ALL {
            for (place, megabytes) in [("cache", 1usize), ("memory", 160)] {
                let size = format.nbytes(rows, cols).expect("a valid shape");
                let weights = Weights::new(format, rows, cols, (megabytes << 20).div_ceil(size));
                let x = activations(1, cols);
                let mut out = vec![0.0; rows];
                let mut i = 0;
                group.throughput(Throughput::Bytes(size as u64));
                group.bench_function(BenchmarkId::new(format.name(), place), |b| {
                    b.iter(|| {
                        i += 1;
                        product(&team, &weights, i, &x, &mut out);
                    });
                });
            }
        }
    }
}

fn prefill(c: &mut Criterion) {
    let (rows, cols) = (1536, 576);
    for team in teams() {
        let mut group = c.benchmark_group(format!("prefill/{}/{} threads", team.isa(), team.threads()));
        for format in PackedFormat::ALL {
            let weights = Weights::new(format, rows, cols, 1);
            for n in [2, 4, 8, 256] {
                let x = activations(n, cols);
                let mut out = vec![0.0; n * rows];
                group.throughput(Throughput::Elements(2 * (n * rows * cols) as u64));
                group.bench_function(BenchmarkId::new(format.name(), n), |b| {
                    b.iter(|| product(&team, &weights, 0, &x, &mut out));
                });
            }
        }
    }
}

/// What a gated MLP's first half costs with recovery parameters in it, and without.
fn recovery(c: &mut Criterion) {
    let (d, f, rank) = (576, 1536, 56);
    for team in teams() {
        let mut group = c.benchmark_group(format!("gate_up_silu/{}/{} threads", team.isa(), team.threads()));
        let (w, a) = (Weights::new(PackedFormat::Q4, f, d, 2), Weights::new(PackedFormat::Q8, rank, d, 2));
        let (b, scale) = (Weights::new(PackedFormat::Q8, f, rank, 2), vec![0.5; f]);
        let mut scratch = Scratch::new(2, 1, rank, 0).expect("a valid shape");
        let (x, mut out) = (activations(1, d), Activations::new(1, f).expect("a valid shape"));
        for (name, with) in [("shared alone", false), ("with rank 56", true)] {
            let linear = |i| {
                let low_rank = with.then(|| LowRank { a: a.get(i), b: b.get(i) });
                Linear::with_recovery(Some(w.get(i)), with.then_some(&scale), None, low_rank)
                    .expect("shapes that fit")
            };
            let (gate, up) = (linear(0), linear(1));
            group.throughput(Throughput::Bytes((gate.bytes() + up.bytes()) as u64));
            group.bench_function(name, |bench| {
                bench.iter(|| {
                    gate_up_silu(&team, &gate, &up, &x, &mut out, &mut scratch).expect("shapes that fit")
                });
            });
        }
    }
}

/// The matrix products of one token of SmolLM2-135M and nothing else: no norms, no attention, no quantising.
/// What decoding costs above this is the engine's own; what this costs above the bytes over the memory's
/// bandwidth is the kernels'.
fn bare_loop(c: &mut Criterion) {
    let (d, f, kv, vocab, layers) = (576, 1536, 192, 49_152, 30);
    for team in teams().iter().filter(|t| t.isa() == Isa::best()) {
        let mut group = c.benchmark_group(format!("bare loop/{} threads", team.threads()));
        for (format, share) in
            [(PackedFormat::Q4, 1), (PackedFormat::Q4, 2), (PackedFormat::Q4, 4), (PackedFormat::Q8, 1)]
        {
            let weights = |rows, cols, count| Weights::new(format, rows, cols, count);
            let (q, k, v) = (weights(d, d, layers), weights(kv, d, layers), weights(kv, d, layers));
            let (o, mlps) = (weights(d, d, layers), layers.div_ceil(share));
            let (gate, up, down) = (weights(f, d, mlps), weights(f, d, mlps), weights(d, f, mlps));
            let head = weights(vocab, d, 1);
            let (x, wide) = (activations(1, d), activations(1, f));
            let mut outs: Vec<Vec<f32>> = [vocab, f, f].map(|rows| vec![0.0; rows]).to_vec();
            group.throughput(Throughput::Elements(1));
            group.bench_function(BenchmarkId::new(format.name(), format!("shared by {share}")), |bench| {
                bench.iter(|| {
                    let mut region = |matrices: &[PackedRef<'_>], x: &Activations| {
                        let ops = matrices.iter().zip(&mut outs);
                        let mut ops: Vec<_> = ops
                            .map(|(m, out)| MatOp { linear: Linear::new(*m), out: &mut out[..m.rows()] })
                            .collect();
                        matmul(team, &mut ops, x, &mut Scratch::none()).expect("shapes that fit");
                    };
                    for layer in 0..layers {
                        region(&[q.get(layer), k.get(layer), v.get(layer)], &x);
                        region(&[o.get(layer)], &x);
                        let mlp = layer / share;
                        region(&[gate.get(mlp), up.get(mlp)], &x);
                        region(&[down.get(mlp)], &wide);
                    }
                    region(&[head.get(0)], &x);
                });
            });
        }
    }
}

/// The cost of a region with no work in it, and of quantising a token.
fn regions(c: &mut Criterion) {
    for team in teams().iter().filter(|t| t.isa() == Isa::best()) {
        c.bench_function(&format!("region/{} threads", team.threads()), |b| b.iter(|| team.run(64, &|_| {})));
    }
    for isa in Isa::available() {
        let team = Team::with_isa(1, isa).expect("threads");
        let (values, mut x) = (vector(16 * 2048), Activations::new(16, 2048).expect("a valid shape"));
        let mut group = c.benchmark_group("activations");
        group.throughput(Throughput::Elements(16 * 2048));
        group.bench_function(isa.name(), |b| {
            b.iter(|| x.quantize_parallel(&team, &values, 16, 2048).expect("room"));
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800));
    targets = decode, prefill, recovery, bare_loop, regions
}
criterion_main!(benches);
