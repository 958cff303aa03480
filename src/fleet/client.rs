//! A client: one diskless machine's place in the fleet. It outlives the hardware.

use std::borrow::Borrow;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use super::extra::ExtraOption;
use super::image::ImageName;
use super::mac::Mac;
use super::platform::Start;
use super::port::Port;

/// Longest client name: it becomes one DNS label (RFC 1035 §2.3.4).
pub const MAX_NAME: usize = 63;

/// A client's name: `[a-z0-9-]`, 1 to 63 characters. Disk, host name, target name and initiator name follow it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientName(String);

/// Why a text is no client name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No characters.
    #[error("a name cannot be empty")]
    Empty,
    /// More than [`MAX_NAME`] characters.
    #[error("the name has {0} characters; a host name has at most {MAX_NAME}")]
    Long(usize),
    /// A character outside `[a-z0-9-]`.
    #[error("`{0}` cannot stand in a name; use a to z, 0 to 9 and -")]
    Character(char),
}

impl ClientName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// `[a-z0-9-]{1,63}`, the rule that clients and images share.
pub(super) fn check_name(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if let Some(other) = text.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
        return Err(NameError::Character(other));
    }
    if text.len() > MAX_NAME {
        return Err(NameError::Long(text.len()));
    }
    Ok(())
}

impl FromStr for ClientName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        check_name(text)?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ClientName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for ClientName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// What happens to a client's disk between boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DiskPolicy {
    /// Changes stay.
    #[default]
    Keep,
    /// It is clean at every boot.
    Reset,
}

impl DiskPolicy {
    /// The word that the mapping file and JSON use.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Reset => "reset",
        }
    }
}

/// Who may log in to a client's target besides the client itself (which comes with its own name *and* address).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Initiators {
    /// Nobody.
    #[default]
    OwnOnly,
    /// These initiator names, from any address.
    Also(Vec<String>),
    /// Anybody: `initiators = ["*"]`.
    Anyone,
}

/// One diskless machine's place in the fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Its name, the key to everything that is its own.
    pub name: ClientName,
    /// The group it is in; `None` for those under `[clients]`.
    pub group: Option<String>,
    /// The MAC addresses of the machine in its place; at least one, unless it is recognised by its port.
    pub macs: Vec<Mac>,
    /// The port of a switch: whatever is plugged in there stands in its place.
    pub port: Option<Port>,
    /// A fixed address.
    pub ip: Option<Ipv4Addr>,
    /// DHCP options of the operator's own.
    pub options: Vec<ExtraOption>,
    /// The image its disk is a child of.
    pub image: ImageName,
    /// What happens to its disk between boots.
    pub disk: DiskPolicy,
    /// Who else may log in.
    pub initiators: Initiators,
    /// A login must pass CHAP with a secret that Roost makes.
    pub chap: bool,
    /// Its disk may be read, not written.
    pub read_only: bool,
    /// The most bytes that its own disk may take up on the host, its checkpoints among them.
    pub limit: Option<u64>,
    /// What it sets of its way into a boot.
    pub start: Start,
    /// The size of its second disk in bytes, which no reset touches.
    pub data: Option<u64>,
    /// Out of service: no offer, no login.
    pub off: bool,
    /// A title for lists.
    pub title: Option<String>,
    /// The operator's own words.
    pub note: Option<String>,
}

impl Client {
    /// A client of this image without an identity, and for the rest as the mapping file has it where it says nothing.
    #[must_use]
    pub fn new(name: ClientName, image: ImageName) -> Self {
        Self {
            name,
            group: None,
            macs: Vec::new(),
            port: None,
            ip: None,
            image,
            disk: DiskPolicy::default(),
            initiators: Initiators::default(),
            chap: false,
            read_only: false,
            options: Vec::new(),
            limit: None,
            data: None,
            off: false,
            start: Start::default(),
            title: None,
            note: None,
        }
    }
}
