//! The domain: clients, the machines in their places, and what each is to boot.
//!
//! Not here: I/O, clocks, sockets, file formats. A [`Fleet`] is an immutable snapshot, made by `config` from `roost.toml`
//! and handed around in an `Arc`; whoever needs to know what a machine may do asks [`policy::boot_plan`].

pub mod change;
pub mod client;
pub mod event;
pub mod extra;
pub mod fact;
pub mod finding;
pub mod image;
pub mod iqn;
pub mod lease;
pub mod mac;
pub mod nearest;
pub mod platform;
pub mod policy;
pub mod port;
pub mod secrets;
pub mod size;
pub mod web;

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

pub use change::Change;
pub use client::{Client, ClientName, DiskPolicy, Initiators};
pub use event::{Event, Stage, Timestamp};
pub use extra::ExtraOption;
pub use fact::Fact;
pub use finding::Finding;
pub use image::ImageName;
pub use iqn::Naming;
pub use lease::{Holder, Lease, Pool, Sighting, Subnet};
pub use mac::Mac;
pub use platform::{Habit, Loader, Loaders, Platform, Pxe, Start};
pub use port::Port;
pub use secrets::Secrets;

/// Every client of the lab, and which machine stands in the place of which.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Fleet {
    clients: BTreeMap<ClientName, Client>,
    by_port: HashMap<Port, ClientName>,
    /// Machines that were seen at a client's port last. One that is a client's by its MAC is not among them.
    plugged: HashMap<Mac, ClientName>,
    by_mac: HashMap<Mac, ClientName>,
    by_ip: HashMap<Ipv4Addr, ClientName>,
}

/// Two clients that one machine would match: they would write one another's disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// A MAC address that two clients have.
    #[error("MAC {mac} is given to two clients, `{first}` and `{second}`")]
    Mac {
        /// The address.
        mac: Mac,
        /// The client that had it first.
        first: ClientName,
        /// The client that has it too.
        second: ClientName,
    },
    /// A port that two clients have.
    #[error("port {port} is given to two clients, `{first}` and `{second}`")]
    Port {
        /// The port.
        port: Port,
        /// The client that had it first.
        first: ClientName,
        /// The client that has it too.
        second: ClientName,
    },
    /// A name that two clients have.
    #[error("there are two clients `{0}`")]
    Name(ClientName),
}

impl Fleet {
    /// A fleet of these clients.
    ///
    /// # Errors
    /// Two clients with one name, one MAC or one port. `config` reports both places before it comes to this.
    pub fn new(clients: impl IntoIterator<Item = Client>) -> Result<Self, Conflict> {
        let mut fleet = Self::default();
        for client in clients {
            for mac in &client.macs {
                if let Some(first) = fleet.by_mac.insert(*mac, client.name.clone()) {
                    return Err(Conflict::Mac { mac: *mac, first, second: client.name });
                }
            }
            if let Some(port) = &client.port
                && let Some(first) = fleet.by_port.insert(port.clone(), client.name.clone())
            {
                return Err(Conflict::Port { port: port.clone(), first, second: client.name });
            }
            if let Some(ip) = client.ip {
                fleet.by_ip.entry(ip).or_insert_with(|| client.name.clone());
            }
            if let Some(twin) = fleet.clients.insert(client.name.clone(), client) {
                return Err(Conflict::Name(twin.name));
            }
        }
        Ok(fleet)
    }

    /// The client in whose place the machine with this MAC stands: by the MAC, or by the port where it was seen last.
    #[must_use]
    pub fn by_mac(&self, mac: Mac) -> Option<&Client> {
        self.clients.get(self.by_mac.get(&mac).or_else(|| self.plugged.get(&mac))?)
    }

    /// The client that has this MAC.
    #[must_use]
    pub fn by_own_mac(&self, mac: Mac) -> Option<&Client> {
        self.clients.get(self.by_mac.get(&mac)?)
    }

    /// The client in whose place stands what is plugged in there.
    #[must_use]
    pub fn by_port(&self, port: &Port) -> Option<&Client> {
        self.clients.get(self.by_port.get(port)?)
    }

    /// The MACs of the machine in a client's place: its own, and that of what was seen at its port last.
    pub fn macs_of(&self, client: &Client) -> impl Iterator<Item = Mac> {
        let plugged = self.plugged.iter().filter(|(_, name)| **name == client.name);
        client.macs.iter().copied().chain(plugged.map(|(mac, _)| *mac))
    }

