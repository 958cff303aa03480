//! The login phase (RFC 7143 §6.3, §11.12, §11.13): from the first byte of a connection to the full feature phase.
//!
//! The caller is asked twice: may this initiator come in ([`Next::Authorize`]), and, when everything is agreed on, is its
//! place free ([`Next::Establish`]), which may take it a second: the old session of the same initiator is asked first.
//! Its verdict may ask for CHAP, or lead the initiator to another portal ([`Verdict`]).

use std::collections::{BTreeMap, btree_map::Entry};

use super::chap::{self, Algorithm, Challenge, Credentials, Nonce, Refusal};
use super::pdu::{CONTINUE, Digests, FINAL, Header, Pdu, append, opcode};
use super::text::{self, Keys, Negotiation, Params};
use super::{LOGIN_DATA_SEGMENT, MAX_TEXT, PORTAL_GROUP};

/// Most requests of one login. The longest that initiators are known to need are six.
const MAX_REQUESTS: u32 = 64;

/// Security negotiation, as current stage.
const SECURITY: u8 = 0;
/// Operational negotiation, as current or next stage; 0 is security negotiation.
const OPERATIONAL: u8 = 1;
/// The full feature phase, as next stage.
const FULL_FEATURE: u8 = 3;

/// Why a login is refused: status class and detail (RFC 7143 §11.13.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Status {
    /// The target is at another address for now.
    MovedTemporarily = 0x0101,
    /// The initiator's request makes no sense.
    InitiatorError = 0x0200,
    /// Authentication failed, or a method is wanted that there is not.
    AuthenticationFailed = 0x0201,
    /// The initiator may not use this target.
    Forbidden = 0x0202,
    /// There is no such target.
    NotFound = 0x0203,
    /// A protocol version that we do not speak.
    Version = 0x0205,
    /// A second connection for a session, which holds one.
    TooManyConnections = 0x0206,
    /// A name is missing.
    MissingParameter = 0x0207,
    /// Neither a discovery nor a normal session.
    SessionType = 0x0209,
    /// No session has this TSIH.
    NoSuchSession = 0x020A,
    /// A request that does not fit the phase.
    InvalidRequest = 0x020B,
    /// The target failed in a way of its own.
    TargetError = 0x0300,
    /// The target cannot be used now; trying again may help.
    Unavailable = 0x0301,
    /// Too many sessions; trying again may help.
    OutOfResources = 0x0302,
}

/// A request that breaks the protocol so that there is no answer to give: close the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// Something else than a Login Request.
    #[error("PDU {0:02x}h before the login")]
    NotLogin(u8),
    /// More text than [`MAX_TEXT`].
    #[error("a login text of more than {MAX_TEXT} bytes")]
    TooLong,
    /// More requests than [`MAX_REQUESTS`].
    #[error("a login of more than {MAX_REQUESTS} requests")]
    TooMany,
}

/// Who wants to log in to what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// `InitiatorName`.
    pub initiator: String,
    /// `TargetName`; `None` in a discovery session.
    pub target: Option<String>,
    /// Initiator session ID.
    pub isid: [u8; 6],
    /// Target session identifying handle: 0 asks for a new session.
    pub tsih: u16,
    /// Connection ID.
    pub cid: u16,
}

/// What an agreed session starts with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed {
    /// Who it is.
    pub who: Who,
    /// What was negotiated.
    pub params: Params,
    /// Connection ID.
    pub cid: u16,
    /// The CmdSN of the first command to come.
    pub cmd_sn: u32,
    /// The StatSN of the next response.
    pub stat_sn: u32,
}

/// Whether an initiator may come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// As it is.
    Open,
    /// If it passes CHAP.
    Chap {
        /// What both sides know.
        credentials: Credentials,
        /// Random numbers for this login alone.
        nonce: Nonce,
        /// It must pass; else it is let in without, if it would rather have that.
        required: bool,
    },
    /// Not here, but at this address, `host:port` (RFC 7143 §4.2.5.2). iPXE wants the port, too.
    Moved(String),
    /// No.
    Refused(Status),
}

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// An answer was appended; read on.
    Continue,
    /// Call [`Login::authorized`].
    Authorize(Who),
    /// Call [`Login::established`].
    Establish(Who),
    /// The final answer was appended; the full feature phase begins.
    Done(Agreed),
    /// A refusal was appended: send it and close.
    Refused(Status),
}

