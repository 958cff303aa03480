//! What one machine is to boot now, and what that means for its disk: decided here and nowhere else.

use super::{Client, ClientName, DiskPolicy, Fleet, Mac, Port};

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
    plan_of(fleet.by_mac(mac))
}

fn plan_of(client: Option<&Client>) -> Plan<'_> {
    match client {
        Some(client) if client.off => Plan::Off(client),
        Some(client) => Plan::Boot(client),
        None => Plan::Unknown,
    }
}

/// One machine matches two clients: it is plugged in at the port of one, and has the MAC of another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it is plugged in at the port of `{by_port}` and has the MAC of `{by_mac}`; correct one of the two")]
pub struct TwoClients {
    /// The client whose port it is.
    pub by_port: ClientName,
    /// The client whose MAC it is.
    pub by_mac: ClientName,
}

/// What the machine with this MAC, plugged in at this port, is to boot. Where the port is known, what was seen there before
/// counts for nothing.
///
/// # Errors
/// [`TwoClients`]: it could write another one's disk, so it boots none.
pub fn boot_plan_at<'fleet>(fleet: &'fleet Fleet, mac: Mac, port: Option<&Port>) -> Result<Plan<'fleet>, TwoClients> {
    let Some(port) = port else { return Ok(boot_plan(fleet, mac)) };
    let client = match (fleet.by_port(port), fleet.by_own_mac(mac)) {
        (Some(one), Some(other)) if one.name != other.name => {
            return Err(TwoClients { by_port: one.name.clone(), by_mac: other.name.clone() });
        }
        (by_port, by_mac) => by_port.or(by_mac),
    };
    Ok(plan_of(client))
}

/// What a client's disk is found to be when its machine fetches a boot script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFound {
    /// There is none yet.
    Missing,
    /// It holds what was written to it.
    Sound,
    /// It need not outlive the power, and the host has booted since it was made: what it holds is unknown.
    Lost,
}

/// What was found when a client's script was fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetch {
    /// It was fetched from an address that is known to be the client's.
    pub own_address: bool,
    /// A session on its disk gave a sign of life: a system is running on it.
    pub answered: bool,
    /// The disk.
    pub disk: DiskFound,
}

/// What a fetch of a client's script means for its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskAtBoot {
    /// It is made anew, as a child of the client's image.
    Anew(Anew),
    /// It stays as it is.
    Stays(Stays),
}

/// Why a disk is made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anew {
    /// The client's policy.
    Reset,
    /// What it held was lost with the host's power.
    Lost,
}

/// Why a disk stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stays {
    /// The script was fetched from an address that is not known to be the client's: no boot begins.
    Stranger,
    /// A system is running on it.
    Running,
    /// The client's policy.
    Kept,
    /// There is none yet: the first login makes it.
    Missing,
}

/// What the fetch of its script means for the disk of a client with this policy. Nothing but such a fetch begins a boot:
/// not a login, for that is also what a running system does after its network was away.
#[must_use]
pub fn disk_at_boot(policy: DiskPolicy, fetch: Fetch) -> DiskAtBoot {
    match (policy, fetch) {
        (_, Fetch { own_address: false, .. }) => DiskAtBoot::Stays(Stays::Stranger),
        (_, Fetch { answered: true, .. }) => DiskAtBoot::Stays(Stays::Running),
        (_, Fetch { disk: DiskFound::Missing, .. }) => DiskAtBoot::Stays(Stays::Missing),
        (DiskPolicy::Reset, _) => DiskAtBoot::Anew(Anew::Reset),
        (DiskPolicy::Keep, Fetch { disk: DiskFound::Lost, .. }) => DiskAtBoot::Anew(Anew::Lost),
        (DiskPolicy::Keep, Fetch { disk: DiskFound::Sound, .. }) => DiskAtBoot::Stays(Stays::Kept),
    }
}

impl DiskAtBoot {
    /// What there is to say about it; `None` where it is what everybody expects.
    #[must_use]
    pub fn words(self, policy: DiskPolicy) -> Option<&'static str> {
        match (self, policy) {
            (Self::Anew(Anew::Reset), _) => Some("disk made anew"),
            (Self::Anew(Anew::Lost), _) => Some("disk made anew: what it held was lost with the server's power"),
            (Self::Stays(Stays::Running), _) => Some("disk kept: a system is running on it"),
            (Self::Stays(Stays::Stranger), DiskPolicy::Reset) => {
                Some("disk kept: fetched from an address that is not known to be the client's")
            }
            (Self::Stays(Stays::Stranger | Stays::Kept | Stays::Missing), _) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_made_anew_only_where_its_own_machine_boots_and_nothing_runs_on_it() {
        use DiskFound::{Lost, Missing, Sound};
        use DiskPolicy::{Keep, Reset};
        let stays = DiskAtBoot::Stays;
        for own_address in [false, true] {
            for answered in [false, true] {
                for disk in [Missing, Sound, Lost] {
                    for policy in [Keep, Reset] {
                        let decided = disk_at_boot(policy, Fetch { own_address, answered, disk });
                        let expected = match (own_address, answered) {
                            (false, _) => stays(Stays::Stranger),
                            (true, true) => stays(Stays::Running),
                            (true, false) => match (disk, policy) {
                                (Missing, _) => stays(Stays::Missing),
                                (Sound, Keep) => stays(Stays::Kept),
                                (Lost, Keep) => DiskAtBoot::Anew(Anew::Lost),
                                (Sound | Lost, Reset) => DiskAtBoot::Anew(Anew::Reset),
                            },
                        };
                        assert_eq!(decided, expected, "{policy:?} {own_address} {answered} {disk:?}");
                        let silent = matches!(expected, DiskAtBoot::Stays(Stays::Kept | Stays::Missing))
                            || expected == stays(Stays::Stranger) && policy == Keep;
                        assert_eq!(decided.words(policy).is_none(), silent);
                    }
                }
            }
        }
    }
}
