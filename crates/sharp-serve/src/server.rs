//! A server's life: its thread, its socket, its end.

use std::net::TcpListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use sharp_infer::{Batch, Model};
use sharp_model::tokenizer::Tokenizer;

use crate::api::{Shared, Site, router};
use crate::connections;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::memory::{Memory, SessionCost};
use crate::metrics::Metrics;
use crate::options::ServeOptions;
use crate::queue::Queue;

/// A model with a thread that writes and routes that answer.
///
/// Dropping it gives up what is running and waits for the thread.
#[derive(Debug)]
pub struct Server {
    router: Router,
    queue: Arc<Queue>,
    drain: Duration,
    connections: usize,
    /// How long a connection may make the server wait.
    patience: Duration,
    thread: Option<JoinHandle<()>>,
}

/// Threads for connections; they wait most of the time, and the model wants the cores.
const CONNECTION_THREADS: usize = 2;

impl Server {
    /// Starts the inference thread.
    ///
    /// # Errors
    /// [`Error::Option`] for options that cannot be; [`Error::Infer`], [`Error::Model`] and [`Error::Data`]
    /// for a model, tokenizer or chat template that cannot be served; [`Error::Io`] if the system gives
    /// no thread.
    pub fn new(model: Model, tokenizer: Tokenizer, options: ServeOptions) -> Result<Self> {
        let options = options.resolve(model.config().max_position_embeddings)?;
        let tokenizer = Arc::new(tokenizer);
        let queue = Arc::new(Queue::new(options.queue));
        let metrics = Arc::new(Metrics::new());
        let vocab_size = model.config().vocab_size;
        let (drain, connections, patience) = (options.drain, options.connections, options.connection_timeout);
        let batch = Batch::new(&model, options.max_batch)?;
        let memory = Arc::new(Memory::new(options.memory));
        let cost = SessionCost::new(&model, options.context, &memory);
        let (one, room) = (cost.bytes(options.context)?, memory.room());
        if one > room {
            tracing::warn!(
                "{room} bytes of memory are left for requests, and one of {} tokens takes {one}: lower the context",
                options.context
            );
        }
        let shared = Shared {
            tokenizer: tokenizer.clone(),
            queue: queue.clone(),
            metrics: metrics.clone(),
            memory: memory.clone(),
        };
        let site = Site::new(options.clone(), shared, vocab_size, cost)?;
        let engine = Engine { model, tokenizer, queue: queue.clone(), metrics, memory, options };
        let thread = std::thread::Builder::new()
            .name("sharp-engine".into())
            .spawn(move || engine.run(batch))
            .map_err(Error::io("starting the inference thread"))?;
        Ok(Self { router: router(Arc::new(site)), queue, drain, connections, patience, thread: Some(thread) })
    }

    /// Returns the routes, to be put into a larger program.
    pub fn router(&self) -> Router {
        self.router.clone()
    }

    /// Answers on `listener` until `stop` is done, then takes no more requests and lets those that are
    /// running end, as long as [`ServeOptions::drain`] says.
    ///
    /// # Errors
    /// [`Error::Io`] if the socket cannot be used.
    pub async fn serve(
        self,
        listener: tokio::net::TcpListener,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> Result<()> {
        let (queue, drain) = (self.queue.clone(), self.drain);
        let (stopped, mut seen) = tokio::sync::watch::channel(false);
        let closing = queue.clone();
        let graceful = async move {
            stop.await;
            closing.close();
            tracing::info!("stopping: running requests may end within {} s", drain.as_secs());
            let _ = stopped.send(true);
        };
        let router = self.router.clone();
        let serving = connections::serve(listener, router, self.connections, self.patience, graceful);
        let late = async move {
            // The sender lives as long as the server does.
            let _ = seen.wait_for(|stopped| *stopped).await;
            tokio::time::sleep(drain).await;
            queue.abort();
            // Those that still read get to hear of it.
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        tokio::select! {
            () = serving => {}
            () = late => tracing::warn!("some connections were cut off"),
        }
        Ok(())
    }

    /// Serves as [`Server::serve`] does, for programs without an asynchronous runtime: until SIGINT or
    /// SIGTERM, a second of which ends at once.
    ///
    /// # Errors
    /// [`Error::Io`] if the socket cannot be used or the system gives no threads.
    pub fn run(self, listener: TcpListener) -> Result<()> {
        listener.set_nonblocking(true).map_err(Error::io("preparing the socket"))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(CONNECTION_THREADS)
            .thread_name("sharp-http")
            .enable_all()
            .build()
            .map_err(Error::io("starting the connection threads"))?;
        let queue = self.queue.clone();
        let result = runtime.block_on(async move {
            let listener =
                tokio::net::TcpListener::from_std(listener).map_err(Error::io("taking the socket"))?;
            let mut signals = Signals::new().map_err(Error::io("listening for signals"))?;
            let (first, mut asked) = tokio::sync::watch::channel(false);
            let stop = async move {
                let _ = asked.wait_for(|asked| *asked).await;
            };
            let serving = self.serve(listener, stop);
            tokio::pin!(serving);
            tokio::select! {
                ended = &mut serving => return ended,
                () = signals.next() => {
                    let _ = first.send(true);
                }
            }
            tokio::select! {
                ended = &mut serving => ended,
                () = signals.next() => {
                    queue.abort();
                    Ok(())
                }
            }
        });
        runtime.shutdown_background();
        result
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.queue.abort();
        if let Some(thread) = self.thread.take() {
            // A panic there has been told to the clients already.
            let _ = thread.join();
        }
    }
}

/// SIGINT and SIGTERM, or Ctrl-C where there are no signals.
struct Signals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    #[cfg(not(unix))]
    fn new() -> std::io::Result<Self> {
        Ok(Self {})
    }

    async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
        #[cfg(not(unix))]
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
