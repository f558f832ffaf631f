//! Connections: how many there are, and how long one may make the server wait.
//!
//! A client that sends its request byte by byte, or never takes its answer, holds a connection until the
//! time limit ends it. Without the limit a few hundred of them would keep everybody else out.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::HttpBody;
use axum::extract::Request;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::Sleep;

/// Wait after the system had no connection to give, as where too many files are open.
const PAUSE: Duration = Duration::from_millis(200);

/// Time that a connection without a request in work has once the server stops: to take the end of an answer.
const GRACE: Duration = Duration::from_secs(1);

/// Whether a connection has a request in work: one that has arrived whole and is not answered to its end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Work(Arc<AtomicBool>);

impl Work {
    /// Says that the request of this connection has arrived whole.
    pub(crate) fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Ends a connection's work when its answer is sent or given up.
struct Ending(Work);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Relaxed);
    }
}

/// Answers on `listener`, on at most `most` connections at once, until `stop` is done; then lets those end
/// that have a request in work.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    most: usize,
    patience: Duration,
    stop: impl Future<Output = ()> + Send,
) {
    let room = Arc::new(Semaphore::new(most));
    let (closing, seen) = watch::channel(());
    let mut stop = pin!(stop);
    loop {
        let accepted = async {
            let Ok(permit) = room.clone().acquire_owned().await else { unreachable!("it is never closed") };
            listener.accept().await.map(|(stream, _)| (permit, stream))
        };
        let (permit, stream) = tokio::select! {
            () = &mut stop => break,
            accepted = accepted => match accepted {
                Ok(both) => both,
                Err(error) => {
                    tracing::warn!("no connection: {error}");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            },
        };
        let (router, seen) = (router.clone(), seen.clone());
        tokio::spawn(async move {
            if let Err(error) = answer(stream, router, patience, seen).await {
                tracing::debug!("a connection ended: {error}");
            }
            drop(permit);
        });
    }
    drop((listener, seen));
    let _ = closing.send(());
    // Each connection has a receiver while it lasts.
    closing.closed().await;
}

/// Answers the requests of one connection.
async fn answer(
    stream: TcpStream,
    router: Router,
    patience: Duration,
    mut closing: watch::Receiver<()>,
) -> hyper::Result<()> {
    // The pieces of a stream are small, and each is wanted at once.
    let _ = stream.set_nodelay(true);
    let io = TokioIo::new(Patient { stream, patience, stuck: None });
    let work = Work::default();
    let (routes, at) = (TowerToHyperService::new(router), work.clone());
    let service = service_fn(move |mut request: Request<Incoming>| {
        if request.body().is_end_stream() {
            at.begin();
        }
        request.extensions_mut().insert(at.clone());
        let (answer, ending) = (routes.call(request), Ending(at.clone()));
        async move {
            let answer = answer.await?;
            Ok::<_, std::convert::Infallible>(answer.map(|body| {
                body.map_err(move |error| {
                    let _until_the_end = &ending;
                    error
                })
            }))
        }
    });
    // The limit on a head counts from the end of the answer before, so it ends idle connections too.
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        _ = closing.changed() => connection.as_mut().graceful_shutdown(),
    }
    if work.0.load(Ordering::Relaxed) {
        return connection.await;
    }
    // What has not come by now would be refused.
    tokio::time::timeout(GRACE, connection).await.unwrap_or(Ok(()))
}

/// A connection that fails once nobody took anything of what is written for as long as patience lasts.
struct Patient {
    stream: TcpStream,
    patience: Duration,
    /// Runs while a write waits.
    stuck: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    fn watch(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stuck = None;
            return written;
        }
        let patience = self.patience;
        let sleep = self.stuck.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        sleep.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_reader_that_takes_nothing_ends_the_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let reader = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let mut writer = Patient { stream, patience: Duration::from_millis(200), stuck: None };
        let bytes = vec![0; 1 << 20];
        // The system takes some of it in between.
        let failed = async {
            loop {
                let write = std::future::poll_fn(|cx| Pin::new(&mut writer).poll_write(cx, &bytes));
                if let Err(error) = write.await {
                    return error.kind();
                }
            }
        };
        let failed = tokio::time::timeout(Duration::from_secs(30), failed).await;
        assert_eq!(failed.unwrap(), io::ErrorKind::TimedOut);
        drop(reader);
    }
}
