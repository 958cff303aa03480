//! What was seen of a machine's boot: one event for each stage that it reached.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::{ClientName, Fact, Mac};

/// Milliseconds since 1970-01-01T00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// This long after; stops at the end of time.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long `earlier` was before this; zero if it was not.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// The stages of a boot, in the order in which a machine passes them. Before the first of a machine's life stands that it
/// was put into its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// An operator gave the client a new machine.
    Replaced,
    /// DHCP offered it an address or a boot file.
    Offer,
    /// It fetched the boot loader.
    Loader,
    /// It fetched its boot script.
    Script,
    /// Its loader logged in to its target.
    Login,
    /// It read the first block of its disk.
    FirstRead,
    /// Its operating system logged in: the first login whose ISID is not of iPXE's kind.
    OsSession,
    /// Ten seconds without a command after the operating system's login: it has settled.
    Idle,
    /// A login was refused.
    Refused,
    /// Beside the course of its boot: its loader's reads stopped, its system lost its session, a write was refused.
    Trouble,
}

impl Stage {
    /// Every stage.
    pub const ALL: [Self; 10] = [
        Self::Replaced,
        Self::Offer,
        Self::Loader,
        Self::Script,
        Self::Login,
        Self::FirstRead,
        Self::OsSession,
        Self::Idle,
        Self::Refused,
        Self::Trouble,
    ];

    /// The word that logs, JSON and the store use.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Replaced => "replaced",
            Self::Offer => "offer",
            Self::Loader => "loader",
            Self::Script => "script",
            Self::Login => "login",
            Self::FirstRead => "first-read",
            Self::OsSession => "os-session",
            Self::Idle => "idle",
            Self::Refused => "refused",
            Self::Trouble => "trouble",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl FromStr for Stage {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|stage| stage.word() == word).ok_or(())
    }
}

/// One thing that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// Of which machine; unknown where only an initiator name was seen.
    pub mac: Option<Mac>,
    /// In which client's place it stands, if in any.
    pub client: Option<ClientName>,
    /// Which stage it reached.
    pub stage: Stage,
    /// The particulars, for a person: the address offered, the file's name, the reason of a refusal.
    pub detail: String,
    /// What a program may have to go by.
    pub fact: Option<Fact>,
}
