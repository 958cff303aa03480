//! Which machines run iPXE at this moment and were told by us how to boot: whoever wants to help such a machine asks here.
//!
//! Not here: the record of a boot ([`super::recorder`]), which outlives it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::fleet::{Mac, Timestamp};

/// How long after iPXE's last packet to DHCP its machine is taken to run it still: longer than it looks for a router (16 s).
pub const LASTS: Duration = Duration::from_secs(30);

/// Machines that are remembered at once, so that a flood of made-up ones costs little. As many as a mapping file has.
const MAX_MACHINES: usize = 4_096;

/// How often at most all of them are looked at, where there are more.
const TIDY: Duration = Duration::from_secs(1);

/// The machines that iPXE brings up now.
#[derive(Debug, Default)]
pub struct Booting {
    asked: Mutex<Asked>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Asked {
    at: HashMap<Mac, Timestamp>,
    tidied: Timestamp,
}

impl Booting {
    /// iPXE on this machine asked DHCP, and was answered.
    pub fn saw(&self, mac: Mac, now: Timestamp) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.at.len() >= MAX_MACHINES && !asked.at.contains_key(&mac) {
            if now.since(asked.tidied) >= TIDY {
                asked.at.retain(|_, at| now.since(*at) < LASTS);
                asked.tidied = now;
            }
            if asked.at.len() >= MAX_MACHINES {
                return;
            }
        }
        asked.at.insert(mac, now);
        drop(asked);
        self.news.notify_one();
    }

    /// Whether iPXE runs on this machine.
    #[must_use]
    pub fn runs_ipxe(&self, mac: Mac, now: Timestamp) -> bool {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.at.get(&mac).is_some_and(|at| now.since(*at) < LASTS)
    }

    /// Waits until a machine was seen; what was seen since the last call counts. For one task.
    pub async fn news(&self) {
        self.news.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(number: u32) -> Mac {
        let [_, a, b, c] = number.to_be_bytes();
        Mac::from_octets([0x52, 0x54, 0, a, b, c]).unwrap()
    }

    #[test]
    fn a_machine_is_known_for_a_while_and_a_flood_makes_room_when_it_is_over() {
        let booting = Booting::default();
        let most = u32::try_from(MAX_MACHINES).unwrap();
        for number in 0..most {
            booting.saw(mac(number), Timestamp(0));
        }
        booting.saw(mac(most), Timestamp(1));
        assert!(booting.runs_ipxe(mac(0), Timestamp(29_999)) && !booting.runs_ipxe(mac(most), Timestamp(1)));
        booting.saw(mac(most), Timestamp(30_000));
        assert!(booting.runs_ipxe(mac(most), Timestamp(30_000)) && !booting.runs_ipxe(mac(0), Timestamp(30_000)));
        assert_eq!(booting.asked.lock().unwrap().at.len(), 1);
    }
}
