//! MAC addresses, read in every spelling that labels, switches and spreadsheets use.

use std::fmt;
use std::str::FromStr;

use macaddr::MacAddr6;

/// The hardware address of an Ethernet interface. Shown in lower case with colons: `52:54:00:aa:00:01`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(MacAddr6);

/// Why a text is not a MAC address that a machine can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// Not twelve hexadecimal digits in one of the usual groupings.
    #[error("`{text}` is not a MAC address: it has {digits} hexadecimal digits, not 12")]
    Digits {
        /// What was read.
        text: String,
        /// How many hexadecimal digits it has.
        digits: usize,
    },
    /// Twelve digits, but grouped in no usual way.
    #[error("`{0}` is not a MAC address: write it like 52:54:00:aa:00:01")]
    Shape(String),
    /// `00:00:00:00:00:00`, which hardware reports when it has no address.
    #[error("MAC 00:00:00:00:00:00 belongs to no machine")]
    Zero,
    /// A group address: the lowest bit of the first octet is set (IEEE 802, §8.2).
    #[error("MAC {0} is a multicast or broadcast address, which no machine has")]
    Group(String),
}

impl Mac {
    /// The address of these six octets as a packet carries them; `None` for zero and group addresses.
    #[must_use]
    pub fn from_octets(octets: [u8; 6]) -> Option<Self> {
        let usable = octets != [0; 6] && octets[0] & 1 == 0;
        usable.then_some(Self(MacAddr6::from(octets)))
    }

    /// The six octets in the order of transmission.
    #[must_use]
    pub fn octets(self) -> [u8; 6] {
        self.0.into_array()
    }
}

impl FromStr for Mac {
    type Err = MacError;

    /// Reads `52:54:00:aa:00:01`, `52-54-00-AA-00-01`, `5254.00aa.0001` and `525400aa0001`, in any case.
    fn from_str(text: &str) -> Result<Self, MacError> {
        let hex = |part: &str| part.bytes().all(|b| b.is_ascii_hexdigit());
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        if digits.len() != 12 {
            return Err(MacError::Digits { text: text.to_owned(), digits: digits.len() });
        }
        let grouped = |separator: char, groups: usize, width: usize| {
            let parts: Vec<&str> = text.split(separator).collect();
            parts.len() == groups && parts.iter().all(|part| part.len() == width && hex(part))
        };
        if !(grouped(':', 6, 2) || grouped('-', 6, 2) || grouped('.', 3, 4) || (text.len() == 12 && hex(text))) {
            return Err(MacError::Shape(text.to_owned()));
        }
        let mut octets = [0; 6];
        for (octet, pair) in octets.iter_mut().zip(digits.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).expect("hexadecimal digits are ASCII");
            *octet = u8::from_str_radix(pair, 16).expect("two hexadecimal digits fit an octet");
        }
        if octets == [0; 6] {
            return Err(MacError::Zero);
        }
        Self::from_octets(octets).ok_or_else(|| MacError::Group(text.to_ascii_lowercase()))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.octets();
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_usual_spelling_is_one_address() {
        for text in ["52:54:00:aa:00:01", "52-54-00-AA-00-01", "5254.00aa.0001", "525400AA0001"] {
            assert_eq!(text.parse::<Mac>().unwrap().to_string(), "52:54:00:aa:00:01", "{text}");
        }
    }

    #[test]
    fn what_is_no_machines_address_is_refused() {
        assert_eq!("00:00:00:00:00:00".parse::<Mac>(), Err(MacError::Zero));
        for group in ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01"] {
            assert!(matches!(group.parse::<Mac>(), Err(MacError::Group(_))), "{group}");
        }
        assert!(matches!("52:54:00:aa:00".parse::<Mac>(), Err(MacError::Digits { digits: 10, .. })));
        assert!(matches!("52:54:00-aa-00-01".parse::<Mac>(), Err(MacError::Shape(_))));
        assert!(matches!("5:2:54:00:aa:0001".parse::<Mac>(), Err(MacError::Shape(_)) | Err(MacError::Digits { .. })));
    }
}
