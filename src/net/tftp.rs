//! Adapter: TFTP's sockets. One for requests, and one for each transfer, at the address that the request was sent to and at
//! a port of its own (its transfer ID, RFC 1350 §4); or, where only one port gets through, that of requests for all.
//!
//! What a name means is [`BootContext`]'s, and what to send when is [`Transfer`]'s; here are only the sockets, the clock and
//! the bounds.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::{Notify, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time;

use crate::app::bootfiles::{BootContext, BootFile, Kind};
use crate::app::packets::{Datagram, Decision, Direction, Packet, Protocol};
use crate::app::pi::{PiError, PiFiles};
use crate::fleet::{Fact, Mac};
use crate::sys::{Taken, Transport};
use crate::tftp::packet::{self, ErrorCode, Mode, printable};
use crate::tftp::{Effect, End, Inbound, Limits, Options, Progress, Request, Transfer, parse};

/// Most transfers at once: every machine of a large lab in the same minute, within the 1,024 descriptors that a process
/// usually has.
pub const MAX_TRANSFERS: usize = 512;
/// Most transfers of one address. A machine has one, and for a moment two, when firmware stops its size probe.
pub const MAX_PER_CLIENT: usize = 8;
/// Longest packet that is read. A request has at most 512 bytes (RFC 2347); the rest is room for those that have more.
const MAX_PACKET: usize = 2048;
/// How an OACK begins (RFC 2347).
const OACK: [u8; 2] = [0, 6];
/// How many packets of others a transfer answers; more are somebody's game.
const MAX_STRAYS: u32 = 8;
/// How long running transfers may go on after the server was asked to stop.
pub const DRAIN: Duration = Duration::from_secs(5);
/// Packets of one client that wait for its transfer where all share one port. A client has a window's worth of ACKs under way.
const MAX_INBOX: usize = 64;
/// Machines that are remembered to lose large blocks; when there are more, that is found out anew.
const MAX_CAUTIOUS: usize = 1_024;
/// Wait after a failure of the request socket, so that one that lasts does not fill the log.
const PAUSE: Duration = Duration::from_millis(200);

/// What the header of IPv6 is longer than that of IPv4 (RFC 8200 §3, RFC 791 §3.1).
const LONGER_HEADER: u16 = 20;
/// What a machine is told of a name that is none: nothing of what there is (RFC 1350 §5 wants words for a person).
const ABSENT: &str = "no such boot file";

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum TftpError {
    /// Somebody has the port.
    #[error("cannot serve TFTP: {0}: stop it, or switch off its TFTP service")]
    Taken(Taken),
    /// The address is not ours, or its port needs a privilege.
    #[error("cannot serve TFTP on {address}: {source}{}", hint(source))]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Replies must come from the address that was asked, which 0.0.0.0 and :: do not say.
    #[error("TFTP needs the address that machines ask, not any")]
    Unspecified,
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; run as root or give CAP_NET_BIND_SERVICE",
        _ => "",
    }
}

/// A TFTP server that listens.
#[derive(Debug)]
pub struct TftpServer {
    socket: Arc<UdpSocket>,
    address: SocketAddr,
    limits: Limits,
    boot: Arc<BootContext>,
    /// Every transfer goes over the request's own port: for containers and firewalls that pass no other.
    single_port: bool,
    /// Machines that lost large blocks before.
    cautious: Cautious,
    /// The files of Raspberry Pis.
    pi: Option<Arc<PiFiles>>,
}

/// The addresses of machines whose transfers stood still at the first block until it was a small one.
#[derive(Debug, Clone, Default)]
struct Cautious(Arc<Mutex<HashSet<IpAddr>>>);

impl Cautious {
    fn has(&self, address: IpAddr) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&address)
    }

    /// Whether that is news.
    fn add(&self, address: IpAddr) -> bool {
        let mut addresses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if addresses.len() >= MAX_CAUTIOUS {
            addresses.clear();
        }
        addresses.insert(address)
    }
}

/// A transfer in its own task.
struct Running {
    /// The request as it came, by which one that comes again is known.
    request: Vec<u8>,
    again: Arc<Notify>,
    task: AbortHandle,
    /// Where its packets go if it has no socket of its own.
    inbox: Option<mpsc::Sender<Vec<u8>>>,
}

