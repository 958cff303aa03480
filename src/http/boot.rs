//! Boot files over TCP: loaders for UEFI HTTP boot and for iPXE, and each machine's own script. RFC 9110 and 9112.
//!
//! Files are found by the last part of the path, at any depth, as by TFTP ([`Name::of`]). An address with `mac=` says for
//! which machine a script is meant, in every spelling of a MAC.
//!
//! Anybody on the wire can ask for anybody's script: its disk opens only for the right name *and* address, and a secret
//! stands in it only for an address that is known to be its machine's. But what was *seen* of a machine decides who that is. So a fetch counts as a sighting only where
//! the address it came from is known to be that machine's, from its lease or from the kernel's neighbours: else a
//! stranger could name another's MAC and be taken for it. By the same proof a boot begins
//! ([`App::begin_boot`](crate::app::App::begin_boot)), and the answer waits until the machine's disk is ready for it.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::{
    ACCEPT_RANGES, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, IF_RANGE, RANGE,
};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time;

use super::connection::{self, Answering, PATIENCE};
use super::files::Files;
use crate::app::bootfiles::{Begun, BootContext, BootFile, Kind, Name, SCRIPT};
use crate::app::packets::{Decision, Direction, Packet, Protocol};
use crate::fleet::{Mac, Secrets};
use crate::script::{self, ScriptError};
use crate::sys::{Taken, Transport};

/// Most connections at once; further ones wait in the kernel's queue. Like TFTP's, below half of the 1,024 descriptors that
/// a process usually has.
pub const MAX_CONNECTIONS: usize = 384;
/// Most connections of one address. iPXE has one; a browser has six.
pub const MAX_PER_CLIENT: usize = 16;
/// How long answers under way may take after the server was asked to stop.
pub const DRAIN: Duration = Duration::from_secs(5);
/// Wait after a failure to accept (no descriptors left), so that one that lasts does not fill the log.
const PAUSE: Duration = Duration::from_millis(200);

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Somebody has the port.
    #[error("cannot serve HTTP: {0}: stop it, or have it listen on another port or address")]
    Taken(Taken),
    /// The address is not ours, or its port needs a privilege.
    #[error("cannot serve HTTP on {address}: {source}{}", hint(source))]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; run as root or give CAP_NET_BIND_SERVICE",
        _ => "",
    }
}

/// The boot files at every path.
pub fn router(boot: Arc<BootContext>) -> Router {
    Router::new().fallback(answer).with_state(boot)
}

/// An HTTP server that listens.
#[derive(Debug)]
pub struct BootServer {
    listener: TcpListener,
    address: SocketAddr,
    files: Option<Arc<Files>>,
}

impl BootServer {
    /// Listens on this address. Port 0 takes any that is free.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn bind(address: impl Into<SocketAddr>) -> Result<Self, HttpError> {
        let address = address.into();
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => HttpError::Taken(Taken::find(Transport::Tcp, address)),
            _ => HttpError::Bind { address, source },
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, files: None })
    }

    /// The same, with an operator's files under `/files/`.
    #[must_use]
    pub fn with_files(self, files: Option<Arc<Files>>) -> Self {
        Self { files, ..self }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is done; then answers under way have [`DRAIN`] to end.
    pub async fn run(self, router: Router, stop: impl Future<Output = ()>) {
        let answering = Answering { router, files: self.files };
        let mut stop = std::pin::pin!(stop);
        let (stopping, _) = watch::channel(false);
        let per_client = PerClient::default();
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = &mut stop => break,
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                    Ok((stream, peer)) => {
                        let Some(seat) = per_client.seat(peer.ip()) else {
                            tracing::debug!(%peer, "HTTP: too many connections of one address");
                            continue;
                        };
                        let stopped = stopped(stopping.subscribe());
                        let answering = answering.clone();
                        connections.spawn(async move {
                            serve(stream, peer, answering, stopped).await;
                            drop(seat);
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "HTTP: cannot accept connections");
                        time::sleep(PAUSE).await;
                    }
                },
            }
        }
        stopping.send_replace(true);
        let drained = async { while connections.join_next().await.is_some() {} };
        if time::timeout(DRAIN, drained).await.is_err() {
            tracing::info!("HTTP: connections that had not ended were closed");
        }
    }
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    // The sender outlives every connection; were it gone, stopping would be right too.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

async fn serve(stream: TcpStream, peer: SocketAddr, answering: Answering, stopped: impl Future<Output = ()>) {
    // Answers are written whole; waiting for more to put into a segment only delays them.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "HTTP: no TCP_NODELAY");
    }
    connection::serve(stream, peer, answering, PATIENCE, stopped).await;
}

