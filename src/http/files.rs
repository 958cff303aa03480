//! An operator's own files under `/files/`: kernels, initrds, wimboot, ISO images. RFC 9110.
//!
//! The kernel itself keeps a path within the folder (`openat2(2)`, `RESOLVE_BENEATH`): no `..` and no link leads out of it,
//! whatever is changed there meanwhile. Only plain files are served; folders are not listed. Whoever is on the wire may read
//! everything in it.
//!
//! Files are as large as they like, so they are never in memory whole. What the kernel has cached is read in the
//! connection's own task, without a hop to another thread; what it has not, on one where waiting does no harm. A chunk's memory
//! is used again for the next.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use bytes::{Bytes, BytesMut};
use hyper::body::Frame;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::ReadWriteFlags;
use tokio::task::JoinHandle;

use super::boot::{Wanted, only_read, unescape, wanted};

/// Bytes that are read and sent at once: large enough that system calls cost little, small enough for hundreds of connections.
const CHUNK: usize = 256 << 10;

/// Chunks of one answer that are under way at most: one that is sent, and the end of one before it.
const UNDER_WAY: usize = 2;

/// The folder that is served.
#[derive(Debug)]
pub struct Files {
    folder: OwnedFd,
}

impl Files {
    /// Serves this folder.
    ///
    /// # Errors
    /// There is no such folder, or it may not be read.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { folder })
    }

    /// The same router, with the folder's files under `/files/`.
    pub fn mount(self, router: Router) -> Router {
        router.merge(Router::new().route("/files/{*path}", any(answer)).with_state(Arc::new(self)))
    }

    /// The file at this path within the folder, and how long it is. It may wait for a disk.
    fn find(&self, path: &[u8]) -> io::Result<(OwnedFd, u64)> {
        // Without NONBLOCK, to open a pipe would wait for whoever writes into it.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        let within = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let file = fs::File::from(rustix::fs::openat2(&self.folder, path, flags, Mode::empty(), within)?);
        let facts = file.metadata()?;
        if !facts.is_file() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok((file.into(), facts.len()))
    }
}

async fn answer(
    State(files): State<Arc<Files>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    tracing::trace!(%peer, %method, %uri, "HTTP request for a file");
    if method != Method::GET && method != Method::HEAD {
        return only_read();
    }
    let path = unescape(uri.path().strip_prefix("/files/").unwrap_or_default().as_bytes());
    let kind = content_type(&path);
    let found = tokio::task::spawn_blocking(move || files.find(&path)).await.map_err(io::Error::other).flatten();
    let (file, length) = match found {
        Ok(found) => found,
        Err(error) => return refuse(peer, uri.path(), &error),
    };
    let whole = usize::try_from(length).unwrap_or(usize::MAX);
    let wanted = if method == Method::GET { wanted(request.headers(), whole) } else { Wanted::Whole };
    let (status, range, part) = match wanted {
        Wanted::Whole => (StatusCode::OK, 0..length, None),
        Wanted::Part(range) => {
            let part = format!("bytes {}-{}/{length}", range.start(), range.end());
            (StatusCode::PARTIAL_CONTENT, *range.start() as u64..*range.end() as u64 + 1, Some(part))
        }
        Wanted::Impossible => {
            let part = format!("bytes */{length}");
            let words = format!("it has {length} bytes\n");
            return (StatusCode::RANGE_NOT_SATISFIABLE, [(CONTENT_RANGE, part)], words).into_response();
        }
    };
    let left = range.end - range.start;
    let headers =
        [(CONTENT_TYPE, kind.to_owned()), (CONTENT_LENGTH, left.to_string()), (ACCEPT_RANGES, "bytes".to_owned())];
    let body = match method {
        Method::HEAD => Body::empty(),
        _ => Body::new(Chunks { file: Arc::new(file), at: range.start, left, sent: VecDeque::new(), waiting: None }),
    };
    let mut response = (status, headers, body).into_response();
    if let Some(value) = part.and_then(|part| part.parse().ok()) {
        response.headers_mut().insert(CONTENT_RANGE, value);
    }
    response
}

