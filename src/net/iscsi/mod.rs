//! The iSCSI adapter: one task for each connection, which owns its session.
//!
//! The protocol is `iscsi`'s. Here are the socket, the clock, and the hops to threads that may block; [`login`] brings a
//! connection to its session, [`serve`] runs it.

mod direct;
mod login;
mod output;
mod portals;
mod serve;
mod waiting;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use ipnetwork::Ipv4Network;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::app::App;
use crate::app::sessions::MAX_SESSIONS;
use crate::sys::{Taken, Transport};
use portals::{Listeners, Portals};
use waiting::{MAX_WAITING, Ticket, Waiting};

/// Connections in all: each is a file descriptor.
pub const MAX_CONNECTIONS: usize = MAX_SESSIONS + MAX_WAITING;

/// A connection that is silent for this long is asked by TCP whether it is still there: iPXE answers no pings of iSCSI.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// What we sent must be acknowledged within this time. TCP by itself would try for a quarter of an hour.
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// How long sessions may take to log out when we stop. Few initiators do, and every client waits for the restart.
const LOGOUT_GRACE: Duration = Duration::from_secs(1);

/// How long their last words may take to get out after that.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long the other end may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For a login. iPXE's and Linux's take milliseconds, and up to a second more for the probe of an old session.
    pub login: Duration,
    /// For a sign of life. A session from which nothing came for this long, or up to twice as long, is asked for one
    /// (NOP-In). If it does not give one within this time though it has given one before, it is ended. Linux, the other way
    /// round, asks each 5 s and waits for 5 s.
    pub silence: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { login: Duration::from_secs(15), silence: Duration::from_secs(10) }
    }
}

/// The first read of a connection asks for this many bytes: most login requests are smaller. Anybody can make us hold
/// them, for each of [`MAX_WAITING`] connections.
const INPUT: usize = 1024;

/// The listening sockets.
#[derive(Debug)]
pub struct Server {
    listeners: Listeners,
    portals: Portals,
    app: Arc<App>,
    limits: Limits,
}

/// The port cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody has the port.
    #[error("cannot serve iSCSI: {0}: stop it, or have it listen on another address")]
    Taken(Taken),
    /// Anything else.
    #[error("cannot listen for iSCSI on {address}: {source}")]
    Other {
        /// The address and port.
        address: SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
}

impl Server {
    /// Listens on this address.
    ///
    /// # Errors
    /// The system's, for instance that the port is taken.
    pub async fn bind(address: SocketAddr, app: Arc<App>) -> Result<Self, BindError> {
        let listener = TcpListener::bind(address).await.map_err(|source| match (source.kind(), address) {
            (std::io::ErrorKind::AddrInUse, SocketAddr::V4(address)) => {
                BindError::Taken(Taken::find(Transport::Tcp, address))
            }
            _ => BindError::Other { address, source },
        })?;
        Ok(Self { listeners: Listeners::new(listener), portals: Portals::default(), app, limits: Limits::default() })
    }

    /// Listens on more addresses, on the same port. `networks` are this host's addresses on the clients' wire, each in its
    /// network: initiators in such a network are told of its address. The address that is listened on already may be
    /// among them.
    ///
    /// An address at which somebody else has the port is left to them.
    ///
    /// # Errors
    /// None that a listening socket is known to give.
    pub async fn with_portals(mut self, networks: impl IntoIterator<Item = Ipv4Network>) -> std::io::Result<Self> {
        let first = self.address()?;
        for network in networks {
            let address = SocketAddr::from((network.ip(), first.port()));
            if address != first {
                match TcpListener::bind(address).await {
                    Ok(listener) => self.listeners.push(listener),
                    Err(error) => {
                        tracing::warn!("no iSCSI on {address}, beside {first}: {error}");
                        continue;
                    }
                }
            }
            self.portals.push(address, network);
        }
        Ok(self)
    }

    /// With other limits than the usual ones.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// The first address that is listened on.
    ///
    /// # Errors
    /// None that a listening socket is known to give.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listeners.first().local_addr()
    }

    /// Serves until `stop` is done; then sessions are asked to log out, and after a moment every connection is dropped.
    /// Initiators log in again once they find a server.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let Self { mut listeners, portals, app, limits } = self;
        let portals = Arc::new(portals);
        let waiting = Arc::<Waiting>::default();
        let mut connections = JoinSet::new();
        let (stopping, _) = watch::channel(());
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                accepted = listeners.accept() => match accepted {
                    Ok((stream, peer)) => {
                        let Some(ticket) = waiting.admit(peer.ip()) else {
                            app.tally.turned_away.one();
                            tracing::debug!("{peer}: refused, {MAX_WAITING} connections have not logged in yet");
                            continue;
                        };
                        let (app, portals, stopping) = (Arc::clone(&app), Arc::clone(&portals), stopping.subscribe());
                        connections.spawn(async move {
                            if let Err(error) = connection(app, stream, peer, ticket, &portals, limits, stopping).await {
                                tracing::debug!("{peer}: {error:#}");
                            }
                        });
                    }
                    Err(error) => {
                        // Out of descriptors, say: the next connection may find one free again.
                        tracing::warn!("cannot take an iSCSI connection: {error}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
        drop(listeners);
        drop(stopping);
        app.sessions.ask_to_leave();
        if tokio::time::timeout(LOGOUT_GRACE, all(&mut connections)).await.is_err() {
            let told = async { tokio::join!(app.sessions.end_all("roost is stopping"), all(&mut connections)) };
            let _ = tokio::time::timeout(LAST_WORDS, told).await;
        }
        connections.shutdown().await;
    }
}

/// Returns when every connection has ended.
async fn all(connections: &mut JoinSet<()>) {
    while connections.join_next().await.is_some() {}
}

async fn connection(
    app: Arc<App>,
    mut stream: TcpStream,
    peer: SocketAddr,
    mut ticket: Ticket,
    portals: &Portals,
    limits: Limits,
    mut stopping: watch::Receiver<()>,
) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3).with_retries(3);
    let socket = socket2::SockRef::from(&stream);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    let mut input = BytesMut::new();
    let entered = tokio::select! {
        entered = login::log_in(&app, &mut stream, peer, &mut input, limits.login) => entered?,
        () = ticket.shown_out() => {
            app.tally.turned_away.one();
            anyhow::bail!("others from its address wait too, and there is no more room");
        }
        _ = stopping.changed() => return Ok(()),
    };
    match entered {
        // Whoever only lists targets goes on waiting, as it were.
        Some(login::Entered::Discovery(session, initiator)) => tokio::select! {
            ended = serve::discovery(&app, stream, portals, input, *session, &initiator) => ended,
            () = ticket.shown_out() => Ok(()),
            _ = stopping.changed() => Ok(()),
        },
        Some(login::Entered::Normal(seat)) => {
            drop(ticket);
            serve::normal(&app, stream, portals, input, *seat, limits.silence).await
        }
        None => Ok(()),
    }
}