    /// The port of a client at which this machine was seen last.
    #[must_use]
    pub fn port_of(&self, mac: Mac) -> Option<&Port> {
        self.clients.get(self.plugged.get(&mac)?)?.port.as_ref()
    }

    /// The fleet once this machine was seen at this port; `None` if that is nothing new. A client has one machine at its port:
    /// the one that was seen there last.
    #[must_use]
    pub fn plug(&self, mac: Mac, port: &Port) -> Option<Self> {
        if self.by_mac.contains_key(&mac) || self.by_port.get(port) == self.plugged.get(&mac) {
            return None;
        }
        let mut fleet = self.clone();
        fleet.plugged.remove(&mac);
        if let Some(name) = self.by_port.get(port) {
            fleet.plugged.retain(|_, other| other != name);
            fleet.plugged.insert(mac, name.clone());
        }
        Some(fleet)
    }

    /// The fleet, with what was seen at the ports of another one.
    #[must_use]
    pub fn plugged_as(mut self, seen: &Self) -> Self {
        let same = |(mac, name): &(&Mac, &ClientName)| {
            let port = |fleet: &Self| fleet.clients.get(*name).and_then(|client| client.port.clone());
            port(&self).is_some() && port(&self) == port(seen) && !self.by_mac.contains_key(mac)
        };
        self.plugged = seen.plugged.iter().filter(same).map(|(mac, name)| (*mac, name.clone())).collect();
        self
    }

    /// The client whose fixed address this is; of several the first, and `config` says that they are.
    #[must_use]
    pub fn by_ip(&self, address: Ipv4Addr) -> Option<&Client> {
        self.clients.get(self.by_ip.get(&address)?)
    }

    /// The client with this name.
    #[must_use]
    pub fn client(&self, name: &ClientName) -> Option<&Client> {
        self.clients.get(name)
    }

    /// All clients, in the order of their names.
    pub fn clients(&self) -> impl ExactSizeIterator<Item = &Client> {
        self.clients.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(name: &str, mac: Option<u8>, port: Option<&str>) -> Client {
        Client {
            macs: mac.map(self::mac).into_iter().collect(),
            port: port.map(self::port),
            ..Client::new(name.parse().unwrap(), "debian-12".parse().unwrap())
        }
    }

    fn mac(last: u8) -> Mac {
        Mac::from_octets([0x52, 0x54, 0, 0xaa, 0, last]).unwrap()
    }

    fn port(text: &str) -> Port {
        text.parse().unwrap()
    }

    #[test]
    fn a_client_has_the_machine_that_was_seen_at_its_port_last() {
        let fleet = Fleet::new([client("a", None, Some("sw1/1")), client("b", Some(2), Some("sw1/2"))]).unwrap();
        let name = |fleet: &Fleet, last| fleet.by_mac(mac(last)).map(|client| client.name.to_string());
        assert_eq!(name(&fleet, 7), None);
        let seen = fleet.plug(mac(7), &port("sw1/1")).unwrap();
        assert_eq!(name(&seen, 7).as_deref(), Some("a"));
        assert_eq!(seen.plug(mac(7), &port("sw1/1")), None, "nothing new");
        assert_eq!(seen.macs_of(seen.client(&"a".parse().unwrap()).unwrap()).collect::<Vec<_>>(), [mac(7)]);
        let next = seen.plug(mac(8), &port("sw1/1")).unwrap();
        assert_eq!((name(&next, 7), name(&next, 8).as_deref()), (None, Some("a")));
        let gone = next.plug(mac(8), &port("sw1/9")).unwrap();
        assert_eq!(name(&gone, 8), None, "it was plugged in elsewhere");
        assert_eq!(fleet.plug(mac(2), &port("sw1/1")), None, "a MAC of a client is that client's");
        // An edit of the file loses nothing of it, unless the port changed.
        let again = |port| Fleet::new([client("a", None, Some(port))]).unwrap().plugged_as(&next);
        assert_eq!(name(&again("sw1/1"), 8).as_deref(), Some("a"));
        assert_eq!(name(&again("sw1/3"), 8), None);
    }

    #[test]
    fn one_port_is_one_clients() {
        let twins = Fleet::new([client("a", None, Some("sw1/1")), client("b", Some(2), Some("sw1/1"))]);
        assert!(matches!(twins, Err(Conflict::Port { .. })));
    }
}
