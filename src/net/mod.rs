//! Adapters: sockets.

pub mod dhcp;
pub mod udp;