impl TftpServer {
    /// Listens on this address, of a wire with this MTU. Port 0 takes any that is free.
    ///
    /// # Errors
    /// The address is unspecified, or cannot be bound.
    pub async fn bind(address: impl Into<SocketAddr>, mtu: u16, boot: Arc<BootContext>) -> Result<Self, TftpError> {
        let address = address.into();
        if address.ip().is_unspecified() {
            return Err(TftpError::Unspecified);
        }
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => TftpError::Taken(Taken::find(Transport::Udp, address)),
            _ => TftpError::Bind { address, source },
        };
        let socket = UdpSocket::bind(address).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        let mtu = if address.is_ipv6() { mtu.saturating_sub(LONGER_HEADER) } else { mtu };
        Ok(Self {
            socket: Arc::new(socket),
            address,
            limits: Limits::for_mtu(mtu),
            boot,
            single_port: false,
            cautious: Cautious::default(),
            pi: None,
        })
    }

    /// The same, with all of its traffic over the one port. A transfer then is known by its client's address and port alone.
    #[must_use]
    pub fn over_one_port(self, single_port: bool) -> Self {
        Self { single_port, ..self }
    }

    /// The same, with these files for Raspberry Pis.
    #[must_use]
    pub fn with_pi(self, pi: Option<Arc<PiFiles>>) -> Self {
        Self { pi, ..self }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is done; then running transfers have [`DRAIN`] to end.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let mut tasks = JoinSet::new();
        let mut running = HashMap::new();
        let mut buffer = vec![0; MAX_PACKET];
        let mut until: Option<Instant> = None;
        while until.is_none() || !tasks.is_empty() {
            tokio::select! {
                () = &mut stop, if until.is_none() => until = Some(Instant::now() + DRAIN),
                () = time::sleep_until(until.unwrap_or_else(Instant::now).into()), if until.is_some() => {
                    tracing::info!("TFTP: transfers that had not ended were stopped");
                    break;
                }
                Some(ended) = tasks.join_next_with_id() => {
                    let id = match ended { Ok((id, ())) => id, Err(error) => error.id() };
                    running.retain(|_, transfer: &mut Running| transfer.task.id() != id);
                }
                received = self.socket.recv_from(&mut buffer) => match received {
                    // Who asks anew while we stop is not answered: what serves after us will hear it ask again.
                    Ok((length, peer)) if until.is_some() => {
                        pass_on(peer, &buffer[..length], &running);
                    }
                    Ok((length, peer)) => {
                        self.on_request(peer, &buffer[..length], &mut running, &mut tasks).await;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "TFTP: cannot receive requests");
                        time::sleep(PAUSE).await;
                    }
                },
            }
        }
    }

    async fn on_request(
        &self,
        peer: SocketAddr,
        bytes: &[u8],
        running: &mut HashMap<SocketAddr, Running>,
        tasks: &mut JoinSet<()>,
    ) {
        tracing::trace!(%peer, length = bytes.len(), "TFTP request packet");
        if pass_on(peer, bytes, running) {
            return;
        }
        let request = match parse(bytes) {
            // The last ACK of a transfer that is over.
            Inbound::Ack(_) | Inbound::Error { .. } if self.single_port => return,
            Inbound::Read(request) => request,
            Inbound::Write => {
                let who = (self.boot.resolver)(peer.ip());
                let asked = Asked { who, peer, at: self.address, what: "a write".to_owned(), bytes: bytes.to_vec() };
                asked.refused(&self.boot, "write", "boot files are only read");
                return self.refuse(who, peer, ErrorCode::Access, "this server sends boot files and takes none").await;
            }
            Inbound::Error { .. } => return,
            Inbound::Ack(_) | Inbound::Other => {
                return self.refuse(None, peer, ErrorCode::Illegal, "a read request was expected here").await;
            }
        };
        if let Some(transfer) = running.get(&peer) {
            // A client uses a port for one transfer at a time: it has left the old one.
            transfer.task.abort();
            running.remove(&peer);
        }
        let asked = Asked {
            who: (self.boot.resolver)(peer.ip()),
            peer,
            at: self.address,
            what: in_words(&request),
            bytes: bytes.to_vec(),
        };
        let Some(source) = self.find(&asked, &request).await else { return };
        let of_peer = running.keys().filter(|other| other.ip() == peer.ip()).count();
        if running.len() >= MAX_TRANSFERS || of_peer >= MAX_PER_CLIENT {
            tracing::warn!(%peer, transfers = running.len(), of_peer, "TFTP: too many transfers, request refused");
            asked.refused(&self.boot, "too-many", "too many transfers");
            return self.refuse(asked.who, peer, ErrorCode::Undefined, "too many transfers, ask again later").await;
        }
        let (link, inbox) = if self.single_port {
            let (sender, inbox) = mpsc::channel(MAX_INBOX);
            (Link::Shared { socket: Arc::clone(&self.socket), inbox }, Some(sender))
        } else {
            match UdpSocket::bind(SocketAddr::new(self.address.ip(), 0)).await {
                Ok(socket) => (Link::Own(socket), None),
                Err(error) => {
                    tracing::warn!(%peer, %error, "TFTP: no socket for a transfer");
                    let words = "the server is out of sockets, ask again later";
                    asked.refused(&self.boot, "no-socket", words);
                    return self.refuse(asked.who, peer, ErrorCode::Undefined, words).await;
                }
            }
        };
        let limits = if self.cautious.has(peer.ip()) { self.limits.cautious() } else { self.limits };
        if let Source::Table(file) = &source {
            asked.served(&self.boot, file);
        }
        let again = Arc::new(Notify::new());
        let session = Session {
            own: link.address().unwrap_or(self.address),
            link,
            peer,
            who: asked.who,
            boot: Arc::clone(&self.boot),
            again: Arc::clone(&again),
            strays: 0,
            cautious: self.cautious.clone(),
        };
        let task = tasks.spawn(session.run(asked, source, request.options, limits));
        running.insert(peer, Running { request: bytes.to_vec(), again, task, inbox });
    }

    /// Where the file is that is asked for; or the client was told why there is none.
    async fn find(&self, asked: &Asked, request: &Request) -> Option<Source> {
        let (who, peer, name) = (asked.who, asked.peer, printable(&request.name));
        if request.mode == Mode::Other {
            tracing::info!(%peer, name, "TFTP: neither in octet nor in netascii mode");
            asked.refused(&self.boot, "mode", "neither in octet nor in netascii mode");
            self.refuse(who, peer, ErrorCode::Undefined, "boot files are sent in octet mode (try: binary)").await;
            return None;
        }
        if matches!(request.name.last(), Some(0xff)) {
            tracing::info!(%peer, name, "TFTP: the name ends in 0xFF, read past the end of DHCP's option 67; dropped");
        }
        self.boot.asked(&request.name, who);
        match self.boot.lookup(&request.name, who) {
            Ok(Some(mut file)) => {
                if request.mode == Mode::Netascii {
                    file.bytes = packet::netascii(&file.bytes).into();
                }
                Some(Source::Table(file))
            }
            Ok(None) => {
                if let (Some(files), Mode::Octet) = (&self.pi, request.mode) {
                    return Some(Source::Pi(Arc::clone(files), request.name.clone()));
                }
                let there = self.boot.names().collect::<Vec<_>>().join(", ");
                tracing::info!("TFTP: {peer} asked for `{name}`: there is no such boot file; there are {there}");
                asked.refused(&self.boot, "no-such-file", "there is no such boot file");
                self.refuse(who, peer, ErrorCode::NotFound, ABSENT).await;
                None
            }
            Err(error) => {
                tracing::error!(%peer, name, %error, "TFTP: no script");
                asked.refused(&self.boot, "no-script", "its script cannot be made");
                self.refuse(who, peer, ErrorCode::Undefined, "the script cannot be made; see the server's log").await;
                None
            }
        }
    }

    async fn refuse(&self, who: Option<Mac>, peer: SocketAddr, code: ErrorCode, text: &str) {
        let packet = packet::error(code, text);
        self.boot.keep(who, ours(who, peer, self.address, error_in_words(code, text), &packet));
        if let Err(error) = self.socket.send_to(&packet, peer).await {
            tracing::debug!(%peer, %error, "TFTP: an ERROR could not be sent");
        }
    }
}

