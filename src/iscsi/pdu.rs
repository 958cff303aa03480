//! The 48-byte header of every PDU (RFC 7143 §11).

use bytes::Bytes;

/// Length of the basic header segment.
pub const HEADER: usize = 48;

/// "No tag" in an initiator or target transfer tag.
pub const NO_TAG: u32 = 0xFFFF_FFFF;

/// Operation codes (RFC 7143 §11.2.1.2).
pub mod opcode {
    /// NOP-Out.
    pub const NOP_OUT: u8 = 0x00;
    /// SCSI Command.
    pub const SCSI_COMMAND: u8 = 0x01;
    /// Task Management Function Request.
    pub const TASK_MANAGEMENT: u8 = 0x02;
    /// Login Request.
    pub const LOGIN: u8 = 0x03;
    /// Text Request.
    pub const TEXT: u8 = 0x04;
    /// SCSI Data-Out.
    pub const DATA_OUT: u8 = 0x05;
    /// Logout Request.
    pub const LOGOUT: u8 = 0x06;
    /// SNACK Request.
    pub const SNACK: u8 = 0x10;
    /// Asynchronous Message.
    pub const ASYNC: u8 = 0x32;
    /// NOP-In.
    pub const NOP_IN: u8 = 0x20;
    /// SCSI Response.
    pub const SCSI_RESPONSE: u8 = 0x21;
    /// Task Management Function Response.
    pub const TASK_MANAGEMENT_RESPONSE: u8 = 0x22;
    /// Login Response.
    pub const LOGIN_RESPONSE: u8 = 0x23;
    /// Text Response.
    pub const TEXT_RESPONSE: u8 = 0x24;
    /// SCSI Data-In.
    pub const DATA_IN: u8 = 0x25;
    /// Logout Response.
    pub const LOGOUT_RESPONSE: u8 = 0x26;
    /// Ready To Transfer.
    pub const R2T: u8 = 0x31;
    /// Reject.
    pub const REJECT: u8 = 0x3F;
}

/// F, the final bit in byte 1. In login and text PDUs it means T or F, and C stands beside it.
pub const FINAL: u8 = 0x80;
/// C, the continue bit in byte 1 of login and text PDUs.
pub const CONTINUE: u8 = 0x40;

/// A basic header segment. The accessors are named after the fields that most PDUs have at these places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header(pub [u8; HEADER]);

impl Header {
    /// A header with this operation code and flags, everything else zero.
    #[must_use]
    pub fn new(opcode: u8, flags: u8) -> Self {
        let mut bytes = [0; HEADER];
        bytes[0] = opcode;
        bytes[1] = flags;
        Self(bytes)
    }

    /// The operation code.
    #[must_use]
    pub fn opcode(&self) -> u8 {
        self.0[0] & 0x3F
    }

    /// I: for immediate delivery, outside of the order of commands.
    #[must_use]
    pub fn immediate(&self) -> bool {
        self.0[0] & 0x40 != 0
    }

    /// Byte 1.
    #[must_use]
    pub fn flags(&self) -> u8 {
        self.0[1]
    }

    /// F.
    #[must_use]
    pub fn last(&self) -> bool {
        self.0[1] & FINAL != 0
    }

    /// Length of the additional header segments in bytes.
    #[must_use]
    pub fn ahs_length(&self) -> usize {
        usize::from(self.0[4]) * 4
    }

    /// Length of the data segment in bytes, without its padding.
    #[must_use]
    pub fn data_length(&self) -> u32 {
        u32::from_be_bytes([0, self.0[5], self.0[6], self.0[7]])
    }

    /// Sets the length of the data segment, of which a PDU carries 24 bits.
    pub fn set_data_length(&mut self, length: u32) {
        debug_assert!(length < 1 << 24, "a data segment has at most 16 MiB");
        self.0[5..8].copy_from_slice(&length.to_be_bytes()[1..]);
    }

    /// The logical unit number's eight bytes.
    #[must_use]
    pub fn lun(&self) -> [u8; 8] {
        let mut lun = [0; 8];
        lun.copy_from_slice(&self.0[8..16]);
        lun
    }

    /// Sets the logical unit number.
    pub fn set_lun(&mut self, lun: [u8; 8]) {
        self.0[8..16].copy_from_slice(&lun);
    }

    /// Initiator task tag.
    #[must_use]
    pub fn itt(&self) -> u32 {
        self.word(16)
    }

