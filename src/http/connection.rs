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
/// A request's head must be here this long after its connection, or the answer before, was done.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// No connection lasts longer: who has not taken a loader of 1 MB by then has gone without a word.
const MAX_LIFE: Duration = Duration::from_secs(600);

/// Serves one connection until it ends, `MAX_LIFE` is over, or `stop` is done and the answer under way has been sent.
/// Handlers get `peer` as [`ConnectInfo`].
pub(super) async fn serve(stream: TcpStream, peer: SocketAddr, router: Router, stop: impl Future<Output = ()>) {
    let routed = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        routed.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_FIELDS)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let served = time::timeout(MAX_LIFE, async {
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
