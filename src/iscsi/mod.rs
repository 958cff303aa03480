//! RFC 7143, without sockets.
