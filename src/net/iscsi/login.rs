//! Brings a connection through its login.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::app::App;
use crate::app::disks::ClientDisk;
use crate::app::recorder::now;
use crate::app::report::SessionKind;
use crate::app::sessions::{Control, Entry, Newcomer};
use crate::fleet::{Client, Mac, Stage};
use crate::iscsi::login::{Agreed, Login, Next, Status, Who};
use crate::iscsi::session::Session;
use crate::iscsi::{LOGIN_DATA_SEGMENT, frame};
use crate::scsi::Nexus;
use crate::sys;

/// How long a login may take. iPXE's and Linux's take milliseconds, and up to a second more for the probe of an old session.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);

/// A connection that is logged in.
pub(super) enum Entered {
    /// It may list targets: its session, and its initiator's name.
    Discovery(Box<Session>, String),
    /// It has a client's disk.
    Normal(Box<Seat>),
}

/// What a normal session has.
pub(super) struct Seat {
    pub(super) session: Session,
    pub(super) entry: Arc<Entry>,
    pub(super) mailbox: mpsc::Receiver<Control>,
    pub(super) disk: Arc<ClientDisk>,
    pub(super) mac: Option<Mac>,
}

/// A session that found its place, not yet told to the initiator.
type Place = (Arc<Entry>, mpsc::Receiver<Control>, Arc<ClientDisk>);

/// Answers login requests until the session is agreed on; `None` if it was refused.
pub(super) async fn log_in(
    app: &Arc<App>,
    stream: &mut TcpStream,
    peer: SocketAddr,
    input: &mut BytesMut,
) -> anyhow::Result<Option<Entered>> {
    let mut place = None;
    let outcome = tokio::time::timeout(PATIENCE, negotiate(app, stream, peer, input, &mut place)).await;
    let agreed = match outcome {
        Ok(Ok(Some(agreed))) => agreed,
        other => {
            // A place that was taken for a login that came to nothing is given back.
            if let Some((entry, ..)) = place {
                app.sessions.leave(&entry);
            }
            return other.context("the login took too long")?.map(|_| None);
        }
    };
    let Some((entry, mailbox, disk)) = place else {
        let session = Session::new(Nexus(0), &agreed);
        return Ok(Some(Entered::Discovery(Box::new(session), agreed.who.initiator)));
    };
    let session = Session::new(entry.nexus, &agreed);
    let mac = machine_at(peer.ip()).or_else(|| app.fleet().client(&entry.client).and_then(|c| c.macs.first().copied()));
    Ok(Some(Entered::Normal(Box::new(Seat { session, entry, mailbox, disk, mac }))))
}

async fn negotiate(
    app: &Arc<App>,
    stream: &mut TcpStream,
    peer: SocketAddr,
    input: &mut BytesMut,
    place: &mut Option<Place>,
) -> anyhow::Result<Option<Agreed>> {
    let (mut login, mut out) = (Login::default(), Vec::new());
    loop {
        let Some(pdu) = frame::next(input, LOGIN_DATA_SEGMENT)? else {
            if stream.read_buf(input).await? == 0 {
                bail!("closed before it had logged in");
            }
            continue;
        };
        let mut next = login.receive(&pdu, &mut out)?;
        loop {
            next = match next {
                Next::Authorize(who) => login.authorized(authorize(app, &who, peer.ip()), &mut out),
                Next::Establish(who) => match establish(app, &who, peer.ip()).await {
                    Ok(found) => {
                        let tsih = found.as_ref().map_or(1, |(entry, ..)| entry.tsih);
                        *place = found;
                        login.established(Ok(tsih), &mut out)
                    }
                    Err(status) => login.established(Err(status), &mut out),
                },
                settled => break next = settled,
            };
        }
        stream.write_all(&out).await?;
        out.clear();
        match next {
            Next::Done(agreed) => return Ok(Some(agreed)),
            Next::Refused(_) => return Ok(None),
            _ => {}
        }
    }
}

fn client_of(app: &App, who: &Who) -> Option<Client> {
    let name = app.naming.client_of_target(who.target.as_deref()?)?;
    app.fleet().client(&name).cloned()
}

/// Whether the initiator may come in at all; a refusal is told with its reason, to the operator only.
fn authorize(app: &App, who: &Who, from: IpAddr) -> Result<(), Status> {
    let Some(target) = &who.target else { return Ok(()) }; // discovery shows only what may be used
    let neighbour = machine_at(from);
    let Some(client) = client_of(app, who) else {
        let known = neighbour.and_then(|mac| app.fleet().by_mac(mac).map(|client| client.name.clone()));
        let why = format!("{} asked for {target}, which no client has", who.initiator);
        app.recorder.note(neighbour, known.as_ref(), Stage::Refused, &why);
        return Err(Status::NotFound);
    };
    if let Err(refusal) = app.may_log_in(&client, &who.initiator, from, neighbour) {
        app.recorder.note(neighbour, Some(&client.name), Stage::Refused, &format!("{}: {refusal}", who.initiator));
        return Err(Status::Forbidden);
    }
    match who.tsih {
        0 => Ok(()),
        tsih if app.sessions.has_handle(&client.name, tsih) => Err(Status::TooManyConnections),
        _ => Err(Status::NoSuchSession),
    }
}

/// Frees the client's place of a dead session, takes it, and opens the disk.
async fn establish(app: &Arc<App>, who: &Who, from: IpAddr) -> Result<Option<Place>, Status> {
    let Some(target) = &who.target else { return Ok(None) };
    let client = client_of(app, who).ok_or(Status::NotFound)?;
    let refuse = |why: &str, status| {
        app.recorder.note(machine_at(from), Some(&client.name), Stage::Refused, why);
        status
    };
    let kind = kind_of(app, &client, who);
    let newcomer = Newcomer {
        client: client.name.clone(),
        initiator: who.initiator.to_ascii_lowercase(),
        isid: who.isid,
        address: from,
        kind,
        since: now(),
    };
    let (entry, mailbox) =
        app.sessions.enter(newcomer).await.map_err(|full| refuse(&full.to_string(), Status::OutOfResources))?;
    match app.disks.open(&client, &target.to_ascii_lowercase()).await {
        Ok(disk) => Ok(Some((entry, mailbox, disk))),
        Err(error) => {
            app.sessions.leave(&entry);
            Err(refuse(&error.to_string(), Status::TargetError))
        }
    }
}

/// iPXE makes its ISID out of its enterprise number, in a format that no operating system's initiator uses: its two
/// highest bits are 01 (RFC 7143 §11.12.5).
fn kind_of(app: &App, client: &Client, who: &Who) -> SessionKind {
    if !app.naming.initiator(&client.name).eq_ignore_ascii_case(&who.initiator) {
        SessionKind::Other
    } else if who.isid[0] >> 6 == 0b01 {
        SessionKind::Loader
    } else {
        SessionKind::System
    }
}

/// The machine that the kernel knows at this address.
pub(super) fn machine_at(address: IpAddr) -> Option<Mac> {
    match address {
        IpAddr::V4(address) => sys::neighbour(address).and_then(Mac::from_octets),
        IpAddr::V6(_) => None,
    }
}
