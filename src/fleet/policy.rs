//! What one machine is to boot now, and why: decided here and nowhere else.

use super::{Client, Fleet, Mac};

/// The decision for one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan<'fleet> {
    /// Boot this client's disk.
    Boot(&'fleet Client),
    /// The machine stands in this client's place, which is out of service: no offer, no login.
    Off(&'fleet Client),
    /// No client has this MAC: an address and a short script that says so, never a disk.
    Unknown,
}

/// What the machine with this MAC is to boot.
#[must_use]
pub fn boot_plan(fleet: &Fleet, mac: Mac) -> Plan<'_> {
    match fleet.by_mac(mac) {
        Some(client) if client.off => Plan::Off(client),
        Some(client) => Plan::Boot(client),
        None => Plan::Unknown,
    }
}