/// How many connections each address has.
#[derive(Debug, Clone, Default)]
struct PerClient(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection's place among those of its address; given back when dropped.
struct Seat {
    of: PerClient,
    address: IpAddr,
}

impl PerClient {
    fn seat(&self, address: IpAddr) -> Option<Seat> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= MAX_PER_CLIENT {
            return None;
        }
        *count += 1;
        Some(Seat { of: self.clone(), address })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

async fn answer(
    State(boot): State<Arc<BootContext>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let (method, uri) = (request.method(), request.uri());
    tracing::trace!(%peer, %method, %uri, "HTTP request");
    if method != Method::GET && method != Method::HEAD {
        return only_read();
    }
    let path = unescape(uri.path().as_bytes());
    let mac = mac_of(uri.query().unwrap_or_default());
    let asked = format!("{method} {uri}");
    let decided = |decision, code, reason: String| keep(&boot, mac, peer, &asked, decision, code, reason);
    boot.asked(&path, machine_at(&boot, peer));
    let mut file = match find(&boot, &path, mac, None) {
        Ok(Some(file)) => file,
        Ok(None) => {
            tracing::info!(%peer, path = %uri.path(), "HTTP: no such boot file");
            decided(Decision::Refused, "no-such-file", "there is no such boot file".to_owned());
            return (StatusCode::NOT_FOUND, "no such boot file\n").into_response();
        }
        Err(error) => {
            decided(Decision::Refused, "no-script", error.to_string());
            return no_script(peer, &error);
        }
    };
    let mut wanted = if method == Method::GET { wanted(request.headers(), file.bytes.len()) } else { Wanted::Whole };
    if method == Method::GET && wanted.begins() {
        match begin(&boot, &file, mac, peer).await {
            Ok(begun) => {
                if let Some(secrets) = begun.as_ref().and_then(|begun| begun.secrets.as_ref()) {
                    match find(&boot, &path, mac, Some(secrets)) {
                        Ok(found) => file = found.unwrap_or(file),
                        Err(error) => return no_script(peer, &error),
                    }
                    wanted = Wanted::Whole;
                }
                let disk = begun.and_then(|begun| begun.disk.words(begun.policy));
                note(&boot, &file, mac, peer, disk);
            }
            Err(why) => {
                decided(Decision::Refused, "withheld", why.to_string());
                return (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response();
            }
        }
    }
    let reason = match &wanted {
        Wanted::Part(range) => format!("{}, bytes {} to {}", file.name, range.start(), range.end()),
        _ => format!("{}, {} bytes", file.name, file.bytes.len()),
    };
    decided(Decision::Answered, "served", reason);
    respond(&file, wanted)
}

/// Keeps a request among the packets of the machine that it is from, as the kernel's neighbours say, or else of that for which
/// it asks.
fn keep(
    boot: &BootContext,
    named: Option<Mac>,
    peer: SocketAddr,
    asked: &str,
    decision: Decision,
    code: &'static str,
    reason: String,
) {
    let (what, reason) = (asked.to_owned().into(), reason.into());
    let (direction, protocol) = (Direction::In, Protocol::Http);
    let packet = Packet { direction, protocol, what, decision, code, reason, datagram: None };
    boot.keep(machine_at(boot, peer).or(named), packet);
}

/// Which machine asks.
fn machine_at(boot: &BootContext, peer: SocketAddr) -> Option<Mac> {
    (boot.resolver)(peer.ip())
}

/// The answer to whoever wants to change something.
fn only_read() -> Response {
    (StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, "GET, HEAD")], "boot files can only be read: GET or HEAD\n")
        .into_response()
}

fn no_script(peer: SocketAddr, error: &ScriptError) -> Response {
    tracing::error!(%peer, %error, "HTTP: no script");
    (StatusCode::INTERNAL_SERVER_ERROR, "the script cannot be made; see the server's log\n").into_response()
}

fn find(
    boot: &BootContext,
    path: &[u8],
    mac: Option<Mac>,
    secrets: Option<&Secrets>,
) -> Result<Option<BootFile>, ScriptError> {
    if Name::of(path) == Some(Name::Script) && mac.is_none() {
        let script = script::nameless(&boot.server)?;
        return Ok(Some(BootFile { name: SCRIPT.into(), kind: Kind::Hook, bytes: script.into() }));
    }
    boot.lookup_with(path, mac, secrets)
}

/// With its script a machine begins to boot.
async fn begin(boot: &BootContext, file: &BootFile, named: Option<Mac>, peer: SocketAddr) -> Begun {
    let (Kind::Script, Some(mac)) = (file.kind, named) else { return Ok(None) };
    (boot.begin)(mac, peer.ip()).await.inspect_err(|why| boot.withheld(mac, why))
}

/// Reports a fetch, and a sighting where the address proves it (see the module's words).
fn note(boot: &BootContext, file: &BootFile, named: Option<Mac>, peer: SocketAddr, disk: Option<&str>) {
    let address = peer.ip();
    let resolved = (boot.resolver)(address);
    match file.kind {
        Kind::Hook | Kind::Plain => {}
        Kind::Loader => boot.fetched(file, resolved, "HTTP", None),
        Kind::Script => {
            boot.fetched_with(file, named, "HTTP", None, disk);
            match (named, resolved) {
                (Some(named), Some(resolved)) if named == resolved => {
                    // Disks are opened over IPv4 alone: by IPv6 nothing new of its address is learned.
                    boot.recorder.saw(named, if let IpAddr::V4(address) = address { Some(address) } else { None });
                }
                (Some(named), other) => {
                    let resolved = other.map(|mac| mac.to_string());
                    tracing::debug!(%address, %named, resolved, "HTTP: a script fetched from an address not known to be that machine's");
                }
                (None, _) => {}
            }
        }
    }
}

/// What part of a file a request wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    Whole,
    Part(RangeInclusive<usize>),
    Impossible,
}

