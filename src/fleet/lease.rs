//! Which addresses are given out, who has which, and who was seen at which.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::{ClientName, Mac, Timestamp};

/// Shortest lease. Firmware and boot loaders never renew theirs, and it must still hold when the operating system asks.
pub const MIN_LEASE: Duration = Duration::from_secs(120);

/// Most name servers that are handed to clients: resolvers ask three (glibc's `MAXNS`) and replies have little room.
pub const MAX_DNS: usize = 8;

/// Most leases of machines that are in nobody's place: any of them could be forged. The telephones of a large building are
/// fewer, and so many cost a few MiB.
pub const MAX_STRANGERS: usize = 8_192;

/// The addresses that Roost gives out, and what goes with them: `[server.pool]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// First address.
    pub first: Ipv4Addr,
    /// Last address, not before the first.
    pub last: Ipv4Addr,
    /// The clients' gateway.
    pub router: Option<Ipv4Addr>,
    /// The clients' name servers.
    pub dns: Vec<Ipv4Addr>,
    /// How long a lease lasts.
    pub lease: Duration,
}

/// A further subnet whose machines we give addresses: `[server.pools.NAME]`. It is that of another interface or of another
/// address, or one whose requests a relay brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subnet {
    /// What the operator calls it.
    pub name: String,
    /// Its first address.
    pub network: Ipv4Addr,
    /// The length of its prefix.
    pub prefix: u8,
    /// The addresses of it that we give.
    pub pool: Pool,
}

impl Subnet {
    /// The address is of this subnet.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address & netmask(self.prefix) == self.network & netmask(self.prefix)
    }
}

/// The mask of a prefix of this length; a length above 32 is taken for 32.
#[must_use]
pub fn netmask(prefix: u8) -> Ipv4Addr {
    u32::MAX.checked_shl(32_u32.saturating_sub(u32::from(prefix))).unwrap_or(0).into()
}

/// Who a lease belongs to. A client's address follows its name, whatever hardware stands in its place.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Holder {
    /// A client of the fleet.
    Client(ClientName),
    /// A machine that is in nobody's place.
    Stranger(Mac),
}

/// An address given out by DHCP. It is kept after it expires, so that its holder gets the same one again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Whose it is.
    pub holder: Holder,
    /// The address.
    pub address: Ipv4Addr,
    /// The hardware that asked last.
    pub mac: Mac,
    /// When it ends.
    pub expires: Timestamp,
}

/// A machine that was seen on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// The machine.
    pub mac: Mac,
    /// The address that it was seen to use, where one was.
    pub address: Option<Ipv4Addr>,
    /// When it was seen last.
    pub at: Timestamp,
}
