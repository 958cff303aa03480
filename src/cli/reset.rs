//! `roost reset NAME`: a clean disk for one client, by the running process, or under the state's lock where nothing runs.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;

use super::ask::{Answer, ask, tell};
use super::error::{Error, Kind};
use super::output::{print, print_json};
use super::{Globals, lab};
use crate::app::App;
use crate::app::boots::ResetReport;
use crate::app::recorder::Recorder;
use crate::app::report::ClientReport;
use crate::config::edit::EditError;
use crate::fleet::change::Refusal;
use crate::fleet::{ClientName, DiskPolicy};
use crate::store::StateLock;
use crate::sys;

pub(super) fn run(globals: &Globals, name: &ClientName, yes: bool) -> Result<(), Error> {
    let state = lab::state(globals)?;
    let report = match ask::<ClientReport>(&state, &format!("/v1/clients/{name}"))? {
        Answer::Got(client) => {
            confirm(name, client.disk_policy == DiskPolicy::Keep.word() && client.disk_bytes_on_host.is_some(), yes)?;
            told(&state, name)?
        }
        Answer::NotFound(error) => return Err(error),
        Answer::NothingRuns => at_rest(globals, name, yes)?,
    };
    if globals.json { print_json(&report) } else { print(&words(&report)) }
}

fn told(state: &Path, name: &ClientName) -> Result<ResetReport, Error> {
    match tell(state, &format!("/v1/clients/{name}/reset"), &())? {
        Answer::Got(report) => Ok(report),
        Answer::NotFound(error) => Err(error),
        Answer::NothingRuns => Err(Error::failed("the running roost has stopped meanwhile").help("try again")),
    }
}

/// Nobody is logged in. What the process shares is made for this alone.
fn at_rest(globals: &Globals, name: &ClientName, yes: bool) -> Result<ResetReport, Error> {
    let config = lab::config(globals)?;
    let client = config.fleet.client(name).cloned();
    let client = client.ok_or_else(|| EditError::from(Refusal::no_such_client(&config.fleet, name)))?;
    let disk = crate::app::report::disk_path(&config.settings.state, name);
    confirm(name, client.disk == DiskPolicy::Keep && disk.exists(), yes)?;
    let lock = StateLock::acquire(&config.settings.state)?;
    let boot_id = sys::boot_id().map_err(|error| Error::failed(format!("cannot read this boot's id: {error}")))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::failed)?;
    let app = Arc::new(App::new(config.settings, config.fleet, Recorder::detached(), boot_id));
    let report = runtime.block_on(app.reset_disk(&client)).map_err(Error::failed)?;
    drop(lock);
    Ok(report)
}

/// Asks before what was kept is thrown away.
fn confirm(name: &ClientName, data_goes: bool, yes: bool) -> Result<(), Error> {
    if !data_goes || yes {
        return Ok(());
    }
    let refused = || {
        Error::new(Kind::Refused, format!("`{name}` keeps its disk, and what is on it would be thrown away"))
            .help(format!("if it may go: roost reset {name} --yes"))
    };
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(refused());
    }
    let mut stderr = io::stderr();
    let mut answer = String::new();
    let asked = write!(stderr, "`{name}` keeps its disk. Throw away what is on it? [y/N] ")
        .and_then(|()| stderr.flush())
        .and_then(|()| io::stdin().lock().read_line(&mut answer));
    match asked {
        Ok(_) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
        _ => Err(refused()),
    }
}

fn words(report: &ResetReport) -> String {
    let ResetReport { name, disk_path, .. } = report;
    match &report.previous_disk {
        _ if !report.made_anew => format!("{name} has no disk yet; its first login makes one\n"),
        None => format!("{name}: {} is new\n", disk_path.display()),
        Some(previous) => {
            let (disk, previous) = (disk_path.display(), previous.display());
            format!("{name}: {disk} is new; the one before it is {previous} until the next login\n")
        }
    }
}
