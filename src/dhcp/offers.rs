//! Addresses that were offered and not taken up yet: who was offered what, until when, at which port.
//!
//! Floods are made of offers, so each question has its own index, and none is answered by looking at all of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use crate::fleet::{Holder, Port, Timestamp};

/// An address that is kept for somebody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) holder: Holder,
    /// Where the machine is plugged in, as far as somebody says so.
    pub(super) port: Option<Port>,
    pub(super) until: Timestamp,
}

impl Offer {
    pub(super) fn is_to_stranger(&self) -> bool {
        matches!(self.holder, Holder::Stranger(_))
    }
}

/// Every offer. No address is offered twice, and nobody has two.
#[derive(Debug, Default)]
pub(super) struct Offers {
    by_address: BTreeMap<Ipv4Addr, Offer>,
    by_holder: HashMap<Holder, Ipv4Addr>,
    by_age: BTreeSet<(Timestamp, Ipv4Addr)>,
    /// Those to strangers, where a port is known.
    by_port: HashMap<Port, BTreeSet<(Timestamp, Ipv4Addr)>>,
}

impl Offers {
    pub(super) fn len(&self) -> usize {
        self.by_address.len()
    }

    pub(super) fn of(&self, address: Ipv4Addr) -> Option<&Offer> {
        self.by_address.get(&address)
    }

    pub(super) fn to(&self, holder: &Holder) -> Option<Ipv4Addr> {
        self.by_holder.get(holder).copied()
    }

    /// The oldest first.
    pub(super) fn by_age(&self) -> impl Iterator<Item = (Ipv4Addr, &Offer)> {
        self.by_age.iter().map(|(_, address)| (*address, &self.by_address[address]))
    }

    /// How many strangers at this port have an offer, and the oldest of those.
    pub(super) fn strangers_at(&self, port: &Port) -> (usize, Option<Ipv4Addr>) {
        self.by_port.get(port).map_or((0, None), |there| (there.len(), there.first().map(|(_, address)| *address)))
    }

    /// In the place of what was offered of this address, or to this holder.
    pub(super) fn insert(&mut self, address: Ipv4Addr, offer: Offer) {
        if let Some(last) = self.to(&offer.holder) {
            self.remove(last);
        }
        self.remove(address);
        self.by_holder.insert(offer.holder.clone(), address);
        self.by_age.insert((offer.until, address));
        if let Some(port) = offer.port.as_ref().filter(|_| offer.is_to_stranger()) {
            self.by_port.entry(port.clone()).or_default().insert((offer.until, address));
        }
        self.by_address.insert(address, offer);
    }

    pub(super) fn remove(&mut self, address: Ipv4Addr) -> Option<Offer> {
        let offer = self.by_address.remove(&address)?;
        let entry = (offer.until, address);
        self.by_holder.remove(&offer.holder);
        self.by_age.remove(&entry);
        if let Some(port) = &offer.port
            && let Some(there) = self.by_port.get_mut(port)
        {
            there.remove(&entry);
            if there.is_empty() {
                self.by_port.remove(port);
            }
        }
        Some(offer)
    }

    /// Takes out the oldest offer, if it is over.
    pub(super) fn pop_over(&mut self, now: Timestamp) -> Option<Ipv4Addr> {
        let (_, address) = self.by_age.first().filter(|(until, _)| *until <= now)?;
        let address = *address;
        self.remove(address);
        Some(address)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fleet::Mac;

    /// One table that is searched from end to end.
    #[derive(Default)]
    struct Model(Vec<(Ipv4Addr, Offer)>);

    impl Model {
        fn oldest(&self, which: impl Fn(&Offer) -> bool) -> Option<Ipv4Addr> {
            let found = self.0.iter().filter(|(_, offer)| which(offer));
            found.min_by_key(|(address, offer)| (offer.until, *address)).map(|(address, _)| *address)
        }
    }

    proptest! {
        #[test]
        fn every_index_says_what_a_search_finds(
            acts in prop::collection::vec((0..4_u8, 0..12_u8, 0..8_u8, 0..3_u8, 0..20_u64), 1..80),
        ) {
            let (mut offers, mut model) = (Offers::default(), Model::default());
            let holder = |number: u8| match number {
                0..4 => Holder::Client(format!("pc-{number}").parse().unwrap()),
                _ => Holder::Stranger(Mac::from_octets([0x52, 0x54, 0, 0, 0, number]).unwrap()),
            };
            let port = |number: u8| (number > 0).then(|| format!("sw/{number}").parse::<Port>().unwrap());
            for (what, address, who, at, until) in acts {
                let address = Ipv4Addr::new(10, 0, 0, address);
                match what {
                    0 | 1 => {
                        let offer = Offer { holder: holder(who), port: port(at), until: Timestamp(until) };
                        model.0.retain(|(other, old)| *other != address && old.holder != offer.holder);
                        model.0.push((address, offer.clone()));
                        offers.insert(address, offer);
                    }
                    2 => {
                        let had = model.0.iter().find(|(other, _)| *other == address).map(|(_, offer)| offer.clone());
                        model.0.retain(|(other, _)| *other != address);
                        prop_assert_eq!(offers.remove(address), had);
                    }
                    _ => {
                        let over = model.oldest(|offer| offer.until <= Timestamp(until));
                        prop_assert_eq!(offers.pop_over(Timestamp(until)), over);
                        model.0.retain(|(other, _)| Some(*other) != over);
                    }
                }
                prop_assert_eq!(offers.len(), model.0.len());
                for (address, offer) in &model.0 {
                    prop_assert_eq!(offers.of(*address), Some(offer));
                    prop_assert_eq!(offers.to(&offer.holder), Some(*address));
                }
                prop_assert_eq!(offers.by_age().next().map(|(address, _)| address), model.oldest(|_| true));
                for number in 1..3 {
                    let there = |offer: &Offer| offer.port == port(number) && offer.is_to_stranger();
                    let count = model.0.iter().filter(|(_, offer)| there(offer)).count();
                    prop_assert_eq!(offers.strangers_at(&port(number).unwrap()), (count, model.oldest(there)));
                }
            }
            let left = offers.by_age.len();
            prop_assert_eq!(offers.by_holder.len(), left);
            prop_assert!(offers.by_port.values().map(BTreeSet::len).sum::<usize>() <= left);
        }
    }
}
