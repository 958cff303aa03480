//! The wire that we serve: our address on it, who gives addresses there, and, where we do, the subnets and their pools: its
//! own, and those whose requests relays bring.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use super::guide::Guide;
use crate::fleet::lease::{MIN_LEASE, Subnet, netmask};
use crate::fleet::{Naming, Pool};

/// Who gives addresses on a wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// We do, to every machine.
    Server,
    /// Another server does; we add how to boot, for machines of clients only.
    Proxy,
}

/// Where machines find us, and what they may expect of us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Our address: server identifier, TFTP and HTTP server.
    pub server: Ipv4Addr,
    /// The port of scripts, and of loaders for machines that boot by HTTP.
    pub http_port: u16,
    /// How clients' iSCSI names are made.
    pub naming: Naming,
    /// Who gives the addresses.
    pub role: Role,
    /// Which loaders there are, and what machines made of them.
    pub guide: Guide,
}

impl Site {
    /// Where machines reach us by HTTP.
    #[must_use]
    pub fn http(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.server, self.http_port)
    }
}

/// One subnet on which we give the addresses. Its pool lies within it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    site: Site,
    /// Any address of the subnet.
    within: Ipv4Addr,
    prefix: u8,
    pool: Pool,
}

/// One interface, and the subnets whose machines get their addresses through it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wire {
    site: Site,
    local: Option<Scope>,
    beyond: Vec<Scope>,
}

impl Wire {
    /// An interface where machines find us at `site`. `local` is the subnet of the interface itself; the others are behind
    /// relays.
    #[must_use]
    pub fn new(site: Site, local: Option<Scope>, beyond: Vec<Scope>) -> Self {
        Self { site, local, beyond }
    }

    /// Where machines on it find us.
    #[must_use]
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// The same, with these loaders.
    #[must_use]
    pub fn with_guide(self, guide: &Guide) -> Self {
        let with = |scope: Scope| scope.with_guide(guide.clone());
        Self {
            site: Site { guide: guide.clone(), ..self.site },
            local: self.local.map(with),
            beyond: self.beyond.into_iter().map(with).collect(),
        }
    }

    /// The subnet of the interface itself; `None` where we give no addresses on it.
    #[must_use]
    pub fn local(&self) -> Option<&Scope> {
        self.local.as_ref()
    }

    /// The subnet that this address is of.
    #[must_use]
    pub fn scope_of(&self, address: Ipv4Addr) -> Option<&Scope> {
        self.local.iter().chain(&self.beyond).find(|scope| scope.contains(address))
    }
}

impl From<Scope> for Wire {
    fn from(scope: Scope) -> Self {
        Self { site: scope.site.clone(), local: Some(scope), beyond: Vec::new() }
    }
}

/// Why there is nothing to serve on an interface.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    /// The interface's prefix is longer than an address.
    #[error("/{0} is no prefix of an IPv4 subnet")]
    Prefix(u8),
    /// First and last stand the wrong way round.
    #[error("the pool {first}-{last} is empty; write the lower address first")]
    Empty {
        /// First address.
        first: Ipv4Addr,
        /// Last address.
        last: Ipv4Addr,
    },
    /// The pool is for another wire.
    #[error(
        "the pool {first}-{last} lies outside {within}/{prefix}, the subnet of the interface; change [server.pool] range, or the interface's address"
    )]
    Outside {
        /// First address.
        first: Ipv4Addr,
        /// Last address.
        last: Ipv4Addr,
        /// Our address, or another of the subnet.
        within: Ipv4Addr,
        /// Its prefix.
        prefix: u8,
    },
    /// Too short.
    #[error("a lease of {0:?} is too short; use at least {MIN_LEASE:?}")]
    Lease(Duration),
}

impl Scope {
    /// The subnet of our address `server`/`prefix`, with this pool. Loaders come by TFTP from `server`, scripts
    /// by HTTP from `http_port`; `naming` makes the initiator names that iPXE is told.
    ///
    /// # Errors
    /// A [`ScopeError`]; `config` reports most of them with their place before it comes to this.
    pub fn new(server: Ipv4Addr, prefix: u8, pool: Pool, http_port: u16, naming: Naming) -> Result<Self, ScopeError> {
        let site = Site { server, http_port, naming, role: Role::Server, guide: Guide::default() };
        Self { site, within: server, prefix, pool }.checked()
    }