/// A connection that logs in.
#[derive(Debug, Default)]
pub struct Login {
    /// What every request of this login has in common: ITT, CID and ISID.
    tags: Option<(u32, u16, [u8; 6])>,
    begun: Option<Begun>,
    requests: u32,
    text: Vec<u8>,
    /// Keys that came, with the values of those that may come again if they say the same.
    said: BTreeMap<String, Option<String>>,
    auth: Auth,
    why: Option<Refusal>,
    negotiation: Negotiation,
    stat_sn: u32,
    waiting: Option<(Header, Keys)>,
    /// What of an answer did not fit one PDU.
    rest: Vec<u8>,
    final_reply: Vec<u8>,
}

/// What the first request fixed.
#[derive(Debug, Clone)]
struct Begun {
    who: Who,
    cmd_sn: u32,
    stage: u8,
    /// The portal group's tag is told in the first response (RFC 7143 §13.9).
    told_group: bool,
}

/// How far the initiator has authenticated itself.
#[derive(Debug, Default)]
enum Auth {
    /// It need not, or has.
    #[default]
    Passed,
    /// It has not begun to.
    Wanted { credentials: Credentials, nonce: Nonce, required: bool },
    /// CHAP was agreed on; its algorithms are due.
    Algorithm { credentials: Credentials, nonce: Nonce },
    /// Its response is due.
    Response { credentials: Credentials, challenge: Challenge },
}

/// Declarations that some initiators repeat in each stage. Everything else is said once (RFC 7143 §6.3).
const REPEATABLE: [&str; 5] =
    ["InitiatorName", "InitiatorAlias", "TargetName", "SessionType", "MaxRecvDataSegmentLength"];

impl Login {
    /// A Login Request came. Answers go to `out`.
    ///
    /// # Errors
    /// The connection must be closed without an answer.
    pub fn receive(&mut self, pdu: &Pdu, out: &mut Vec<u8>) -> Result<Next, LoginError> {
        let header = pdu.header;
        if header.opcode() != opcode::LOGIN || self.waiting.is_some() {
            return Err(LoginError::NotLogin(header.opcode()));
        }
        self.requests += 1;
        if self.requests > MAX_REQUESTS {
            return Err(LoginError::TooMany);
        }
        if self.requests == 1 {
            self.stat_sn = header.word(28); // ExpStatSN; any start will do
        }
        if header.0[3] != 0 {
            return Ok(self.refuse(&header, Status::Version, out));
        }
        let tags = (header.itt(), cid(&header), isid(&header));
        if *self.tags.get_or_insert(tags) != tags || !pdu.ahs.is_empty() {
            return Ok(self.refuse(&header, Status::InvalidRequest, out));
        }
        if self.text.len() + pdu.data.len() > MAX_TEXT {
            return Err(LoginError::TooLong);
        }
        let goes_on = header.flags() & CONTINUE != 0;
        if goes_on && header.last() {
            return Ok(self.refuse(&header, Status::InitiatorError, out)); // T with C
        }
        if !self.rest.is_empty() {
            // It asks for the rest of our answer, and says nothing itself (RFC 7143 §6.2).
            if goes_on || !pdu.data.is_empty() {
                return Ok(self.refuse(&header, Status::InvalidRequest, out));
            }
            let rest = std::mem::take(&mut self.rest);
            return Ok(self.say(&header, rest, out));
        }
        self.text.extend_from_slice(&pdu.data);
        if goes_on {
            self.reply(&header, header.flags() & 0x0C, &[], out);
            return Ok(Next::Continue);
        }
        let keys = text::parse(&std::mem::take(&mut self.text)).ok().filter(|keys| self.is_new(keys));
        let Some(keys) = keys else { return Ok(self.refuse(&header, Status::InitiatorError, out)) };
        if self.begun.is_some() {
            return Ok(self.step(header, &keys, out));
        }
        match self.begin(&header, &keys) {
            Ok(who) => {
                self.waiting = Some((header, keys));
                Ok(Next::Authorize(who))
            }
            Err(status) => Ok(self.refuse(&header, status, out)),
        }
    }

    /// Why authentication failed, where it did.
    #[must_use]
    pub fn why(&self) -> Option<Refusal> {
        self.why
    }

    /// What is agreed on so far.
    #[must_use]
    pub fn params(&self) -> &Params {
        &self.negotiation.params
    }

    /// The session goes on over a new connection, with what it had agreed on. Call before [`Login::authorized`].
    pub fn resume(&mut self, params: &Params) {
        // Digests and segment lengths are a connection's own.
        let Params { digests, initiator_segment, .. } = Params::default();
        self.negotiation.params = Params { digests, initiator_segment, ..params.clone() };
    }

