//! `sharp serve`: the model over HTTP, for OpenAI's clients and for a browser.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use sharp_infer::{DType, Model, Options};
use sharp_serve::{ServeOptions, Server};

use crate::Global;
use crate::hub;
use crate::model::{ModelArg, open_tokenizer};
use crate::output::Output;

/// Answer requests over HTTP as OpenAI's API does, with a chat page.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sharp serve --model model.sharp\n  curl http://127.0.0.1:8080/v1/completions -H 'Content-Type: application/json' -d '{\"prompt\": \"Once upon\"}'"
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) model: ModelArg,
    /// Address to listen on. Others than this machine's own should have an API key, and a proxy that
    /// encrypts before them.
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Port to listen on; 0: any that is free.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// The model's name in requests and answers; the file's name by default.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Tokens of prompt and answer together; 0: what the model takes, at most 4096.
    #[arg(long, value_name = "N", default_value_t = 0)]
    context: usize,
    /// Sequences written at the same time.
    #[arg(long, value_name = "N", default_value_t = 16)]
    max_batch: usize,
    /// Finished sequences kept so that a prompt that begins like one of them starts sooner.
    #[arg(long, value_name = "N", default_value_t = 8)]
    cached_sessions: usize,
    /// Sequences that may wait; more are refused with status 429.
    #[arg(long, value_name = "N", default_value_t = 256)]
    queue: usize,
    /// Prompt tokens taken in between two tokens of running answers.
    #[arg(long, value_name = "N", default_value_t = 128)]
    prefill_chunk: usize,
    /// Seconds a request may take, waiting included.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
    /// Seconds that running requests have once the server is asked to stop.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain: u64,
    /// Bytes of memory that requests may take together; by default what the machine and the limits of the
    /// process leave.
    #[arg(long, value_name = "BYTES")]
    memory: Option<u64>,
    /// Largest request in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20)]
    body_limit: usize,
    /// Seconds a connection may make the server wait: for a request, or to take an answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    connection_timeout: u64,
    /// Connections held at once; more wait.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    connections: usize,
    /// Name of this server in addresses (http://NAME:8080), beside IP addresses and localhost. Give it once
    /// for each name.
    #[arg(long = "allowed-host", value_name = "NAME")]
    allowed_hosts: Vec<String>,
    /// Key that requests must carry (Authorization: Bearer KEY). Better set in the environment, where other
    /// users do not see it.
    #[arg(long, value_name = "KEY", env = "SHARP_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// How keys and values are kept: f16 or f32; by default f16 where weights are packed, f32 where they are
    /// not.
    #[arg(long, value_enum)]
    kv_cache: Option<KvCache>,
}

/// Formats of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum KvCache {
    F16,
    F32,
}

pub(crate) fn run(args: Args, global: &Global, output: &Output) -> Result<()> {
    let kv_cache = args.kv_cache.map(|kind| match kind {
        KvCache::F16 => DType::F16,
        KvCache::F32 => DType::F32,
    });
    let model = Model::open(
        args.model.path(),
        &Options { threads: global.threads(), kv_cache, ..Options::default() },
    )?;
    let tokenizer = open_tokenizer(args.model.path())?;
    let name = args.name.unwrap_or_else(|| hub::name(args.model.path()));
    let mut options = ServeOptions::default();
    options.model_name = name.clone();
    options.context = args.context;
    options.max_batch = args.max_batch;
    options.cached_sessions = args.cached_sessions;
    options.queue = args.queue;
    options.prefill_chunk = args.prefill_chunk;
    options.timeout = Duration::from_secs(args.timeout);
    options.drain = Duration::from_secs(args.drain);
    options.memory = args.memory;
    options.body_limit = args.body_limit;
    options.connection_timeout = Duration::from_secs(args.connection_timeout);
    options.connections = args.connections;
    options.allowed_hosts = args.allowed_hosts;
    options.api_key = args.api_key;
    let open = options.api_key.is_none() && !args.host.is_loopback();
    let server = Server::new(model, tokenizer, options)?;
    let asked = SocketAddr::new(args.host, args.port);
    let listener = TcpListener::bind(asked).with_context(|| format!("listening on {asked}"))?;
    let address = listener.local_addr().context("reading the address")?;
    if open {
        tracing::warn!("anybody who reaches {address} can use this server: there is no --api-key");
    }
    let url = format!("http://{address}");
    output.result(&json!({ "url": url, "model": name }), || {
        format!("{name} answers at {url}/v1; chat page: {url}/; Ctrl-C stops")
    })?;
    server.run(listener)?;
    Ok(())
}
