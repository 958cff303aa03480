//! Asking the running process, over its Unix socket.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::error::{Error, Kind};
use crate::app::report::ErrorReport;
use crate::http::control::SOCKET;

/// How long the process may take to answer: it reads its store and a file for each client, or has 10 s for a new disk.
const PATIENCE: Duration = Duration::from_secs(15);

/// Most bytes of an answer: some KiB for each of a thousand clients.
const MAX_ANSWER: usize = 16 << 20;

/// What came of asking.
#[derive(Debug)]
pub(super) enum Answer<T> {
    /// The process's answer.
    Got(T),
    /// There is no such thing; in its words.
    NotFound(Error),
    /// Nobody listens: no `roost run` has this state folder.
    NothingRuns,
}

/// Asks the process that has this state folder.
pub(super) fn ask<T: DeserializeOwned>(state: &Path, path: &str) -> Result<Answer<T>, Error> {
    speak(state, &Method::GET, path, Bytes::new())
}

/// Tells the process that has this state folder to do something.
pub(super) fn tell<T: DeserializeOwned>(state: &Path, path: &str, what: &impl Serialize) -> Result<Answer<T>, Error> {
    let body = serde_json::to_vec(what).map_err(Error::failed)?;
    speak(state, &Method::POST, path, body.into())
}

/// Tells the process that has this state folder to remove something.
pub(super) fn remove(state: &Path, path: &str) -> Result<Answer<()>, Error> {
    speak(state, &Method::DELETE, path, Bytes::new())
}

fn speak<T: DeserializeOwned>(state: &Path, method: &Method, path: &str, body: Bytes) -> Result<Answer<T>, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::failed)?;
    let socket = state.join(SOCKET);
    let silent = || {
        Error::failed(format!("the roost behind {} does not answer", socket.display()))
            .help("its log says what it is doing; `kill` stops it")
    };
    runtime.block_on(async {
        let answered =
            tokio::time::timeout(PATIENCE, exchange(&socket, method, path, body)).await.map_err(|_| silent())?;
        let Some((status, body)) = answered? else { return Ok(Answer::NothingRuns) };
        let odd = |error: serde_json::Error| {
            Error::failed(format!("the running roost's answer cannot be read: {error}"))
                .help("it may be of another version than this command; restart it")
        };
        if status == StatusCode::OK {
            return serde_json::from_slice(&body).map(Answer::Got).map_err(odd);
        }
        let ErrorReport { error, help } = serde_json::from_slice(&body).map_err(odd)?;
        let kind = match status {
            StatusCode::NOT_FOUND | StatusCode::CONFLICT => Kind::Refused,
            StatusCode::UNPROCESSABLE_ENTITY => Kind::Configuration,
            _ => Kind::Failed,
        };
        let error = help.into_iter().fold(Error::new(kind, error), Error::help);
        if status == StatusCode::NOT_FOUND { Ok(Answer::NotFound(error)) } else { Err(error) }
    })
}

/// One request, one answer; `None` where nobody listens.
async fn exchange(
    socket: &Path,
    method: &Method,
    path: &str,
    body: Bytes,
) -> Result<Option<(StatusCode, Bytes)>, Error> {
    let cannot = |error: &dyn std::fmt::Display| {
        Error::failed(format!("cannot ask the running roost at {}: {error}", socket.display()))
    };
    let stream = match UnixStream::connect(socket).await {
        Ok(stream) => stream,
        // Without a listener the file is a dead process's.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => return Ok(None),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return Err(cannot(&error).help("run this as root, or as the user that roost runs as"));
        }
        Err(error) => return Err(cannot(&error)),
    };
    let (mut requests, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| cannot(&error))?;
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("host", "roost");
    let request = request.header("content-type", "application/json").body(Full::new(body));
    let request = request.map_err(|error| cannot(&error))?;
    let answer = requests.send_request(request).await.map_err(|error| cannot(&error))?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|error| cannot(&error))?;
    Ok(Some((status, body.to_bytes())))
}
