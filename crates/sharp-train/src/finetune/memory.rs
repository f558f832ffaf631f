//! Computes the memory that fine-tuning takes, so that a machine too small fails at once and not hours later.
//!
//! ```text
//! loading    the original, the model in training, trained values, the recovery that was given
//! resident   weights of the original, of the model in training and of references
//!            trained values, two moments and the best values so far, float32
//!            the recovery that was given
//!            onto a runtime file: the file's weights beside the original's, and rounded values
//! beside it  the largest of
//!              a step         the gradient; on each worker what its layers keep, and
//!                             what the head or a layer makes
//!              a measurement  on each worker what the head makes
//!              rounding       on each worker a matrix, onto a runtime file
//!              saving         trained values twice, as a file has them
//! and        what lies free between allocations
//! ```

use std::collections::BTreeSet;

use sharp_model::{ModelSource, Plan, ProjectionRecovery, Recovery, Repair, Treatment};

use super::options::{FinetuneOptions, StartFrom};
use super::outline::Outline;
use crate::attention::queries_at_once;
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::head::rows_at_once;
use crate::job::Job;

/// Bytes of a float32 value.
const FLOAT: u64 = 4;

/// Bytes that the program takes with a model of next to no size.
const PROGRAM: u64 = 64 << 20;

/// One over what lies free between allocations, as a fraction of what is allocated: measured on models of
/// 135 M and 494 M parameters, where it was from a sixth to a quarter.
const GAPS: u64 = 5;

/// Computes the bytes of anonymous memory that [`super::finetune`] takes at its peak, files that are mapped
/// apart. Rows are of `seq_len` tokens, and the recovery that training begins with is a warm-up's.
pub fn memory_needed(
    source: &ModelSource,
    plan: &Plan,
    seq_len: usize,
    compute: &Compute,
    options: &FinetuneOptions,
) -> u64 {
    let outline = Outline::new(source.config(), plan, options);
    Account { outline, seq_len, compute, options, given: 0, onto_file: false }.needed()
}

/// Computes the same for training onto a runtime file, with the recovery that a fine-tuning by these options
/// made.
pub fn memory_needed_onto(
    source: &ModelSource,
    plan: &Plan,
    seq_len: usize,
    compute: &Compute,
    options: &FinetuneOptions,
) -> u64 {
    let outline = Outline::new(source.config(), plan, options);
    Account { outline, seq_len, compute, options, given: 0, onto_file: true }.needed()
}

/// Checks that there is memory enough, before anything is read; [`super::finetune`] does so too.
///
/// Without [`FinetuneOptions::memory_bytes`] it is held against the machine's memory. Where that is not
/// known, on a GPU above all, nothing is held against anything, and a warning says so.
///
/// # Errors
/// [`Error::Memory`].
pub fn check_memory(needed: u64, compute: &Compute, options: &FinetuneOptions) -> Result<()> {
    let machine = if compute.device.is_cuda() { None } else { sharp_host::memory_limit() };
    let Some(there) = options.memory_bytes.or(machine) else {
        let gib = needed as f64 / (1u64 << 30) as f64;
        let whose = if compute.device.is_cuda() { "the GPU's" } else { "this machine's" };
        tracing::warn!(
            "fine-tuning takes {gib:.1} GiB; {whose} memory is not known here, so nothing says that it suffices"
        );
        return Ok(());
    };
    if needed > there {
        return Err(Error::Memory { needed, there });
    }
    Ok(())
}

/// Checks the memory for training that begins with `from`.
pub(super) fn check_memory_from(job: &Job<'_>, from: StartFrom<'_>, options: &FinetuneOptions) -> Result<()> {
    let values = |recovery: &Recovery| -> u64 {
        let layers = recovery.layers.values().flat_map(|layer| layer.values().flatten());
        let of = |p: &ProjectionRecovery| {
            let scales = [&p.row_scale, &p.col_scale].into_iter().flatten().map(Vec::len).sum::<usize>();
            p.a.len() + p.b.len() + scales + p.neurons.as_ref().map_or(0, |neurons| neurons.values.len())
        };
        let trained = recovery.trained().values().map(|(_, values)| values.len()).sum::<usize>();
        (layers.map(of).sum::<usize>() + trained) as u64
    };
    let account = Account {
        outline: Outline::new(job.source.config(), job.plan, options),
        seq_len: job.train.seq_len,
        compute: &job.compute,
        options,
        given: from.recovery().map_or(0, values),
        onto_file: from.runtime_file().is_some(),
    };
    check_memory(account.needed(), &job.compute, options)
}

