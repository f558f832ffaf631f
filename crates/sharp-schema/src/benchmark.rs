//! The file of a benchmark, `bench.json`: load, prefill and decode speed and memory of models.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a benchmark measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bench {
    /// Instruction set of the kernels.
    pub kernels: String,
    /// Threads that computed.
    pub threads: usize,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens decoded after it.
    pub decode_tokens: usize,
    /// How fast the machine reads memory, in bytes a second.
    pub memory_bandwidth_bytes_per_second: f64,
    /// One for each model.
    pub models: Vec<ModelSpeed>,
}

/// The medians of a model's runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelSpeed {
    /// The file's name without its ending.
    pub name: String,
    /// Where the model was read from.
    pub path: PathBuf,
    /// Bytes on disk.
    pub file_bytes: u64,
    /// The median of each measurement.
    #[serde(flatten)]
    pub median: Measurement,
    /// Distinct bytes of weights read a second, over the memory bandwidth; above 1 where caches keep a part
    /// of the model.
    pub roofline_fraction: f64,
    /// Distinct bytes of weights read a second while decoding.
    pub decode_bytes_per_second: f64,
    /// The median of the runs' decoding speed over the bare loop's in the same run; none for weights that
    /// are not packed.
    pub bare_loop_fraction: Option<f64>,
    /// Every run.
    pub runs: Vec<Measurement>,
}

/// One run of one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// Seconds to open the model.
    pub load_seconds: f64,
    /// Seconds from nothing to the first token.
    pub first_token_seconds: f64,
    /// Tokens of the prompt a second.
    pub prefill_tokens_per_second: f64,
    /// Tokens decoded a second.
    pub decode_tokens_per_second: f64,
    /// Tokens a second of the bare loop: the matrix products of a token and nothing else; 0 for weights that
    /// are not packed.
    pub bare_loop_tokens_per_second: f64,
    /// Tokens a second of all sequences decoded together; 0 where that was not asked for.
    pub together_tokens_per_second: f64,
    /// The process's largest resident memory.
    pub peak_memory_bytes: u64,
    /// Keys and values of the prompt and the decoded tokens.
    pub kv_cache_bytes: u64,
    /// Distinct bytes of weights that a token needs: each stored matrix once.
    pub bytes_per_token: u64,
    /// Bytes of weights that a token needs, shared matrices counted every time they are used.
    pub bytes_used_per_token: u64,
}