    /// Remembers these keys; false if one was said before.
    fn is_new(&mut self, keys: &Keys) -> bool {
        for (key, value) in keys {
            let value = REPEATABLE.contains(&key.as_str()).then(|| value.clone());
            let full = self.said.len() >= text::MAX_KEYS;
            match self.said.entry(key.clone()) {
                Entry::Vacant(_) if full => return false,
                Entry::Vacant(entry) => drop(entry.insert(value)),
                Entry::Occupied(entry) if value.is_some() && *entry.get() == value => {}
                Entry::Occupied(_) => return false,
            }
        }
        true
    }

    fn begin(&mut self, header: &Header, keys: &Keys) -> Result<Who, Status> {
        let discovery = match keys.get("SessionType").map(String::as_str) {
            None | Some("Normal") => false,
            Some("Discovery") => true,
            Some(_) => return Err(Status::SessionType),
        };
        let name = |key: &str| keys.get(key).filter(|name| !name.is_empty()).cloned();
        let initiator = name("InitiatorName").ok_or(Status::MissingParameter)?;
        let target = match name("TargetName") {
            None if !discovery => return Err(Status::MissingParameter),
            target => target.filter(|_| !discovery),
        };
        let tsih = u16::from_be_bytes([header.0[14], header.0[15]]);
        let who = Who { initiator, target, isid: isid(header), tsih, cid: cid(header) };
        self.negotiation.discovery = discovery;
        self.begun =
            Some(Begun { who: who.clone(), cmd_sn: header.word(24), stage: stages(header).0, told_group: false });
        Ok(who)
    }

    /// The verdict on [`Next::Authorize`].
    pub fn authorized(&mut self, verdict: Verdict, out: &mut Vec<u8>) -> Next {
        let Some((header, keys)) = self.waiting.take() else { return Next::Continue };
        self.auth = match verdict {
            Verdict::Open => Auth::Passed,
            Verdict::Chap { credentials, nonce, required } => Auth::Wanted { credentials, nonce, required },
            Verdict::Moved(address) => {
                let mut text = Vec::new();
                text::push(&mut text, "TargetAddress", &address);
                return self.refuse_with(&header, Status::MovedTemporarily, &text, out);
            }
            Verdict::Refused(status) => return self.refuse(&header, status, out),
        };
        self.step(header, &keys, out)
    }

    /// The verdict on [`Next::Establish`]: the handle of the new session, never 0.
    pub fn established(&mut self, verdict: Result<u16, Status>, out: &mut Vec<u8>) -> Next {
        let Some((header, _)) = self.waiting.take() else { return Next::Continue };
        match (verdict, &mut self.begun) {
            (Ok(tsih), Some(begun)) => {
                begun.who.tsih = tsih;
                let text = std::mem::take(&mut self.final_reply);
                self.reply(&header, FINAL | (stages(&header).0) << 2 | FULL_FEATURE, &text, out);
                let begun = self.begun.clone().expect("matched above");
                Next::Done(Agreed {
                    cid: begun.who.cid,
                    who: begun.who,
                    params: self.negotiation.params.clone(),
                    cmd_sn: begun.cmd_sn,
                    stat_sn: self.stat_sn,
                })
            }
            (Err(status), _) => self.refuse(&header, status, out),
            (Ok(_), None) => self.refuse(&header, Status::InvalidRequest, out),
        }
    }

    /// One step of the negotiation, of an initiator that may come in, or that has to prove that it may.
    fn step(&mut self, header: Header, keys: &Keys, out: &mut Vec<u8>) -> Next {
        let (current, next) = stages(&header);
        let asks_on = header.last();
        let Some(begun) = &mut self.begun else { return self.refuse(&header, Status::InvalidRequest, out) };
        let legal_next = !asks_on || (next > current && matches!(next, OPERATIONAL | FULL_FEATURE));
        if current != begun.stage || current > OPERATIONAL || !legal_next {
            return self.refuse(&header, Status::InvalidRequest, out);
        }
        let mut reply = Vec::new();
        if !begun.told_group && begun.who.target.is_some() {
            text::push(&mut reply, "TargetPortalGroupTag", &PORTAL_GROUP.to_string());
        }
        begun.told_group = true;
        let passed = match self.authenticate(current, keys, &mut reply) {
            Ok(passed) => passed,
            Err(why) => {
                self.why = Some(why);
                return self.refuse(&header, Status::AuthenticationFailed, out);
            }
        };
        if current == OPERATIONAL {
            reply.extend(self.negotiation.answer(keys));
        }
        // iPXE asks on in every request. It goes on when it has passed and was told everything.
        if !asks_on || !passed || reply.len() > LOGIN_DATA_SEGMENT as usize {
            return self.say(&header, reply, out);
        }
        if next == FULL_FEATURE {
            let Some(begun) = &self.begun else { return Next::Continue };
            let who = begun.who.clone();
            self.final_reply = reply;
            self.waiting = Some((header, Keys::new()));
            return Next::Establish(who);
        }
        if let Some(begun) = &mut self.begun {
            begun.stage = next;
        }
        self.reply(&header, FINAL | current << 2 | next, &reply, out);
        Next::Continue
    }

