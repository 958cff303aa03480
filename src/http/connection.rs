//! One TCP connection of HTTP/1.1, bounded against strangers who send slowly, too much, or nothing.
//!
//! Two answer on it in turns, request by request: [`Files`] those for an operator's files, which the kernel itself sends
//! (`sendfile(2)`), and hyper with the router behind it all others. So each head is read here, up to its end, and then is
//! somebody's. hyper sees a connection of one request: where it asks for the next, the turn is over and the connection
//! goes on.

use std::error::Error;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::Request;
use bytes::{Buf, BytesMut};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time;

use super::files::Files;
use super::head::{self, MAX_FIELDS};

/// Longest head of a request. Those of firmware and of iPXE have some 200 bytes; a browser's are below 8 KB.
const MAX_HEAD: usize = 16 << 10;
/// Room that is made for each reading of a head: most have less.
const ROOM: usize = 1 << 10;

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// A request's head must be here this long after its connection was made, or after the answer before it.
    pub(super) head: Duration,
    /// Who takes nothing of a file for so long has gone.
    pub(super) stall: Duration,
    /// No connection lasts longer.
    pub(super) life: Duration,
}

/// iPXE asks at once, and keeps a connection only for its next file. An ISO image of 4 GB that 60 machines fetch at once over
/// a wire of 1 Gb/s takes 40 minutes; who is not done by then has gone without a word. Within a minute TCP has sent a lost
/// segment again six times or more.
pub(super) const PATIENCE: Patience =
    Patience { head: Duration::from_secs(15), stall: Duration::from_secs(60), life: Duration::from_secs(3_600) };

/// What answers: files from a folder, where there is one, and the router all else.
#[derive(Debug, Clone)]
pub(super) struct Answering {
    pub(super) router: Router,
    pub(super) files: Option<Arc<Files>>,
}

/// Why a connection ended that neither side wanted to end.
type Broken = Box<dyn Error + Send + Sync>;

/// Serves one connection until it ends, our patience does, or `stop` is done and the answer under way has been sent.
/// Handlers get `peer` as [`ConnectInfo`].
pub(super) async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    answering: Answering,
    patience: Patience,
    stop: impl Future<Output = ()>,
) {
    let wire = Wire { stream: Arc::new(stream), ahead: BytesMut::new() };
    match time::timeout(patience.life, turns(wire, peer, answering, patience, stop)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%peer, error, "HTTP: a connection failed"),
        Err(_) => tracing::debug!(%peer, "HTTP: a connection lasted too long"),
    }
}

async fn turns(
    mut wire: Wire,
    peer: SocketAddr,
    answering: Answering,
    patience: Patience,
    stop: impl Future<Output = ()>,
) -> Result<(), Broken> {
    let mut stop = std::pin::pin!(stop);
    loop {
        let head = tokio::select! {
            biased;
            () = &mut stop => return Ok(()),
            head = time::timeout(patience.head, wire.head()) => head,
        };
        // A client that went, or that says nothing more.
        let Ok(Some(length)) = head.unwrap_or(Ok(None)) else { return Ok(()) };
        let request = head::parse(&wire.ahead[..length]);
        let mine = request.as_ref().zip(answering.files.as_ref()).filter(|(request, _)| Files::answers(request));
        let goes_on = if let Some((request, files)) = mine {
            wire.ahead.advance(length);
            files.answer(&wire.stream, peer, request, patience.stall).await?
        } else {
            // What may have a body is hyper's to the end.
            let last = request.as_ref().is_none_or(head::has_body);
            let turn = Turn { wire: &mut wire, left: length, last, over: false };
            by_hyper(turn, peer, &answering.router, patience, stop.as_mut()).await?
        };
        if !goes_on {
            return Ok(());
        }
    }
}

/// The bytes of a connection.
struct Wire {
    stream: Arc<TcpStream>,
    /// What was read and is nobody's yet.
    ahead: BytesMut,
}

impl Wire {
    /// Waits for the next head; how many bytes ahead it takes. One that has not ended after [`MAX_HEAD`] counts as whole, for
    /// hyper to refuse. `None`: the client has closed the connection.
    async fn head(&mut self) -> io::Result<Option<usize>> {
        loop {
            match head::end(&self.ahead) {
                Some(length) => return Ok(Some(length)),
                None if self.ahead.len() > MAX_HEAD => return Ok(Some(self.ahead.len())),
                None => {}
            }
            self.stream.readable().await?;
            self.ahead.reserve(ROOM);
            match self.stream.try_read_buf(&mut self.ahead) {
                Ok(0) => return Ok(None),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
    }
}

/// One request that hyper answers. Whether the connection goes on after it.
async fn by_hyper(
    mut turn: Turn<'_>,
    peer: SocketAddr,
    router: &Router,
    patience: Patience,
    stop: Pin<&mut impl Future<Output = ()>>,
) -> Result<bool, Broken> {
    let routed = TowerToHyperService::new(router.clone());
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        routed.call(request)
    });
    {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(patience.head)
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_FIELDS)
            .keep_alive(!turn.last)
            // With this it asks for the next request only when the answer to the one before is on its way.
            .half_close(true)
            .serve_connection(TokioIo::new(&mut turn), service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            served = connection.as_mut() => served?,
            () = stop => {
                connection.as_mut().graceful_shutdown();
                connection.await?;
                return Ok(false);
            }
        }
    }
    Ok(turn.over)
}

