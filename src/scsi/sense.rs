//! Sense data: how a target says why a command failed (SPC-4 §4.5).

use std::fmt;

use crate::disk::{DiskError, ErrorKind};

/// The sense keys in use (SPC-4 table 46).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Key {
    /// Nothing to report.
    NoSense = 0x0,
    /// The logical unit cannot be used.
    NotReady = 0x2,
    /// The disk's bytes could not be read or written.
    MediumError = 0x3,
    /// The command or its parameters are wrong.
    IllegalRequest = 0x5,
    /// Something happened that the initiator must know before it goes on.
    UnitAttention = 0x6,
    /// The medium is protected.
    DataProtect = 0x7,
    /// A copy could not be done, or not all of it.
    CopyAborted = 0xA,
    /// The target gave the command up.
    AbortedCommand = 0xB,
    /// The data differs from the medium.
    Miscompare = 0xE,
}

/// One reason: a sense key and an additional sense code with its qualifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sense {
    /// The sense key.
    pub key: Key,
    /// Additional sense code.
    pub asc: u8,
    /// Additional sense code qualifier.
    pub ascq: u8,
    /// Where it applies, for MISCOMPARE: the offset of the first byte that differs.
    pub information: Option<u32>,
    /// For INVALID FIELD IN CDB: the byte that is wrong, where that says more than the code alone.
    pub field: Option<u16>,
}

/// Length of the fixed format with no further bytes (SPC-4 §4.5.3).
pub const FIXED_LENGTH: usize = 18;

impl Sense {
    const fn new(key: Key, asc: u8, ascq: u8) -> Self {
        Self { key, asc, ascq, information: None, field: None }
    }

