//! DHCP options that an operator adds to ours.

/// Longest value of an option, in bytes: its length is one byte, and fragments are for no firmware.
pub const MAX_VALUE: usize = 255;

/// An option, ready for a packet. `config` sees to it that it is none of those that Roost says itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraOption {
    /// Its code.
    pub code: u8,
    /// Its value, of at most [`MAX_VALUE`] bytes.
    pub value: Vec<u8>,
}
