//! `roost reset NAME`: a clean disk for one client, by the running process, or under the state's lock where nothing runs.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;

use super::ask::{Answer, ask, tell};
use super::at_rest::AtRest;
use super::error::{Error, Kind};
use super::output::{print, print_json};
use super::{Globals, lab};
use crate::app::boots::ResetReport;
use crate::app::places::disk_path;
use crate::app::report::ClientReport;
use crate::fleet::{ClientName, DiskPolicy};

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

fn at_rest(globals: &Globals, name: &ClientName, yes: bool) -> Result<ResetReport, Error> {
    let lab = AtRest::open(globals, name)?;
    let disk = disk_path(&lab.app.settings.state, &lab.client);
    confirm(name, lab.client.disk == DiskPolicy::Keep && disk.exists(), yes)?;
    lab.run(|app, client| async move { app.reset_disk(&client).await.map_err(Error::failed) })
}

/// Asks before what was kept is thrown away.
fn confirm(name: &ClientName, data_goes: bool, yes: bool) -> Result<(), Error> {
    if !data_goes || yes {
        return Ok(());
    }
    let what = format!("`{name}` keeps its disk, and what is on it would be thrown away");
    let help = format!("if it may go: roost reset {name} --yes");
    sure(&what, &help, &format!("`{name}` keeps its disk. Throw away what is on it?"))
}

/// Asks the person at the terminal; where there is none, or the answer is no, it is refused with these words.
pub(super) fn sure(what: &str, help: &str, question: &str) -> Result<(), Error> {
    let refused = || Error::new(Kind::Refused, what).help(help);
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(refused());
    }
    let mut stderr = io::stderr();
    let mut answer = String::new();
    let asked = write!(stderr, "{question} [y/N] ")
        .and_then(|()| stderr.flush())
        .and_then(|()| io::stdin().lock().read_line(&mut answer));
    match asked {
        Ok(_) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
        _ => Err(refused()),
    }
}

fn words(report: &ResetReport) -> String {
    let ResetReport { name, disk_path, .. } = report;
    let words = match &report.previous_disk {
        _ if !report.made_anew => format!("{name} has no disk yet; its first login makes one\n"),
        None => format!("{name}: {} is new\n", disk_path.display()),
        Some(previous) => {
            let (disk, previous) = (disk_path.display(), previous.display());
            format!("{name}: {disk} is new; the one before it is {previous} until the next login\n")
        }
    };
    match report.checkpoints {
        0 => words,
        1 => words + &format!("its checkpoint stays: `roost client checkpoints {name}`\n"),
        many => words + &format!("its {many} checkpoints stay: `roost client checkpoints {name}`\n"),
    }
}