    /// Nothing to report.
    pub const NONE: Self = Self::new(Key::NoSense, 0x00, 0x00);
    /// The operation code, or its service action, is not supported.
    pub const INVALID_OPCODE: Self = Self::new(Key::IllegalRequest, 0x20, 0x00);
    /// The range does not lie within the disk.
    pub const LBA_OUT_OF_RANGE: Self = Self::new(Key::IllegalRequest, 0x21, 0x00);
    /// A field of the CDB holds what it must not.
    pub const INVALID_FIELD_IN_CDB: Self = Self::new(Key::IllegalRequest, 0x24, 0x00);
    /// There is no such logical unit.
    pub const NO_SUCH_UNIT: Self = Self::new(Key::IllegalRequest, 0x25, 0x00);
    /// A field of the parameter list holds what it must not.
    pub const INVALID_FIELD_IN_PARAMETERS: Self = Self::new(Key::IllegalRequest, 0x26, 0x00);
    /// The parameter list ends in the middle of a field.
    pub const PARAMETER_LIST_LENGTH: Self = Self::new(Key::IllegalRequest, 0x1A, 0x00);
    /// Mode pages are not saved.
    pub const SAVING_NOT_SUPPORTED: Self = Self::new(Key::IllegalRequest, 0x39, 0x00);
    /// The disk is read-only.
    pub const WRITE_PROTECTED: Self = Self::new(Key::DataProtect, 0x27, 0x00);
    /// An initiator asked for protection against writes (the SWP bit of the control mode page).
    pub const SOFTWARE_WRITE_PROTECTED: Self = Self::new(Key::DataProtect, 0x27, 0x02);
    /// There is no space left for the disk to grow into.
    pub const SPACE_ALLOCATION_FAILED: Self = Self::new(Key::DataProtect, 0x27, 0x07);
    /// Reading the disk failed.
    pub const READ_ERROR: Self = Self::new(Key::MediumError, 0x11, 0x00);
    /// Writing the disk failed.
    pub const WRITE_ERROR: Self = Self::new(Key::MediumError, 0x0C, 0x00);
    /// The first command of a new nexus learns that the target may have been reset (SAM-5 §5.14).
    pub const POWER_ON: Self = Self::new(Key::UnitAttention, 0x29, 0x00);
    /// Another initiator reset the logical unit.
    pub const DEVICE_RESET: Self = Self::new(Key::UnitAttention, 0x29, 0x03);
    /// Another initiator changed mode parameters.
    pub const MODE_PARAMETERS_CHANGED: Self = Self::new(Key::UnitAttention, 0x2A, 0x01);
    /// The disk has another size by now.
    pub const CAPACITY_CHANGED: Self = Self::new(Key::UnitAttention, 0x2A, 0x09);
    /// Thin provisioning soft threshold reached: the host has little space left.
    pub const THRESHOLD_REACHED: Self = Self::new(Key::UnitAttention, 0x38, 0x07);
    /// A persistent reservation was preempted or cleared.
    pub const RESERVATIONS_PREEMPTED: Self = Self::new(Key::UnitAttention, 0x2A, 0x03);
    /// A persistent reservation that this registrant shared was released.
    pub const RESERVATIONS_RELEASED: Self = Self::new(Key::UnitAttention, 0x2A, 0x04);
    /// This nexus' registration was removed by another.
    pub const REGISTRATIONS_PREEMPTED: Self = Self::new(Key::UnitAttention, 0x2A, 0x05);
    /// A release that names another type or scope than the reservation's.
    pub const INVALID_RELEASE: Self = Self::new(Key::IllegalRequest, 0x26, 0x04);
    /// There is no room for another registration.
    pub const INSUFFICIENT_REGISTRATION_RESOURCES: Self = Self::new(Key::IllegalRequest, 0x55, 0x04);
    /// More copy target descriptors than RECEIVE COPY OPERATING PARAMETERS allows.
    pub const TOO_MANY_TARGETS: Self = Self::new(Key::IllegalRequest, 0x26, 0x06);
    /// A copy target descriptor of a kind that is not known.
    pub const UNSUPPORTED_TARGET_TYPE: Self = Self::new(Key::IllegalRequest, 0x26, 0x07);
    /// More segment descriptors than RECEIVE COPY OPERATING PARAMETERS allows.
    pub const TOO_MANY_SEGMENTS: Self = Self::new(Key::IllegalRequest, 0x26, 0x08);
    /// A segment descriptor of a kind that is not known.
    pub const UNSUPPORTED_SEGMENT_TYPE: Self = Self::new(Key::IllegalRequest, 0x26, 0x09);
    /// Data is not copied by way of the parameter list.
    pub const INLINE_DATA: Self = Self::new(Key::IllegalRequest, 0x26, 0x0B);
    /// The copy source or destination is no unit that can be reached from here.
    pub const UNREACHABLE_COPY_TARGET: Self = Self::new(Key::CopyAborted, 0x08, 0x04);
    /// A copy failed.
    pub const COPY_ABORTED: Self = Self::new(Key::CopyAborted, 0x00, 0x00);
    /// The unit is being sanitized.
    pub const SANITIZE_IN_PROGRESS: Self = Self::new(Key::NotReady, 0x04, 0x1B);
    /// Another initiator cleared the task set, and with it commands of this one (SAM-5 §7.4).
    pub const COMMANDS_CLEARED: Self = Self::new(Key::UnitAttention, 0x2F, 0x00);
    /// Unsolicited data that was not agreed on arrived (RFC 7143 §11.4.7.2).
    pub const UNEXPECTED_UNSOLICITED_DATA: Self = Self::new(Key::AbortedCommand, 0x0C, 0x0C);
    /// Data that did not match its digest arrived (RFC 7143 §11.4.7.2).
    pub const CRC_ERROR: Self = Self::new(Key::AbortedCommand, 0x47, 0x05);
    /// Data arrived in an amount that was not agreed on (RFC 7143 §11.4.7.2).
    pub const INCORRECT_AMOUNT_OF_DATA: Self = Self::new(Key::AbortedCommand, 0x0C, 0x0D);
    /// Data arrived out of its sequence.
    pub const DATA_PHASE_ERROR: Self = Self::new(Key::AbortedCommand, 0x4B, 0x00);
    /// The target failed in a way of its own.
    pub const INTERNAL_FAILURE: Self = Self::new(Key::AbortedCommand, 0x44, 0x00);

