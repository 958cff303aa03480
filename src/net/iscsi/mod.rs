//! The iSCSI adapter: one task for each connection, which owns its session.
//!
//! The protocol is `iscsi`'s. Here are the socket, the clock, and the hops to threads that may block; [`login`] brings a
//! connection to its session, [`serve`] runs it.

mod login;
mod output;
mod serve;
mod waiting;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::app::App;
use crate::app::sessions::MAX_SESSIONS;
use crate::sys::{Taken, Transport};
use waiting::{MAX_WAITING, Ticket, Waiting};

/// Connections in all: each is a file descriptor.
pub const MAX_CONNECTIONS: usize = MAX_SESSIONS + MAX_WAITING;

/// A connection that is silent for this long is asked by TCP whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// The first read of a connection asks for this many bytes: a login request is smaller.
const INPUT: usize = 16 * 1024;

/// The listening socket.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    app: Arc<App>,
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
        Ok(Self { listener, app })
    }

    /// The address that is listened on.
    ///
    /// # Errors
    /// None that a listening socket is known to give.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is done; then every connection is dropped. Initiators log in again once they find a server.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let waiting = Arc::<Waiting>::default();
        let mut connections = JoinSet::new();
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        let Some(ticket) = waiting.admit(peer.ip()) else {
                            tracing::debug!("{peer}: refused, {MAX_WAITING} connections have not logged in yet");
                            continue;
                        };
                        let app = Arc::clone(&self.app);
                        connections.spawn(async move {
                            if let Err(error) = connection(app, stream, peer, ticket).await {
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
        connections.shutdown().await;
    }
}

async fn connection(app: Arc<App>, mut stream: TcpStream, peer: SocketAddr, mut ticket: Ticket) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3).with_retries(3);
    socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    let mut input = BytesMut::with_capacity(INPUT);
    let entered = tokio::select! {
        entered = login::log_in(&app, &mut stream, peer, &mut input) => entered?,
        () = ticket.shown_out() => anyhow::bail!("others from its address wait too, and there is no more room"),
    };
    match entered {
        // Whoever only lists targets goes on waiting, as it were.
        Some(login::Entered::Discovery(session, initiator)) => tokio::select! {
            ended = serve::discovery(&app, stream, peer, input, *session, &initiator) => ended,
            () = ticket.shown_out() => Ok(()),
        },
        Some(login::Entered::Normal(seat)) => {
            drop(ticket);
            serve::normal(&app, stream, input, *seat).await
        }
        None => Ok(()),
    }
}
