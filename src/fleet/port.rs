//! The port of a switch that a machine is plugged into, as option 82 of DHCP tells it.

use std::fmt;
use std::str::FromStr;

/// Longest name of a port in bytes: option 82 has at most 255, each of which can become two digits.
pub const MAX_PORT: usize = 520;

/// A switch's port, as a text that names both: `sw1/ge-0/0/4`. How it is made of what a relay sends is `dhcp`'s matter; here
/// it is compared to the letter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port(String);

/// Why a text is no name of a port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// No characters.
    #[error("the name of a port cannot be empty")]
    Empty,
    /// More than [`MAX_PORT`] bytes.
    #[error("the name of a port has at most {MAX_PORT} characters")]
    Long,
    /// Something that cannot be seen, or is not ASCII.
    #[error("{0:?} cannot stand in the name of a port, which is plain ASCII")]
    Character(char),
    /// Blanks around it, which nobody sees.
    #[error("the name of a port neither begins nor ends with a blank")]
    Blank,
}

impl Port {
    /// The port as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Port {
    type Err = PortError;

    fn from_str(text: &str) -> Result<Self, PortError> {
        if text.is_empty() {
            return Err(PortError::Empty);
        }
        if text.len() > MAX_PORT {
            return Err(PortError::Long);
        }
        if let Some(other) = text.chars().find(|c| !matches!(c, ' '..='~')) {
            return Err(PortError::Character(other));
        }
        if text.starts_with(' ') || text.ends_with(' ') {
            return Err(PortError::Blank);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
