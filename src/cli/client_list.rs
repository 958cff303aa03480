//! `roost client list`: every client of the lab, of the running process or, where nothing runs, as it was left.

use std::sync::Arc;
use std::time::Duration;

use super::ask::{Answer, ask};
use super::error::Error;
use super::output::{bytes, or_dash, print_json, print_table, seconds};
use super::{Globals, lab};
use crate::app::report::{ClientReport, NoSessions, Reporter};
use crate::store::{FILE, StateLock, Store};

pub(super) fn run(globals: &Globals) -> Result<(), Error> {
    let clients = match ask(&lab::state(globals)?, "/v1/clients")? {
        Answer::Got(clients) => clients,
        Answer::NotFound(error) => return Err(Error::failed(error)),
        Answer::NothingRuns => at_rest(globals)?,
    };
    if globals.json {
        return print_json(&clients);
    }
    print_table(
        ["NAME", "GROUP", "ADDRESS", "IMAGE", "ON HOST", "NOW", "LAST BOOT"],
        &clients.iter().map(row).collect::<Vec<_>>(),
    )
}

/// What the mapping file and the store say. Nobody is logged in.
fn at_rest(globals: &Globals) -> Result<Vec<ClientReport>, Error> {
    let config = lab::config(globals)?;
    let state = &config.settings.state;
    // A lab that was never run has no state yet, and listing it makes none.
    let left = state.exists().then(|| StateLock::acquire(state)).transpose()?;
    let store = if state.join(FILE).exists() { Some(Store::open(state)?) } else { None };
    let reporter = Reporter::new(config.settings.clone(), store, Arc::new(NoSessions));
    let clients = reporter.clients(&config.fleet)?;
    drop(left);
    Ok(clients)
}

fn row(client: &ClientReport) -> [String; 7] {
    [
        client.name.clone(),
        or_dash(client.group.as_ref()),
        or_dash(client.address),
        client.image.clone(),
        or_dash(client.disk_bytes_on_host.map(bytes)),
        now(client),
        last_boot(client),
    ]
}

/// What it does at this moment.
fn now(client: &ClientReport) -> String {
    if client.off {
        return "off".to_owned();
    }
    or_dash(client.sessions.last().map(|session| session.kind))
}

/// How far its last boot got, and how long that took.
fn last_boot(client: &ClientReport) -> String {
    let last = client.last_boot.as_ref().and_then(|boot| boot.stages.last());
    or_dash(last.map(|last| format!("{} after {}", last.stage, seconds(Duration::from_millis(last.after_ms)))))
}