    /// A subnet that the file describes, whose machines find us at `site`.
    ///
    /// # Errors
    /// A [`ScopeError`].
    pub fn of(site: &Site, subnet: &Subnet) -> Result<Self, ScopeError> {
        let Subnet { network, prefix, pool, .. } = subnet.clone();
        Self { site: site.clone(), within: network, prefix, pool }.checked()
    }

    fn checked(self) -> Result<Self, ScopeError> {
        let Self { prefix, pool: Pool { first, last, lease, .. }, .. } = self;
        if prefix > 32 {
            return Err(ScopeError::Prefix(prefix));
        }
        if first > last {
            return Err(ScopeError::Empty { first, last });
        }
        if !self.contains(first) || !self.contains(last) {
            return Err(ScopeError::Outside { first, last, within: self.within, prefix });
        }
        if lease < MIN_LEASE {
            return Err(ScopeError::Lease(lease));
        }
        Ok(self)
    }

    /// Our address: server identifier, TFTP and HTTP server.
    #[must_use]
    pub fn server(&self) -> Ipv4Addr {
        self.site.server
    }

    /// The same, with these loaders.
    #[must_use]
    pub fn with_guide(mut self, guide: Guide) -> Self {
        self.site.guide = guide;
        self
    }

    /// Where machines find us.
    #[must_use]
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// The addresses that we give out, and what goes with them.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The subnet's mask.
    #[must_use]
    pub fn netmask(&self) -> Ipv4Addr {
        netmask(self.prefix)
    }

    /// The address of everybody on the subnet.
    #[must_use]
    pub fn broadcast(&self) -> Ipv4Addr {
        self.within | !self.netmask()
    }

    /// The address is of this subnet.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address & self.netmask() == self.within & self.netmask()
    }

    /// The address is in the pool.
    #[must_use]
    pub fn in_pool(&self, address: Ipv4Addr) -> bool {
        (self.pool.first..=self.pool.last).contains(&address)
    }

    /// A host of this subnet other than ourselves and the gateway can have it.
    #[must_use]
    pub fn is_host(&self, address: Ipv4Addr) -> bool {
        // A subnet of one or two addresses has neither a network nor a broadcast address (RFC 3021).
        let special = self.prefix < 31 && (address == self.broadcast() || address == self.netmask() & self.within);
        self.contains(address) && !special && address != self.server() && Some(address) != self.pool.router
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(server: &str, prefix: u8, pool: Pool, http_port: u16) -> Result<Scope, ScopeError> {
        Scope::new(server.parse().unwrap(), prefix, pool, http_port, Naming::new("iqn.2026-11.test"))
    }

    fn pool(first: &str, last: &str) -> Pool {
        Pool {
            first: first.parse().unwrap(),
            last: last.parse().unwrap(),
            router: Some("10.20.0.1".parse().unwrap()),
            dns: Vec::new(),
            lease: Duration::from_secs(3600),
        }
    }

    #[test]
    fn a_subnet_knows_its_hosts() {
        let us = "10.20.0.2";
        let scope = new(us, 16, pool("10.20.0.0", "10.20.255.255"), 80).unwrap();
        assert_eq!(scope.netmask(), Ipv4Addr::new(255, 255, 0, 0));
        assert_eq!(scope.broadcast(), Ipv4Addr::new(10, 20, 255, 255));
        for nobody in ["10.20.0.0", "10.20.255.255", "10.20.0.2", "10.20.0.1", "10.21.0.9"] {
            assert!(!scope.is_host(nobody.parse().unwrap()), "{nobody}");
        }
        assert!(scope.is_host(Ipv4Addr::new(10, 20, 1, 0)));
        let whole = new(us, 0, pool("1.0.0.0", "9.0.0.0"), 80).unwrap();
        assert_eq!((whole.netmask(), whole.broadcast()), (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST));
        let pair = new(us, 31, pool("10.20.0.3", "10.20.0.3"), 80).unwrap();
        assert!(pair.is_host(Ipv4Addr::new(10, 20, 0, 3)));
    }

    #[test]
    fn a_pool_that_cannot_serve_is_refused() {
        let us = "10.20.0.2";
        let of = |first, last| new(us, 24, pool(first, last), 80);
        assert!(matches!(of("10.20.0.9", "10.20.0.8"), Err(ScopeError::Empty { .. })));
        assert!(matches!(of("10.20.0.9", "10.20.1.8"), Err(ScopeError::Outside { .. })));
        let short = Pool { lease: Duration::from_secs(1), ..pool("10.20.0.9", "10.20.0.9") };
        assert!(matches!(new(us, 24, short, 80), Err(ScopeError::Lease(_))));
    }
}