impl Wanted {
    fn begins(&self) -> bool {
        match self {
            Self::Whole => true,
            Self::Part(range) => *range.start() == 0,
            Self::Impossible => false,
        }
    }
}

/// Reads `Range` (RFC 9110 §14.2). What is no single range of bytes is answered with the whole file, which is allowed; and
/// so is a range that is meant for a certain state of the file alone (§13.1.5), because nobody was ever told one.
pub(super) fn wanted(headers: &HeaderMap, length: usize) -> Wanted {
    if headers.contains_key(IF_RANGE) {
        return Wanted::Whole;
    }
    let mut values = headers.get_all(RANGE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Wanted::Whole };
    value.to_str().ok().and_then(|value| range(value, length)).unwrap_or(Wanted::Whole)
}

fn range(value: &str, length: usize) -> Option<Wanted> {
    let (unit, set) = value.split_once('=')?;
    let (first, last) = set.trim().split_once('-')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") || set.contains(',') {
        return None;
    }
    let end = length.checked_sub(1);
    let range = match (first.trim_end(), last.trim_start()) {
        ("", suffix) => {
            let suffix = position(suffix)?;
            end.filter(|_| suffix > 0).map(|end| length.saturating_sub(suffix)..=end)
        }
        (first, "") => {
            let first = position(first)?;
            end.filter(|end| first <= *end).map(|end| first..=end)
        }
        (first, last) => {
            let (first, last) = (position(first)?, position(last)?);
            if last < first {
                return None;
            }
            end.filter(|end| first <= *end).map(|end| first..=last.min(end))
        }
    };
    Some(range.map_or(Wanted::Impossible, Wanted::Part))
}

/// Digits only (no sign), as large as they may be.
fn position(digits: &str) -> Option<usize> {
    let valid = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    valid.then(|| digits.parse().unwrap_or(usize::MAX))
}

fn respond(file: &BootFile, wanted: Wanted) -> Response {
    let length = file.bytes.len();
    let kind = match file.kind {
        Kind::Hook | Kind::Script => "text/plain; charset=utf-8",
        // UEFI firmware takes a download for a program by this type, or by its name (UEFI 2.10 §24.7.4).
        Kind::Loader if file.name.ends_with(".efi") => "application/efi",
        Kind::Loader | Kind::Plain => "application/octet-stream",
    };
    let (status, bytes, part) = match wanted {
        Wanted::Whole => (StatusCode::OK, file.bytes.clone(), None),
        Wanted::Part(range) => {
            let part = format!("bytes {}-{}/{length}", range.start(), range.end());
            (StatusCode::PARTIAL_CONTENT, file.bytes.slice(range), Some(part))
        }
        Wanted::Impossible => {
            let part = format!("bytes */{length}");
            let words = format!("{} has {length} bytes\n", file.name);
            return (StatusCode::RANGE_NOT_SATISFIABLE, [(CONTENT_RANGE, part)], words).into_response();
        }
    };
    // The length is said here, because the answer to HEAD has no body that would say it.
    let headers = [
        (CONTENT_TYPE, kind.to_owned()),
        (CONTENT_LENGTH, bytes.len().to_string()),
        (ACCEPT_RANGES, "bytes".to_owned()),
        // A script depends on the moment, and a loader on what is installed.
        (CACHE_CONTROL, "no-store".to_owned()),
    ];
    let mut response = (status, headers, Body::from(bytes)).into_response();
    if let Some(value) = part.and_then(|part| part.parse().ok()) {
        response.headers_mut().insert(CONTENT_RANGE, value);
    }
    response
}

/// The machine that a query names: `mac=52-54-00-aa-00-01`, in every spelling.
fn mac_of(query: &str) -> Option<Mac> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix("mac="))?;
    std::str::from_utf8(&unescape(value.as_bytes())).ok()?.parse().ok()
}

/// Undoes `%5C` (RFC 3986 §2.1); what is no such escape stays as it is.
pub(super) fn unescape(text: &[u8]) -> Vec<u8> {
    let digit = |b: Option<&u8>| b.and_then(|b| char::from(*b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        if let (b'%', Some(high), Some(low)) = (first, digit(after.first()), digit(after.get(1))) {
            out.push(high << 4 | low);
            rest = &after[2..];
        } else {
            out.push(*first);
            rest = after;
        }
    }
    out
}
