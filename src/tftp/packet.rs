//! TFTP's packets (RFC 1350 §5): what a server reads and what it writes.
//!
//! Reading is lenient, because firmware is what it is and cannot be repaired: an option that makes no sense is as if it had
//! not been asked for, and a request that ends early is served as far as it says what it wants.

/// Smallest block a client may ask for (RFC 2348).
pub const MIN_BLKSIZE: u16 = 8;
/// Largest block a client may ask for (RFC 2348).
pub const MAX_BLKSIZE: u16 = 65_464;
/// The block of a transfer without the option (RFC 1350 §2).
pub const DEFAULT_BLKSIZE: u16 = 512;

/// How much of an ERROR's text is kept for the log.
const MAX_TEXT: usize = 120;

const RRQ: u16 = 1;
const WRQ: u16 = 2;
const DATA: u16 = 3;
const ACK: u16 = 4;
const ERROR: u16 = 5;
const OACK: u16 = 6;

/// A packet that a client sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inbound {
    /// It wants to read a file.
    Read(Request),
    /// It wants to write one.
    Write,
    /// It has all blocks up to this one.
    Ack(u16),
    /// It gave up. An ERROR is never answered (RFC 1350 §7).
    Error {
        /// Its code as sent.
        code: u16,
        /// Its text, shortened, with what is not printable replaced.
        text: String,
    },
    /// Nothing a client may send, or too short to say.
    Other,
}

/// A read request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The file's name: bytes in no particular encoding.
    pub name: Vec<u8>,
    /// How the client wants it encoded.
    pub mode: Mode,
    /// What it asked for and we understood.
    pub options: Options,
}

/// The encoding of a transfer (RFC 1350 §1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Bytes as they are.
    Octet,
    /// Text with the line ends of a terminal.
    Netascii,
    /// Something else, or nothing.
    Other,
}

/// The options of a request. `None`: not asked for, or not understood.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Bytes in a block; at least [`MIN_BLKSIZE`].
    pub blksize: Option<u16>,
    /// Seconds until a packet is sent again, 1 to 255.
    pub timeout: Option<u8>,
    /// Whether it wants to know the file's size.
    pub tsize: bool,
    /// Blocks sent before an ACK is awaited; at least 1.
    pub windowsize: Option<u16>,
}

/// ERROR codes that a read-only server sends (RFC 1350 §5, RFC 2347).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// See the text.
    Undefined = 0,
    /// File not found.
    NotFound = 1,
    /// Access violation.
    Access = 2,
    /// Illegal operation.
    Illegal = 4,
    /// Unknown transfer ID.
    UnknownTid = 5,
}

/// Reads a packet. Every sequence of bytes is a packet of some kind; none is an error.
#[must_use]
pub fn parse(bytes: &[u8]) -> Inbound {
    let Some((opcode, rest)) = number(bytes) else { return Inbound::Other };
    match opcode {
        RRQ => Inbound::Read(request(rest)),
        WRQ => Inbound::Write,
        ACK => number(rest).map_or(Inbound::Other, |(block, _)| Inbound::Ack(block)),
        ERROR => number(rest).map_or(Inbound::Other, |(code, text)| Inbound::Error { code, text: printable(text) }),
        _ => Inbound::Other,
    }
}

fn number(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (high, rest) = bytes.split_at_checked(2)?;
    Some((u16::from_be_bytes([high[0], high[1]]), rest))
}

/// NAME 0 MODE 0 (OPTION 0 VALUE 0)*, where the last NUL may be missing.
fn request(rest: &[u8]) -> Request {
    let mut fields = rest.split(|b| *b == 0);
    let name = fields.next().unwrap_or_default().to_vec();
    let mode = match fields.next().unwrap_or_default().to_ascii_lowercase().as_slice() {
        b"octet" => Mode::Octet,
        b"netascii" => Mode::Netascii,
        _ => Mode::Other,
    };
    let mut options = Options::default();
    while let (Some(option), Some(value)) = (fields.next(), fields.next()) {
        options.understand(option, value);
    }
    Request { name, mode, options }
}

impl Options {
    /// Takes in one option. Of two with one name the first counts: it is the one that is answered first.
    fn understand(&mut self, option: &[u8], value: &[u8]) {
        let Some(value) = decimal(value) else { return };
        let at_most = |most: u16| u16::try_from(value).unwrap_or(most).min(most);
        if option.eq_ignore_ascii_case(b"blksize") && value >= u32::from(MIN_BLKSIZE) {
            self.blksize.get_or_insert(at_most(MAX_BLKSIZE));
        } else if option.eq_ignore_ascii_case(b"windowsize") && value >= 1 {
            self.windowsize.get_or_insert(at_most(u16::MAX));
        } else if option.eq_ignore_ascii_case(b"tsize") {
            self.tsize = true;
        } else if let Ok(seconds @ 1..) = u8::try_from(value)
            && option.eq_ignore_ascii_case(b"timeout")
        {
            self.timeout.get_or_insert(seconds);
        }
    }

    /// Whether nothing was asked for that calls for an OACK.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Decimal digits, as large as they may be.
fn decimal(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0_u32, |sum, digit| sum.saturating_mul(10).saturating_add(u32::from(digit - b'0'))))
}