/// A request as it came, to be kept with what was decided about it.
struct Asked {
    who: Option<Mac>,
    peer: SocketAddr,
    /// Where it was sent to.
    at: SocketAddr,
    what: String,
    bytes: Vec<u8>,
}

impl Asked {
    fn served(&self, boot: &BootContext, file: &BootFile) {
        let reason = format!("{}, {} bytes", file.name, file.bytes.len());
        self.keep(boot, Decision::Answered, "served", reason.into());
    }

    fn refused(&self, boot: &BootContext, code: &'static str, reason: impl Into<Cow<'static, str>>) {
        self.keep(boot, Decision::Refused, code, reason.into());
    }

    fn keep(&self, boot: &BootContext, decision: Decision, code: &'static str, reason: Cow<'static, str>) {
        let datagram = Some(datagram(self.who, self.peer, self.at, Direction::In, &self.bytes));
        let (direction, what) = (Direction::In, self.what.clone().into());
        let packet = Packet { direction, protocol: Protocol::Tftp, what, decision, code, reason, datagram };
        boot.keep(self.who, packet);
    }
}

/// A request in a few words: `read snponly.efi, blksize 1468, tsize`.
fn in_words(request: &Request) -> String {
    let Options { blksize, timeout, tsize, windowsize } = request.options;
    let mut words = format!("read {}", printable(&request.name));
    let numbers = [("blksize", blksize), ("windowsize", windowsize), ("timeout", timeout.map(u16::from))].into_iter();
    for (option, value) in numbers.filter_map(|(option, value)| Some((option, value?))) {
        words += &format!(", {option} {value}");
    }
    if tsize {
        words += ", tsize";
    }
    words
}

