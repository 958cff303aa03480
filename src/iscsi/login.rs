//! The login phase (RFC 7143 §6.3, §11.12, §11.13): from the first byte of a connection to the full feature phase.
//!
//! The caller is asked twice: may this initiator come in ([`Next::Authorize`]), and, when everything is agreed on, is its
//! place free ([`Next::Establish`]), which may take it a second: the old session of the same initiator is asked first.

use super::pdu::{CONTINUE, FINAL, Header, Pdu, append, opcode};
use super::text::{self, Keys, Negotiation, Params};
use super::{LOGIN_DATA_SEGMENT, PORTAL_GROUP};

/// Most text of one login step that is put together out of continued PDUs.
const MAX_TEXT: usize = 32_768;

/// Operational negotiation, as current or next stage; 0 is security negotiation.
const OPERATIONAL: u8 = 1;
/// The full feature phase, as next stage.
const FULL_FEATURE: u8 = 3;

/// Why a login is refused: status class and detail (RFC 7143 §11.13.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Status {
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
}

/// What an agreed session starts with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed {
    /// Who it is.
    pub who: Who,
    /// What was negotiated.
    pub params: Params,
    /// The CmdSN of the first command to come.
    pub cmd_sn: u32,
    /// The StatSN of the next response.
    pub stat_sn: u32,
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
    begun: Option<Begun>,
    text: Vec<u8>,
    negotiation: Negotiation,
    stat_sn: u32,
    waiting: Option<(Header, Keys)>,
    final_reply: Vec<u8>,
}

/// What the first request fixed.
#[derive(Debug, Clone)]
struct Begun {
    who: Who,
    itt: u32,
    cid: u32,
    cmd_sn: u32,
    stage: u8,
    /// The portal group's tag is told in the first response (RFC 7143 §13.9).
    told_group: bool,
}

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
        if self.begun.is_none() && self.text.is_empty() {
            self.stat_sn = header.word(28); // ExpStatSN; any start will do
        }
        if header.0[3] != 0 {
            return Ok(self.refuse(&header, Status::Version, out));
        }
        if self.text.len() + pdu.data.len() > MAX_TEXT {
            return Err(LoginError::TooLong);
        }
        self.text.extend_from_slice(&pdu.data);
        if header.flags() & CONTINUE != 0 {
            if header.last() {
                return Ok(self.refuse(&header, Status::InitiatorError, out)); // T with C
            }
            self.reply(&header, header.flags() & 0x0C, &[], out);
            return Ok(Next::Continue);
        }
        let Ok(keys) = text::parse(&std::mem::take(&mut self.text)) else {
            return Ok(self.refuse(&header, Status::InitiatorError, out));
        };
        match &self.begun {
            None => match self.begin(&header, &keys) {
                Ok(who) => {
                    self.waiting = Some((header, keys));
                    Ok(Next::Authorize(who))
                }
                Err(status) => Ok(self.refuse(&header, status, out)),
            },
            Some(begun) if begun.itt != header.itt() || begun.cid != header.word(20) >> 16 => {
                Ok(self.refuse(&header, Status::InvalidRequest, out))
            }
            Some(_) => Ok(self.step(header, &keys, out)),
        }
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
        let mut isid = [0; 6];
        isid.copy_from_slice(&header.0[8..14]);
        let who = Who { initiator, target, isid, tsih: u16::from_be_bytes([header.0[14], header.0[15]]) };
        self.negotiation.discovery = discovery;
        self.begun = Some(Begun {
            who: who.clone(),
            itt: header.itt(),
            cid: header.word(20) >> 16,
            cmd_sn: header.word(24),
            stage: stages(header).0,
            told_group: false,
        });
        Ok(who)
    }

    /// The verdict on [`Next::Authorize`].
    pub fn authorized(&mut self, verdict: Result<(), Status>, out: &mut Vec<u8>) -> Next {
        let Some((header, keys)) = self.waiting.take() else { return Next::Continue };
        match verdict {
            Ok(()) => self.step(header, &keys, out),
            Err(status) => self.refuse(&header, status, out),
        }
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

    /// One step of the negotiation, of an initiator that may come in.
    fn step(&mut self, header: Header, keys: &Keys, out: &mut Vec<u8>) -> Next {
        let (current, next) = stages(&header);
        let transit = header.last();
        let Some(begun) = &mut self.begun else { return self.refuse(&header, Status::InvalidRequest, out) };
        let legal_next = !transit || (next > current && matches!(next, OPERATIONAL | FULL_FEATURE));
        if current != begun.stage || current > OPERATIONAL || !legal_next {
            return self.refuse(&header, Status::InvalidRequest, out);
        }
        let mut reply = Vec::new();
        if !begun.told_group && begun.who.target.is_some() {
            text::push(&mut reply, "TargetPortalGroupTag", &PORTAL_GROUP.to_string());
        }
        begun.told_group = true;
        if let Some(methods) = keys.get("AuthMethod") {
            if !methods.split(',').any(|method| method == "None") {
                return self.refuse(&header, Status::AuthenticationFailed, out);
            }
            text::push(&mut reply, "AuthMethod", "None");
        }
        if current == OPERATIONAL {
            reply.extend(self.negotiation.answer(keys));
        }
        debug_assert!(reply.len() <= LOGIN_DATA_SEGMENT as usize, "an answer names each key once");
        if !transit {
            self.reply(&header, current << 2, &reply, out);
            return Next::Continue;
        }
        if next == FULL_FEATURE {
            let who = begun.who.clone();
            self.final_reply = reply;
            self.waiting = Some((header, Keys::new()));
            return Next::Establish(who);
        }
        begun.stage = next;
        self.reply(&header, FINAL | current << 2 | next, &reply, out);
        Next::Continue
    }

    fn refuse(&mut self, request: &Header, status: Status, out: &mut Vec<u8>) -> Next {
        let mut response = self.response(request, 0);
        [response.0[36], response.0[37]] = (status as u16).to_be_bytes();
        append(out, response, &[]);
        Next::Refused(status)
    }

    fn reply(&mut self, request: &Header, flags: u8, text: &[u8], out: &mut Vec<u8>) {
        let response = self.response(request, flags);
        self.stat_sn = self.stat_sn.wrapping_add(1);
        append(out, response, text);
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
            ahs: false,
            data: Bytes::from(text.replace(' ', "\0") + "\0"),
        }
    }

    fn answer(out: &mut Vec<u8>) -> (u16, u8, String) {
        let mut input = BytesMut::from(&out[..]);
        out.clear();
        let pdu = frame::next(&mut input, LOGIN_DATA_SEGMENT).unwrap().expect("one whole answer");
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
        assert_eq!(login.authorized(Ok(()), &mut out), Next::Continue);
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
                login.authorized(Ok(()), &mut out);
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
        assert_eq!(login.authorized(Err(Status::Forbidden), &mut out), Next::Refused(Status::Forbidden));
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

    proptest! {
        #[test]
        fn any_requests_are_answered_or_end_the_connection(
            requests in prop::collection::vec((any::<[u8; 48]>(), prop::collection::vec(any::<u8>(), 0..80)), 1..8),
        ) {
            let (mut login, mut out) = (Login::default(), Vec::new());
            for (mut header, data) in requests {
                header[0] = 0x43;
                header[3] = 0;
                let pdu = Pdu { header: Header(header), ahs: false, data: Bytes::from(data) };
                match login.receive(&pdu, &mut out) {
                    Ok(Next::Authorize(_)) => { login.authorized(Ok(()), &mut out); }
                    Ok(Next::Establish(_)) => { login.established(Ok(1), &mut out); }
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
        }
    }
}
