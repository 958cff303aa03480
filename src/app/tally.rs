//! What went wrong at the iSCSI port, in numbers: each case is counted, and logged at most once for each connection.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters since the start.
#[derive(Debug, Default)]
pub struct Tally {
    /// Connections that were closed before they had logged in, to make room for others.
    pub turned_away: Count,
    /// Connections that took too long to log in.
    pub slow_logins: Count,
    /// Logins that were refused.
    pub refused_logins: Count,
    /// Connections that were closed because the other end broke the protocol.
    pub broken: Count,
    /// PDUs that were rejected.
    pub rejected: Count,
    /// Sessions that were ended because nothing came from their initiator any more.
    pub dead: Count,
}

/// One counter.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// One more.
    pub fn one(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// How many so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
