//! Options of choosing tokens that the commands that write text have in common.

use sharp_infer::SamplerOptions;

/// Those whose defaults are everybody's; temperature and top-p are the commands' own.
#[derive(Debug, clap::Args)]
pub(crate) struct Sampling {
    /// Only the K likeliest tokens; 0: all.
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Only tokens at least this fraction as likely as the likeliest.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Makes tokens that are already there less likely; 1: not.
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Same seed, same text.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl Sampling {
    /// All options of the sampler.
    pub(crate) fn options(&self, temperature: f32, top_p: f32) -> SamplerOptions {
        let &Self { top_k, min_p, repetition_penalty, seed } = self;
        SamplerOptions { temperature, top_k, top_p, min_p, repetition_penalty, seed }
    }
}
