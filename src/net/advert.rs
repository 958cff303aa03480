//! Answers IPv6's search for a router on behalf of a wire that has none, for machines on which iPXE runs.
//!
//! iPXE of 2019, which distributions still ship, waits 16 s in "Configuring" when nobody answers its router solicitation,
//! though it has an IPv4 address long since. A word that there is no router ends that at once. It goes to the machine that
//! asked and to nobody else, and only while iPXE runs there and was told by us how to boot: a running system, and any other
//! machine of the wire, never hears it.

use std::convert::Infallible;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UdpSocket;
use tracing::{debug, warn};

use crate::app::App;
use crate::app::recorder::now;
use crate::fleet::{Mac, Timestamp};
use crate::sys::{Interface, Solicitation, SolicitationSocket};

/// iPXE looks for a router a moment before it asks DHCP, which tells that it may be answered: so long its question is kept.
/// It asks again after 250 ms, and then ever more seldom.
const KEPT: Duration = Duration::from_secs(2);
/// Questions that are kept at once. Others are asked again.
const MAX_KEPT: usize = 256;
/// How long nothing is read after an error, so that one that stays does not turn into a loop.
const AFTER_ERROR: Duration = Duration::from_millis(200);

/// A listener for router solicitations.
#[derive(Debug)]
pub struct Advertiser {
    app: Arc<App>,
    socket: SolicitationSocket,
    /// The same socket once more, in the hands of tokio, that wakes us.
    wake: UdpSocket,
}

impl Advertiser {
    /// Listens on this interface.
    ///
    /// # Errors
    /// Privileges are missing, or the interface is gone, or it is no Ethernet.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn bind(app: Arc<App>, interface: &Interface) -> io::Result<Self> {
        let mac = interface.mac.ok_or_else(|| io::Error::other("the interface has no hardware address"))?;
        let socket = SolicitationSocket::open(interface.index, mac)?;
        let wake = UdpSocket::from_std(socket.as_fd().try_clone_to_owned()?.into())?;
        Ok(Self { app, socket, wake })
    }

    /// Serves until the future is dropped.
    pub async fn run(self) -> Infallible {
        let Self { app, socket, wake } = self;
        let mut questions = Questions::default();
        loop {
            tokio::select! {
                heard = wake.async_io(Interest::READABLE, || socket.receive()) => match heard {
                    Ok(Some(question)) => questions.hear(question, now()),
                    Ok(None) => continue,
                    Err(error) => {
                        warn!(%error, "IPv6: a router solicitation could not be read");
                        tokio::time::sleep(AFTER_ERROR).await;
                        continue;
                    }
                },
                () = app.booting.news() => {}
            }
            for question in questions.answerable(now(), |mac| app.booting.runs_ipxe(mac, now())) {
                match socket.advertise(&question) {
                    Ok(()) => debug!(address = %question.address, "IPv6: told iPXE that there is no router"),
                    Err(error) => debug!(%error, "IPv6: an answer could not be sent"),
                }
            }
        }
    }
}

/// Questions that wait for a word from DHCP.
#[derive(Debug, Default)]
struct Questions(Vec<(Solicitation, Timestamp)>);

impl Questions {
    fn hear(&mut self, question: Solicitation, now: Timestamp) {
        self.0.retain(|(other, at)| other.mac != question.mac && now.since(*at) < KEPT);
        if self.0.len() < MAX_KEPT {
            self.0.push((question, now));
        }
    }

    /// Takes out those that are answered now.
    fn answerable(&mut self, now: Timestamp, runs_ipxe: impl Fn(Mac) -> bool) -> Vec<Solicitation> {
        self.0.retain(|(_, at)| now.since(*at) < KEPT);
        let ready =
            |(question, _): &mut (Solicitation, Timestamp)| Mac::from_octets(question.mac).is_some_and(&runs_ipxe);
        self.0.extract_if(.., ready).map(|(question, _)| question).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(number: u8) -> Solicitation {
        Solicitation { mac: [0x52, 0x54, 0, 0, 0, number], address: "fe80::1".parse().unwrap() }
    }

    #[test]
    fn a_question_is_answered_once_and_only_when_its_machine_boots() {
        let mut questions = Questions::default();
        let boots = |number: u8| move |mac: Mac| mac.octets()[5] == number;
        questions.hear(question(1), Timestamp(0));
        questions.hear(question(1), Timestamp(250));
        questions.hear(question(2), Timestamp(300));
        assert_eq!(questions.answerable(Timestamp(400), boots(3)), []);
        assert_eq!(questions.answerable(Timestamp(500), boots(1)), [question(1)]);
        assert_eq!(questions.answerable(Timestamp(500), boots(1)), []);
        assert_eq!(questions.answerable(Timestamp(2_300), boots(2)), [], "an old question is asked again");
    }

    #[test]
    fn a_flood_of_questions_has_its_bounds() {
        let mut questions = Questions::default();
        for number in 0..1_000_u16 {
            let [high, low] = number.to_be_bytes();
            questions.hear(Solicitation { mac: [2, 0, 0, 0, high, low], ..question(0) }, Timestamp(0));
        }
        assert_eq!(questions.0.len(), MAX_KEPT);
        questions.hear(question(1), Timestamp(2_000));
        assert_eq!(questions.0.len(), 1);
    }
}