    /// What these keys do for the initiator's authentication; true once it may go on.
    fn authenticate(&mut self, stage: u8, keys: &Keys, reply: &mut Vec<u8>) -> Result<bool, Refusal> {
        let method = keys.get("AuthMethod");
        let offers = |wanted: &str| method.is_some_and(|list| list.split(',').any(|method| method == wanted));
        let first = method.and_then(|list| list.split(',').find(|method| matches!(*method, "CHAP" | "None")));
        match std::mem::take(&mut self.auth) {
            Auth::Passed => {
                if method.is_some() && !offers("None") {
                    return Err(Refusal::NotSetUp);
                }
                if method.is_some() {
                    text::push(reply, "AuthMethod", "None");
                }
                Ok(true)
            }
            Auth::Wanted { required: false, .. } if stage != SECURITY || first != Some("CHAP") => {
                self.authenticate(stage, keys, reply)
            }
            Auth::Wanted { .. } if stage != SECURITY || !offers("CHAP") => Err(Refusal::NotOffered),
            Auth::Wanted { credentials, nonce, .. } => {
                text::push(reply, "AuthMethod", "CHAP");
                self.auth = Auth::Algorithm { credentials, nonce };
                if keys.contains_key("CHAP_A") {
                    return self.authenticate(stage, keys, reply);
                }
                Ok(false)
            }
            Auth::Algorithm { credentials, nonce } => {
                let list = keys.get("CHAP_A").ok_or(Refusal::Malformed)?;
                let challenge = Challenge::new(Algorithm::strongest_of(list).ok_or(Refusal::Algorithm)?, nonce);
                text::push(reply, "CHAP_A", &challenge.algorithm().number().to_string());
                text::push(reply, "CHAP_I", &challenge.identifier().to_string());
                text::push(reply, "CHAP_C", &chap::hexadecimal(challenge.bytes()));
                self.auth = Auth::Response { credentials, challenge };
                Ok(false)
            }
            Auth::Response { credentials, challenge } => {
                let key = |key: &str| keys.get(key).map(String::as_str);
                let (name, response) = key("CHAP_N").zip(key("CHAP_R")).ok_or(Refusal::Malformed)?;
                challenge.check(&credentials, name, response)?;
                match (key("CHAP_I"), key("CHAP_C")) {
                    (None, None) => {}
                    // In the same answer that lets it go on: iPXE takes no other.
                    (Some(identifier), Some(theirs)) => {
                        let response = challenge.answer(&credentials, identifier, theirs)?;
                        text::push(reply, "CHAP_N", &credentials.target_user);
                        text::push(reply, "CHAP_R", &chap::hexadecimal(&response));
                    }
                    _ => return Err(Refusal::Malformed),
                }
                Ok(true)
            }
        }
    }

    /// Sends an answer that ends no stage, in as many PDUs as it takes.
    fn say(&mut self, request: &Header, mut text: Vec<u8>, out: &mut Vec<u8>) -> Next {
        self.rest = text.split_off(text.len().min(LOGIN_DATA_SEGMENT as usize));
        let more = if self.rest.is_empty() { 0 } else { CONTINUE };
        self.reply(request, more | stages(request).0 << 2, &text, out);
        Next::Continue
    }

    fn refuse(&mut self, request: &Header, status: Status, out: &mut Vec<u8>) -> Next {
        self.refuse_with(request, status, &[], out)
    }

    fn refuse_with(&mut self, request: &Header, status: Status, text: &[u8], out: &mut Vec<u8>) -> Next {
        let mut response = self.response(request, 0);
        [response.0[36], response.0[37]] = (status as u16).to_be_bytes();
        append(out, response, text, Digests::NONE);
        Next::Refused(status)
    }

    fn reply(&mut self, request: &Header, flags: u8, text: &[u8], out: &mut Vec<u8>) {
        let response = self.response(request, flags);
        self.stat_sn = self.stat_sn.wrapping_add(1);
        append(out, response, text, Digests::NONE);
    }

    fn response(&self, request: &Header, flags: u8) -> Header {
        let mut response = Header::new(opcode::LOGIN_RESPONSE, flags);
        response.0[8..14].copy_from_slice(&request.0[8..14]);
        if let Some(begun) = &self.begun {
            response.0[14..16].copy_from_slice(&begun.who.tsih.to_be_bytes());
        }
        let cmd_sn = request.word(24);
        response.with(16, request.itt()).with(24, self.stat_sn).with(28, cmd_sn).with(32, cmd_sn)
    }
}

