//! What fine-tuning needs at least, so that a machine too small for it is told at once and not by being killed hours later.

use sharp_model::{ModelSource, Plan};

use super::FinetuneOptions;
use super::trained::owned_layers;
use crate::device::Compute;
use crate::error::{Error, Result};

/// Bytes for each trained value besides the one in the products' number type: itself, its gradient and two moments, all float32.
const TRAINED: u64 = 16;

/// Bytes that fine-tuning surely takes: the original's weights, and what is trained with its gradient and moments. Activations,
/// norms and the rest come on top.
pub fn least_memory(source: &ModelSource, plan: &Plan, compute: &Compute, options: &FinetuneOptions) -> u64 {
    let config = source.config();
    let layers = config.num_hidden_layers;
    let owned = owned_layers(plan, layers, options.train_mlps);
    let trained = plan.stored_parameters(config) + owned.len() as u64 * config.mlp_parameters_per_layer();
    let product = compute.precision.kind().elt_size_in_bytes() as u64;
    (config.total_parameters() + trained)
        .saturating_mul(product)
        .saturating_add(trained.saturating_mul(TRAINED))
}

/// Refuses what cannot fit, before anything is read; [`super::finetune`] asks the same. On a CPU only: a GPU's memory is its driver's to
/// speak of.
///
/// # Errors
/// [`Error::Memory`].
pub fn check_memory(
    source: &ModelSource,
    plan: &Plan,
    compute: &Compute,
    options: &FinetuneOptions,
) -> Result<()> {
    let machine = if compute.device.is_cuda() { None } else { sharp_host::memory_limit() };
    let Some(there) = options.memory_bytes.or(machine) else { return Ok(()) };
    let needed = least_memory(source, plan, compute, options);
    if needed > there {
        return Err(Error::Memory { needed, there });
    }
    Ok(())
}