/// A file as `netascii` sends it: a line ends in CR LF, and a CR that ends none has a NUL behind it (RFC 764, RFC 1350 §1).
#[must_use]
pub fn netascii(bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes.len() + bytes.len() / 32);
    for byte in bytes {
        match byte {
            b'\n' => text.extend_from_slice(b"\r\n"),
            b'\r' => text.extend_from_slice(b"\r\0"),
            other => text.push(*other),
        }
    }
    text
}

/// A stranger's bytes, made safe for a log line.
#[must_use]
pub fn printable(bytes: &[u8]) -> String {
    let text = bytes.split(|b| *b == 0).next().unwrap_or_default();
    text.iter().take(MAX_TEXT).map(|b| if matches!(b, b' '..=b'~') { char::from(*b) } else { '?' }).collect()
}

/// DATA (RFC 1350 §5).
#[must_use]
pub fn data(block: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(4 + payload.len());
    packet.extend_from_slice(&DATA.to_be_bytes());
    packet.extend_from_slice(&block.to_be_bytes());
    packet.extend_from_slice(payload);
    packet
}

/// OACK (RFC 2347): only what was asked for. `tsize` is the file's size where that was asked for.
#[must_use]
pub fn oack(options: &Options, tsize: usize) -> Vec<u8> {
    let mut packet = OACK.to_be_bytes().to_vec();
    let mut add = |option: &str, value: Option<String>| {
        if let Some(value) = value {
            packet.extend_from_slice(option.as_bytes());
            packet.push(0);
            packet.extend_from_slice(value.as_bytes());
            packet.push(0);
        }
    };
    add("blksize", options.blksize.map(|value| value.to_string()));
    add("timeout", options.timeout.map(|value| value.to_string()));
    add("tsize", options.tsize.then(|| tsize.to_string()));
    add("windowsize", options.windowsize.map(|value| value.to_string()));
    packet
}

/// ERROR (RFC 1350 §5). The text is for a person, and never names a file of this server.
#[must_use]
pub fn error(code: ErrorCode, text: &str) -> Vec<u8> {
    let mut packet = ERROR.to_be_bytes().to_vec();
    packet.extend_from_slice(&(code as u16).to_be_bytes());
    packet.extend_from_slice(text.as_bytes());
    packet.push(0);
    packet
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Request {
        match parse(bytes) {
            Inbound::Read(request) => request,
            other => panic!("not a read request: {other:?}"),
        }
    }

    #[test]
    fn the_size_probe_of_uefi_firmware_is_understood() {
        let request = read(b"\0\x01snponly.efi\0octet\0tsize\x000\0blksize\x001468\0windowsize\x004\0");
        assert_eq!(request.name, b"snponly.efi");
        assert_eq!(request.mode, Mode::Octet);
        assert_eq!(request.options, Options { blksize: Some(1468), timeout: None, tsize: true, windowsize: Some(4) });
    }

    #[test]
    fn an_option_without_sense_is_as_if_not_asked_for() {
        for tail in [
            "blksize\0abc\0",
            "blksize\0\x37\0",
            "blksize\0-1468\0",
            "blksize\0\0",
            "timeout\0\x30\0",
            "timeout\x00256\0",
            "windowsize\x000\0",
            "multicast\0\0",
            "blksize",
            "\0\0\0",
        ] {
            let request = read(format!("\0\x01undionly.kpxe\0octet\0{tail}").as_bytes());
            assert_eq!(request.options, Options::default(), "{tail:?}");
            assert_eq!(request.name, b"undionly.kpxe");
        }
        let after = read(b"\0\x01f\0octet\0blksize\0abc\0tsize\x000\0");
        assert!(after.options.tsize, "a bad option must not hide the next");
    }

    #[test]
    fn a_request_that_ends_early_is_served() {
        assert_eq!(read(b"\0\x01f\0OCTET").mode, Mode::Octet);
        assert_eq!(read(b"\0\x01f\0octet\0blksize\x001024").options.blksize, Some(1024));
    }

    #[test]
    fn what_is_too_large_is_clamped() {
        let options = read(b"\0\x01f\0octet\0blksize\x0099999999999999999999\0windowsize\x0070000\0").options;
        assert_eq!((options.blksize, options.windowsize), (Some(MAX_BLKSIZE), Some(u16::MAX)));
    }

    #[test]
    fn an_oack_answers_only_what_was_asked() {
        let asked = Options { blksize: Some(1432), tsize: true, ..Options::default() };
        assert_eq!(oack(&asked, 74_213), b"\0\x06blksize\x001432\0tsize\x0074213\0");
    }

    #[test]
    fn an_errors_text_is_made_printable() {
        assert_eq!(
            parse(b"\0\x05\0\x08User\x1b[2Jaborted\0tail"),
            Inbound::Error { code: 8, text: "User?[2Jaborted".into() }
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_some_packet(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn any_tail_after_a_name_leaves_the_name(
            name in prop::collection::vec(1..=255_u8, 0..60),
            tail in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut bytes = vec![0, 1];
            bytes.extend_from_slice(&name);
            bytes.push(0);
            bytes.extend_from_slice(&tail);
            prop_assert_eq!(read(&bytes).name, name);
        }
    }
}
