//! What another DHCP server on the wire does that keeps machines from booting, and what is to be changed about it.
//!
//! Not here: how it is found (`dhcp::others`, `net::dhcp`).

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Something about another DHCP server that an operator should know.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "finding", rename_all = "kebab-case")]
pub enum Finding {
    /// It gives addresses where we do.
    SecondServer {
        /// That server.
        server: Ipv4Addr,
    },
    /// It sends a boot file of its own.
    BootFile {
        /// That server.
        server: Ipv4Addr,
        /// The file's name, printable.
        file: String,
    },
    /// It says `PXEClient` in option 60 and nothing in option 43.
    ClassAlone {
        /// That server.
        server: Ipv4Addr,
    },
}

impl Finding {
    /// Which server it is about.
    #[must_use]
    pub fn server(&self) -> Ipv4Addr {
        match self {
            Self::SecondServer { server } | Self::BootFile { server, .. } | Self::ClassAlone { server } => *server,
        }
    }

    /// What to change, and where.
    #[must_use]
    pub fn help(&self) -> String {
        match self {
            Self::SecondServer { server } => format!(
                "stop DHCP for this wire on {server}, or write dhcp = \"proxy\" under [server] in roost.toml and leave the \
                 addresses to it"
            ),
            Self::BootFile { server, .. } => format!(
                "take the boot file out on {server}: options 66 and 67 of a router or of Windows, `dhcp-boot` and \
                 `pxe-service` of dnsmasq, `filename` and `next-server` of ISC dhcpd, `boot-file-name` of Kea"
            ),
            Self::ClassAlone { server } => format!(
                "take option 60 (`PXEClient`) out on {server}: only a server that answers port 4011 itself may send it"
            ),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SecondServer { server } => {
                write!(f, "{server} gives addresses on this wire too: a machine takes whichever offer comes first")
            }
            Self::BootFile { server, file } => {
                write!(f, "{server} sends a boot file of its own, `{file}`, which machines may take instead of ours")
            }
            Self::ClassAlone { server } => write!(
                f,
                "{server} sends option 60 `PXEClient` without option 43: UEFI machines then ask it on port 4011, in vain, and \
                 give up (PXE-E16)"
            ),
        }
    }
}
