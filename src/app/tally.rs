//! What went wrong at the iSCSI port, in numbers: each case is counted, and logged at most once for each connection.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

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
    /// PDUs that did not match their digest. Those of them that could be rejected count there too.
    pub bad_digests: Count,
    /// Sessions that were ended because nothing came from their initiator any more.
    pub dead: Count,
}

/// The counters, for programs and people. Each is since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TallyReport {
    /// [`Tally::turned_away`].
    pub turned_away: u64,
    /// [`Tally::slow_logins`].
    pub slow_logins: u64,
    /// [`Tally::refused_logins`].
    pub refused_logins: u64,
    /// [`Tally::broken`].
    pub broken: u64,
    /// [`Tally::rejected`].
    pub rejected: u64,
    /// [`Tally::bad_digests`].
    pub bad_digests: u64,
    /// [`Tally::dead`].
    pub dead: u64,
}

impl Tally {
    /// What was counted so far.
    #[must_use]
    pub fn report(&self) -> TallyReport {
        TallyReport {
            turned_away: self.turned_away.count(),
            slow_logins: self.slow_logins.count(),
            refused_logins: self.refused_logins.count(),
            broken: self.broken.count(),
            rejected: self.rejected.count(),
            bad_digests: self.bad_digests.count(),
            dead: self.dead.count(),
        }
    }
}

impl TallyReport {
    /// What there is to say, a line each: nothing of what never happened.
    #[must_use]
    pub fn in_words(&self) -> Vec<String> {
        let lines = [
            (self.turned_away, "connections closed before their login, to make room"),
            (self.slow_logins, "logins that took too long"),
            (self.refused_logins, "logins refused"),
            (self.broken, "connections closed that broke the protocol"),
            (self.rejected, "PDUs rejected"),
            (self.bad_digests, "PDUs spoilt on their way (digests)"),
            (self.dead, "sessions ended whose initiator answered no more"),
        ];
        lines.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect()
    }
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
