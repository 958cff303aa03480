//! Text keys and their negotiation (RFC 7143 §6, §13).

use std::collections::BTreeMap;

use super::MAX_DATA_SEGMENT;
use super::pdu::Digests;
use crate::scsi::MAX_TRANSFER;

/// Longest key name (RFC 7143 §6.1).
const MAX_KEY: usize = 63;
/// Most keys of one text. The standard has some forty; unknown ones are answered, too, and an answer is longer than they are.
pub const MAX_KEYS: usize = 128;
/// Longest value that we take. The standard's own limit is 255, but for a few values of up to 8192.
const MAX_VALUE: usize = 8192;

/// A text that is not a list of `key=value`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// A pair without `=`.
    #[error("a text key without a value")]
    NoValue,
    /// A key or a value longer than the standard allows.
    #[error("a text key or value that is too long")]
    TooLong,
    /// Bytes that are not UTF-8.
    #[error("a text key or value that is not UTF-8")]
    Encoding,
    /// More than [`MAX_KEYS`].
    #[error("a text of more than {MAX_KEYS} keys")]
    TooMany,
    /// The same key twice (RFC 7143 §6.2: a protocol error).
    #[error("a text key that comes twice")]
    Twice,
}

/// Keys and values, in the order of the keys.
pub type Keys = BTreeMap<String, String>;

/// Reads a whole text: pairs that end with NUL.
///
/// # Errors
/// See [`TextError`].
pub fn parse(text: &[u8]) -> Result<Keys, TextError> {
    let mut keys = Keys::new();
    for pair in text.split(|byte| *byte == 0).filter(|pair| !pair.is_empty()) {
        let pair = std::str::from_utf8(pair).map_err(|_| TextError::Encoding)?;
        let (key, value) = pair.split_once('=').ok_or(TextError::NoValue)?;
        if key.is_empty() || key.len() > MAX_KEY || value.len() > MAX_VALUE {
            return Err(TextError::TooLong);
        }
        if keys.len() >= MAX_KEYS {
            return Err(TextError::TooMany);
        }
        if keys.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(TextError::Twice);
        }
    }
    Ok(keys)
}

/// Appends one `key=value` and its NUL.
pub fn push(text: &mut Vec<u8>, key: &str, value: &str) {
    text.extend_from_slice(key.as_bytes());
    text.push(b'=');
    text.extend_from_slice(value.as_bytes());
    text.push(0);
}

/// What a session's two ends agreed on. Starts with the standard's defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Params {
    /// The initiator waits for an R2T before any Data-Out.
    pub initial_r2t: bool,
    /// A SCSI Command may carry data.
    pub immediate_data: bool,
    /// The largest data segment that the initiator takes.
    pub initiator_segment: u32,
    /// Most data of one sequence of Data-In or Data-Out PDUs.
    pub max_burst: u32,
    /// Most unsolicited data of one command, immediate data included.
    pub first_burst: u32,
    /// R2Ts of one task that may be outstanding.
    pub max_r2t: u32,
    /// Which digests each PDU carries, both ways.
    pub digests: Digests,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            initial_r2t: true,
            immediate_data: true,
            initiator_segment: 8192,
            max_burst: 262_144,
            first_burst: 65_536,
            max_r2t: 1,
            digests: Digests::NONE,
        }
    }
}

/// Longest burst that we agree to: a whole command's data, so that one R2T asks for all of it.
const OUR_MAX_BURST: u32 = 1_048_576;
const _: () = assert!(OUR_MAX_BURST as u64 == MAX_TRANSFER);
/// Most unsolicited data that we agree to: writes of up to 256 KiB need no R2T.
const OUR_FIRST_BURST: u32 = 262_144;
/// Range of the length keys (RFC 7143 §13.12 to §13.14): 512 to 2^24 - 1.
const LENGTHS: std::ops::RangeInclusive<u32> = 512..=16_777_215;

/// The one key that both ends declare.
const OUR_SEGMENT: &str = "MaxRecvDataSegmentLength";

/// Negotiates operational keys one text at a time.
#[derive(Debug, Clone, Default)]
pub struct Negotiation {
    /// What was agreed on so far.
    pub params: Params,
    /// This is a discovery session, where keys of data transfer mean nothing.
    pub discovery: bool,
    our_segment_declared: bool,
}

impl Negotiation {
    /// Answers these keys, all but those that name the parties and those of authentication, which `login` reads.
    /// The answer is text, in the order of the keys, and declares our own largest data segment once.
    pub fn answer(&mut self, keys: &Keys) -> Vec<u8> {
        let mut reply = Vec::new();
        for (key, value) in keys {
            if let Some(answer) = self.answer_one(key, value) {
                push(&mut reply, key, &answer);
            }
        }
        // Where theirs was rejected, the key stands there already, and may stand there only once.
        let theirs_rejected = keys.get(OUR_SEGMENT).is_some_and(|value| number(value, LENGTHS).is_none());
        if !self.our_segment_declared && !theirs_rejected {
            self.our_segment_declared = true;
            push(&mut reply, OUR_SEGMENT, &MAX_DATA_SEGMENT.to_string());
        }
        // FirstBurstLength must not exceed MaxBurstLength (RFC 7143 §13.14); the keys may come in either order.
        self.params.first_burst = self.params.first_burst.min(self.params.max_burst);
        reply
    }

