//! Connections: so many at once, a head within a time and a size, and an end that lets answers end first.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{pin, Pin};
use std::sync::Arc;
use std::task::{ready, Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use axum::Router;
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, Interest, ReadBuf};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{watch, OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout, Sleep};
use tower::ServiceExt;

use super::App;

/// Where a request came in.
#[derive(Clone, Copy)]
pub(super) struct Connection {
    /// The address that the client connected to.
    pub(super) local: SocketAddr,
}

/// Takes connections until it is told to stop, and then lets what has begun end, until it is told so again. What has not
/// ended within the time ends with an error; gives how many connections these were.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    app: Arc<App>,
    mut stop: watch::Receiver<usize>,
) -> usize {
    /// After an error that is the system's, such as too many open files.
    const PAUSE: Duration = Duration::from_millis(50);
    const TIME_FOR_ERRORS: Duration = Duration::from_millis(500);
    let n_max = app.config.connections_max.clamp(1, u32::MAX as usize >> 3);
    let places = Arc::new(Semaphore::new(n_max));
    while *stop.borrow() == 0 {
        let accepted = tokio::select! {
            _ = stop.changed() => break,
            accepted = accept(&listener, &places) => accepted,
        };
        match accepted {
            Ok((stream, place)) => {
                let connection =
                    connection(stream, router.clone(), app.clone(), stop.clone(), place);
                tokio::spawn(connection);
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
    drop(listener);
    let all = || places.acquire_many(n_max as u32);
    let is_done = tokio::select! {
        done = timeout(app.config.drain, all()) => done.is_ok(),
        _ = stop.wait_for(|n| *n > 1) => false,
    };
    if is_done {
        return 0;
    }
    let n_cut = n_max - places.available_permits();
    app.cut();
    // Whoever takes no error is not waited for.
    let _ = timeout(TIME_FOR_ERRORS, all()).await;
    n_cut
}

/// Those that find no place wait where the system keeps them.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await;
    let place = place.map_err(io::Error::other)?;
    Ok((listener.accept().await?.0, place))
}

async fn connection(
    stream: TcpStream,
    router: Router,
    app: Arc<App>,
    mut stop: watch::Receiver<usize>,
    _place: OwnedSemaphorePermit,
) {
    let Ok(local) = stream.local_addr() else {
        return;
    };
    // Pieces of an answer are not to wait for more of it.
    let _ = stream.set_nodelay(true);
    app.metrics.connections.inc();
    let _open = OpenConnection(&app);
    let config = &app.config;
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Connection { local });
        router.clone().oneshot(request)
    });
    let (reader, writer) = stream.into_split();
    let reader = SharedReader(Arc::new(reader));
    let gone = client_gone(reader.clone());
    let io = Patient {
        reader: TokioIo::new(reader),
        writer: TokioIo::new(writer),
        patience: config.write_timeout,
        until: None,
    };
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(config.head_timeout)
        .max_header_size(config.head_bytes_max)
        .max_headers(100);
    let mut serving = pin!(builder.serve_connection(io, service));
    let served = async {
        let is_ending = *stop.borrow() > 0;
        if !is_ending {
            tokio::select! {
                // What fails is the client's: it has gone, or it speaks no HTTP.
                _ = serving.as_mut() => return,
                _ = stop.changed() => {}
            }
        }
        serving.as_mut().graceful_shutdown();
        let _ = serving.await;
    };
    tokio::select! {
        () = served => {}
        () = gone => {}
    }
}

/// Waits until the client has ended its side. hyper looks for that only while nothing that was read waits, so a client
/// that had sent more than one request would keep its answer being made.
async fn client_gone(reader: SharedReader) {
    /// Time for what is answered at once, and between looks while there is something that nobody reads.
    const PAUSE: Duration = Duration::from_millis(500);
    loop {
        let ready = reader.0.ready(Interest::READABLE).await;
        sleep(PAUSE).await;
        if ready.map_or(true, |ready| ready.is_read_closed()) {
            return;
        }
    }
}

/// What comes from a client, to be read here and watched there.
#[derive(Clone)]
struct SharedReader(Arc<OwnedReadHalf>);

impl AsyncRead for SharedReader {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let stream: &TcpStream = self.0.as_ref().as_ref();
        loop {
            ready!(stream.poll_read_ready(cx))?;
            match stream.try_read(buf.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.map(|n| buf.advance(n))),
            }
        }
    }
}

struct OpenConnection<'a>(&'a App);

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.metrics.connections.dec();
    }
}

/// A connection to a client that must take what is written within a time.
struct Patient {
    reader: TokioIo<SharedReader>,
    writer: TokioIo<OwnedWriteHalf>,
    patience: Duration,
    /// While something waits to be taken.
    until: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    fn judge<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.until = None;
            return polled;
        }
        let patience = self.patience;
        let until = self.until.get_or_insert_with(|| Box::pin(sleep(patience)));
        match until.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Read for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(cx, buf)
    }
}

impl Write for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.writer).poll_write(cx, buf);
        self.judge(cx, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.writer.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.writer).poll_write_vectored(cx, bufs);
        self.judge(cx, polled)
    }
}
