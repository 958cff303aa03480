//! Who may log in to which target: by initiator name *and* the client's address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use super::App;
use crate::fleet::policy::{Plan, boot_plan};
use crate::fleet::{Client, ClientName, Initiators, Mac};

/// Why an initiator may not use a target. Reads as the end of a sentence that names the initiator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// No client has this target.
    NoSuchTarget(String),
    /// The client is out of service.
    Off,
    /// It is not the client's name, nor one that the client allows.
    Name {
        /// The client's initiator name.
        wanted: String,
    },
    /// It is the client's name, from an address that is not the client's.
    Address {
        /// Where it came from.
        from: IpAddr,
        /// The client's addresses; none where its machine was never seen.
        known: Vec<Ipv4Addr>,
    },
    /// It is the client's name, from a machine that was seen here and is in no client's place: a replaced one, say.
    Replaced(Mac),
    /// It is the client's name, at an address that another client's machine uses now.
    Machine {
        /// That machine.
        mac: Mac,
        /// That client.
        of: ClientName,
    },
}

impl Refusal {
    /// What it is in one word, for programs.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::NoSuchTarget(_) => "no-target",
            Self::Off => "off",
            Self::Name { .. } => "name",
            Self::Address { .. } => "address",
            Self::Replaced(_) => "replaced",
            Self::Machine { .. } => "machine",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchTarget(target) => write!(f, "there is no target {target}"),
            Self::Off => write!(f, "the client is switched off (`off = true`)"),
            Self::Name { wanted } => {
                write!(f, "this disk is for {wanted}; add the name to the client's `initiators` to let it in")
            }
            Self::Replaced(mac) => {
                write!(f, "it came from {mac}, which is not this client's machine; `roost replace` makes it that")
            }
            Self::Machine { mac, of } => write!(f, "it came from {mac}, which is the machine of `{of}`"),
            Self::Address { from, known } if known.is_empty() => {
                write!(f, "it came from {from}, but this client's machine has no address yet: it has not booted by us")
            }
            Self::Address { from, known } => {
                let known: Vec<String> = known.iter().map(ToString::to_string).collect();
                write!(f, "it came from {from}, but the client's address is {}", known.join(" or "))
            }
        }
    }
}

impl App {
    /// Whether this initiator, from this address, may use this client's disk.
    ///
    /// `neighbour` is the machine that the kernel knows at that address, if it knows one.
    ///
    /// # Errors
    /// Why not.
    pub fn may_log_in(
        &self,
        client: &Client,
        initiator: &str,
        from: IpAddr,
        neighbour: Option<Mac>,
    ) -> Result<(), Refusal> {
        let fleet = self.fleet();
        let off = fleet.macs_of(client).any(|mac| matches!(boot_plan(&fleet, mac), Plan::Off(_)));
        if off || client.off {
            return Err(Refusal::Off);
        }
        let same = |name: &str| name.eq_ignore_ascii_case(initiator); // names are compared in lower case (RFC 3722)
        match &client.initiators {
            Initiators::Anyone => return Ok(()),
            Initiators::Also(names) if names.iter().any(|name| same(name)) => return Ok(()),
            Initiators::Also(_) | Initiators::OwnOnly => {}
        }
        let wanted = self.naming.initiator(&client.name);
        if !same(&wanted) {
            return Err(Refusal::Name { wanted });
        }
        self.is_its_machine(client, from, neighbour)
    }

    /// Whether this address is the client's machine's: its fixed one, its lease's, one that it was seen to use, or one at
    /// which the kernel knows it.
    ///
    /// # Errors
    /// Why not.
    pub fn is_its_machine(&self, client: &Client, from: IpAddr, neighbour: Option<Mac>) -> Result<(), Refusal> {
        // An address is given anew once its lease is over; whose machine answers there now counts more.
        if let Some(mac) = neighbour
            && let Some(other) = self.fleet().by_mac(mac).filter(|other| other.name != client.name)
        {
            return Err(Refusal::Machine { mac, of: other.name.clone() });
        }
        let is_its_machine = neighbour.is_some_and(|mac| self.fleet().macs_of(client).any(|own| own == mac));
        // A replaced machine that still runs goes on using the address, which by now is its successor's. A MAC that was
        // never seen by itself may be the client's own: systems make bridges and bonds.
        if let Some(mac) = neighbour.filter(|mac| !is_its_machine && self.recorder.address_seen(*mac).is_some()) {
            return Err(Refusal::Replaced(mac));
        }
        let known = self.addresses_of(client);
        let at_known = matches!(from, IpAddr::V4(from) if known.contains(&from));
        if at_known || is_its_machine { Ok(()) } else { Err(Refusal::Address { from, known }) }
    }

    /// The addresses that are a client's: its fixed one, and those that its machine was given or seen to use.
    #[must_use]
    pub fn addresses_of(&self, client: &Client) -> Vec<Ipv4Addr> {
        let fleet = self.fleet();
        let seen = fleet.macs_of(client).filter_map(|mac| self.recorder.address_seen(mac));
        let mut addresses: Vec<Ipv4Addr> = client.ip.into_iter().chain(seen).collect();
        addresses.dedup();
        addresses
    }
}
