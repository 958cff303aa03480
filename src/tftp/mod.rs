//! TFTP, read requests only, as pure functions: packets in and out, and one state machine for each transfer.
//!
//! RFC 1350 (TFTP), RFC 2347 (options), RFC 2348 (blksize), RFC 2349 (timeout, tsize), RFC 7440 (windowsize).
//!
//! Not here: sockets, clocks, and what a file name means. Whoever has those gives a [`Transfer`] every packet and every
//! timeout with the time at which it happened, and does what the [`Effect`]s say.

#[cfg(test)]
mod model;
pub mod packet;
pub mod transfer;

pub use packet::{ErrorCode, Inbound, Options, Request, parse};
pub use transfer::{Effect, End, Limits, Progress, Transfer};
