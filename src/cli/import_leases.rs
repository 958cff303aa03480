//! `roost import-leases FILE`: what another DHCP server knows of addresses becomes ours. Leases in force go to the store, so that
//! machines keep their addresses when the server changes; reservations become clients with an `ip`, shown as lines of the
//! mapping file or, if asked, written into it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::net::Ipv4Addr;
use std::path::Path;

use serde::Serialize;

use super::error::{Error, Kind};
use super::output::{print, print_json};
use super::{Globals, lab};
use crate::app::recorder::now;
use crate::config::edit::{EditError, NewClient, add_clients};
use crate::config::import::{self, Imported, Known, MAX_IMPORT};
use crate::config::{Config, DhcpMode};
use crate::fleet::{ClientName, Fleet, Holder, Lease, Mac, Timestamp};
use crate::store::{FILE, Record, StateLock, Store};

/// Longest lease that is taken over: an address that is somebody's for ever is a reservation, and a lease that lasts until
/// the machine asks again is enough to keep it.
const LONGEST: std::time::Duration = crate::config::MAX_LEASE;

/// What becomes of a file's findings.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Plan {
    format: &'static str,
    leases: Vec<LeaseLine>,
    clients: Vec<ClientLine>,
    /// Addresses that clients which are there already do not have as their `ip`.
    advice: Vec<String>,
    skipped: Vec<String>,
    done: bool,
    #[serde(skip)]
    records: Vec<Lease>,
    #[serde(skip)]
    new: Vec<NewClient>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct LeaseLine {
    address: Ipv4Addr,
    mac: String,
    /// The client; `None` for a machine that is in nobody's place.
    client: Option<String>,
    expires_ms: u64,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct ClientLine {
    line: String,
}

pub(super) fn run(globals: &Globals, file: &Path, dry_run: bool, add: bool) -> Result<(), Error> {
    let text = read(file)?;
    let imported = import::read(&text).map_err(|error| Error::failed(format!("{}: {error}", file.display())))?;
    let config = lab::config(globals)?;
    let state = &config.settings.state;
    // Whoever runs has the leases in memory, and would not see these.
    let lock = if dry_run { None } else { Some(StateLock::acquire(state)?) };
    let store = if dry_run && !state.join(FILE).exists() { None } else { Some(Store::open(state)?) };
    let held = store.as_ref().map(Store::leases).transpose()?.unwrap_or_default();
    let mut plan = plan(&config, imported, &held, now());
    if !dry_run {
        if let Some(store) = &store {
            store.commit(&plan.records.iter().cloned().map(Record::Lease).collect::<Vec<_>>())?;
        }
        if add {
            add_clients(&globals.config, &plan.new).map_err(not_written)?;
        }
        plan.done = true;
    }
    drop(lock);
    if globals.json {
        return print_json(&plan);
    }
    print(&plan.told(add))
}

fn read(file: &Path) -> Result<String, Error> {
    let failed = |error: &dyn std::fmt::Display| Error::failed(format!("{}: cannot be read: {error}", file.display()));
    let mut bytes = Vec::new();
    let mut opened = File::open(file).map_err(|error| failed(&error))?.take(MAX_IMPORT + 1);
    opened.read_to_end(&mut bytes).map_err(|error| failed(&error))?;
    if bytes.len() as u64 > MAX_IMPORT {
        return Err(failed(&format!("it is larger than {} MiB", MAX_IMPORT >> 20)));
    }
    // Host names may be in any encoding; what matters is ASCII.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn not_written(error: EditError) -> Error {
    let help = error.help();
    let error = Error::new(Kind::Configuration, error);
    let error = help.into_iter().fold(error, Error::help);
    error.help("the leases are imported; the lines can be written by hand: --dry-run shows them")
}

/// What is to be done. Nobody loses an address by it: what a lease of ours says already stays as it is.
fn plan(config: &Config, imported: Imported, held: &[Lease], now: Timestamp) -> Plan {
    let mut plan = Plan { format: imported.format, ..Plan::default() };
    plan.skipped = imported
        .skipped
        .into_iter()
        .map(|(line, why)| if line == 0 { why } else { format!("line {line}: {why}") })
        .collect();
    let mut names: BTreeSet<ClientName> = config.fleet.clients().map(|client| client.name.clone()).collect();
    let mut machines: BTreeSet<Mac> = BTreeSet::new();
    let mut taken: Vec<Lease> = held.to_vec();
    for known in imported.known {
        match known.expires {
            None => reserve(&mut plan, &config.fleet, &mut names, &mut machines, &known),
            Some(expires) => match lease(config, &taken, &known, expires, now) {
                Ok(lease) => {
                    let client = match &lease.holder {
                        Holder::Client(name) => Some(name.to_string()),
                        Holder::Stranger(_) => None,
                    };
                    let (address, mac) = (lease.address, lease.mac.to_string());
                    plan.leases.push(LeaseLine { address, mac, client, expires_ms: lease.expires.0 });
                    taken.push(lease.clone());
                    plan.records.push(lease);
                }
                Err(why) => plan.skipped.push(format!("{} of {}: {why}", known.address, known.mac)),
            },
        }
    }
    plan
}

/// A lease of ours; or why there is none.
fn lease(config: &Config, taken: &[Lease], known: &Known, expires: Timestamp, now: Timestamp) -> Result<Lease, String> {
    let settings = &config.settings;
    if settings.dhcp != DhcpMode::Full {
        return Err("leases are of use with dhcp = \"full\" only".to_owned());
    }
    if expires <= now {
        return Err("its lease is over".to_owned());
    }
    let client = config.fleet.by_mac(known.mac);
    if let Some(owner) =
        config.fleet.by_ip(known.address).filter(|owner| Some(owner.name.clone()) != client.map(|c| c.name.clone()))
    {
        return Err(format!("it is the fixed address of `{}`", owner.name));
    }
    let fixed = client.and_then(|client| client.ip) == Some(known.address);
    let mut pools = settings.pool.iter().chain(settings.pools.iter().map(|subnet| &subnet.pool));
    if !(fixed || pools.any(|pool| (pool.first..=pool.last).contains(&known.address))) {
        return Err("the address is in no pool".to_owned());
    }
    let holder = client.map_or(Holder::Stranger(known.mac), |client| Holder::Client(client.name.clone()));
    if let Some(ours) = taken.iter().find(|lease| lease.holder == holder || lease.address == known.address) {
        return Err(format!("there is a lease of {} for {} already", ours.address, ours.mac));
    }
    Ok(Lease { holder, address: known.address, mac: known.mac, expires: expires.min(now.after(LONGEST)) })
}

fn reserve(
    plan: &mut Plan,
    fleet: &Fleet,
    names: &mut BTreeSet<ClientName>,
    machines: &mut BTreeSet<Mac>,
    known: &Known,
) {
    let Known { mac, address, .. } = known;
    let owner = fleet.by_ip(*address);
    if let Some(client) = fleet.by_mac(*mac) {
        if client.ip != Some(*address) {
            plan.advice
                .push(format!("`{}` has {mac} already; to keep its address, add: ip = \"{address}\"", client.name));
        }
        return;
    }
    if let Some(owner) = owner {
        plan.skipped.push(format!("{address} of {mac}: it is the fixed address of `{}`", owner.name));
        return;
    }
    if !machines.insert(*mac) {
        plan.skipped.push(format!("{address} of {mac}: the machine has another address above"));
        return;
    }
    let name = free_name(names, known);
    names.insert(name.clone());
    let new = NewClient { name, mac: *mac, ip: *address };
    plan.clients.push(ClientLine { line: new.to_string() });
    plan.new.push(new);
}

/// A name like the other server's, which no client has: its first label in the characters that names are made of.
fn free_name(names: &BTreeSet<ClientName>, known: &Known) -> ClientName {
    let label = known.name.as_deref().unwrap_or_default().split('.').next().unwrap_or_default().to_lowercase();
    let label: String =
        label.chars().map(|c| if matches!(c, 'a'..='z' | '0'..='9') { c } else { '-' }).take(48).collect();
    let label = match label.trim_matches('-') {
        "" => format!("pc-{}", known.mac.to_string().replace(':', "")),
        label => label.to_owned(),
    };
    let numbered = (2_u32..).map(|number| format!("{label}-{number}"));
    std::iter::once(label.clone())
        .chain(numbered)
        .filter_map(|text| text.parse().ok())
        .find(|name| !names.contains(name))
        .expect("there are more numbers than clients")
}

impl Plan {
    fn told(&self, added: bool) -> String {
        let (would, become_) = if self.done { ("", "are") } else { ("would be ", "would be") };
        let mut text = format!("{}\n", self.format);
        let mut part = |head: String, lines: Vec<String>| {
            if !lines.is_empty() {
                text.push_str(&format!("\n{head}\n"));
                lines.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
            }
        };
        let leases = self.leases.iter().map(|lease| {
            let who = lease.client.as_deref().unwrap_or("nobody's place");
            format!("{:<15} {}  {who}", lease.address, lease.mac)
        });
        part(format!("{} leases {would}imported", self.leases.len()), leases.collect());
        let clients = self.clients.iter().map(|client| client.line.clone()).collect();
        let where_ = if added {
            format!("{become_} written under [clients]")
        } else {
            "to be written under [clients]; --add-clients does it".to_owned()
        };
        part(format!("{} reservations {where_}", self.clients.len()), clients);
        part("Clients that are there already".to_owned(), self.advice.clone());
        part(format!("{} left out", self.skipped.len()), self.skipped.clone());
        if self.leases.is_empty() && self.clients.is_empty() && self.advice.is_empty() {
            text.push_str("\nNothing of it is new.\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    const T0: Timestamp = Timestamp(1_790_000_000_000);

    fn config() -> Config {
        let text = "[server]\ndhcp = \"full\"\n[server.pool]\nrange = \"10.20.0.100-10.20.0.199\"\n[defaults]\nimage = \"x\"\n\
            [clients]\npc-01 = \"52:54:00:aa:00:01\"\npc-02 = { mac = \"52:54:00:aa:00:02\", ip = \"10.20.0.50\" }\n";
        parse(text, "roost.toml").unwrap().config
    }

    #[test]
    fn leases_become_a_clients_or_a_machines_and_nobody_loses_an_address() {
        let text = "1795000000 52:54:00:aa:00:01 10.20.0.101 whatever *\n1795000000 52:54:00:bb:00:01 10.20.0.102 * *\n\
            1 52:54:00:bb:00:02 10.20.0.103 * *\n1795000000 52:54:00:bb:00:03 10.30.0.1 * *\n\
            1795000000 52:54:00:bb:00:04 10.20.0.50 * *\n1795000000 52:54:00:bb:00:05 10.20.0.104 * *\n";
        let ours = Lease {
            holder: Holder::Stranger("52:54:00:cc:00:01".parse().unwrap()),
            address: Ipv4Addr::new(10, 20, 0, 104),
            mac: "52:54:00:cc:00:01".parse().unwrap(),
            expires: T0,
        };
        let plan = plan(&config(), import::read(text).unwrap(), &[ours], T0);
        let holders: Vec<_> =
            plan.records.iter().map(|lease| (lease.address.octets()[3], lease.holder.clone())).collect();
        let stranger = Holder::Stranger("52:54:00:bb:00:01".parse().unwrap());
        assert_eq!(holders, [(101, Holder::Client("pc-01".parse().unwrap())), (102, stranger)]);
        let said = plan.told(false);
        for why in
            ["its lease is over", "in no pool", "fixed address of `pc-02`", "a lease of 10.20.0.104 for 52:54:00:cc"]
        {
            assert!(said.contains(why), "{said}");
        }
        assert!(said.contains("2 leases would be imported"), "{said}");
    }

    #[test]
    fn reservations_become_lines_that_the_file_can_have() {
        let text = "mac,ip,name\n52:54:00:aa:00:01,10.20.0.60,pc-01\n52:54:00:bb:00:01,10.20.0.61,PC_01.lab\n\
            52:54:00:bb:00:02,10.20.0.62,pc-01\n52:54:00:bb:00:03,10.20.0.63,\n52:54:00:bb:00:04,10.20.0.50,x\n\
            52:54:00:bb:00:03,10.20.0.64,y\n";
        let plan = plan(&config(), import::read(text).unwrap(), &[], T0);
        let lines: Vec<&str> = plan.clients.iter().map(|client| client.line.as_str()).collect();
        assert_eq!(
            lines,
            [
                "pc-01-2 = { mac = \"52:54:00:bb:00:01\", ip = \"10.20.0.61\" }",
                "pc-01-3 = { mac = \"52:54:00:bb:00:02\", ip = \"10.20.0.62\" }",
                "pc-525400bb0003 = { mac = \"52:54:00:bb:00:03\", ip = \"10.20.0.63\" }",
            ]
        );
        let said = plan.told(false);
        for why in [
            "`pc-01` has 52:54:00:aa:00:01 already",
            "add: ip = \"10.20.0.60\"",
            "fixed address of `pc-02`",
            "another address above",
        ] {
            assert!(said.contains(why), "{said}");
        }
    }
}
