//! What waits to be sent: chunks that leave in as few writes as the socket takes.
//!
//! Chunks are used again by whichever session of the thread needs one next, so that in steady state nothing is allocated or
//! cleared for a reply, and an idle session holds none.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};

use tokio::net::TcpStream;

/// Chunks in one write. More than this many at one wake-up is rare, and the rest follows at once.
const MAX_SLICES: usize = 32;

/// Bytes of a chunk: the replies of a wake-up, or a read of 256 KiB with its headers. Longer ones have a chunk of their size.
const CHUNK: usize = 320 * 1024;

/// Bytes of chunks that a thread keeps.
const MAX_SPARE: usize = 4 * CHUNK;

thread_local! {
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
struct Chunk {
    bytes: Box<[u8]>,
    /// How many of them wait to be sent, from the first one on.
    used: usize,
}

impl Chunk {
    /// One with room for so many bytes, whatever they are now.
    fn with_room(length: usize) -> Self {
        let spare = SPARE.with_borrow_mut(|spare| {
            let fits = spare.iter().rposition(|bytes| bytes.len() >= length)?;
            Some(spare.swap_remove(fits))
        });
        Self { bytes: spare.unwrap_or_else(|| vec![0; length.max(CHUNK)].into()), used: 0 }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if self.bytes.len() >= CHUNK {
            let bytes = std::mem::take(&mut self.bytes);
            // A thread that ends keeps nothing.
            let _ = SPARE.try_with(|spare| {
                let mut spare = spare.borrow_mut();
                if spare.iter().map(|bytes| bytes.len()).sum::<usize>() + bytes.len() <= MAX_SPARE {
                    spare.push(bytes);
                }
            });
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Output {
    chunks: VecDeque<Chunk>,
    /// Bytes of the first chunk that are sent.
    sent: usize,
    length: usize,
}

impl Output {
    /// Adds a copy of these bytes, and empties them.
    pub(super) fn append(&mut self, bytes: &mut Vec<u8>) {
        if !bytes.is_empty() {
            self.room(bytes.len()).copy_from_slice(bytes);
            self.fill(bytes.len());
            bytes.clear();
        }
    }

    /// Room for so many bytes behind all others, holding whatever it does. They count once they are [filled](Output::fill).
    pub(super) fn room(&mut self, length: usize) -> &mut [u8] {
        if self.chunks.back().is_none_or(|last| last.bytes.len() - last.used < length) {
            self.chunks.push_back(Chunk::with_room(length));
        }
        let last = self.chunks.back_mut().expect("there is one by now");
        &mut last.bytes[last.used..last.used + length]
    }

    /// So many bytes of the room are to be sent.
    pub(super) fn fill(&mut self, length: usize) {
        let last = self.chunks.back_mut().expect("there is room");
        debug_assert!(length <= last.bytes.len() - last.used);
        last.used += length;
        self.length += length;
    }

    /// The first so many bytes of what waits are sent already.
    pub(super) fn skip(&mut self, length: usize) {
        self.advance(length);
        if self.length == 0 {
            self.chunks.clear();
        }
    }

    /// Adds these bytes as they are.
    pub(super) fn push(&mut self, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            self.length += bytes.len();
            self.chunks.push_back(Chunk { used: bytes.len(), bytes: bytes.into() });
        }
    }

    /// Bytes that wait.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// Sends what the socket takes now.
    pub(super) fn send(&mut self, stream: &TcpStream) -> io::Result<()> {
        while self.length > 0 {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let mut skip = self.sent;
            for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
                *slice = IoSlice::new(&chunk.bytes[skip..chunk.used]);
                skip = 0;
            }
            let count = self.chunks.len().min(MAX_SLICES);
            match stream.try_write_vectored(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        // Room that was not filled.
        self.chunks.clear();
        Ok(())
    }

    fn advance(&mut self, written: usize) {
        self.length -= written;
        self.sent += written;
        // A chunk that is all sent goes even where it has room: the next replies begin a fresh one at its front.
        while let Some(first) = self.chunks.front().filter(|first| first.used <= self.sent) {
            self.sent -= first.used;
            self.chunks.pop_front();
        }
    }
}
