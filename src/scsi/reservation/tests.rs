//! Persistent reservations against a model, and the table of who may do what.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn port(number: u8) -> InitiatorPort {
    InitiatorPort { name: "iqn.2026-11.internal.roost:client.pc".to_owned(), isid: [0, 0, 0, 0, 0, number] }
}

fn nexus(number: u8) -> Nexus {
    Nexus(number.into())
}

fn keys(key: u64, service_key: u64) -> Parameters {
    Parameters { key, service_key, ..Parameters::default() }
}

/// Port 1 holds a reservation of this kind, port 2 has a key, port 3 has none.
fn held(kind: Kind) -> Reservations {
    let mut reservations = Reservations::default();
    for number in [1, 2] {
        reservations.change(&port(number), action::REGISTER, 0, &keys(0, number.into())).unwrap();
    }
    reservations.change(&port(1), action::RESERVE, kind as u8, &keys(1, 0)).unwrap();
    reservations
}

#[test]
fn who_may_do_what_is_as_the_table_says() {
    // For each type: reading and writing by the holder, by a registrant, and by a stranger (SPC-4 table 62).
    const TABLE: [(Kind, [&str; 3]); 6] = [
        (Kind::WriteExclusive, ["rw", "r", "r"]),
        (Kind::ExclusiveAccess, ["rw", "", ""]),
        (Kind::WriteExclusiveRegistrantsOnly, ["rw", "rw", "r"]),
        (Kind::ExclusiveAccessRegistrantsOnly, ["rw", "rw", ""]),
        (Kind::WriteExclusiveAllRegistrants, ["rw", "rw", "r"]),
        (Kind::ExclusiveAccessAllRegistrants, ["rw", "rw", ""]),
    ];
    for (kind, row) in TABLE {
        let reservations = held(kind);
        for (number, allowed) in (1..).zip(row) {
            let may = |access| reservations.allow(nexus(number), &port(number), access);
            assert_eq!(may(Access::Read), allowed.contains('r'), "{kind:?}: {number} reads");
            assert_eq!(may(Access::Write), allowed.contains('w'), "{kind:?}: {number} writes");
            assert!(may(Access::Free) && may(Access::Persistent) && may(Access::Reservation));
        }
    }
}

#[test]
fn a_release_is_told_to_registrants_of_shared_types_only() {
    for kind in Kind::ALL {
        let mut reservations = held(kind);
        let done = reservations.change(&port(1), action::RELEASE, kind as u8, &keys(1, 0)).unwrap();
        let told = if kind.shared() { vec![(port(2), Sense::RESERVATIONS_RELEASED)] } else { Vec::new() };
        assert_eq!(done.attentions, told, "{kind:?}");
        assert!(reservations.is_free());
        let mut reservations = held(kind);
        let other = Kind::ALL.into_iter().find(|other| *other != kind).unwrap();
        let refused = reservations.change(&port(1), action::RELEASE, other as u8, &keys(1, 0));
        assert_eq!(refused, Err(Sense::INVALID_RELEASE.into()));
    }
}

#[test]
fn the_holder_moves_its_reservation_to_another() {
    let mut reservations = held(Kind::WriteExclusive);
    let to = |number| Parameters { moves_to: Some(port(number)), unregister: true, ..keys(1, 9) };
    let refused = reservations.change(&port(1), action::REGISTER_AND_MOVE, 0, &to(1));
    assert_eq!(refused, Err(Sense::INVALID_FIELD_IN_PARAMETERS.into()), "to itself");
    reservations.change(&port(1), action::REGISTER_AND_MOVE, 0, &to(3)).unwrap();
    assert!(reservations.holds(&port(3)) && reservations.key_of(&port(3)) == Some(9));
    assert_eq!(reservations.key_of(&port(1)), None);
    let moved = Parameters { key: 2, ..to(1) };
    assert_eq!(reservations.change(&port(2), action::REGISTER_AND_MOVE, 0, &moved), Err(Refusal::Conflict));
}

#[test]
fn reserve_and_registrations_keep_out_of_each_others_way() {
    let mut reservations = Reservations::default();
    reservations.reserve_legacy(nexus(1)).unwrap();
    assert_eq!(reservations.change(&port(1), action::REGISTER, 0, &keys(0, 1)), Err(Refusal::Conflict));
    reservations.lose(nexus(2));
    assert!(!reservations.allow(nexus(2), &port(2), Access::Persistent));
    reservations.lose(nexus(1));
    reservations.change(&port(1), action::REGISTER, 0, &keys(0, 1)).unwrap();
    assert_eq!(reservations.reserve_legacy(nexus(1)), Err(Refusal::Conflict));
    assert_eq!(reservations.release_legacy(nexus(1)), Err(Refusal::Conflict));
}

