//! Prefill and decode on a synthetic model of SmolLM2-135M's layers (8 of its 30, a smaller vocabulary), with
//! and without shared MLPs. Decode is reported in bytes of weights a second: its limit is the memory's
//! bandwidth, or the cache's where layers share.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sharp_infer::{Model, Options, Recipe, Session, Synthetic, Team, quantize};
use sharp_model::{LayerChange, ModelConfig, Plan, Ranks, Repair};

fn models() -> Vec<(&'static str, Model)> {
    let config = ModelConfig::llama(576, 1536, 8, 9, 3, 8192).expect("a shape that can be");
    let change = |layer: usize| LayerChange::share(layer, layer - 1, Repair::low_rank(Ranks::uniform(56)));
    let plan = Plan::new("explicit", [1, 3, 5, 7].map(change).to_vec());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut all = Vec::new();
    let options = Options::default();
    let source = Synthetic::in_memory(&config, None, 1).expect("a model");
    all.push(("f32", Model::from_source(&source, &options).expect("a model")));
    let team = Team::new(0).expect("threads");
    for (name, plan, recipe) in [
        ("q4", None, Recipe::q4()),
        ("q4 shared by 2", Some(&plan), Recipe::q4()),
        ("q8", None, Recipe::q8()),
    ] {
        let source = Synthetic::in_memory(&config, plan, 1).expect("a model");
        let path = folder.path().join(format!("{}.sharp", all.len()));
        let recipe = Recipe { least_squares: false, ..recipe };
        quantize(&source, &recipe, &path, &team, &sharp_progress::Silent).expect("a packed file");
        all.push((name, Model::open(&path, &options).expect("a model")));
    }
    all
}

fn engine(c: &mut Criterion) {
    let models = models();
    let mut group = c.benchmark_group("prefill 256");
    group.sample_size(10);
    let tokens: Vec<u32> = (0..256).map(|i| i * 31 % 8192).collect();
    for (name, model) in &models {
        let mut session = Session::new(model, 256).expect("a session");
        group.throughput(Throughput::Elements(256));
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter(|| {
                session.truncate(0);
                black_box(session.prefill(&tokens).expect("room")[0])
            });
        });
    }
    group.finish();
    let mut group = c.benchmark_group("decode at 64");
    for (name, model) in &models {
        let mut session = Session::new(model, 128).expect("a session");
        session.prefill(&tokens[..64]).expect("room");
        group.throughput(Throughput::Bytes(model.weight_bytes().per_token_unshared));
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter(|| {
                session.truncate(64);
                black_box(session.decode(7).expect("room")[0])
            });
        });
    }
    group.finish();
}

criterion_group!(benches, engine);
criterion_main!(benches);