    fn answer_one(&mut self, key: &str, value: &str) -> Option<String> {
        let irrelevant = Some("Irrelevant".to_owned());
        let rejected = Some("Reject".to_owned());
        let params = &mut self.params;
        match key {
            // Read by `login`; declarations need no answer.
            "InitiatorName" | "InitiatorAlias" | "TargetName" | "SessionType" | "AuthMethod" => None,
            "CHAP_A" | "CHAP_C" | "CHAP_I" | "CHAP_N" | "CHAP_R" => rejected, // not in this stage
            "TargetAlias" | "TargetAddress" | "TargetPortalGroupTag" => rejected, // ours to declare
            "MaxRecvDataSegmentLength" => match number(value, LENGTHS) {
                Some(length) => {
                    params.initiator_segment = length;
                    None
                }
                None => rejected,
            },
            "HeaderDigest" => digest(value, &mut params.digests.header),
            "DataDigest" => digest(value, &mut params.digests.data),
            "MaxConnections" if self.discovery => irrelevant,
            "MaxConnections" => number(value, 1..=65_535).map_or(rejected, |_| Some("1".to_owned())),
            "InitialR2T"
            | "ImmediateData"
            | "MaxBurstLength"
            | "FirstBurstLength"
            | "MaxOutstandingR2T"
            | "DataPDUInOrder"
            | "DataSequenceInOrder"
                if self.discovery =>
            {
                irrelevant
            }
            // "No" only if both say so.
            "InitialR2T" => boolean(value).map_or(rejected, |theirs| {
                params.initial_r2t = theirs;
                Some(yes_no(theirs))
            }),
            // "Yes" only if both say so.
            "ImmediateData" => boolean(value).map_or(rejected, |theirs| {
                params.immediate_data = theirs;
                Some(yes_no(theirs))
            }),
            "MaxBurstLength" => number(value, LENGTHS).map_or(rejected, |theirs| {
                params.max_burst = theirs.min(OUR_MAX_BURST);
                Some(params.max_burst.to_string())
            }),
            "FirstBurstLength" => number(value, LENGTHS).map_or(rejected, |theirs| {
                params.first_burst = theirs.min(OUR_FIRST_BURST);
                Some(params.first_burst.to_string())
            }),
            "MaxOutstandingR2T" => number(value, 1..=65_535).map_or(rejected, |_| {
                params.max_r2t = 1;
                Some("1".to_owned())
            }),
            // "No" would need both; we keep both in order.
            "DataPDUInOrder" | "DataSequenceInOrder" => boolean(value).map_or(rejected, |_| Some("Yes".to_owned())),
            "DefaultTime2Wait" => number(value, 0..=3600).map_or(rejected, |theirs| Some(theirs.to_string())),
            // Nothing is retained after a connection failed: error recovery level 0.
            "DefaultTime2Retain" => number(value, 0..=3600).map_or(rejected, |_| Some("0".to_owned())),
            "ErrorRecoveryLevel" => number(value, 0..=2).map_or(rejected, |_| Some("0".to_owned())),
            "IFMarker" | "OFMarker" => boolean(value).map_or(rejected, |_| Some("No".to_owned())),
            "IFMarkInt" | "OFMarkInt" => rejected,
            "TaskReporting" => Some(choose(value, "RFC3720")),
            "iSCSIProtocolLevel" => number(value, 0..=31).map_or(rejected, |theirs| Some(theirs.min(1).to_string())),
            "SendTargets" => rejected, // only in the full feature phase
            _ => Some("NotUnderstood".to_owned()),
        }
    }
}

/// A digest by the initiator's preference: the first of its list that we know, or `Reject`.
fn digest(list: &str, used: &mut bool) -> Option<String> {
    let known = list.split(',').find(|value| matches!(*value, "CRC32C" | "None"));
    *used = known == Some("CRC32C");
    Some(known.unwrap_or("Reject").to_owned())
}

/// Answers the keys of a text in the full feature phase, where all but a few have had their time: the initiator may declare
/// what it takes anew (RFC 7143 §13.12).
pub fn declared(keys: &Keys, params: &mut Params) -> Vec<u8> {
    let mut reply = Vec::new();
    for (key, value) in keys {
        let answer = match key.as_str() {
            "MaxRecvDataSegmentLength" => match number(value, LENGTHS) {
                Some(length) => {
                    params.initiator_segment = length;
                    continue;
                }
                None => "Reject",
            },
            "InitiatorAlias" => continue,
            known if LOGIN_KEYS.contains(&known) => "Reject",
            _ => "NotUnderstood",
        };
        push(&mut reply, key, answer);
    }
    reply
}