fn cid(header: &Header) -> u16 {
    u16::from_be_bytes([header.0[20], header.0[21]])
}

fn isid(header: &Header) -> [u8; 6] {
    let mut isid = [0; 6];
    isid.copy_from_slice(&header.0[8..14]);
    isid
}

/// Current and next stage of a request.
fn stages(header: &Header) -> (u8, u8) {
    (header.flags() >> 2 & 3, header.flags() & 3)
}

#[cfg(test)]
mod tests {
    use super::super::frame;
    use super::*;
    use bytes::{Bytes, BytesMut};
    use proptest::prelude::*;

    fn request(flags: u8, text: &str) -> Pdu {
        let mut header = Header::new(0x40 | opcode::LOGIN, flags);
        header.0[8..14].copy_from_slice(&[0x40, 0, 0, 1, 2, 3]);
        Pdu {
            header: header.with(16, 7).with(20, 1 << 16).with(24, 40),
            ahs: Bytes::new(),
            data: Bytes::from(text.replace(' ', "\0") + "\0"),
            intact: true,
        }
    }

    fn answer(out: &mut Vec<u8>) -> (u16, u8, String) {
        let mut input = BytesMut::from(&out[..]);
        out.clear();
        let pdu = frame::next(&mut input, LOGIN_DATA_SEGMENT, Digests::NONE).unwrap().expect("one whole answer");
        assert!(input.is_empty(), "one answer to one request");
        let text = String::from_utf8(pdu.data.to_vec()).unwrap().trim_end_matches('\0').replace('\0', " ");
        ((pdu.header.word(36) >> 16).try_into().unwrap(), pdu.header.flags(), text)
    }

    const NAMES: &str =
        "InitiatorName=iqn.2026-11.internal.roost:client.pc-01 TargetName=iqn.2026-11.internal.roost:pc-01";

    #[test]
    fn an_initiator_of_ipxes_kind_gets_in_by_two_steps() {
        let (mut login, mut out) = (Login::default(), Vec::new());
        let next = login
            .receive(&request(FINAL | OPERATIONAL, &format!("{NAMES} SessionType=Normal AuthMethod=None")), &mut out);
        assert!(
            matches!(next, Ok(Next::Authorize(who)) if who.target.as_deref() == Some("iqn.2026-11.internal.roost:pc-01"))
        );
        assert_eq!(login.authorized(Verdict::Open, &mut out), Next::Continue);
        assert_eq!(answer(&mut out), (0, FINAL | OPERATIONAL, "TargetPortalGroupTag=1 AuthMethod=None".into()));
        let next = login.receive(&request(FINAL | OPERATIONAL << 2 | FULL_FEATURE, "ImmediateData=No"), &mut out);
        assert!(matches!(next, Ok(Next::Establish(_))));
        let Next::Done(agreed) = login.established(Ok(9), &mut out) else { panic!("not done") };
        assert_eq!((agreed.who.tsih, agreed.cmd_sn, agreed.params.immediate_data), (9, 40, false));
        let (status, flags, text) = answer(&mut out);
        assert_eq!((status, flags), (0, FINAL | OPERATIONAL << 2 | FULL_FEATURE));
        assert_eq!(text, "ImmediateData=No MaxRecvDataSegmentLength=262144");
    }

    #[test]
    fn each_refusal_says_why() {
        let first = |flags, text: &str| {
            let (mut login, mut out) = (Login::default(), Vec::new());
            let _ = login.receive(&request(flags, text), &mut out).unwrap();
            if out.is_empty() {
                login.authorized(Verdict::Open, &mut out);
            }
            answer(&mut out).0
        };
        assert_eq!(first(FINAL | 1, "TargetName=t"), Status::MissingParameter as u16);
        assert_eq!(first(FINAL | 1, "InitiatorName=i"), Status::MissingParameter as u16);
        assert_eq!(first(FINAL | 1, "InitiatorName=i SessionType=Other"), Status::SessionType as u16);
        assert_eq!(first(FINAL | 1, &format!("{NAMES} AuthMethod=CHAP")), Status::AuthenticationFailed as u16);
        assert_eq!(first(FINAL | CONTINUE, NAMES), Status::InitiatorError as u16);
        assert_eq!(first(FINAL | OPERATIONAL << 2 | OPERATIONAL, NAMES), Status::InvalidRequest as u16);
        assert_eq!(first(FINAL | 1, "InitiatorName=i InitiatorName=j"), Status::InitiatorError as u16);
    }

