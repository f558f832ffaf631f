//! A small random model, rows to train on, and a short fine-tuning.

use std::path::{Path, PathBuf};

use sharp_data::TokenBlocks;
use sharp_model::{LayerChange, ModelSource, Plan, Ranks, Repair, Treatment};
use sharp_progress::Silent;
use sharp_train::finetune::{FinetuneOptions, FinetuneSummary, StartFrom, finetune};
use sharp_train::{Compute, Error, Job};

pub(crate) fn model(case: &str) -> ModelSource {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/hf_llama");
    ModelSource::open(folder.join(case)).unwrap()
}

/// A repeating pattern with a little noise: something to learn.
pub(crate) fn blocks(rows: usize, vocab: u32, seed: u32) -> TokenBlocks {
    let n = rows * 16;
    let tokens: Vec<u32> =
        (0..n as u32).map(|i| (i * 3 + (i.wrapping_mul(2_654_435_761 + seed) >> 30)) % vocab).collect();
    TokenBlocks { seq_len: 16, tokens, mask: (0..n).map(|i| i % 5 != 0).collect() }
}

pub(crate) const RANKS: Ranks = Ranks { gate: 4, up: 4, down: 4 };

/// Every treatment that has something to train, of a layer whose neighbour `reference` is.
pub(crate) fn trainable(reference: usize) -> [Treatment; 5] {
    let share = |repair| Treatment::Share { reference, repair };
    [
        share(Repair::low_rank(RANKS)),
        share(Repair::scaled(RANKS)),
        share(Repair::row_column_scaled(RANKS)),
        Treatment::LowRank { ranks: RANKS },
        Treatment::Prune { neurons: 20 },
    ]
}

pub(crate) fn plan(treatment: Treatment) -> Plan {
    Plan::new("explicit", vec![LayerChange::new(2, treatment)])
}

pub(crate) struct Run {
    pub(crate) source: ModelSource,
    pub(crate) plan: Plan,
    pub(crate) options: FinetuneOptions,
    pub(crate) threads: usize,
}

impl Run {
    /// `treatment` is that of layer 2 of three, or of layer 1 of two.
    pub(crate) fn new(case: &str, treatment: Treatment) -> Self {
        let mut plan = plan(treatment);
        if case != "tied" {
            plan.changes[0].layer = 1;
        }
        let options = FinetuneOptions {
            steps: 12,
            batch_tokens: 48,
            save_every: 5,
            eval_every: 4,
            lr: 1e-2,
            ..FinetuneOptions::default()
        };
        Self { source: model(case), plan, options, threads: 2 }
    }

    pub(crate) fn go(&self, out: &Path) -> Result<FinetuneSummary, Error> {
        self.go_from(StartFrom::Zero, out)
    }

    pub(crate) fn go_from(&self, from: StartFrom<'_>, out: &Path) -> Result<FinetuneSummary, Error> {
        let vocab = self.source.config().vocab_size as u32;
        let job = Job {
            source: &self.source,
            plan: &self.plan,
            train: &blocks(10, vocab, 1),
            validation: &blocks(4, vocab, 2),
            out,
            compute: Compute::cpu(self.threads),
            progress: &Silent,
        };
        finetune(&job, from, &self.options)
    }
}

pub(crate) fn bytes(out: &Path) -> Vec<u8> {
    std::fs::read(out.join("recovery.safetensors")).unwrap()
}

pub(crate) fn folder() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_path_buf();
    (dir, path)
}
