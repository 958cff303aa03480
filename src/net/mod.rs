//! Adapters: sockets.

pub mod tftp;