/// A connection as hyper sees it, for one request.
struct Turn<'a> {
    wire: &'a mut Wire,
    /// Bytes of the head that it has not read.
    left: usize,
    /// All that follows is hyper's too, and the connection ends with the answer.
    last: bool,
    /// hyper asked for the next request: it has answered this one, and would keep the connection.
    over: bool,
}

impl AsyncRead for Turn<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let ready = if self.last { self.wire.ahead.len() } else { self.left };
        if ready > 0 {
            let count = ready.min(buffer.remaining());
            buffer.put_slice(&self.wire.ahead[..count]);
            self.wire.ahead.advance(count);
            self.left = self.left.saturating_sub(count);
            return Poll::Ready(Ok(()));
        }
        if !self.last {
            self.over = true;
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(self.wire.stream.poll_read_ready(context))?;
            match self.wire.stream.try_read(buffer.initialize_unfilled()) {
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Turn<'_> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.wire.stream.poll_write_ready(context))?;
            match self.wire.stream.try_write_vectored(slices) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The end of hyper's turn is not that of the connection, which ends when it is dropped.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(40);
    const LASTING: Patience = Patience { head: LONG, stall: LONG, life: LONG };

    /// A client's end of a connection that answers `hello`, and what stops it.
    async fn connection(patience: Patience) -> (TcpStream, oneshot::Sender<()>, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let router = Router::new().route("/", get(async || "hello"));
        let answering = Answering { router, files: None };
        let served = tokio::spawn(serve(stream, peer, answering, patience, async { drop(stopped.await) }));
        (client, stop, served)
    }

    async fn rest(mut client: TcpStream) -> String {
        let mut text = String::new();
        time::timeout(Duration::from_secs(10), client.read_to_string(&mut text)).await.expect("still open").unwrap();
        text
    }

    #[tokio::test]
    async fn a_client_that_says_nothing_or_half_a_head_is_left() {
        for said in ["", "GET / HTTP/1.1\r\nHo"] {
            let (mut client, _stop, _) = connection(Patience { head: SHORT, ..LASTING }).await;
            client.write_all(said.as_bytes()).await.unwrap();
            assert!(!rest(client).await.contains("hello"), "{said:?}");
        }
    }

    #[tokio::test]
    async fn a_kept_connection_without_a_next_request_is_left() {
        let (mut client, _stop, _) = connection(Patience { head: SHORT, ..LASTING }).await;
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert!(rest(client).await.ends_with("hello"));
    }

    #[tokio::test]
    async fn no_connection_lasts_for_ever() {
        let (client, _stop, _) = connection(Patience { life: SHORT, ..LASTING }).await;
        assert_eq!(rest(client).await, "");
    }

    /// A client that reads a file's answer only as far as the head, and the folder that the file is in.
    async fn slow_client(patience: Patience, length: u64) -> (TcpStream, JoinHandle<()>, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::File::create(folder.path().join("image")).unwrap().set_len(length).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let files = Some(Arc::new(Files::open(folder.path()).unwrap()));
        let answering = Answering { router: Router::new(), files };
        let served = tokio::spawn(serve(stream, peer, answering, patience, std::future::pending()));
        client.write_all(b"GET /files/image HTTP/1.1\r\nConnection: close\r\n\r\n").await.unwrap();
        client.read_exact(&mut [0; 15]).await.unwrap();
        (client, served, folder)
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_more_of_a_file_is_left_and_one_that_is_slow_is_not() {
        let (_client, served, _folder) = slow_client(Patience { stall: SHORT, ..LASTING }, 1 << 30).await;
        time::timeout(Duration::from_secs(10), served).await.expect("it waits for ever").unwrap();

        let length = 24 << 20;
        let (mut client, served, _folder) = slow_client(Patience { stall: SHORT * 10, ..LASTING }, length).await;
        let (mut taken, mut part) = (0, vec![0; 2 << 20]);
        loop {
            let read = client.read(&mut part).await.unwrap();
            if read == 0 {
                break;
            }
            taken += read as u64;
            time::sleep(SHORT / 4).await;
        }
        assert!(taken > length, "{taken} of {length} bytes and a head");
        served.await.unwrap();
    }

    #[tokio::test]
    async fn a_file_that_is_cut_off_meanwhile_ends_the_connection_short_of_what_was_promised() {
        let length = 1 << 30;
        let (mut client, served, folder) = slow_client(LASTING, length).await;
        std::fs::File::options().write(true).open(folder.path().join("image")).unwrap().set_len(0).unwrap();
        let mut taken = 0;
        let mut part = vec![0; 1 << 20];
        while let Ok(read @ 1..) = client.read(&mut part).await {
            taken += read as u64;
        }
        assert!(taken < length, "{taken} bytes");
        served.await.unwrap();
    }

    #[tokio::test]
    async fn stopping_closes_an_idle_connection() {
        let (client, stop, served) = connection(LASTING).await;
        stop.send(()).unwrap();
        assert_eq!(rest(client).await, "");
        served.await.unwrap();
    }
}