    /// What an initiator is told of a disk's error: the only place where one becomes the other.
    #[must_use]
    pub fn of_disk(error: &DiskError, writing: bool) -> Self {
        match error.kind() {
            ErrorKind::NoSpace => Self::SPACE_ALLOCATION_FAILED,
            ErrorKind::ReadOnly => Self::WRITE_PROTECTED,
            ErrorKind::OutOfRange => Self::LBA_OUT_OF_RANGE,
            _ if writing => Self::WRITE_ERROR,
            _ => Self::READ_ERROR,
        }
    }

    /// The data differs from the medium at this offset.
    #[must_use]
    pub fn miscompare(offset: usize) -> Self {
        Self { information: u32::try_from(offset).ok(), ..Self::new(Key::Miscompare, 0x1D, 0x00) }
    }

    /// The same, because of this byte of the CDB.
    #[must_use]
    pub fn at(self, byte: u16) -> Self {
        Self { field: Some(byte), ..self }
    }

    /// The sense key specific bytes of a field in the CDB (SPC-4 §4.5.2.4.2): SKSV and C/D, then the field's place.
    fn field_pointer(&self) -> Option<[u8; 3]> {
        let [high, low] = self.field?.to_be_bytes();
        Some([0xC0, high, low])
    }

    /// In the format that the unit is set to.
    #[must_use]
    pub fn bytes(&self, descriptor: bool) -> Vec<u8> {
        if descriptor { self.descriptor() } else { self.fixed().to_vec() }
    }

    /// The fixed format of current information (SPC-4 §4.5.3).
    #[must_use]
    pub fn fixed(&self) -> [u8; FIXED_LENGTH] {
        let mut bytes = [0; FIXED_LENGTH];
        bytes[0] = 0x70;
        if let Some(information) = self.information {
            bytes[0] |= 0x80; // VALID
            bytes[3..7].copy_from_slice(&information.to_be_bytes());
        }
        bytes[2] = self.key as u8;
        bytes[7] = 10; // ten bytes follow
        bytes[12] = self.asc;
        bytes[13] = self.ascq;
        if let Some(pointer) = self.field_pointer() {
            bytes[15..18].copy_from_slice(&pointer);
        }
        bytes
    }

    /// The descriptor format of current information (SPC-4 §4.5.2).
    #[must_use]
    pub fn descriptor(&self) -> Vec<u8> {
        let mut bytes = vec![0x72, self.key as u8, self.asc, self.ascq, 0, 0, 0, 0];
        if let Some(information) = self.information {
            // The information descriptor: type 0, ten bytes follow, VALID.
            bytes.extend_from_slice(&[0x00, 0x0A, 0x80, 0x00, 0, 0, 0, 0]);
            bytes.extend_from_slice(&information.to_be_bytes());
        }
        if let Some([flags, high, low]) = self.field_pointer() {
            bytes.extend_from_slice(&[0x02, 0x06, 0, 0, flags, high, low, 0]);
        }
        bytes[7] = u8::try_from(bytes.len() - 8).expect("two descriptors");
        bytes
    }
}

impl fmt::Display for Sense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}h/{:02X}h/{:02X}h ({:?})", self.key as u8, self.asc, self.ascq, self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_say_the_same() {
        let differs = Sense::miscompare(0x0102);
        assert_eq!(differs.fixed(), [0xF0, 0, 0xE, 0, 0, 1, 2, 10, 0, 0, 0, 0, 0x1D, 0, 0, 0, 0, 0]);
        let descriptor = [0x72, 0xE, 0x1D, 0, 0, 0, 0, 12, 0, 10, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2];
        assert_eq!(differs.descriptor(), descriptor);
        let field = Sense::INVALID_FIELD_IN_CDB.at(3);
        assert_eq!(field.fixed(), [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xC0, 0, 3]);
        assert_eq!(field.descriptor(), [0x72, 5, 0x24, 0, 0, 0, 0, 8, 2, 6, 0, 0, 0xC0, 0, 3, 0]);
    }
}
