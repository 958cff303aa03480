//! Brings a connection through its login.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::INPUT;
use super::serve::breaks_protocol;
use crate::app::App;
use crate::app::access::Refusal;
use crate::app::disks::{ClientDisks, ServeError};
use crate::app::packets::{Decision, Direction, Packet, Protocol};
use crate::app::recorder::now;
use crate::app::report::SessionKind;
use crate::app::secrets::nonce;
use crate::app::sessions::{Newcomer, Place};
use crate::fleet::{Client, Fact, Mac, Stage};
use crate::iscsi::login::{Agreed, Login, Next, Status, Verdict, Who};
use crate::iscsi::pdu::Digests;
use crate::iscsi::session::Session;
use crate::iscsi::text::Params;
use crate::iscsi::{LOGIN_DATA_SEGMENT, chap, frame};
use crate::scsi::Nexus;
use crate::sys;

/// Why a login is refused: in one word for programs, and in words for the operator.
type Why = (&'static str, String);

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
    pub(super) place: Place,
    pub(super) mac: Option<Mac>,
}

/// Answers login requests until the session is agreed on; `None` if it was refused.
pub(super) async fn log_in(
    app: &Arc<App>,
    stream: &mut TcpStream,
    peer: SocketAddr,
    input: &mut BytesMut,
    patience: Duration,
) -> anyhow::Result<Option<Entered>> {
    let mut arrival = Arrival { app, from: peer.ip(), who: None, why: None, place: None };
    let Ok(agreed) = tokio::time::timeout(patience, arrival.negotiate(stream, input)).await else {
        app.tally.slow_logins.one();
        if arrival.who.is_some() {
            let seconds = patience.as_secs();
            let why = format!("its login took longer than {seconds} s, or its disk is still busy with an old session");
            arrival.note(0, "slow", &why);
        }
        bail!("the login took too long");
    };
    let agreed = agreed.inspect_err(|error| {
        if breaks_protocol(error) {
            app.tally.broken.one();
            let why = format!("a connection from {} was closed before it had logged in: {error}", arrival.from);
            arrival.note(0, "protocol", &why);
        }
    })?;
    let Some(agreed) = agreed else { return Ok(None) };
    let Some(place) = arrival.place else {
        let session = Session::new(Nexus(0), &agreed);
        return Ok(Some(Entered::Discovery(Box::new(session), agreed.who.initiator)));
    };
    let session = Session::new(place.entry.nexus, &agreed);
    let first_mac = || {
        let fleet = app.fleet();
        fleet.client(&place.entry.client).and_then(|client| fleet.macs_of(client).next())
    };
    let mac = machine_at(peer.ip()).or_else(first_mac);
    let kind = place.entry.kind;
    let what = format!("login of {} from {}", place.entry.initiator, place.entry.address);
    keep(
        app,
        mac,
        true,
        what,
        Decision::Answered,
        "logged-in",
        format!("its {kind} has the disk of {}", place.entry.client),
    );
    Ok(Some(Entered::Normal(Box::new(Seat { session, place, mac }))))
}

/// A connection that logs in.
struct Arrival<'app> {
    app: &'app Arc<App>,
    from: IpAddr,
    /// Who it says it is.
    who: Option<Who>,
    /// Why it is refused, for the operator. The initiator gets a status and no more.
    why: Option<Why>,
    place: Option<Place>,
}