/// Adds up what is allocated, in bytes.
struct Account<'a> {
    outline: Outline<'a>,
    seq_len: usize,
    compute: &'a Compute,
    options: &'a FinetuneOptions,
    /// Values of the recovery that training begins with, where it is known.
    given: u64,
    /// Whether training is onto a runtime file.
    onto_file: bool,
}

impl Account<'_> {
    /// The peak, and what lies free between allocations.
    fn needed(&self) -> u64 {
        let live = self.loading().max(self.training());
        live + live / GAPS
    }

    /// Values of the recovery that the caller holds: a warm-up's, or all that a fine-tuning trains.
    fn given(&self) -> u64 {
        let expected = match self.onto_file {
            true => self.outline.trained,
            false => self.outline.plan.stored_parameters(self.outline.config),
        };
        expected.max(self.given) * FLOAT
    }

    /// Sets of trained values: the exact ones and, onto a runtime file, the rounded ones.
    fn values(&self) -> u64 {
        let sets = if self.onto_file { 2 } else { 1 };
        sets * self.outline.trained * FLOAT
    }

    /// The model in training stands, and all of the original is still there.
    fn loading(&self) -> u64 {
        PROGRAM + self.original() + self.rounded() + self.made() + self.values() + self.given()
    }

    fn training(&self) -> u64 {
        let trained = self.outline.trained * FLOAT;
        // Beside the values two moments and the best values.
        let resident = PROGRAM + self.weights() + self.values() + 3 * trained + self.given();
        let beside = [self.step(), self.measurement(), self.rounding(), 2 * trained];
        resident + beside.into_iter().max().unwrap_or_default()
    }

    /// Bytes of a value in matrix products.
    fn product(&self) -> u64 {
        self.compute.precision.kind().elt_size_in_bytes() as u64
    }

    /// The original, whose embedding is float32.
    fn original(&self) -> u64 {
        let config = self.outline.config;
        let embedding = config.vocab_size as u64 * config.hidden_size as u64;
        let matrices = config.total_parameters() - embedding;
        let head = if config.tie_word_embeddings { embedding } else { 0 };
        embedding * FLOAT + (matrices + head) * self.product()
    }

    /// What is loaded of a runtime file: all but the MLPs that the plan changes.
    fn rounded(&self) -> u64 {
        let Outline { config, plan, .. } = &self.outline;
        let changed = plan.changes.len() as u64 * config.mlp_parameters_per_layer();
        if self.onto_file { self.original() - changed * self.product() } else { 0 }
    }

    /// MLPs in training, and references in float32 where products are not.
    fn made(&self) -> u64 {
        let Outline { config, plan, mlps, .. } = &self.outline;
        let mlp = config.mlp_parameters_per_layer();
        let effective = self.outline.effective_mlps() + mlps.len() as u64 * mlp;
        let frozen = plan.changes.iter().filter_map(|change| match change.treatment {
            Treatment::Share { repair: Repair::None, .. } => None,
            ref treatment => treatment.reference().filter(|reference| !mlps.contains(reference)),
        });
        let frozen = frozen.collect::<BTreeSet<_>>().len() as u64;
        let references = if self.product() == FLOAT { 0 } else { frozen * mlp * FLOAT };
        effective * self.product() + references
    }

    /// Everything that stays: without a teacher the MLPs of the original that others take the place of are
    /// let go, and onto a runtime file all of it.
    fn weights(&self) -> u64 {
        let Outline { config, plan, mlps, .. } = &self.outline;
        let mlp = config.mlp_parameters_per_layer() * self.product();
        let (changed, trained) = (plan.changes.len() as u64 * mlp, mlps.len() as u64 * mlp);
        let teacher = self.options.loss.needs_teacher();
        let frozen = match (self.onto_file, teacher) {
            (false, true) => self.original(),
            (false, false) => self.original() - changed - trained,
            (true, true) => self.original() + self.rounded() - trained,
            (true, false) => self.rounded() - trained,
        };
        frozen + self.made()
    }

    /// Rows of tokens in a step.
    fn rows(&self) -> usize {
        (self.options.batch_tokens / self.seq_len.max(1)).max(1)
    }

    /// Tokens that go through the model together on a worker.
    fn tokens(&self) -> u64 {
        (self.compute.sequences_at_once(self.seq_len).min(self.rows()) * self.seq_len) as u64
    }

    /// The gradient, and what workers hold at the end of their forward passes.
    fn step(&self) -> u64 {
        let workers = self.rows().div_ceil(self.compute.sequences_at_once(self.seq_len));
        let workers = workers.min(self.compute.threads) as u64;
        let kept = self.outline.backward_layers() as u64 * self.kept_of_a_layer();
        self.outline.trained * FLOAT + workers * (kept + self.head().max(self.layer()))
    }

    /// What workers round at a time: a matrix's values twice, and packed.
    fn rounding(&self) -> u64 {
        let matrix = self.outline.widest_mlp() * self.outline.config.hidden_size as u64;
        if self.onto_file { self.compute.threads as u64 * 3 * matrix * FLOAT } else { 0 }
    }

    /// Every worker measures, whatever the rows of a step.
    fn measurement(&self) -> u64 {
        self.compute.threads as u64 * self.head()
    }

    /// What a layer keeps for its backward pass: see the structs `Kept` of block, attention and MLP.
    fn kept_of_a_layer(&self) -> u64 {
        let config = self.outline.config;
        let (n, time) = (self.tokens(), self.seq_len as u64);
        let (heads, kv_heads) = (config.num_attention_heads as u64, config.num_key_value_heads as u64);
        let (d, head_dim) = (config.hidden_size as u64, config.head_dim as u64);
        let block = queries_at_once(self.seq_len as i64, self.compute.device).max(1) as u64;
        let seen = (0..time).step_by(block as usize).map(|start| {
            let end = time.min(start + block);
            (end - start) * end
        });
        let probabilities = n / time.max(1) * heads * seen.sum::<u64>();
        let normed = if config.qk_norm { n * (heads + kv_heads) * head_dim * FLOAT } else { 0 };
        // A second run keeps attention's output as well.
        let gated = if self.outline.twice() { n * d * FLOAT } else { 0 };
        let streams = 2 * n * d * FLOAT + gated;
        let attention = n * (heads + 2 * kv_heads) * head_dim + probabilities;
        let mlp = n * (2 * self.outline.widest_mlp() + d);
        streams + normed + (attention + mlp) * self.product()
    }

    /// What the head makes of a few rows: logits, log probabilities and gradients of both models, float32,
    /// and their divergence in float64.
    fn head(&self) -> u64 {
        let config = self.outline.config;
        let rows = (rows_at_once(self.compute.device) as u64).min(self.tokens());
        let copies = if self.options.loss.needs_teacher() { 7 } else { 3 };
        let streams = 6 * self.tokens() * config.hidden_size as u64 * FLOAT;
        copies * rows * config.vocab_size as u64 * FLOAT + streams
    }

    /// What an MLP's backward pass makes: the hidden activations' gradients and a weight's, in the products'
    /// type and twice in float32, and once more with a pool's gains.
    fn layer(&self) -> u64 {
        let (d, f) = (self.outline.config.hidden_size as u64, self.outline.widest_mlp());
        let (product, n) = (self.product(), self.tokens());
        let copies = if self.options.reuse.pool.is_some() { 3 } else { 2 };
        n * (5 * f + 2 * d) * product + 2 * n * d * FLOAT + f * d * (product + copies * FLOAT)
    }
}
