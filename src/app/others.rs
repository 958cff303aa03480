//! What is known of other DHCP servers on the clients' wires.
//!
//! Not here: how they are found (`net::dhcp`), and what their answers mean (`dhcp::others`).

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::App;
use super::recorder::now;
use crate::fleet::{Fact, Finding, Mac, Stage, Timestamp};

/// A finding that was not seen again for this long is over: three questions were not answered.
pub const FORGET_AFTER: Duration = Duration::from_secs(16 * 60);

/// Findings that are kept. A lab has two or three servers; a forger can make up any number.
const MAX_FINDINGS: usize = 32;

/// What other DHCP servers do that keeps machines from booting.
#[derive(Debug, Default)]
pub struct Others {
    found: Mutex<Vec<Found>>,
    /// The made-up machine in whose name they are asked.
    asker: OnceLock<Mac>,
}

#[derive(Debug)]
struct Found {
    finding: Finding,
    interface: String,
    first: Timestamp,
    last: Timestamp,
}

/// A finding, for programs and people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindingReport {
    /// What it is, and which server.
    #[serde(flatten)]
    pub finding: Finding,
    /// On which interface.
    pub interface: String,
    /// The sentence.
    pub words: String,
    /// What to change, and where.
    pub help: String,
    /// When it was first seen, in milliseconds since 1970-01-01T00:00Z.
    pub first_ms: u64,
    /// When it was last seen.
    pub last_ms: u64,
}

impl Others {
    /// Says in the name of which made-up machine other servers are asked. It is one for as long as this process runs, so that
    /// they remember no more than one.
    pub fn ask_as(&self, mac: Mac) -> Mac {
        *self.asker.get_or_init(|| mac)
    }

    /// Whether this is that made-up machine: whoever asks in its name is we ourselves.
    #[must_use]
    pub fn is_asker(&self, mac: Mac) -> bool {
        self.asker.get() == Some(&mac)
    }

    /// Takes in a finding; whether it is news.
    fn saw(&self, finding: Finding, interface: &str, now: Timestamp) -> bool {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.retain(|found| now.since(found.last) < FORGET_AFTER);
        if let Some(known) = found.iter_mut().find(|known| known.finding == finding && known.interface == interface) {
            known.last = now;
            return false;
        }
        let room = found.len() < MAX_FINDINGS;
        if room {
            found.push(Found { finding, interface: interface.to_owned(), first: now, last: now });
        }
        room
    }

    /// What is known now.
    #[must_use]
    pub fn report(&self, now: Timestamp) -> Vec<FindingReport> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let current = found.iter().filter(|found| now.since(found.last) < FORGET_AFTER);
        current
            .map(|Found { finding, interface, first, last }| FindingReport {
                words: finding.to_string(),
                help: finding.help(),
                finding: finding.clone(),
                interface: interface.clone(),
                first_ms: first.0,
                last_ms: last.0,
            })
            .collect()
    }
}

impl App {
    /// Another DHCP server was found to do this on this interface: news of it is told to the log and to the store.
    pub fn found(&self, finding: Finding, interface: &str) {
        if self.others.saw(finding.clone(), interface, now()) {
            tracing::warn!("DHCP: {interface}: {finding}; {}", finding.help());
            let words = format!("{interface}: {finding}");
            self.recorder.note_fact(None, None, Stage::Offer, &words, Fact::OtherServer(finding));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(last: u8) -> Finding {
        Finding::SecondServer { server: [10, 9, 0, last].into() }
    }

    #[test]
    fn a_finding_is_news_once_and_over_when_it_is_seen_no_more() {
        let others = Others::default();
        let at = |minutes: u64| Timestamp(minutes * 60_000);
        assert!(others.saw(finding(1), "lan0", at(0)));
        assert!(!others.saw(finding(1), "lan0", at(5)));
        assert!(others.saw(finding(1), "lan1", at(6)), "another wire");
        let report = others.report(at(7));
        assert_eq!((report.len(), report[0].first_ms, report[0].last_ms), (2, 0, 300_000));
        assert_eq!(others.report(at(30)), []);
        assert!(others.saw(finding(1), "lan0", at(40)), "it is back");
    }

    #[test]
    fn made_up_servers_fill_nothing() {
        let others = Others::default();
        let news = (0..=255).filter(|last| others.saw(finding(*last), "lan0", Timestamp(0))).count();
        assert_eq!((news, others.report(Timestamp(1)).len()), (MAX_FINDINGS, MAX_FINDINGS));
    }

    #[test]
    fn one_made_up_machine_asks() {
        let others = Others::default();
        let [one, two] = ["02:00:00:00:00:01", "02:00:00:00:00:02"].map(|mac| mac.parse::<Mac>().unwrap());
        assert!(!others.is_asker(one));
        assert_eq!([others.ask_as(one), others.ask_as(two)], [one, one]);
        assert!(others.is_asker(one) && !others.is_asker(two));
    }
}
