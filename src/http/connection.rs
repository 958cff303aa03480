//! One TCP connection of HTTP/1.1, bounded against strangers who send slowly, too much, or nothing.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::time;

/// Longest head of a request. Those of firmware and of iPXE have some 200 bytes; a browser's are below 8 KB.
const MAX_HEAD: usize = 16 << 10;
/// Most header fields of a request.
const MAX_FIELDS: usize = 64;

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// A request's head must be here this long after its connection was made, or after the answer before it.
    head: Duration,
    /// No connection lasts longer.
    life: Duration,
}

/// iPXE asks at once, and keeps a connection only for its next file. An ISO image of 4 GB that 60 machines fetch at once over
/// a wire of 1 Gb/s takes 40 minutes; who is not done by then has gone without a word.
pub(super) const PATIENCE: Patience = Patience { head: Duration::from_secs(15), life: Duration::from_secs(3_600) };

/// Serves one connection until it ends, our patience does, or `stop` is done and the answer under way has been sent.
/// Handlers get `peer` as [`ConnectInfo`].
pub(super) async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    patience: Patience,
    stop: impl Future<Output = ()>,
) {
    let routed = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        routed.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.head)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_FIELDS)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let served = time::timeout(patience.life, async {
        tokio::select! {
            served = connection.as_mut() => served,
            () = stop => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    });
    match served.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "HTTP: a connection failed"),
        Err(_) => tracing::debug!("HTTP: a connection lasted too long"),
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

    /// A client's end of a connection that answers `hello`, and what stops it.
    async fn connection(patience: Patience) -> (TcpStream, oneshot::Sender<()>, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let router = Router::new().route("/", get(async || "hello"));
        let served = tokio::spawn(serve(stream, peer, router, patience, async { drop(stopped.await) }));
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
            let (mut client, _stop, _) = connection(Patience { head: SHORT, life: LONG }).await;
            client.write_all(said.as_bytes()).await.unwrap();
            assert!(!rest(client).await.contains("hello"), "{said:?}");
        }
    }

    #[tokio::test]
    async fn a_kept_connection_without_a_next_request_is_left() {
        let (mut client, _stop, _) = connection(Patience { head: SHORT, life: LONG }).await;
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert!(rest(client).await.ends_with("hello"));
    }

    #[tokio::test]
    async fn no_connection_lasts_for_ever() {
        let (client, _stop, _) = connection(Patience { head: LONG, life: SHORT }).await;
        assert_eq!(rest(client).await, "");
    }

    #[tokio::test]
    async fn stopping_closes_an_idle_connection() {
        let (client, stop, served) = connection(Patience { head: LONG, life: LONG }).await;
        stop.send(()).unwrap();
        assert_eq!(rest(client).await, "");
        served.await.unwrap();
    }
}