/// Why there is no file; a stranger learns no more than that there is none.
fn refuse(peer: SocketAddr, path: &str, error: &io::Error) -> Response {
    if error.kind() == io::ErrorKind::NotFound {
        tracing::info!(%peer, path, "HTTP: no such file");
    } else {
        tracing::warn!(%peer, path, %error, "HTTP: a file is not served");
    }
    (StatusCode::NOT_FOUND, "no such file\n").into_response()
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

/// The bytes of a file, in chunks.
struct Chunks {
    file: Arc<OwnedFd>,
    at: u64,
    left: u64,
    /// The chunks before: the memory of each is ours again once it is sent.
    sent: VecDeque<Bytes>,
    waiting: Option<JoinHandle<io::Result<BytesMut>>>,
}

impl Chunks {
    fn buffer(&mut self) -> BytesMut {
        let len = usize::try_from(self.left).unwrap_or(CHUNK).min(CHUNK);
        let free = self.sent.iter().position(Bytes::is_unique).and_then(|at| self.sent.remove(at));
        match free.map(Bytes::try_into_mut) {
            Some(Ok(mut buffer)) if buffer.capacity() >= len => {
                buffer.resize(len, 0);
                buffer
            }
            _ => BytesMut::zeroed(len),
        }
    }
}

impl hyper::body::Body for Chunks {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let chunk = if let Some(waiting) = &mut self.waiting {
            let read = ready!(Pin::new(waiting).poll(context));
            self.waiting = None;
            read.map_err(io::Error::other)??
        } else {
            let mut buffer = self.buffer();
            match read_now(&self.file, &mut buffer, self.at) {
                Some(read) => {
                    buffer.truncate(read?);
                    buffer
                }
                None => {
                    let (file, at) = (Arc::clone(&self.file), self.at);
                    let mut waiting = tokio::task::spawn_blocking(move || {
                        let read = rustix::io::pread(&*file, &mut buffer[..], at)?;
                        buffer.truncate(read);
                        Ok(buffer)
                    });
                    let polled = Pin::new(&mut waiting).poll(context);
                    self.waiting = Some(waiting);
                    let read = ready!(polled);
                    self.waiting = None;
                    read.map_err(io::Error::other)??
                }
            }
        };
        if chunk.is_empty() {
            // What was promised cannot be sent any more; the connection ends, and the client sees that.
            return Poll::Ready(Some(Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file was cut off meanwhile",
            ))));
        }
        let read = chunk.len() as u64;
        (self.at, self.left) = (self.at + read, self.left - read);
        let chunk = chunk.freeze();
        if self.sent.len() == UNDER_WAY {
            self.sent.pop_front();
        }
        self.sent.push_back(chunk.clone());
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }
}

/// Reads what the kernel has cached; `None` where it would have to wait, or does not know this.
fn read_now(file: &OwnedFd, buffer: &mut [u8], at: u64) -> Option<io::Result<usize>> {
    use rustix::io::Errno;
    match rustix::io::preadv2(file, &mut [IoSliceMut::new(buffer)], at, ReadWriteFlags::NOWAIT) {
        Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => None,
        read => Some(read.map_err(io::Error::from)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_outside_the_folder_and_nothing_but_files_can_be_opened() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        fs::create_dir_all(inside.join("sub")).unwrap();
        fs::write(inside.join("sub/kernel"), b"kernel").unwrap();
        fs::write(&outside, b"secret").unwrap();
        symlink("../out", inside.join("relative")).unwrap();
        symlink(&outside, inside.join("absolute")).unwrap();
        symlink("/proc/self/root", inside.join("root")).unwrap();
        symlink("sub/kernel", inside.join("within")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, inside.join("pipe"), Mode::RUSR | Mode::WUSR).unwrap();
        let files = Files::open(&inside).unwrap();
        for path in ["sub/kernel", "within", "sub/../sub/kernel", "./sub//kernel"] {
            assert_eq!(files.find(path.as_bytes()).unwrap().1, 6, "{path}");
        }
        for path in [
            "",
            ".",
            "..",
            "sub",
            "sub/",
            "pipe",
            "../out",
            "sub/../../out",
            "/etc/passwd",
            "//etc/passwd",
            "relative",
            "absolute",
            "root/etc/passwd",
            "sub/kernel/",
            "sub/kernel/x",
            "absent",
            "sub\\kernel",
            "sub/kernel\0",
        ] {
            assert!(files.find(path.as_bytes()).is_err(), "{path}");
        }
        assert!(Files::open(&outside).is_err());
    }

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
