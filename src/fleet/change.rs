//! Changes of the fleet: a [`Change`] and the fleet as it is make the fleet as it is to be, or a [`Refusal`].
//!
//! Not here: the mapping file (`config::edit`) and running sessions (`app::keeper`), which the [`Effect`]s are for.

use super::nearest::nearest;
use super::{Client, ClientName, Fleet, Mac, Port};

/// What an operator wants changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Give the client a new machine. Disk, name, address and initiator name stay.
    Replace {
        /// The client.
        client: ClientName,
        /// The new machine's MAC. All that the client had make way for it.
        mac: Mac,
    },
}

/// The fleet as it is to be, and what follows from that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// The fleet.
    pub fleet: Fleet,
    /// What follows; nothing, where the fleet is as wanted already.
    pub effects: Vec<Effect>,
}

/// What follows from a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Another machine is in this client's place: sessions of the old one end, and it may not come back.
    Machine {
        /// The client.
        client: ClientName,
        /// The MACs that it had.
        old: Vec<Mac>,
        /// The one that it has.
        new: Mac,
    },
}

/// Why a change is not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such client.
    #[error("there is no client `{name}`")]
    NoSuchClient {
        /// The name.
        name: ClientName,
        /// The one that was probably meant.
        near: Option<ClientName>,
    },
    /// The client is whatever is plugged in at a port: there is no MAC that another could take the place of.
    #[error("`{client}` is whatever machine is plugged in at port {port}: it has no MAC to replace")]
    ByPort {
        /// The client.
        client: ClientName,
        /// Its port.
        port: Port,
    },
    /// The MAC is another client's.
    #[error("MAC {mac} is the machine of `{of}`: two machines would write one disk")]
    MacInUse {
        /// The MAC.
        mac: Mac,
        /// That client.
        of: ClientName,
    },
}

impl Refusal {
    /// That this fleet has no such client, with the one that may be meant.
    #[must_use]
    pub fn no_such_client(fleet: &Fleet, name: &ClientName) -> Self {
        let names = fleet.clients().map(|client| client.name.as_str());
        let near = nearest(name.as_str(), names).and_then(|near| near.parse().ok());
        Self::NoSuchClient { name: name.clone(), near }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn help(&self) -> String {
        match self {
            Self::NoSuchClient { near: Some(near), .. } => format!("did you mean `{near}`?"),
            Self::NoSuchClient { near: None, .. } => "`roost client list` shows those that there are".to_owned(),
            Self::ByPort { client, port } => format!(
                "plug the new machine in at {port}, and that is all; where it is plugged in elsewhere, write that as the `port` \
                 of `{client}` (its events tell it: roost logs), or take `port` out and give it a `mac`"
            ),
            Self::MacInUse { of, .. } => {
                format!("look at the label of the new machine again, or give `{of}` another one first")
            }
        }
    }
}

impl Change {
    /// The client that it is about.
    #[must_use]
    pub fn client(&self) -> &ClientName {
        let Self::Replace { client, .. } = self;
        client
    }

