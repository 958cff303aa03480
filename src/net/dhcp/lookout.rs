//! Looks for other DHCP servers: asks at the start and every few minutes who else answers, in the name of a machine that does not
//! exist, and takes in what others say to real ones. What it means is `dhcp::others`'s.
//!
//! The question leaves through an ordinary socket, because the kernel shows such a broadcast to this host's own servers too.
//! Answers are listened for with a packet socket that sees both directions, but only for some seconds: it costs a look at
//! every packet of the interface. Beside another server, broadcast answers of other hosts are overheard all the time.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, warn};
use uuid::Uuid;

use super::kept;
use crate::app::App;
use crate::dhcp::others::{self, Answer};
use crate::dhcp::{BOOT_SERVER_PORT, CLIENT_PORT, Role, SERVER_PORT};
use crate::fleet::{Fact, Finding, Mac, Stage};
use crate::net::udp::{BindError, Udp};
use crate::sys::{Interface, Local, PacketSocket, Traffic};

/// Between two times of asking.
const EVERY: Duration = Duration::from_secs(5 * 60);
/// A question, and the same once more: one packet may be lost.
const QUESTIONS: u32 = 2;
/// How long answers to each are waited for. Some servers try an address for 3 s before they offer it.
const PATIENCE: Duration = Duration::from_secs(4);
/// An IPv4 header with all its options, UDP's, and a DHCP packet.
const LARGEST: usize = 68 + super::LARGEST_PACKET;

/// A lookout on one interface.
#[derive(Debug)]
pub struct Lookout {
    app: Arc<App>,
    interface: Interface,
    role: Role,
    /// Our addresses on all of our interfaces: what they say is ours.
    own: Arc<[Ipv4Addr]>,
    udp: Udp,
    asker: Mac,
}

impl Lookout {
    /// A lookout on this interface, where we have this role. `own` are our addresses everywhere. `None` on the loopback
    /// interface, where nobody else is.
    ///
    /// # Errors
    /// Privileges are missing, or the interface is gone.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn bind(
        app: Arc<App>,
        interface: &Interface,
        role: Role,
        own: Arc<[Ipv4Addr]>,
    ) -> Result<Option<Self>, BindError> {
        if interface.addresses.iter().all(|(address, _)| address.is_loopback()) {
            return Ok(None);
        }
        let udp = Udp::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0), Some(&interface.name))?;
        let asker = app.others.ask_as(made_up());
        Ok(Some(Self { app, interface: interface.clone(), role, own, udp, asker }))
    }

    /// Looks until the future is dropped.
    pub async fn run(self) -> Infallible {
        let mut complained = false;
        loop {
            match self.look().await {
                Ok(()) => complained = false,
                Err(error) if complained => debug!(%error, "DHCP: other servers could not be looked for"),
                Err(error) => {
                    complained = true;
                    warn!("DHCP: other servers cannot be looked for on {}: {error}", self.interface.name);
                }
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Asks, and takes in the answers.
    async fn look(&self) -> io::Result<()> {
        let tap = PacketSocket::open(self.interface.index)?;
        tap.listen([CLIENT_PORT; 2], Traffic::Both)?;
        let wake = UdpSocket::from_std(tap.as_fd().try_clone_to_owned()?.into())?;
        let address = self.interface.addresses.first().map_or(Ipv4Addr::UNSPECIFIED, |own| own.0);
        let from = Local { interface: self.interface.index, address };
        let mut buffer = [0; LARGEST];
        for _ in 0..QUESTIONS {
            let [a, b, c, d, ..] = *Uuid::new_v4().as_bytes();
            let question = others::question(self.asker, [a, b, c, d]);
            self.udp.send(&question, SocketAddrV4::new(Ipv4Addr::BROADCAST, SERVER_PORT), from).await?;
            let until = Instant::now() + PATIENCE;
            let hear = async {
                loop {
                    let heard = wake.async_io(Interest::READABLE, || {
                        let heard = tap.receive(&mut buffer)?;
                        Ok(heard.map(|datagram| (datagram.from, datagram.to, datagram.payload.to_vec())))
                    });
                    if let Some((from, to, payload)) = heard.await? {
                        take_in(&self.app, self.role, &self.own, &self.interface.name, from, to, &payload);
                    }
                }
            };
            // It hears until it is stopped, or fails.
            if let Ok::<io::Result<Infallible>, _>(Err(error)) = timeout_at(until, hear).await {
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Takes in an answer that was heard on port 68, if another server than we said it.
pub(super) fn take_in(
    app: &App,
    role: Role,
    own: &[Ipv4Addr],
    interface: &str,
    from: SocketAddrV4,
    to: SocketAddrV4,
    payload: &[u8],
) {
    let Some(answer) = Answer::read(payload) else { return };
    if is_ours(role, own, &answer, from) {
        return;
    }
    let findings = answer.findings(role);
    for finding in &findings {
        app.found(finding.clone(), interface);
    }
    if app.others.is_asker(answer.mac) {
        return;
    }
    let fleet = app.fleet();
    let Some(client) = fleet.by_mac(answer.mac) else { return };
    kept::overheard(app, from, to, payload, &answer);
    for finding in findings.into_iter().filter(|_| answer.offer) {
        let words = match &finding {
            Finding::SecondServer { server } => format!("{server}, another DHCP server, offers it an address too"),
            Finding::BootFile { server, file } => {
                format!("{server}, another DHCP server, offers it its own boot file `{file}`")
            }
            Finding::ClassAlone { .. } => finding.to_string(),
        };
        let fact = Fact::OtherServer(finding);
        app.recorder.note_fact(Some(answer.mac), Some(&client.name), Stage::Offer, &words, fact);
    }
}

/// Whether we said it ourselves. Beside another server of this host, which has our address too, what has an address to give is
/// that one's.
fn is_ours(role: Role, own: &[Ipv4Addr], answer: &Answer, from: SocketAddrV4) -> bool {
    let own = own.contains(&answer.server) || own.contains(from.ip());
    own && (role == Role::Server || answer.address.is_none() || from.port() == BOOT_SERVER_PORT)
}

/// The address of a machine that does not exist: random, and locally administered (IEEE 802, §8.2.2).
fn made_up() -> Mac {
    let [first, b, c, d, e, f, ..] = *Uuid::new_v4().as_bytes();
    Mac::from_octets([first & 0xfc | 0x02, b, c, d, e, f]).expect("it is neither zero nor of a group")
}