fn error_in_words(code: ErrorCode, text: &str) -> String {
    format!("ERROR {}: {text}", code as u16)
}

/// A datagram between a machine and this address of ours, whose hardware address no socket tells.
fn datagram(who: Option<Mac>, peer: SocketAddr, own: SocketAddr, direction: Direction, bytes: &[u8]) -> Datagram {
    let (machine, us) = (who.map_or([0; 6], Mac::octets), [0; 6]);
    let payload = bytes.into();
    match direction {
        Direction::Out => Datagram { source: us, destination: machine, from: own, to: peer, payload },
        _ => Datagram { source: machine, destination: us, from: peer, to: own, payload },
    }
}

/// A packet that we send.
fn ours(who: Option<Mac>, peer: SocketAddr, own: SocketAddr, what: String, bytes: &[u8]) -> Packet {
    Packet {
        direction: Direction::Out,
        protocol: Protocol::Tftp,
        what: what.into(),
        decision: Decision::Sent,
        code: "sent",
        reason: "".into(),
        datagram: Some(datagram(who, peer, own, Direction::Out, bytes)),
    }
}

/// Gives a packet to the transfer that it is of, if there is one that cannot hear it by itself.
fn pass_on(peer: SocketAddr, bytes: &[u8], running: &HashMap<SocketAddr, Running>) -> bool {
    let Some(transfer) = running.get(&peer) else { return false };
    match (parse(bytes), &transfer.inbox) {
        (Inbound::Read(_), _) if transfer.request == bytes => transfer.again.notify_one(),
        (Inbound::Read(_), _) | (_, None) => return false,
        // What finds no room is as good as lost on the wire.
        (_, Some(inbox)) => drop(inbox.try_send(bytes.to_vec())),
    }
    true
}

/// Where a transfer's file comes from.
enum Source {
    /// The table of boot files.
    Table(BootFile),
    /// The folder for Raspberry Pis, by this name, where it may have to be read first.
    Pi(Arc<PiFiles>, Vec<u8>),
}

/// How a transfer's packets come and go.
enum Link {
    /// Over a port of its own, its transfer ID (RFC 1350 §4).
    Own(UdpSocket),
    /// Over the port of requests, where who reads it hands us our client's.
    Shared { socket: Arc<UdpSocket>, inbox: mpsc::Receiver<Vec<u8>> },
}

impl Link {
    /// Where it is bound.
    fn address(&self) -> Option<SocketAddr> {
        let socket = match self {
            Self::Own(socket) => socket,
            Self::Shared { socket, .. } => socket,
        };
        socket.local_addr().ok()
    }

