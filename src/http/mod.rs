//! Adapter: HTTP/1.1. Boot files over TCP ([`boot`]), and the control socket that the command line talks to ([`control`]).

pub mod boot;
mod connection;
pub mod control;
pub mod files;
mod head;
