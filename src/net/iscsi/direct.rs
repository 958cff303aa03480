//! Large reads that go from the page cache to the socket without a copy of ours in between (`sendfile(2)`).
//!
//! What the socket does not take at once is copied after all: so all of an answer is as the disk was when it was read, but for
//! what the initiator itself overwrites before it has the answer, which may be old or new in any target.

use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::net::SendFlags;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::output::Output;
use crate::disk::{Disk, SECTOR};
use crate::iscsi::session::Layout;

/// Sends the disk's bytes from `offset` on in a layout without data digests. Nothing waits in `output`; what the socket does
/// not take waits there afterwards. `begin` fills the headers in a buffer, or says that the answer is not wanted any more.
/// `false`, and nothing has begun: it must be [read](Disk::read).
///
/// # Errors
/// The disk's or the socket's. A part of the answer may be sent: the connection cannot go on.
pub(super) fn send(
    stream: &TcpStream,
    output: &mut Output,
    disk: &dyn Disk,
    offset: u64,
    layout: Layout,
    begin: impl FnOnce(&mut [u8]) -> bool,
) -> anyhow::Result<bool> {
    debug_assert_eq!(output.length(), 0, "it would be overtaken");
    let length = layout.wire_length();
    let buffer = output.room(length);
    let mut begin = Some(begin);
    let mut answer = Answer { stream, buffer, headers: layout.headers(), header: 0..0, data: 0, sent: 0 };
    let (mut wanted, mut broken) = (true, None);
    let passed = disk.pass_on(offset, layout.length as u64, &mut |file, at, len| {
        if let Some(begin) = begin.take() {
            wanted = begin(answer.buffer);
        }
        let taken = if wanted { answer.take(file, at, len) } else { Ok(0) };
        taken.unwrap_or_else(|error| {
            broken = Some(error);
            0
        })
    });
    if let Some(error) = broken {
        return Err(error.into());
    }
    let sent = answer.sent;
    // What is wrong with the disk, a read will tell.
    let Ok(Some(passed)) = passed else { return Ok(false) };
    if !wanted {
        return Ok(true);
    }
    if passed < layout.length as u64 {
        // The socket may have stopped within a sector, which is read again; what of it is sent is not looked at.
        let from = passed - passed % SECTOR;
        let mut slices = layout.slices(buffer);
        let mut rest = &mut slices[..];
        IoSliceMut::advance_slices(&mut rest, usize::try_from(from).expect("a command moves at most 1 MiB"));
        // It was in memory a moment ago, so this does not wait.
        disk.read(offset + from, rest)?;
    }
    output.fill(length);
    output.skip(sent);
    Ok(true)
}

/// An answer on its way.
struct Answer<'a, H> {
    stream: &'a TcpStream,
    /// The headers, in the places that the layout has for them; room for the data between them.
    buffer: &'a mut [u8],
    headers: H,
    /// What is to be sent of the PDU at hand: its header, then so many bytes of data.
    header: Range<usize>,
    data: u64,
    /// Bytes sent in all.
    sent: usize,
}

impl<H: Iterator<Item = (Range<usize>, usize)>> Answer<'_, H> {
    /// Sends a part of a file as the next data, with the headers that belong before it; how much of it the socket took.
    fn take(&mut self, file: BorrowedFd<'_>, at: u64, len: u64) -> io::Result<u64> {
        let mut taken = 0;
        while taken < len {
            if self.data == 0 {
                let (header, data) = self.headers.next().expect("the layout has room for all of the data");
                (self.header, self.data) = (header, data as u64);
            }
            if !self.header.is_empty() {
                let sent = send_more(self.stream, &self.buffer[self.header.clone()])?;
                self.header.start += sent;
                self.sent += sent;
                if !self.header.is_empty() {
                    break;
                }
            }
            let wanted = self.data.min(len - taken);
            let sent = send_file(self.stream, file, at + taken, wanted)?;
            self.sent += usize::try_from(sent).expect("a command moves at most 1 MiB");
            self.data -= sent;
            taken += sent;
            if sent < wanted {
                break;
            }
        }
        Ok(taken)
    }
}

/// Sends bytes that more will follow; how many the socket took.
fn send_more(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let flags = SendFlags::MORE | SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    taken(stream.try_io(Interest::WRITABLE, || Ok(rustix::net::send(stream, bytes, flags)?)))
}

/// Sends a part of a file; how much of it the socket took.
fn send_file(stream: &TcpStream, file: BorrowedFd<'_>, at: u64, len: u64) -> io::Result<u64> {
    let mut offset = at;
    while offset < at + len {
        let rest = usize::try_from(at + len - offset).unwrap_or(usize::MAX);
        let send = || Ok(rustix::fs::sendfile(stream, file, Some(&mut offset), rest)?);
        let sent = stream.try_io(Interest::WRITABLE, send);
        if matches!(sent, Ok(0)) {
            // The file has been cut, which nobody does while it is open.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if taken(sent)? == 0 {
            break;
        }
    }
    Ok(offset - at)
}

/// A socket that is full takes nothing.
fn taken(sent: io::Result<usize>) -> io::Result<usize> {
    match sent {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        sent => sent,
    }
}