/// Keys that we know, and that have no place after the login.
const LOGIN_KEYS: [&str; 30] = [
    "AuthMethod",
    "CHAP_A",
    "CHAP_C",
    "CHAP_I",
    "CHAP_N",
    "CHAP_R",
    "DataDigest",
    "DataPDUInOrder",
    "DataSequenceInOrder",
    "DefaultTime2Retain",
    "DefaultTime2Wait",
    "ErrorRecoveryLevel",
    "FirstBurstLength",
    "HeaderDigest",
    "IFMarkInt",
    "IFMarker",
    "ImmediateData",
    "InitialR2T",
    "InitiatorName",
    "MaxBurstLength",
    "MaxConnections",
    "MaxOutstandingR2T",
    "OFMarkInt",
    "OFMarker",
    "SendTargets",
    "SessionType",
    "TargetAddress",
    "TargetAlias",
    "TargetName",
    "TargetPortalGroupTag",
];

/// The one value that we know out of a list by preference, or `Reject`.
fn choose(list: &str, known: &str) -> String {
    if list.split(',').any(|value| value == known) { known } else { "Reject" }.to_owned()
}

fn boolean(value: &str) -> Option<bool> {
    match value {
        "Yes" => Some(true),
        "No" => Some(false),
        _ => None,
    }
}

fn yes_no(value: bool) -> String {
    if value { "Yes" } else { "No" }.to_owned()
}

/// A decimal or hexadecimal number within a range (RFC 7143 §6.1).
fn number(value: &str, range: std::ops::RangeInclusive<u32>) -> Option<u32> {
    let digits = |text: &str, radix| {
        let plain = !text.is_empty() && text.chars().all(|c| c.is_digit(radix));
        plain.then(|| u32::from_str_radix(text, radix).ok()).flatten()
    };
    let number = match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(hex) => digits(hex, 16),
        None => digits(value, 10),
    };
    number.filter(|number| range.contains(number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn negotiate(offer: &str) -> (Params, String) {
        let mut negotiation = Negotiation { our_segment_declared: true, ..Negotiation::default() };
        let keys = parse(offer.replace(' ', "\0").as_bytes()).unwrap();
        let reply = String::from_utf8(negotiation.answer(&keys)).unwrap();
        (negotiation.params, reply.trim_end_matches('\0').replace('\0', " "))
    }

    #[test]
    fn ipxe_gets_what_it_asks_for() {
        let (params, _) = negotiate(
            "HeaderDigest=None DataDigest=None MaxConnections=1 InitialR2T=Yes ImmediateData=No \
             MaxRecvDataSegmentLength=8192 MaxBurstLength=262144 FirstBurstLength=65536 DefaultTime2Wait=0 \
             DefaultTime2Retain=0 MaxOutstandingR2T=1 DataPDUInOrder=Yes DataSequenceInOrder=Yes ErrorRecoveryLevel=0",
        );
        assert_eq!(params, Params { immediate_data: false, ..Params::default() });
    }

    #[test]
    fn open_iscsi_may_send_256_kib_without_asking() {
        let (params, reply) = negotiate(
            "InitialR2T=No ImmediateData=Yes MaxBurstLength=16776192 FirstBurstLength=262144 \
             MaxRecvDataSegmentLength=262144",
        );
        assert!(!params.initial_r2t && params.immediate_data);
        assert_eq!((params.first_burst, params.max_burst), (262_144, 1_048_576));
        assert_eq!(reply, "FirstBurstLength=262144 ImmediateData=Yes InitialR2T=No MaxBurstLength=1048576");
    }

    #[test]
    fn what_is_unknown_or_out_of_range_is_answered_as_such() {
        let (params, reply) = negotiate("X-com.example.speed=11 MaxBurstLength=511 ImmediateData=maybe OFMarker=Yes");
        assert_eq!(params, Params::default());
        assert_eq!(reply, "ImmediateData=Reject MaxBurstLength=Reject OFMarker=No X-com.example.speed=NotUnderstood");
    }

    #[test]
    fn the_first_burst_never_exceeds_a_burst() {
        let (params, _) = negotiate("FirstBurstLength=262144 MaxBurstLength=4096");
        assert_eq!(params.first_burst, 4096);
    }

    #[test]
    fn a_key_twice_is_a_protocol_error() {
        assert_eq!(parse(b"A=1\0A=2\0"), Err(TextError::Twice));
        assert_eq!(parse(b"A\0"), Err(TextError::NoValue));
    }

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        assert_eq!(number("0x200", LENGTHS), Some(512));
        for wrong in ["", "0x", "+512", "511", "16777216", "99999999999", "512 "] {
            assert_eq!(number(wrong, LENGTHS), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_keys_or_a_reason_and_any_offer_is_answered_within_bounds(text: Vec<u8>, length in 0_u32..20_000_000) {
            let _ = parse(&text);
            let (params, _) = negotiate(&format!("MaxBurstLength={length} FirstBurstLength={}", length / 2));
            prop_assert!(params.first_burst <= params.max_burst && params.max_burst <= OUR_MAX_BURST);
        }
    }
}