    async fn receive(&mut self, peer: SocketAddr, buffer: &mut Vec<u8>) -> io::Result<SocketAddr> {
        match self {
            Self::Own(socket) => {
                buffer.resize(MAX_PACKET, 0);
                let (length, from) = socket.recv_from(buffer).await?;
                buffer.truncate(length);
                Ok(from)
            }
            Self::Shared { inbox, .. } => match inbox.recv().await {
                Some(packet) => {
                    *buffer = packet;
                    Ok(peer)
                }
                None => std::future::pending().await,
            },
        }
    }

    async fn send(&self, packet: &[u8], to: SocketAddr) -> io::Result<()> {
        let socket = match self {
            Self::Own(socket) => socket,
            Self::Shared { socket, .. } => socket,
        };
        socket.send_to(packet, to).await.map(drop)
    }
}

/// One transfer with its socket.
struct Session {
    link: Link,
    /// Our end of it.
    own: SocketAddr,
    peer: SocketAddr,
    who: Option<Mac>,
    boot: Arc<BootContext>,
    again: Arc<Notify>,
    strays: u32,
    cautious: Cautious,
}

impl Session {
    async fn run(mut self, asked: Asked, source: Source, options: Options, limits: Limits) {
        let file = match source {
            Source::Table(file) => file,
            Source::Pi(files, name) => match self.read(&asked, files, name).await {
                Some(file) => file,
                None => return,
            },
        };
        let began = Instant::now();
        let (mut transfer, mut effects) = Transfer::new(options, file.bytes.clone(), limits, began);
        let mut buffer = Vec::with_capacity(MAX_PACKET);
        loop {
            if let Some(end) = self.perform(effects).await {
                return self.report(&file, &end, began.elapsed(), transfer.progress(), &buffer);
            }
            effects = tokio::select! {
                received = self.link.receive(self.peer, &mut buffer) => match received {
                    Ok(from) if from == self.peer => transfer.on_packet(Instant::now(), &buffer),
                    Ok(from) => {
                        self.stray(from, &buffer).await;
                        Vec::new()
                    }
                    Err(error) => {
                        tracing::warn!(peer = %self.peer, %error, "TFTP: a transfer's socket failed");
                        return;
                    }
                },
                () = time::sleep_until(transfer.deadline().into()) => transfer.on_timeout(Instant::now()),
                () = self.again.notified() => transfer.on_request_again(Instant::now()),
            };
            if transfer.loses_large_blocks() && self.cautious.add(self.peer.ip()) {
                let words = "TFTP stands still at its first large block: an MTU, or a firewall that drops fragments; \
                             it gets blocks of 512 bytes from now on";
                let Progress { blksize, first_sent: sent, .. } = transfer.progress();
                self.boot.stalled(self.who, words, Fact::SmallBlocks { blksize, sent });
            }
        }
    }

    /// A file of a Raspberry Pi; or it was told that there is none. Most that a Pi asks for is not there, and need not be.
    async fn read(&self, asked: &Asked, files: Arc<PiFiles>, name: Vec<u8>) -> Option<BootFile> {
        let (peer, words) = (self.peer, printable(&name));
        let read = tokio::task::spawn_blocking(move || files.read(&name)).await;
        let (code, text) = match read.unwrap_or_else(|error| Err(PiError::Unreadable(io::Error::other(error)))) {
            Ok(bytes) => {
                let file = BootFile { name: words.into(), kind: Kind::Plain, bytes };
                asked.served(&self.boot, &file);
                return Some(file);
            }
            Err(PiError::Absent) => {
                tracing::debug!(%peer, name = words, "TFTP: there is neither such a boot file nor such a file for Raspberry Pis");
                let reason = "there is neither such a boot file nor such a file for Raspberry Pis";
                asked.refused(&self.boot, "no-such-file", reason);
                (ErrorCode::NotFound, ABSENT)
            }
            Err(error @ PiError::Room(_)) => {
                tracing::warn!(%peer, name = words, "TFTP: a file for Raspberry Pis is not served: {error}");
                asked.refused(&self.boot, "no-room", error.to_string());
                (ErrorCode::Undefined, "the server has no room for this file now, ask again later")
            }
            Err(error @ PiError::Unreadable(_)) => {
                tracing::warn!(%peer, name = words, "TFTP: a file for Raspberry Pis is not served: {error}");
                asked.refused(&self.boot, "unreadable", error.to_string());
                (ErrorCode::NotFound, ABSENT)
            }
        };
        let answer = packet::error(code, text);
        self.boot.keep(self.who, ours(self.who, peer, self.own, error_in_words(code, text), &answer));
        if let Err(error) = self.link.send(&answer, peer).await {
            tracing::debug!(%peer, %error, "TFTP: an ERROR could not be sent");
        }
        None
    }

