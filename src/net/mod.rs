//! Adapters: sockets.
