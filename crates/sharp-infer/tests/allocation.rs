//! Decoding allocates nothing. A binary of its own, because it counts every allocation of the process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use sharp_infer::{
    Batch, Model, Options, Recipe, Sampler, SamplerOptions, Session, Synthetic, Team, quantize,
};
use sharp_model::{LayerChange, ModelConfig, Plan, Ranks, Repair};

struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is the system's.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract is the system's.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn decoding_and_sampling_allocate_nothing() {
    let config = ModelConfig::llama(64, 160, 5, 4, 2, 300).unwrap();
    let plan = Plan::new(
        "explicit",
        vec![
            LayerChange::share(1, 0, Repair::low_rank(Ranks::uniform(6))),
            LayerChange::share(3, 2, Repair::row_column_scaled(Ranks::uniform(6))),
            LayerChange::share(4, 2, Repair::Neurons { neurons: 32 }),
        ],
    );
    let source = Synthetic::in_memory(&config, Some(&plan), 1).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.sharp");
    quantize(&source, &Recipe::q4(), &path, &Team::new(1).unwrap(), &sharp_progress::Silent).unwrap();
    let options = Options { threads: 2, ..Options::default() };
    for model in [Model::open(&path, &options).unwrap(), Model::from_source(&source, &options).unwrap()] {
        let mut session = Session::new(&model, 300).unwrap();
        let options = SamplerOptions {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.01,
            repetition_penalty: 1.1,
            seed: 1,
        };
        let mut sampler = Sampler::new(options).unwrap();
        sampler.reserve(300);
        let mut logits = session.prefill(&[1, 2, 3]).unwrap().to_vec();
        // The least of four rounds: the test harness's own thread may allocate while one runs.
        let mut least = usize::MAX;
        for _ in 0..4 {
            let before = COUNT.load(Ordering::Relaxed);
            for _ in 0..50 {
                let token = sampler.sample(&mut logits, session.tokens()).unwrap();
                logits.copy_from_slice(session.decode(token).unwrap());
            }
            least = least.min(COUNT.load(Ordering::Relaxed) - before);
        }
        assert_eq!(least, 0);

        let mut other = Session::new(&model, 300).unwrap();
        other.prefill(&[7]).unwrap();
        let mut batch = Batch::new(&model, 2).unwrap();
        let mut least = usize::MAX;
        for _ in 0..4 {
            let before = COUNT.load(Ordering::Relaxed);
            for i in 0..10 {
                batch.decode(&mut [&mut session, &mut other], &[i, i + 1]).unwrap();
            }
            least = least.min(COUNT.load(Ordering::Relaxed) - before);
        }
        assert_eq!(least, 0);
    }
}
