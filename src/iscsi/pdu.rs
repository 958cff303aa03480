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

/// A PDU as it came: its header, its additional headers unread but for their presence, its data.
#[derive(Debug, Clone)]
pub struct Pdu {
    /// The basic header segment.
    pub header: Header,
    /// Whether additional header segments were there.
    pub ahs: bool,
    /// The data segment without its padding.
    pub data: Bytes,
}

/// Appends a PDU to what is to be sent: header, data, padding to four bytes.
///
/// # Panics
/// With more data than a PDU can carry (16 MiB), which no caller has.
pub fn append(out: &mut Vec<u8>, mut header: Header, data: &[u8]) {
    header.set_data_length(u32::try_from(data.len()).expect("a data segment has at most 16 MiB"));
    out.extend_from_slice(&header.0);
    out.extend_from_slice(data);
    out.resize(out.len() + padding(data.len()), 0);
}

/// Zero bytes that follow a data segment of this length.
#[must_use]
pub fn padding(length: usize) -> usize {
    length.next_multiple_of(4) - length
}