    async fn perform(&self, effects: Vec<Effect>) -> Option<End> {
        for effect in effects {
            match effect {
                Effect::Send(packet) => {
                    if packet.starts_with(&OACK) {
                        let what = "OACK".to_owned();
                        self.boot.keep(self.who, ours(self.who, self.peer, self.own, what, &packet));
                    }
                    // A packet that cannot be sent is a packet that is lost: the transfer's timer sees to it.
                    if let Err(error) = self.link.send(&packet, self.peer).await {
                        tracing::debug!(peer = %self.peer, %error, "TFTP: a packet could not be sent");
                    }
                }
                Effect::End(end) => return Some(end),
            }
        }
        None
    }

    /// A packet from somebody else: told so, and the transfer goes on (RFC 1350 §4). An ERROR is never answered.
    async fn stray(&mut self, from: SocketAddr, bytes: &[u8]) {
        if self.strays == MAX_STRAYS || matches!(parse(bytes), Inbound::Error { .. }) {
            return;
        }
        self.strays += 1;
        let answer = packet::error(ErrorCode::UnknownTid, "this is somebody else's transfer");
        if let Err(error) = self.link.send(&answer, from).await {
            tracing::debug!(%from, %error, "TFTP: a stray packet could not be answered");
        }
    }

    /// How it ended, to whom it concerns. `last` is the client's last packet.
    fn report(&self, file: &BootFile, end: &End, took: Duration, progress: Progress, last: &[u8]) {
        let (peer, name) = (self.peer, &*file.name);
        let Progress { acked, blocks, blksize, retries, .. } = progress;
        let all = format!(
            "{acked} of {blocks} blocks of {blksize} bytes acknowledged, {retries} times sent again, in {:.1} s",
            took.as_secs_f64()
        );
        let keep = |what: String, decision, code, reason: String, heard: bool| {
            let datagram = heard.then(|| datagram(self.who, peer, self.own, Direction::In, last));
            let (what, reason, direction) = (what.into(), reason.into(), Direction::In);
            self.boot
                .keep(self.who, Packet { direction, protocol: Protocol::Tftp, what, decision, code, reason, datagram });
        };
        match end {
            End::Complete => {
                keep(format!("ACK {acked}"), Decision::Noted, "complete", all, true);
                self.boot.fetched(file, self.who, "TFTP", Some(took));
            }
            End::SizeProbe => {
                tracing::debug!(%peer, name, "TFTP: size probe");
                let reason = "it only wanted to know the size".to_owned();
                keep("ERROR".to_owned(), Decision::Noted, "size-probe", reason, true);
            }
            End::Refused { code, text } => {
                tracing::info!(%peer, name, code, text, "TFTP: the client gave up");
                keep(format!("ERROR {code}: {text}"), Decision::Failed, "client-error", all, true);
                let words =
                    format!("it broke off the transfer of {name} after block {acked} of {blocks}: error {code} {text}");
                self.boot.stalled(self.who, &words, Fact::GaveUp { code: *code, acked, blocks });
            }
            End::Silent { .. } => {
                tracing::warn!(%peer, name, acked, blocks, "TFTP: the client fell silent");
                keep("silence".to_owned(), Decision::Failed, "silent", all, false);
                let words = format!(
                    "{name} by TFTP stopped at block {acked} of {blocks} of {blksize} bytes: sent {retries} times \
                                     again, no answer"
                );
                self.boot.stalled(self.who, &words, Fact::Stalled { acked, blocks, blksize, retries });
            }
            End::Endless { sent } => {
                tracing::warn!(%peer, name, sent, "TFTP: the client made us send everything again and again; it is left");
                keep(format!("ACK {acked}, again and again"), Decision::Failed, "endless", all, true);
                let (sent, bytes) = (*sent, file.bytes.len() as u64);
                let words = format!("{name} by TFTP was left: it made us send {sent} bytes of a file that has {bytes}");
                self.boot.stalled(self.who, &words, Fact::Endless { sent, bytes });
            }
        }
    }
}