#[test]
fn registrations_are_bounded() {
    let mut reservations = Reservations::default();
    for number in 0..u8::try_from(MAX_REGISTRATIONS).unwrap() {
        reservations.change(&port(number), action::REGISTER, 0, &keys(0, 1)).unwrap();
    }
    let one_more = reservations.change(&port(200), action::REGISTER_AND_IGNORE, 0, &keys(0, 1));
    assert_eq!(one_more, Err(Sense::INSUFFICIENT_REGISTRATION_RESOURCES.into()));
}

/// The rules again, for three ports, in sets and maps: who has which key, who holds what, who lost what.
#[derive(Debug, Default, Clone, PartialEq)]
struct Model {
    keys: BTreeMap<u8, u64>,
    holders: BTreeSet<u8>,
    kind: u8,
    changes: u32,
}

impl Model {
    fn all_hold(&self) -> bool {
        [7, 8].contains(&self.kind) && !self.holders.is_empty()
    }

    /// Whether the command is done.
    fn apply(&mut self, who: u8, service: u8, kind: u8, key: u64, other: u64) -> bool {
        let own = self.keys.get(&who).copied();
        match service {
            0 | 6 => {
                if service == 0 && own.unwrap_or(0) != key {
                    return false;
                }
                if own.is_none() && other == 0 {
                    return true;
                }
                if other == 0 {
                    self.keys.remove(&who);
                    self.holders.remove(&who);
                } else {
                    self.keys.insert(who, other);
                    if self.all_hold() {
                        self.holders.insert(who);
                    }
                }
                self.changes += 1;
            }
            _ if own != Some(key) => return false,
            1 if self.holders.is_empty() => {
                self.kind = kind;
                self.holders = if kind >= 7 { self.keys.keys().copied().collect() } else { [who].into() };
            }
            1 => return self.holders.contains(&who) && self.kind == kind,
            2 if !self.holders.contains(&who) => {}
            2 if self.kind != kind => return false,
            2 => self.holders.clear(),
            3 => {
                *self = Self { changes: self.changes + 1, ..Self::default() };
            }
            _ => {
                let victims: BTreeSet<u8> = match other {
                    0 if self.all_hold() => self.keys.keys().copied().collect(),
                    0 => return false,
                    _ => self.keys.iter().filter(|(_, key)| **key == other).map(|(who, _)| *who).collect(),
                };
                let whole = match self.all_hold() {
                    true => other == 0,
                    false => self.holders.iter().any(|holder| self.keys.get(holder) == Some(&other)),
                };
                if victims.is_empty() {
                    return false;
                }
                self.keys.retain(|port, _| !victims.contains(port) || (whole && *port == who));
                self.holders.retain(|port| !victims.contains(port));
                if whole {
                    self.kind = kind;
                    self.holders = if kind >= 7 { self.keys.keys().copied().collect() } else { [who].into() };
                }
                self.changes += 1;
            }
        }
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_sequence_of_commands_leaves_what_the_model_says(
        commands in prop::collection::vec(
            (1_u8..=3, 0_u8..=6, prop::sample::select(&[1_u8, 3, 5, 6, 7, 8][..]), 0_u64..3, 0_u64..3), 1..40,
        ),
    ) {
        let (mut reservations, mut model) = (Reservations::default(), Model::default());
        for (who, service, kind, key, other) in commands {
            let before = reservations.clone();
            let result = reservations.change(&port(who), service, kind, &keys(key, other));
            let done = model.apply(who, service, kind, key, other);
            prop_assert_eq!(result.is_ok(), done, "{} {} {} {} {}: {:?}", who, service, kind, key, other, before);
            prop_assert!(done || reservations == before, "a refused command changes nothing");
            prop_assert_eq!(reservations.generation, model.changes);
            for number in 1..=3 {
                prop_assert_eq!(reservations.key_of(&port(number)), model.keys.get(&number).copied());
                prop_assert_eq!(reservations.holds(&port(number)), model.holders.contains(&number));
            }
            prop_assert_eq!(reservations.is_free(), model.holders.is_empty());
            if let Ok(consequences) = result {
                prop_assert!(consequences.attentions.iter().all(|(told, _)| *told != port(who)), "never the actor");
                let lost = |number: &u8| before.key_of(&port(*number)).is_some() && !model.keys.contains_key(number);
                let lost: Vec<InitiatorPort> = (1..=3).filter(|n| *n != who).filter(lost).map(port).collect();
                let mut aborted = consequences.aborted;
                aborted.sort();
                prop_assert_eq!(aborted, if service == 5 { lost } else { Vec::new() });
            }
        }
    }
}
