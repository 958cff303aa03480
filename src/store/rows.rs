//! The stored forms of leases, sightings and events: JSON objects, and the keys that they stand under.

use std::net::Ipv4Addr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{MAX_EVENTS_OF_ONE, MAX_EVENTS_OF_STRANGERS, StoreError};
use crate::fleet::{ClientName, Event, Fact, Habit, Holder, Lease, Mac, Port, Secrets, Sighting, Timestamp};

/// The subject that all events have which happened in no client's place.
const STRANGERS: &str = "strangers";
const CLIENT: &str = "client:";
const MAC: &str = "mac:";

#[derive(Serialize, Deserialize)]
struct LeaseRow {
    address: Ipv4Addr,
    mac: String,
    expires: u64,
}

#[derive(Serialize, Deserialize)]
struct SightingRow {
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<Ipv4Addr>,
    at: u64,
}

#[derive(Serialize, Deserialize)]
struct EventRow {
    #[serde(skip_serializing_if = "Option::is_none")]
    mac: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<String>,
    stage: String,
    detail: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fact: Option<serde_json::Value>,
}

#[derive(Serialize, Deserialize)]
struct HabitRow {
    file: bool,
}

#[derive(Serialize, Deserialize)]
struct SecretsRow {
    machine: String,
    server: String,
}

pub(super) fn client_key(client: &ClientName) -> String {
    format!("{CLIENT}{client}")
}

pub(super) fn mac_key(mac: Mac) -> String {
    format!("{MAC}{mac}")
}

pub(super) fn holder_key(holder: &Holder) -> String {
    match holder {
        Holder::Client(name) => client_key(name),
        Holder::Stranger(mac) => mac_key(*mac),
    }
}

/// Under whom an event is found. An event without a client is the strangers' as well as its machine's.
pub(super) fn subjects(event: &Event) -> Vec<String> {
    let client = event.client.as_ref().map_or_else(|| STRANGERS.to_owned(), client_key);
    std::iter::once(client).chain(event.mac.map(mac_key)).collect()
}

/// How many events this subject may have.
pub(super) fn most_events(subject: &str) -> u64 {
    if subject == STRANGERS { MAX_EVENTS_OF_STRANGERS } else { MAX_EVENTS_OF_ONE }
}

pub(super) fn lease_row(lease: &Lease) -> Vec<u8> {
    encode(&LeaseRow { address: lease.address, mac: lease.mac.to_string(), expires: lease.expires.0 })
}

pub(super) fn lease(key: &str, row: &[u8]) -> Result<Lease, StoreError> {
    let bad = |why: String| StoreError::Row { table: "leases", why: format!("{key}: {why}") };
    let row: LeaseRow = decode(row).map_err(bad)?;
    let holder = if let Some(name) = key.strip_prefix(CLIENT) {
        Holder::Client(name.parse().map_err(|error| bad(format!("{error}")))?)
    } else if let Some(mac) = key.strip_prefix(MAC) {
        Holder::Stranger(parse_mac(mac).map_err(bad)?)
    } else {
        return Err(bad("it is neither a client's nor a machine's".to_owned()));
    };
    let mac = parse_mac(&row.mac).map_err(bad)?;
    Ok(Lease { holder, address: row.address, mac, expires: Timestamp(row.expires) })
}

pub(super) fn sighting_row(sighting: &Sighting) -> Vec<u8> {
    encode(&SightingRow { address: sighting.address, at: sighting.at.0 })
}

pub(super) fn sighting(key: &str, row: &[u8]) -> Result<Sighting, StoreError> {
    let bad = |why: String| StoreError::Row { table: "sightings", why: format!("{key}: {why}") };
    let row: SightingRow = decode(row).map_err(bad)?;
    Ok(Sighting { mac: parse_mac(key).map_err(bad)?, address: row.address, at: Timestamp(row.at) })
}

pub(super) fn secrets_row(secrets: &Secrets) -> Vec<u8> {
    encode(&SecretsRow { machine: secrets.machine.clone(), server: secrets.server.clone() })
}

pub(super) fn secrets(key: &str, row: &[u8]) -> Result<(ClientName, Secrets), StoreError> {
    let bad = |why: String| StoreError::Row { table: "secrets", why: format!("{key}: {why}") };
    let SecretsRow { machine, server } = decode(row).map_err(bad)?;
    let client = key.parse().map_err(|error| bad(format!("{error}")))?;
    Ok((client, Secrets { machine, server }))
}

pub(super) fn habit_row(habit: Habit) -> Vec<u8> {
    encode(&HabitRow { file: habit.file })
}

pub(super) fn habit(key: &str, row: &[u8]) -> Result<(Mac, Habit), StoreError> {
    let bad = |why: String| StoreError::Row { table: "habits", why: format!("{key}: {why}") };
    let HabitRow { file } = decode(row).map_err(bad)?;
    Ok((parse_mac(key).map_err(bad)?, Habit { file }))
}

pub(super) fn plugged(port: &str, mac: &str) -> Result<(Port, Mac), StoreError> {
    let bad = |why: String| StoreError::Row { table: "plugged", why: format!("{port}: {why}") };
    let mac = parse_mac(mac).map_err(bad)?;
    Ok((port.parse().map_err(|error| bad(format!("{error}")))?, mac))
}

pub(super) fn event_row(event: &Event) -> Vec<u8> {
    encode(&EventRow {
        mac: event.mac.map(|mac| mac.to_string()),
        client: event.client.as_ref().map(ToString::to_string),
        stage: event.stage.word().to_owned(),
        detail: event.detail.clone(),
        fact: event
            .fact
            .as_ref()
            .map(|fact| serde_json::to_value(fact).expect("facts are plain structs with text keys")),
    })
}

pub(super) fn event(at: u64, row: &[u8]) -> Result<Event, StoreError> {
    let bad = |why: String| StoreError::Row { table: "events", why: format!("{at}: {why}") };
    let row: EventRow = decode(row).map_err(bad)?;
    Ok(Event {
        at: Timestamp(at),
        mac: row.mac.as_deref().map(parse_mac).transpose().map_err(bad)?,
        client: row.client.map(|name| name.parse()).transpose().map_err(|error| bad(format!("{error}")))?,
        stage: row.stage.parse().map_err(|()| bad(format!("no stage is called `{}`", row.stage)))?,
        detail: row.detail,
        // One that a later Roost knows says nothing here; the event's words do.
        fact: row.fact.and_then(|fact| serde_json::from_value::<Fact>(fact).ok()),
    })
}

fn encode(row: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(row).expect("rows are plain structs with text keys")
}

fn decode<Row: DeserializeOwned>(row: &[u8]) -> Result<Row, String> {
    serde_json::from_slice(row).map_err(|error| error.to_string())
}

fn parse_mac(text: &str) -> Result<Mac, String> {
    text.parse::<Mac>().map_err(|error| error.to_string())
}
