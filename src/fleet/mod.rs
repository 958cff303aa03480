//! The domain: clients, the machines in their places, and what each is to boot.
//!
//! Not here: I/O, clocks, sockets, file formats. A [`Fleet`] is an immutable snapshot, made by `config` from `roost.toml`
//! and handed around in an `Arc`; whoever needs to know what a machine may do asks [`policy::boot_plan`].

pub mod change;
pub mod client;
pub mod event;
pub mod image;
pub mod iqn;
pub mod lease;
pub mod mac;
pub mod nearest;
pub mod platform;
pub mod policy;
pub mod secrets;
pub mod size;
pub mod web;

use std::collections::{BTreeMap, HashMap};

pub use change::Change;
pub use client::{Client, ClientName, DiskPolicy, Initiators};
pub use event::{Event, Stage, Timestamp};
pub use image::ImageName;
pub use iqn::Naming;
pub use lease::{Holder, Lease, Pool, Sighting};
pub use mac::Mac;
pub use platform::{Loader, Loaders, Platform, Pxe, Start};
pub use secrets::Secrets;

/// Every client of the lab, and which MAC address belongs to which.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Fleet {
    clients: BTreeMap<ClientName, Client>,
    by_mac: HashMap<Mac, ClientName>,
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
    /// A name that two clients have.
    #[error("there are two clients `{0}`")]
    Name(ClientName),
}

impl Fleet {
    /// A fleet of these clients.
    ///
    /// # Errors
    /// Two clients with one name or one MAC. `config` reports both places before it comes to this.
    pub fn new(clients: impl IntoIterator<Item = Client>) -> Result<Self, Conflict> {
        let mut fleet = Self::default();
        for client in clients {
            for mac in &client.macs {
                if let Some(first) = fleet.by_mac.insert(*mac, client.name.clone()) {
                    return Err(Conflict::Mac { mac: *mac, first, second: client.name });
                }
            }
            if let Some(twin) = fleet.clients.insert(client.name.clone(), client) {
                return Err(Conflict::Name(twin.name));
            }
        }
        Ok(fleet)
    }

    /// The client in whose place the machine with this MAC stands.
    #[must_use]
    pub fn by_mac(&self, mac: Mac) -> Option<&Client> {
        self.clients.get(self.by_mac.get(&mac)?)
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
