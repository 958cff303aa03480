//! Images: golden master disks, each with numbered, immutable versions.

use std::fmt;
use std::str::FromStr;

use super::client::{NameError, check_name};

/// An image's name: `[a-z0-9-]`, 1 to 63 characters. It is a folder's name under `STATE/images`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageName(String);

/// The version that an import makes, and the one that is served.
pub const FIRST_VERSION: u32 = 1;

impl ImageName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ImageName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        check_name(text)?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
