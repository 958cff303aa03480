//! Adapters: sockets.

pub mod udp;
