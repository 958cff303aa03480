//! `roost.toml`: what the operator wants.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use crate::fleet::Fleet;

/// A whole, checked mapping file.
#[derive(Debug, Clone)]
pub struct Config {
    /// The `[server]` section.
    pub settings: Settings,
    /// The clients.
    pub fleet: Fleet,
}

/// Who gives addresses on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DhcpMode {
    /// We do.
    Full,
    /// DHCP is not answered at all.
    Off,
}

/// The `[server]` section, with what was left out filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The wire that the clients are on; `None`: the one wired interface with carrier and an address.
    pub interface: Option<String>,
    /// Who gives addresses.
    pub dhcp: DhcpMode,
    /// The addresses that we give, with `dhcp = "full"`.
    pub pool: Option<Pool>,
    /// Images, disks and the store.
    pub state: PathBuf,
    /// Prefix of target and initiator names.
    pub iqn: String,
    /// Where loaders are looked for; `None`: `/usr/lib/ipxe`.
    pub loader_dir: Option<PathBuf>,
}

/// The `[server.pool]` section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// First address.
    pub first: Ipv4Addr,
    /// Last address.
    pub last: Ipv4Addr,
    /// The clients' gateway.
    pub router: Option<Ipv4Addr>,
    /// The clients' name servers.
    pub dns: Vec<Ipv4Addr>,
    /// How long a lease lasts.
    pub lease: Duration,
}
