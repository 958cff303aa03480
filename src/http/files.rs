//! An operator's own files under `/files/`: kernels, initrds, wimboot, ISO images. RFC 9110.
//!
//! No path leads out of the folder ([`Folder`]). Only plain files are served; folders are not listed. Whoever is on the wire
//! may read everything in it.
//!
//! Files are as large as they like, and many machines fetch the same one at once. So their bytes never come here: the kernel
//! moves them from its cache into the socket (`sendfile(2)`). Where they are not in its cache it waits for the disk, so that
//! is done on a thread where waiting does no harm; to wait for a slow client is not, and takes no thread.

use std::fmt::Write;
use std::fs::File;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE};
use axum::http::{HeaderName, Method, Request, StatusCode};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use rustix::net::SendFlags;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time;

use super::boot::{Wanted, unescape, wanted};
use super::head;
use crate::app::folder::Folder;

/// Where files are, in paths.
const PLACE: &str = "/files/";
/// Bytes that are sent at once by a thread, before others have their turn: large enough that to change threads costs little.
const CHUNK: u64 = 1 << 20;
/// Threads that send files at once. A disk serves no more in parallel to its profit, and what is in the cache takes each
/// of them some tenths of a millisecond.
const SENDERS: usize = 32;

/// The folder that is served.
#[derive(Debug)]
pub struct Files {
    folder: Folder,
    senders: Semaphore,
}

/// An answer, whose body is words or a part of a file.
struct Answer {
    status: StatusCode,
    fields: Vec<(HeaderName, String)>,
    body: Body,
}

enum Body {
    Words(String),
    Part(Arc<File>, Range<u64>),
}

impl Files {
    /// Serves this folder.
    ///
    /// # Errors
    /// There is no such folder, or it may not be read.
    pub fn open(folder: &Path) -> io::Result<Self> {
        Ok(Self { folder: Folder::open(folder)?, senders: Semaphore::new(SENDERS) })
    }

    /// Whether this is a request for one of these files.
    pub(super) fn answers(request: &Request<()>) -> bool {
        matches!(*request.method(), Method::GET | Method::HEAD) && request.uri().path().starts_with(PLACE)
    }

    /// Answers a request for a file. Whether the connection goes on after it.
    ///
    /// # Errors
    /// The client has gone, or takes nothing for as long as `stall`; or the file was cut off meanwhile: what was promised
    /// cannot be sent any more, the connection must end, and the client sees that.
    pub(super) async fn answer(
        self: &Arc<Self>,
        stream: &Arc<TcpStream>,
        peer: SocketAddr,
        request: &Request<()>,
        stall: Duration,
    ) -> io::Result<bool> {
        tracing::trace!(%peer, method = %request.method(), uri = %request.uri(), "HTTP request for a file");
        let goes_on = head::keeps(request) && !head::has_body(request);
        let answer = self.look_up(peer, request).await;
        let mut bytes = answer.head(goes_on);
        match answer.body {
            Body::Words(words) if request.method() == Method::GET => {
                bytes.extend_from_slice(words.as_bytes());
                send(stream, &bytes, SendFlags::NOSIGNAL, stall).await?;
            }
            Body::Part(file, range) if request.method() == Method::GET && !range.is_empty() => {
                // The head goes out with the file's first bytes.
                send(stream, &bytes, SendFlags::NOSIGNAL | SendFlags::MORE, stall).await?;
                self.send_file(stream, &file, range, stall).await?;
            }
            _ => send(stream, &bytes, SendFlags::NOSIGNAL, stall).await?,
        }
        Ok(goes_on)
    }

    async fn look_up(self: &Arc<Self>, peer: SocketAddr, request: &Request<()>) -> Answer {
        let path = request.uri().path();
        let name = unescape(path.strip_prefix(PLACE).unwrap_or_default().as_bytes());
        let kind = content_type(&name);
        let files = Arc::clone(self);
        let found =
            tokio::task::spawn_blocking(move || files.folder.find(&name)).await.map_err(io::Error::other).flatten();
        let (file, length) = match found {
            Ok(found) => found,
            Err(error) => return refuse(peer, path, &error),
        };
        let whole = usize::try_from(length).unwrap_or(usize::MAX);
        let wanted = if request.method() == Method::GET { wanted(request.headers(), whole) } else { Wanted::Whole };
        let (status, range, part) = match wanted {
            Wanted::Whole => (StatusCode::OK, 0..length, None),
            Wanted::Part(range) => {
                let part = format!("bytes {}-{}/{length}", range.start(), range.end());
                (StatusCode::PARTIAL_CONTENT, *range.start() as u64..*range.end() as u64 + 1, Some(part))
            }
            Wanted::Impossible => {
                return Answer {
                    status: StatusCode::RANGE_NOT_SATISFIABLE,
                    fields: vec![(CONTENT_RANGE, format!("bytes */{length}"))],
                    body: Body::Words(format!("it has {length} bytes\n")),
                };
            }
        };
        let mut fields = vec![(CONTENT_TYPE, kind.to_owned()), (ACCEPT_RANGES, "bytes".to_owned())];
        fields.extend(part.map(|part| (CONTENT_RANGE, part)));
        Answer { status, fields, body: Body::Part(Arc::new(file), range) }
    }