    /// The 32-bit field at this offset.
    #[must_use]
    pub fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    /// Sets the 32-bit field at this offset.
    pub fn set_word(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    /// Sets the 32-bit field at this offset, and returns the header for more.
    #[must_use]
    pub fn with(mut self, at: usize, value: u32) -> Self {
        self.set_word(at, value);
        self
    }
}

/// A PDU as it came.
#[derive(Debug, Clone)]
pub struct Pdu {
    /// The basic header segment.
    pub header: Header,
    /// The additional header segments, which only a SCSI Command may have.
    pub ahs: Bytes,
    /// The data segment without its padding.
    pub data: Bytes,
    /// Whether the data segment matched its digest, where there is one.
    pub intact: bool,
}

/// Whether additional headers are whole, and of kinds that there are: a CDB of more than 16 bytes, or the read length of a
/// command that moves data both ways (RFC 7143 §11.2.2).
#[must_use]
pub fn additional_headers_are_sound(mut ahs: &[u8]) -> bool {
    const EXTENDED_CDB: u8 = 1;
    const BIDIRECTIONAL_READ: u8 = 2;
    /// Length and type, which the length does not count.
    const FRONT: usize = 3;
    while let Some(([high, low, kind], _)) = ahs.split_first_chunk::<FRONT>() {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let sound = match kind & 0x3F {
            EXTENDED_CDB => (2..=245).contains(&length), // a reserved byte, and the CDB's bytes 16 to 259
            BIDIRECTIONAL_READ => length == 5,
            _ => false,
        };
        let Some(rest) = ahs.get((FRONT + length).next_multiple_of(4)..) else { return false };
        if !sound {
            return false;
        }
        ahs = rest;
    }
    ahs.is_empty()
}

/// Which digests follow the segments of a PDU, each a CRC32C of four bytes (RFC 7143 §11.2.3, §13.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Digests {
    /// Behind the header and its additional headers.
    pub header: bool,
    /// Behind a data segment and its padding, unless it is empty.
    pub data: bool,
}

/// Length of a digest.
const DIGEST: usize = 4;

impl Digests {
    /// As every connection begins.
    pub const NONE: Self = Self { header: false, data: false };

    /// Bytes of digest behind a header.
    #[must_use]
    pub fn of_header(self) -> usize {
        if self.header { DIGEST } else { 0 }
    }

    /// Bytes of digest behind a data segment of this length.
    #[must_use]
    pub fn of_data(self, length: usize) -> usize {
        if self.data && length > 0 { DIGEST } else { 0 }
    }

    /// Bytes between the front of one PDU without additional headers and the front of the next.
    #[must_use]
    pub fn wire_length(self, data: usize) -> usize {
        HEADER + self.of_header() + data + padding(data) + self.of_data(data)
    }
}

/// The digest of these bytes, as it is sent: the CRC's bits go out reversed, which is least significant byte first.
#[must_use]
pub fn digest(bytes: &[u8]) -> [u8; DIGEST] {
    crc32c::crc32c(bytes).to_le_bytes()
}

/// Appends a PDU to what is to be sent: header, data, padding to four bytes, and the digests.
///
/// # Panics
/// With more data than a PDU can carry (16 MiB), which no caller has.
pub fn append(out: &mut Vec<u8>, mut header: Header, data: &[u8], digests: Digests) {
    header.set_data_length(u32::try_from(data.len()).expect("a data segment has at most 16 MiB"));
    out.extend_from_slice(&header.0);
    if digests.header {
        out.extend_from_slice(&digest(&header.0));
    }
    let start = out.len();
    out.extend_from_slice(data);
    out.resize(out.len() + padding(data.len()), 0);
    if digests.of_data(data.len()) > 0 {
        let digest = digest(&out[start..]);
        out.extend_from_slice(&digest);
    }
}

/// Zero bytes that follow a data segment of this length.
#[must_use]
pub fn padding(length: usize) -> usize {
    length.next_multiple_of(4) - length
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_the_standards_examples() {
        // RFC 7143 appendix A.4 gives them in the order of transmission.
        assert_eq!(digest(&[0; 32]), [0xAA, 0x36, 0x91, 0x8A]);
        assert_eq!(digest(&[0xFF; 32]), [0x43, 0xAB, 0xA8, 0x62]);
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(digest(&rising), [0x4E, 0x79, 0xDD, 0x46]);
    }
}
