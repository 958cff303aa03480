//! Port 4011: firmware that has an address asks which file to boot (PXE 2.1 §2.2.3). What is answered is `dhcp::proxy`'s.

use std::convert::Infallible;
use std::net::SocketAddrV4;
use std::sync::Arc;

use tracing::{debug, warn};

use super::kept::Keeping;
use super::{AFTER_ERROR, Alarms, DhcpError, LARGEST_PACKET, is_neighbour, tell};
use crate::app::App;
use crate::app::recorder::now;
use crate::dhcp::{Arrival, BOOT_SERVER_PORT, Destination, Site, proxy};
use crate::net::udp::Udp;
use crate::sys::Interface;

/// A boot server that listens.
#[derive(Debug)]
pub struct BootServer {
    app: Arc<App>,
    site: Site,
    udp: Udp,
    keeping: Keeping,
}

impl BootServer {
    /// Takes port 4011 of our address on this interface.
    ///
    /// # Errors
    /// [`DhcpError::BootServer`]: the port is taken, or privileges are missing.
    pub fn bind(app: Arc<App>, interface: &Interface, site: Site) -> Result<Self, DhcpError> {
        let address = SocketAddrV4::new(site.server, BOOT_SERVER_PORT);
        let udp = Udp::bind(address, Some(&interface.name)).map_err(|source| DhcpError::BootServer { source })?;
        Ok(Self { app, site, udp, keeping: Keeping::on(interface.mac) })
    }

    /// Serves until the future is dropped.
    pub async fn run(self) -> Infallible {
        let Self { app, site, udp, keeping } = self;
        let mut buffer = [0; LARGEST_PACKET];
        let mut alarms = Alarms::default();
        loop {
            let received = match udp.receive(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    warn!(%error, "port {BOOT_SERVER_PORT}: a packet could not be read");
                    tokio::time::sleep(AFTER_ERROR).await;
                    continue;
                }
            };
            let arrival = Arrival { from: received.from, to: received.to };
            let outcome = proxy::asked(&app.fleet(), &site, &arrival, &buffer[..received.len]);
            let own = SocketAddrV4::new(site.server, BOOT_SERVER_PORT);
            keeping.came(&app, received.from, own, &buffer[..received.len], &outcome);
            tell(&app, &site.guide, received.from, &outcome, is_neighbour);
            alarms.sound(&outcome, now());
            if let Some(reply) = outcome.reply
                && let Destination::Asker(to) = reply.to
            {
                let sent = udp.send(&reply.bytes, to, received.local).await;
                keeping.left(&app, own, to, &reply.bytes, sent.as_ref().map(|_| ()));
                if let Err(error) = sent {
                    debug!(%error, %to, "port {BOOT_SERVER_PORT}: an answer could not be sent");
                }
            }
        }
    }
}
