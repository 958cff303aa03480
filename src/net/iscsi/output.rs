//! What waits to be sent: chunks that leave in as few writes as the socket takes.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use tokio::net::TcpStream;

/// Chunks in one write. More than this many replies at one wake-up is rare, and the rest follows at once.
const MAX_SLICES: usize = 32;

#[derive(Debug, Default)]
pub(super) struct Output {
    chunks: VecDeque<Vec<u8>>,
    /// Bytes of the first chunk that are sent.
    sent: usize,
    length: usize,
}

impl Output {
    pub(super) fn push(&mut self, chunk: Vec<u8>) {
        if !chunk.is_empty() {
            self.length += chunk.len();
            self.chunks.push_back(chunk);
        }
    }

    /// Bytes that wait.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// Sends what the socket takes now.
    pub(super) fn send(&mut self, stream: &TcpStream) -> io::Result<()> {
        while self.length > 0 {
            let mut slices = Vec::with_capacity(self.chunks.len().min(MAX_SLICES));
            let mut skip = self.sent;
            for chunk in self.chunks.iter().take(MAX_SLICES) {
                slices.push(IoSlice::new(&chunk[skip..]));
                skip = 0;
            }
            match stream.try_write_vectored(&slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn advance(&mut self, written: usize) {
        self.length -= written;
        self.sent += written;
        while let Some(first) = self.chunks.front().filter(|first| first.len() <= self.sent) {
            self.sent -= first.len();
            self.chunks.pop_front();
        }
    }
}
