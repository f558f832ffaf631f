//! Computes the least memory of fine-tuning, so that a machine too small fails at once and not hours later.

use sharp_model::{ModelSource, Plan};

use super::options::FinetuneOptions;
use super::parameters::trained_mlp_layers;
use crate::device::Compute;
use crate::error::{Error, Result};

/// Bytes for each trained value: the float32 value, its gradient, two moments and the best value so far. Its
/// copy among the weights comes on top.
const TRAINED: u64 = 20;

/// Computes the bytes that fine-tuning takes at least: the original's weights, and what is trained with its
/// gradient and moments. Activations, norms and the rest come on top.
pub fn least_memory(source: &ModelSource, plan: &Plan, compute: &Compute, options: &FinetuneOptions) -> u64 {
    let config = source.config();
    let layers = config.num_hidden_layers;
    let mlps = trained_mlp_layers(plan, layers, options.train_mlps);
    let trained = plan.stored_parameters(config) + mlps.len() as u64 * config.mlp_parameters_per_layer();
    let product = compute.precision.kind().elt_size_in_bytes() as u64;
    (config.total_parameters() + trained)
        .saturating_mul(product)
        .saturating_add(trained.saturating_mul(TRAINED))
}

/// Checks that there is memory enough, before anything is read; [`super::finetune`] does so too. CPU only: on
/// a GPU the driver reports out-of-memory itself.
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