    /// The fleet with this change.
    ///
    /// # Errors
    /// Why it cannot be made.
    pub fn apply(&self, fleet: &Fleet) -> Result<Changed, Refusal> {
        let Self::Replace { client: name, mac } = self;
        let Some(client) = fleet.client(name) else {
            return Err(Refusal::no_such_client(fleet, name));
        };
        if let ([], Some(port)) = (&client.macs[..], &client.port) {
            return Err(Refusal::ByPort { client: name.clone(), port: port.clone() });
        }
        if let Some(other) = fleet.by_mac(*mac).filter(|other| other.name != *name) {
            return Err(Refusal::MacInUse { mac: *mac, of: other.name.clone() });
        }
        if client.macs == [*mac] {
            return Ok(Changed { fleet: fleet.clone(), effects: Vec::new() });
        }
        let old = client.macs.clone();
        let with = |client: &Client| match client.name == *name {
            true => Client { macs: vec![*mac], ..client.clone() },
            false => client.clone(),
        };
        let changed = Fleet::new(fleet.clients().map(with)).expect("no other client has the MAC");
        let fleet = changed.plugged_as(fleet);
        Ok(Changed { fleet, effects: vec![Effect::Machine { client: name.clone(), old, new: *mac }] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{DiskPolicy, Initiators};

    fn mac(number: u8) -> Mac {
        Mac::from_octets([0x52, 0x54, 0, 0xaa, 0, number]).unwrap()
    }

    fn client(name: &str, macs: &[u8], off: bool) -> Client {
        Client {
            name: name.parse().unwrap(),
            group: Some("lab-a".to_owned()),
            macs: macs.iter().map(|number| mac(*number)).collect(),
            port: None,
            options: Vec::new(),
            ip: Some([10, 0, 0, 7].into()),
            image: "debian-12".parse().unwrap(),
            disk: DiskPolicy::Keep,
            initiators: Initiators::OwnOnly,
            chap: false,
            read_only: false,
            off,
            title: None,
            note: Some("by the door".to_owned()),
            limit: None,
            start: Default::default(),
            data: None,
        }
    }

    fn fleet() -> Fleet {
        Fleet::new([client("pc-01", &[1], false), client("pc-02", &[2, 3], true)]).unwrap()
    }

    fn replace(name: &str, number: u8) -> Result<Changed, Refusal> {
        Change::Replace { client: name.parse().unwrap(), mac: mac(number) }.apply(&fleet())
    }

    #[test]
    fn only_the_machine_changes() {
        let Changed { fleet, effects } = replace("pc-01", 9).unwrap();
        assert_eq!(fleet, Fleet::new([client("pc-01", &[9], false), client("pc-02", &[2, 3], true)]).unwrap());
        assert_eq!(fleet.by_mac(mac(1)), None, "the old machine is nobody's");
        let effect = Effect::Machine { client: "pc-01".parse().unwrap(), old: vec![mac(1)], new: mac(9) };
        assert_eq!(effects, [effect]);
    }

    #[test]
    fn one_mac_takes_the_place_of_all_also_of_a_client_that_is_off() {
        for new in [9, 3] {
            let Changed { fleet, effects } = replace("pc-02", new).unwrap();
            assert_eq!(fleet, Fleet::new([client("pc-01", &[1], false), client("pc-02", &[new], true)]).unwrap());
            assert_eq!(effects.len(), 1);
        }
    }

    #[test]
    fn the_same_machine_again_is_nothing_to_do() {
        assert_eq!(replace("pc-01", 1).unwrap(), Changed { fleet: fleet(), effects: Vec::new() });
    }

    #[test]
    fn what_is_known_by_its_port_alone_is_replaced_by_its_cable() {
        let port: Port = "sw1/4".parse().unwrap();
        let by_port = Client { port: Some(port.clone()), ..client("desk", &[], false) };
        let both = Client { port: Some(port), ..client("desk", &[5], false) };
        let replace = |desk| {
            let fleet = Fleet::new([client("pc-01", &[1], false), desk]).unwrap();
            Change::Replace { client: "desk".parse().unwrap(), mac: mac(9) }.apply(&fleet)
        };
        let refusal = replace(by_port).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "`desk` is whatever machine is plugged in at port sw1/4: it has no MAC to replace"
        );
        assert!(refusal.help().starts_with("plug the new machine in at sw1/4, and that is all;"), "{}", refusal.help());
        assert_eq!(replace(both).unwrap().fleet.client(&"desk".parse().unwrap()).unwrap().macs, [mac(9)]);
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_to_do() {
        let refusal = replace("pc-01", 3).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "MAC 52:54:00:aa:00:03 is the machine of `pc-02`: two machines would write one disk"
        );
        let refusal = replace("pc01", 9).unwrap_err();
        assert_eq!(refusal.to_string(), "there is no client `pc01`");
        assert_eq!(refusal.help(), "did you mean `pc-01`?");
        assert!(replace("frontdesk", 9).unwrap_err().help().contains("roost client list"));
    }
}