    #[test]
    fn a_refused_initiator_gets_its_status_and_nothing_else() {
        let (mut login, mut out) = (Login::default(), Vec::new());
        login.receive(&request(FINAL | 1, NAMES), &mut out).unwrap();
        assert_eq!(login.authorized(Verdict::Refused(Status::Forbidden), &mut out), Next::Refused(Status::Forbidden));
        assert_eq!(answer(&mut out), (0x0202, 0, String::new()));
    }

    #[test]
    fn a_text_may_come_in_pieces() {
        let (mut login, mut out) = (Login::default(), Vec::new());
        let (head, tail) = NAMES.split_at(30);
        let mut piece = request(CONTINUE, head);
        piece.data.truncate(head.len());
        assert_eq!(login.receive(&piece, &mut out), Ok(Next::Continue));
        assert_eq!(answer(&mut out).0, 0);
        assert!(matches!(login.receive(&request(FINAL | 1, tail), &mut out), Ok(Next::Authorize(_))));
    }

    const NONCE: Nonce = Nonce { identifier: 9, challenge: [0xC5; 32] };

    fn credentials() -> Credentials {
        Credentials {
            user: "pc-01".into(),
            secret: "the-machine-knows".into(),
            target_user: "roost".into(),
            target_secret: "the-server-knows".into(),
        }
    }

    /// A login whose initiator is asked for CHAP; what it is answered after each request of these flags and keys.
    fn chap(required: bool, requests: &[(u8, &str)]) -> (Vec<(u16, u8, String)>, Next, Option<Refusal>) {
        let (mut login, mut out, mut answers, mut last) = (Login::default(), Vec::new(), Vec::new(), Next::Continue);
        for (number, (flags, text)) in requests.iter().enumerate() {
            let text = if number == 0 { format!("{NAMES} {text}") } else { (*text).to_owned() };
            last = login.receive(&request(*flags, &text), &mut out).unwrap();
            if let Next::Authorize(_) = last {
                let verdict = Verdict::Chap { credentials: credentials(), nonce: NONCE, required };
                last = login.authorized(verdict, &mut out);
            }
            if let Next::Establish(_) = last {
                last = login.established(Ok(5), &mut out);
            }
            answers.push(answer(&mut out));
        }
        (answers, last, login.why())
    }

    fn response(algorithm: Algorithm, secret: &str, length: usize) -> String {
        chap::hexadecimal(&algorithm.respond(NONCE.identifier, secret, &NONCE.challenge[..length]))
    }

    const ON: u8 = FINAL | OPERATIONAL;

    #[test]
    fn an_initiator_of_ipxes_kind_passes_mutual_chap_though_it_asks_on_in_each_request() {
        let passes = response(Algorithm::Md5, "the-machine-knows", 16);
        let theirs = "0x0102030405060708";
        let (answers, last, _) = chap(
            true,
            &[
                (ON, "SessionType=Normal AuthMethod=CHAP,None"),
                (ON, "CHAP_A=5"),
                (ON, &format!("CHAP_N=pc-01 CHAP_R={passes} CHAP_I=7 CHAP_C={theirs}")),
                (FINAL | OPERATIONAL << 2 | FULL_FEATURE, "ImmediateData=No"),
            ],
        );
        let challenge = format!("CHAP_A=5 CHAP_I=9 CHAP_C=0x{}", "c5".repeat(16));
        let proof = chap::hexadecimal(&Algorithm::Md5.respond(7, "the-server-knows", &[1, 2, 3, 4, 5, 6, 7, 8]));
        assert_eq!(
            answers[..3],
            [
                (0, 0, "TargetPortalGroupTag=1 AuthMethod=CHAP".to_owned()),
                (0, 0, challenge),
                (0, ON, format!("CHAP_N=roost CHAP_R={proof}")),
            ]
        );
        assert!(matches!(last, Next::Done(_)));
    }

    #[test]
    fn the_strongest_algorithm_is_chosen_and_the_last_step_may_be_the_first_of_full_feature() {
        for (offer, algorithm, length) in
            [("5,7,8", Algorithm::Sha3_256, 32), ("7,5", Algorithm::Sha256, 32), ("6,5", Algorithm::Md5, 16)]
        {
            let passes = response(algorithm, "the-machine-knows", length);
            let (answers, last, _) = chap(
                true,
                &[
                    (0, &format!("AuthMethod=CHAP CHAP_A={offer}")),
                    (FINAL | FULL_FEATURE, &format!("CHAP_N=pc-01 CHAP_R={passes}")),
                ],
            );
            let chosen = format!("AuthMethod=CHAP CHAP_A={} CHAP_I=9", algorithm.number());
            assert!(answers[0].2.contains(&chosen), "{answers:?}");
            assert!(matches!(last, Next::Done(_)), "{answers:?}");
        }
    }

