//! Computes the memory that fine-tuning takes, so that a machine too small fails at once and not hours later.
//!
//! ```text
//! resident   weights of the original, of the model in training and of references
//!            trained values, two moments and the best values so far, float32
//! beside it  the largest of
//!              a step         the gradient; on each worker what its layers keep, and
//!                             what the head or a layer makes
//!              a measurement  on each worker what the head makes
//!              saving         trained values twice, as a file has them
//! and        what lies free between allocations
//! ```

use std::collections::BTreeSet;

use sharp_model::{ModelSource, Plan, Repair, Treatment};

use super::options::FinetuneOptions;
use super::outline::Outline;
use crate::attention::queries_at_once;
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::forms::form;
use crate::head::rows_at_once;

/// Bytes of a float32 value.
const FLOAT: u64 = 4;

/// Bytes that the program takes with a model of next to no size.
const PROGRAM: u64 = 64 << 20;

/// One over what lies free between allocations, as a fraction of what is allocated: measured on models of
/// 135 M and 494 M parameters, where it was from a sixth to a quarter.
const GAPS: u64 = 5;

/// Computes the bytes of anonymous memory that [`super::finetune`] takes at its peak, files that are mapped
/// apart. Rows are of `seq_len` tokens.
///
/// Not counted: the repair of a runtime file, which takes another copy of the weights and twice the trained
/// values more, and weights that are used again ([`super::Reuse`]).
pub fn memory_needed(
    source: &ModelSource,
    plan: &Plan,
    seq_len: usize,
    compute: &Compute,
    options: &FinetuneOptions,
) -> u64 {
    let outline = Outline::new(source.config(), plan, options);
    let live = Account { outline, seq_len, compute, options }.peak();
    live + live / GAPS
}

/// Checks that there is memory enough, before anything is read; [`super::finetune`] does so too. CPU only: on
/// a GPU the driver reports out-of-memory itself.
///
/// # Errors
/// [`Error::Memory`].
pub fn check_memory(
    source: &ModelSource,
    plan: &Plan,
    seq_len: usize,
    compute: &Compute,
    options: &FinetuneOptions,
) -> Result<()> {
    let machine = if compute.device.is_cuda() { None } else { sharp_host::memory_limit() };
    let Some(there) = options.memory_bytes.or(machine) else { return Ok(()) };
    let needed = memory_needed(source, plan, seq_len, compute, options);
    if needed > there {
        return Err(Error::Memory { needed, there });
    }
    Ok(())
}

/// Adds up what is allocated, in bytes.
struct Account<'a> {
    outline: Outline<'a>,
    seq_len: usize,
    compute: &'a Compute,
    options: &'a FinetuneOptions,
}

impl Account<'_> {
    fn peak(&self) -> u64 {
        let trained = self.outline.trained * FLOAT;
        // Values, two moments, the best values; those that a warm-up found stay in memory too.
        let found = self.outline.plan.stored_parameters(self.outline.config) * FLOAT;
        let resident = PROGRAM + self.weights() + 4 * trained + found;
        let beside = self.step().max(self.measurement()).max(2 * trained);
        resident + beside
    }

    /// Bytes of a value in matrix products.
    fn product(&self) -> u64 {
        self.compute.precision.kind().elt_size_in_bytes() as u64
    }

    /// The original, whose embedding is float32; MLPs in training; references in float32.
    fn weights(&self) -> u64 {
        let Outline { config, plan, mlps, .. } = &self.outline;
        let embedding = config.vocab_size as u64 * config.hidden_size as u64;
        let matrices = config.total_parameters() - embedding;
        let head = if config.tie_word_embeddings { embedding } else { 0 };
        let mlp = config.mlp_parameters_per_layer();
        let made = plan.changes.iter().filter(|change| form(&change.treatment).is_some());
        let effective: u64 = made.map(|change| self.outline.effective_mlp(&change.treatment)).sum();
        let effective = effective + mlps.len() as u64 * mlp;
        // Without a teacher the MLPs that these take the place of are let go.
        let replaced = plan.changes.len() as u64 + mlps.len() as u64;
        let gone = if self.options.loss.needs_teacher() { 0 } else { replaced * mlp };
        let frozen = plan.changes.iter().filter_map(|change| match change.treatment {
            Treatment::Share { repair: Repair::None, .. } => None,
            ref treatment => treatment.reference().filter(|reference| !mlps.contains(reference)),
        });
        let frozen = frozen.collect::<BTreeSet<_>>().len() as u64;
        let references = if self.product() == FLOAT { 0 } else { frozen * mlp * FLOAT };
        embedding * FLOAT + (matrices + head + effective - gone) * self.product() + references
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
        let layers = (self.outline.config.num_hidden_layers - self.outline.first) as u64;
        let kept = layers * self.kept_of_a_layer();
        self.outline.trained * FLOAT + workers * (kept + self.head().max(self.layer()))
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
        let streams = 2 * n * d * FLOAT;
        let attention = n * (heads + 2 * kv_heads) * head_dim + probabilities;
        let mlp = n * (2 * self.outline.widest_mlp() + d);
        streams + normed + (attention + mlp) * self.product()
    }

    /// What the head makes of a few rows: logits, log probabilities and gradients of both models, float32.
    fn head(&self) -> u64 {
        let config = self.outline.config;
        let rows = (rows_at_once(self.compute.device) as u64).min(self.tokens());
        let copies = if self.options.loss.needs_teacher() { 5 } else { 3 };
        let streams = 6 * self.tokens() * config.hidden_size as u64 * FLOAT;
        copies * rows * config.vocab_size as u64 * FLOAT + streams
    }

    /// What an MLP's backward pass makes: the hidden activations' gradients and a weight's, in the products'
    /// type and twice in float32.
    fn layer(&self) -> u64 {
        let (d, f) = (self.outline.config.hidden_size as u64, self.outline.widest_mlp());
        let (product, n) = (self.product(), self.tokens());
        n * (5 * f + 2 * d) * product + 2 * n * d * FLOAT + f * d * (product + 2 * FLOAT)
    }
}