impl Arrival<'_> {
    async fn negotiate(&mut self, stream: &mut TcpStream, input: &mut BytesMut) -> anyhow::Result<Option<Agreed>> {
        let (mut login, mut out) = (Login::default(), Vec::new());
        loop {
            let Some(pdu) = frame::next(input, LOGIN_DATA_SEGMENT, Digests::NONE)? else {
                // Who says nothing holds nothing.
                stream.readable().await?;
                input.reserve(frame::missing(input, LOGIN_DATA_SEGMENT, Digests::NONE).max(INPUT));
                if stream.read_buf(input).await? == 0 {
                    bail!("closed before it had logged in");
                }
                continue;
            };
            let mut next = login.receive(&pdu, &mut out)?;
            loop {
                next = match next {
                    Next::Authorize(who) => {
                        let verdict = self.authorize(who, &mut login);
                        login.authorized(verdict, &mut out)
                    }
                    Next::Establish(who) => {
                        let params = login.params().clone();
                        login.established(self.establish(&who, params).await, &mut out)
                    }
                    settled => break next = settled,
                };
            }
            // A stranger that reads nothing must not keep the reason of its refusal from the operator.
            match next {
                Next::Refused(Status::MovedTemporarily) => tracing::debug!("{}: led elsewhere", self.from),
                Next::Refused(status) => self.note_refusal(status, login.why()),
                _ => {}
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

    /// Whether the initiator may come in at all, and what it has to prove.
    fn authorize(&mut self, who: Who, login: &mut Login) -> Verdict {
        let verdict = self.judge(&who).and_then(|()| self.admit(&who, login)).unwrap_or_else(|(status, why)| {
            self.why = Some(why);
            Verdict::Refused(status)
        });
        self.who = Some(who);
        verdict
    }

    /// How an initiator that is no stranger comes in.
    fn admit(&self, who: &Who, login: &mut Login) -> Result<Verdict, (Status, Why)> {
        let app = self.app;
        let required = who.target.is_some();
        let client = match &who.target {
            Some(target) => client_of(app, target),
            // Whoever lists targets need not prove anything, but may insist.
            None => app.fleet().clients().find(|client| is_own(app, client, who)).cloned(),
        };
        let Some(client) = client else { return Ok(Verdict::Open) };
        if let Some(address) = app.sessions.elsewhere(&client.name).filter(|_| required) {
            return Ok(Verdict::Moved(address.to_string()));
        }
        if let Some(old) = app.sessions.with_handle(&client.name, who.tsih).filter(|_| required) {
            login.resume(&old.params);
        }
        if !client.chap {
            return Ok(Verdict::Open);
        }
        match app.secrets.credentials(&client.name) {
            Some(credentials) => {
                let no_random = |error| (Status::TargetError, ("no-random", format!("no random numbers: {error}")));
                let nonce = nonce().map_err(no_random)?;
                Ok(Verdict::Chap { credentials, nonce, required })
            }
            None if !required => Ok(Verdict::Open),
            None => {
                let why = "there is no CHAP secret yet: its machine has not fetched its boot script";
                Err((Status::AuthenticationFailed, ("no-secret", format!("{}: {why}", who.initiator))))
            }
        }
    }

    fn judge(&self, who: &Who) -> Result<(), (Status, Why)> {
        let Some(target) = &who.target else { return Ok(()) }; // discovery shows only what may be used
        let refusal = |refusal: Refusal| (refusal.word(), format!("{}: {refusal}", who.initiator));
        let Some(client) = client_of(self.app, target) else {
            return Err((Status::NotFound, refusal(Refusal::NoSuchTarget(target.clone()))));
        };
        self.app
            .may_log_in(&client, &who.initiator, self.from, machine_at(self.from))
            .map_err(|why| (Status::Forbidden, refusal(why)))?;
        match who.tsih {
            0 => Ok(()),
            tsih => match self.app.sessions.with_handle(&client.name, tsih) {
                Some(old) if old.isid == who.isid && old.initiator.eq_ignore_ascii_case(&who.initiator) => {
                    // A connection takes the place of a broken one of the same ID (RFC 7143 §6.3.4), and none beside it.
                    if old.cid == who.cid {
                        return Ok(());
                    }
                    let why = format!("{}: a second connection of a session, which has one", who.initiator);
                    Err((Status::TooManyConnections, ("second-connection", why)))
                }
                _ => {
                    let why = format!(
                        "{}: it wants to go on with a session that is no more; it will begin anew",
                        who.initiator
                    );
                    Err((Status::NoSuchSession, ("no-session", why)))
                }
            },
        }
    }

    /// Opens the disk, ends what dead sessions hold of it, and takes the place. The handle of the session.
    async fn establish(&mut self, who: &Who, params: Params) -> Result<u16, Status> {
        /// A discovery session's handle: nobody ever asks for it again.
        const DISCOVERY: u16 = 1;
        let Some(target) = &who.target else { return Ok(DISCOVERY) };
        // Gone since it was let in a moment ago.
        let client = client_of(self.app, target).ok_or(Status::NotFound)?;
        let newcomer = Newcomer {
            client: client.name.clone(),
            initiator: who.initiator.to_ascii_lowercase(),
            isid: who.isid,
            tsih: who.tsih,
            cid: who.cid,
            params,
            address: self.from,
            kind: kind_of(self.app, &client, who),
            since: now(),
        };
        let door = self.app.sessions.door(&client.name).await;
        // First: a disk that cannot be opened is no reason to end anybody's session.
        let disks = self.open(&client, &target.to_ascii_lowercase()).await.map_err(|error| {
            self.why = Some(("disk", error.to_string()));
            Status::TargetError
        })?;
        let place = self.app.sessions.enter(&door, newcomer, disks).await.map_err(|full| {
            self.why = Some(("full", format!("{}: {full}", who.initiator)));
            Status::OutOfResources
        })?;
        let tsih = self.place.insert(place).entry.tsih;
        // A machine that was replaced since it was let in: whoever ended its sessions may not have seen this one.
        self.judge(who).map_err(|(status, why)| {
            self.place = None;
            self.why = Some(why);
            status
        })?;
        Ok(tsih)
    }

    /// The client's disks, by their logical unit numbers.
    async fn open(&self, client: &Client, target: &str) -> Result<ClientDisks, ServeError> {
        let first = self.app.disks.open(client, target).await?;
        let second = self.app.disks.open_data(client, target).await?;
        Ok(std::iter::once(first).chain(second).collect())
    }

    fn note_refusal(&mut self, status: Status, chap: Option<chap::Refusal>) {
        self.app.tally.refused_logins.one();
        let (word, why) = self.why.take().unwrap_or_else(|| {
            let name = self.who.as_ref().map_or("an initiator", |who| &who.initiator);
            let from = self.from;
            if let Some(chap) = chap {
                return ("chap", format!("{name} from {from}: {chap}"));
            }
            match status {
                Status::MissingParameter => {
                    ("nameless", format!("a login from {from} without the initiator's or the target's name"))
                }
                Status::NotFound => ("no-target", format!("{name} from {from}: its target is gone")),
                other => {
                    let why =
                        format!("{name} from {from}: a login that breaks the protocol (status {:04x}h)", other as u16);
                    ("protocol", why)
                }
            }
        });
        self.note(status as u16, word, &why);
    }

    fn note(&self, status: u16, word: &'static str, why: &str) {
        let machine = machine_at(self.from);
        let fleet = self.app.fleet();
        let target = self.who.as_ref().and_then(|who| who.target.as_deref());
        let client = target.and_then(|target| client_of(self.app, target)).map(|client| client.name);
        let client = client.or_else(|| Some(fleet.by_mac(machine?)?.name.clone()));
        let initiator = self.who.as_ref().map(|who| who.initiator.clone());
        let what = format!("login of {} from {}", initiator.as_deref().unwrap_or("an initiator"), self.from);
        let decision = if status == 0 { Decision::Failed } else { Decision::Refused };
        // Of a refused one the machine is whatever the kernel knows there; else it is told with the client that it wanted.
        let own = || fleet.client(client.as_ref()?).and_then(|client| fleet.macs_of(client).next());
        keep(self.app, machine.or_else(own), client.is_some(), what, decision, word, why.to_owned());
        let mac = machine.map(|mac| mac.to_string());
        let fact = Fact::LoginRefused { initiator, address: self.from, mac, status, why: word.to_owned() };
        self.app.recorder.note_fact(machine, client.as_ref(), Stage::Refused, why, fact);
    }
}

/// Keeps a login among the packets of its machine.
fn keep(
    app: &App,
    mac: Option<Mac>,
    known: bool,
    what: String,
    decision: Decision,
    code: &'static str,
    reason: String,
) {
    let Some(mac) = mac else { return };
    let (what, reason, direction, protocol) = (what.into(), reason.into(), Direction::In, Protocol::Iscsi);
    let packet = Packet { direction, protocol, what, decision, code, reason, datagram: None };
    app.recorder.packets().add(mac, known, packet);
}

fn client_of(app: &App, target: &str) -> Option<Client> {
    app.fleet().client(&app.naming.client_of_target(target)?).cloned()
}

/// Whether this is the initiator of the client's own machine, by its name.
fn is_own(app: &App, client: &Client, who: &Who) -> bool {
    app.naming.initiator(&client.name).eq_ignore_ascii_case(&who.initiator)
}

/// iPXE makes its ISID out of its enterprise number, in a format that no operating system's initiator uses: its two
/// highest bits are 01 (RFC 7143 §11.12.5).
fn kind_of(app: &App, client: &Client, who: &Who) -> SessionKind {
    if !is_own(app, client, who) {
        SessionKind::Other
    } else if who.isid[0] >> 6 == 0b01 {
        SessionKind::Loader
    } else {
        SessionKind::System
    }
}

/// The machine that the kernel knows at this address.
pub(super) fn machine_at(address: IpAddr) -> Option<Mac> {
    sys::neighbour(address).and_then(Mac::from_octets)
}
