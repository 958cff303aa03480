//! Adapter: HTTP.

pub mod control;
