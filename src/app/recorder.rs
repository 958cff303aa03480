//! The one place through which adapters say what they saw of a machine: a log line, and a record in the store.

use std::net::Ipv4Addr;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::fleet::{ClientName, Mac, Stage, Timestamp};

/// Takes what adapters saw. Never blocks: what cannot be queued is dropped with a warning.
#[derive(Debug, Clone)]
pub struct Recorder {}

impl Recorder {
    /// A machine reached a stage of its boot.
    pub fn note(&self, mac: Option<Mac>, client: Option<&ClientName>, stage: Stage, detail: &str) {
        let _ = (mac, client, stage, detail);
    }

    /// A machine was seen, using this address where one is known.
    pub fn saw(&self, mac: Mac, address: Option<Ipv4Addr>) {
        let _ = (mac, address);
    }
}

/// The wall clock, read only by adapters.
#[must_use]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