    #[test]
    fn whoever_does_not_pass_is_refused_and_the_operator_told_why() {
        let begin = (ON, "AuthMethod=CHAP,None");
        let passes = response(Algorithm::Md5, "the-machine-knows", 16);
        let fails = response(Algorithm::Md5, "the-server-knows", 16);
        let reflected = format!("0x{}", "c5".repeat(16));
        for (requests, why) in [
            (vec![(ON, "AuthMethod=None".to_owned())], Refusal::NotOffered),
            (vec![(ON, String::new())], Refusal::NotOffered),
            (vec![(FINAL | OPERATIONAL << 2 | FULL_FEATURE, String::new())], Refusal::NotOffered),
            (vec![(FINAL | OPERATIONAL << 2 | FULL_FEATURE, "AuthMethod=CHAP".to_owned())], Refusal::NotOffered),
            (vec![(ON, "AuthMethod=KRB5".to_owned())], Refusal::NotOffered),
            (vec![(begin.0, begin.1.to_owned()), (ON, "CHAP_A=6".to_owned())], Refusal::Algorithm),
            (vec![(begin.0, begin.1.to_owned()), (ON, String::new())], Refusal::Malformed),
        ] {
            let requests: Vec<_> = requests.iter().map(|(flags, text)| (*flags, text.as_str())).collect();
            let (answers, last, told) = chap(true, &requests);
            assert_eq!((last, told), (Next::Refused(Status::AuthenticationFailed), Some(why)), "{requests:?}");
            assert_eq!(answers.last().unwrap().0, 0x0201);
        }
        for (text, why) in [
            (format!("CHAP_N=pc-02 CHAP_R={passes}"), Refusal::Name),
            (format!("CHAP_N=pc-01 CHAP_R={fails}"), Refusal::Secret),
            ("CHAP_N=pc-01".to_owned(), Refusal::Malformed),
            (format!("CHAP_N=pc-01 CHAP_R={passes} CHAP_I=1"), Refusal::Malformed),
            (format!("CHAP_N=pc-01 CHAP_R={passes} CHAP_I=9 CHAP_C={reflected}"), Refusal::Reflection),
        ] {
            let (answers, last, told) = chap(true, &[begin, (ON, "CHAP_A=5"), (ON, &text)]);
            assert_eq!((last, told), (Next::Refused(Status::AuthenticationFailed), Some(why)), "{text}");
            assert_eq!(answers.last().unwrap(), &(0x0201, 0, String::new()));
        }
    }

    #[test]
    fn where_chap_is_not_required_the_initiator_prefers() {
        let (answers, ..) = chap(false, &[(ON, "AuthMethod=None,CHAP")]);
        assert_eq!(answers[0].2, "TargetPortalGroupTag=1 AuthMethod=None");
        let (answers, ..) = chap(false, &[(ON, "AuthMethod=CHAP,None")]);
        assert_eq!(answers[0].2, "TargetPortalGroupTag=1 AuthMethod=CHAP");
        let (_, last, _) = chap(false, &[(FINAL | OPERATIONAL << 2 | FULL_FEATURE, "")]);
        assert!(matches!(last, Next::Done(_)));
    }

    #[test]
    fn an_initiator_is_led_elsewhere_before_it_authenticates() {
        let (mut login, mut out) = (Login::default(), Vec::new());
        login.receive(&request(ON, &format!("{NAMES} AuthMethod=CHAP")), &mut out).unwrap();
        let next = login.authorized(Verdict::Moved("192.0.2.7:3260".to_owned()), &mut out);
        assert_eq!(next, Next::Refused(Status::MovedTemporarily));
        assert_eq!(answer(&mut out), (0x0101, 0, "TargetAddress=192.0.2.7:3260".to_owned()));
    }

    #[test]
    fn a_key_is_negotiated_once_and_a_name_stays_what_it_is() {
        let ask = |second: &str| {
            let (mut login, mut out) = (Login::default(), Vec::new());
            login.receive(&request(ON, &format!("{NAMES} AuthMethod=None")), &mut out).unwrap();
            login.authorized(Verdict::Open, &mut out);
            answer(&mut out);
            login.receive(&request(OPERATIONAL << 2, second), &mut out).unwrap();
            answer(&mut out).0
        };
        assert_eq!(ask("AuthMethod=None"), Status::InitiatorError as u16);
        assert_eq!(ask("TargetName=iqn.2026-11.internal.roost:other"), Status::InitiatorError as u16);
        assert_eq!(ask(NAMES), 0, "some say their names in each stage");
        assert_eq!(ask("MaxBurstLength=512"), 0);
    }