    async fn send_file(
        &self,
        stream: &Arc<TcpStream>,
        file: &Arc<File>,
        range: Range<u64>,
        stall: Duration,
    ) -> io::Result<()> {
        let mut left = range;
        while !left.is_empty() {
            patiently(stall, stream.writable()).await?;
            let _turn = self.senders.acquire().await.map_err(io::Error::other)?;
            let (stream, file) = (Arc::clone(stream), Arc::clone(file));
            let chunk = left.start..left.end.min(left.start.saturating_add(CHUNK));
            let sent = tokio::task::spawn_blocking(move || send_now(&stream, &file, chunk));
            left.start = sent.await.map_err(io::Error::other)??;
        }
        Ok(())
    }
}

/// Sends what the socket takes of this part of a file; where it stopped. It may wait for a disk, but not for the client.
fn send_now(stream: &TcpStream, file: &File, part: Range<u64>) -> io::Result<u64> {
    let mut at = part.start;
    while at < part.end {
        let count = usize::try_from(part.end - at).unwrap_or(usize::MAX);
        // Through tokio, which else would not know that the socket is full.
        match stream.try_io(Interest::WRITABLE, || Ok(rustix::fs::sendfile(stream, file, Some(&mut at), count)?)) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file was cut off meanwhile")),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
    }
    Ok(at)
}

async fn send(stream: &TcpStream, mut bytes: &[u8], flags: SendFlags, stall: Duration) -> io::Result<()> {
    while !bytes.is_empty() {
        let sending = stream.async_io(Interest::WRITABLE, || Ok(rustix::net::send(stream, bytes, flags)?));
        let sent = patiently(stall, sending).await?;
        bytes = &bytes[sent..];
    }
    Ok(())
}

async fn patiently<T>(stall: Duration, waiting: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let gone = |_| io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing more");
    time::timeout(stall, waiting).await.map_err(gone)?
}

impl Answer {
    /// The head, up to the empty line. Its length is said for HEAD too, where no body says it.
    fn head(&self, goes_on: bool) -> Vec<u8> {
        let length = match &self.body {
            Body::Words(words) => words.len() as u64,
            Body::Part(_, range) => range.end - range.start,
        };
        let mut text = format!("HTTP/1.1 {}\r\n{CONTENT_LENGTH}: {length}\r\n", self.status);
        let never = "a string takes what is written";
        for (name, value) in &self.fields {
            write!(text, "{name}: {value}\r\n").expect(never);
        }
        // A clock before the year 0 has no date to give (RFC 9110 §6.6.1).
        if let Ok(now) = DateTimePrinter::new().timestamp_to_rfc9110_string(&Timestamp::now()) {
            write!(text, "date: {now}\r\n").expect(never);
        }
        text.push_str(if goes_on { "\r\n" } else { "connection: close\r\n\r\n" });
        text.into_bytes()
    }
}

/// Why there is no file; a stranger learns no more than that there is none.
fn refuse(peer: SocketAddr, path: &str, error: &io::Error) -> Answer {
    if error.kind() == io::ErrorKind::NotFound {
        tracing::info!(%peer, path, "HTTP: no such file");
    } else {
        tracing::warn!(%peer, path, %error, "HTTP: a file is not served");
    }
    let fields = vec![(CONTENT_TYPE, "text/plain; charset=utf-8".to_owned())];
    Answer { status: StatusCode::NOT_FOUND, fields, body: Body::Words("no such file\n".to_owned()) }
}

/// What firmware and people take a file for, by its name (UEFI 2.10 §24.7.4).
fn content_type(path: &[u8]) -> &'static str {
    let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
    let dot = name.iter().rposition(|b| *b == b'.').unwrap_or(name.len());
    let extension = name.get(dot + 1..).unwrap_or_default().to_ascii_lowercase();
    match &extension[..] {
        b"efi" => "application/efi",
        b"iso" => "application/vnd.efi-iso",
        b"img" => "application/vnd.efi-img",
        b"txt" | b"ipxe" | b"cfg" | b"conf" | b"ks" | b"sh" => "text/plain; charset=utf-8",
        b"json" => "application/json",
        b"xml" => "application/xml",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_firmware_what_a_file_is() {
        for (path, kind) in [
            ("a/wimboot", "application/octet-stream"),
            ("x/BOOTX64.EFI", "application/efi"),
            ("debian.iso", "application/vnd.efi-iso"),
            ("x.efi/iso", "application/octet-stream"),
            ("a.d/menu.ipxe", "text/plain; charset=utf-8"),
        ] {
            assert_eq!(content_type(path.as_bytes()), kind, "{path}");
        }
    }
}