    #[test]
    fn tags_and_stages_that_change_are_refused() {
        let ask = |spoil: &dyn Fn(&mut Header)| {
            let (mut login, mut out) = (Login::default(), Vec::new());
            login.receive(&request(ON, &format!("{NAMES} AuthMethod=None")), &mut out).unwrap();
            login.authorized(Verdict::Open, &mut out);
            answer(&mut out);
            let mut second = request(FINAL | OPERATIONAL << 2 | FULL_FEATURE, "");
            spoil(&mut second.header);
            let next = login.receive(&second, &mut out).unwrap();
            if let Next::Establish(_) = next {
                return 0;
            }
            answer(&mut out).0
        };
        assert_eq!(ask(&|_| ()), 0);
        let invalid = Status::InvalidRequest as u16;
        assert_eq!(ask(&|header| header.set_word(16, 8)), invalid, "another ITT");
        assert_eq!(ask(&|header| header.set_word(20, 2 << 16)), invalid, "another CID");
        assert_eq!(ask(&|header| header.0[9] ^= 1), invalid, "another ISID");
        assert_eq!(ask(&|header| header.0[1] = ON), invalid, "back to the first stage");
        assert_eq!(ask(&|header| header.0[1] = FINAL | 2 << 2 | FULL_FEATURE), invalid, "a stage that there is not");
        assert_eq!(ask(&|header| header.0[3] = 1), Status::Version as u16);
    }

    #[test]
    fn an_answer_that_fits_no_pdu_comes_in_pieces_before_the_stage_ends() {
        let (mut login, mut out) = (Login::default(), Vec::new());
        login.receive(&request(ON, &format!("{NAMES} AuthMethod=None")), &mut out).unwrap();
        login.authorized(Verdict::Open, &mut out);
        answer(&mut out);
        let keys: Vec<String> = (0..110).map(|n| format!("X-{n:061}=")).collect();
        let on = FINAL | OPERATIONAL << 2 | FULL_FEATURE;
        let (head, tail) = keys.split_at(55);
        let mut piece = request(CONTINUE | OPERATIONAL << 2, &head.join(" "));
        piece.header.0[1] = CONTINUE | OPERATIONAL << 2;
        assert_eq!(login.receive(&piece, &mut out), Ok(Next::Continue));
        assert_eq!(answer(&mut out), (0, OPERATIONAL << 2, String::new()));
        assert_eq!(login.receive(&request(on, &tail.join(" ")), &mut out), Ok(Next::Continue));
        let first = answer(&mut out);
        assert_eq!((first.0, first.1), (0, CONTINUE | OPERATIONAL << 2));
        let mut empty = request(on, "");
        empty.data = Bytes::new();
        assert_eq!(login.receive(&empty, &mut out), Ok(Next::Continue));
        let second = answer(&mut out);
        assert_eq!(second.1, OPERATIONAL << 2, "and only then it goes on");
        let said = format!("{}{}", first.2, second.2);
        assert_eq!(said.matches("=NotUnderstood").count(), 110);
        assert!(matches!(login.receive(&empty, &mut out), Ok(Next::Establish(_))));
    }

    #[test]
    fn a_login_without_end_is_ended() {
        let (mut login, mut out) = (Login::default(), Vec::new());
        let mut piece = request(CONTINUE, "");
        piece.data = Bytes::from_static(b"x");
        for _ in 0..MAX_REQUESTS {
            assert_eq!(login.receive(&piece, &mut out), Ok(Next::Continue));
        }
        assert_eq!(login.receive(&piece, &mut out), Err(LoginError::TooMany));
        let (mut login, mut out) = (Login::default(), Vec::new());
        piece.data = Bytes::from(vec![b'x'; 8192]);
        for _ in 0..MAX_TEXT / 8192 {
            assert_eq!(login.receive(&piece, &mut out), Ok(Next::Continue));
        }
        assert_eq!(login.receive(&piece, &mut out), Err(LoginError::TooLong));
    }

    proptest! {
        #[test]
        fn any_requests_are_answered_or_end_the_connection(
            requests in prop::collection::vec((any::<[u8; 48]>(), prop::collection::vec(any::<u8>(), 0..80)), 1..8),
        ) {
            let (mut login, mut out) = (Login::default(), Vec::new());
            for (mut header, data) in requests {
                header[0] = 0x43;
                header[3] = 0;
                let pdu = Pdu { header: Header(header), ahs: Bytes::new(), data: Bytes::from(data), intact: true };
                match login.receive(&pdu, &mut out) {
                    Ok(Next::Authorize(_)) => { login.authorized(Verdict::Open, &mut out); }
                    Ok(Next::Establish(_)) => { login.established(Ok(1), &mut out); }
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
        }
    }
}
