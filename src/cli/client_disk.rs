//! `roost client checkpoint`, `checkpoints`, `rollback`, `resize` and `compact`: what is done to a client's disk as a whole, by the
//! running process, or under the state's lock where nothing runs.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::ask::{Answer, ask, remove, tell};
use super::at_rest::AtRest;
use super::error::{Error, Kind};
use super::output::{bytes, local_time, or_dash, print, print_json, print_table};
use super::progress::Progress;
use super::reset::sure;
use super::{Globals, lab};
use crate::app::App;
use crate::app::overlays::{
    CheckpointRequest, OverlayError, ResizeReport, ResizeRequest, RollbackReport, RollbackRequest, WorkReport,
};
use crate::app::report::CheckpointReport;
use crate::fleet;
use crate::fleet::{Client, ClientName, Timestamp};

/// How often a long operation is asked how far it is.
const POLL: Duration = Duration::from_millis(100);

pub(super) fn checkpoint(globals: &Globals, name: &ClientName, note: Option<String>) -> Result<(), Error> {
    let note = note.unwrap_or_default();
    let request = CheckpointRequest { note: note.clone() };
    let made: CheckpointReport = match told(globals, name, "checkpoints", &request)? {
        Some(made) => made,
        None => AtRest::open(globals, name)?.run(|app, client| async move {
            let made = app.checkpoint(&client, note).await?;
            finish(&app, &client, true).await?;
            Ok(made)
        })?,
    };
    if globals.json {
        return print_json(&made);
    }
    let number = made.number;
    print(&format!("{name}: checkpoint {number}; `roost client rollback {name} {number}` goes back to it\n"))
}

pub(super) fn delete(globals: &Globals, name: &ClientName, number: u32) -> Result<(), Error> {
    let state = lab::state(globals)?;
    let work = match remove(&state, &format!("/v1/clients/{name}/checkpoints/{number}"))? {
        Answer::Got(()) => watch(globals, &state, name)?,
        Answer::NotFound(error) => return Err(error),
        Answer::NothingRuns => AtRest::open(globals, name)?.run(|app, client| async move {
            app.delete_checkpoint(&client, number).await?;
            finish(&app, &client, globals.json).await
        })?,
    };
    let returned = work.map_or(0, |work| work.bytes_returned);
    if globals.json {
        return print_json(&json!({ "name": name.to_string(), "deleted": number, "bytes_returned": returned }));
    }
    print(&format!("{name}: checkpoint {number} is deleted; {}\n", space(returned)))
}

/// The checkpoints of a client's disk.
pub(super) fn checkpoints(globals: &Globals, name: &ClientName) -> Result<Vec<CheckpointReport>, Error> {
    let state = lab::state(globals)?;
    match ask::<Vec<CheckpointReport>>(&state, &format!("/v1/clients/{name}/checkpoints"))? {
        Answer::Got(listed) => Ok(listed),
        Answer::NotFound(error) => Err(error),
        Answer::NothingRuns => {
            AtRest::open(globals, name)?.run(|app, client| async move { Ok(app.checkpoints(&client).await?) })
        }
    }
}

pub(super) fn list(globals: &Globals, name: &ClientName) -> Result<(), Error> {
    let listed = checkpoints(globals, name)?;
    if globals.json {
        return print_json(&listed);
    }
    if listed.is_empty() {
        return print(&format!("{name} has no checkpoints; `roost client checkpoint {name}` makes one\n"));
    }
    let rows: Vec<_> = listed.iter().map(row).collect();
    print_table(["NUMBER", "MADE", "DISK", "ON HOST", "NOW", "NOTE"], &rows)
}

fn row(checkpoint: &CheckpointReport) -> [String; 6] {
    [
        checkpoint.number.to_string(),
        local_time(Timestamp(checkpoint.made_ms)),
        bytes(checkpoint.size),
        bytes(checkpoint.bytes_on_host),
        or_dash(checkpoint.below_disk.then_some("below the disk")),
        checkpoint.note.escape_debug().to_string(),
    ]
}

pub(super) fn rollback(globals: &Globals, name: &ClientName, number: Option<u32>, yes: bool) -> Result<(), Error> {
    if !yes {
        let what = format!("what `{name}` wrote since the checkpoint would be thrown away");
        let which = number.map(|number| format!(" {number}")).unwrap_or_default();
        let help = format!("if it may go: roost client rollback {name}{which} --yes");
        sure(&what, &help, &format!("Throw away what `{name}` wrote since the checkpoint?"))?;
    }
    let request = RollbackRequest { checkpoint: number };
    let report: RollbackReport = match told(globals, name, "rollback", &request)? {
        Some(report) => report,
        None => {
            AtRest::open(globals, name)?.run(|app, client| async move { Ok(app.roll_back(&client, number).await?) })?
        }
    };
    if globals.json {
        return print_json(&report);
    }
    let words = format!("{name}: its disk is as it was at checkpoint {}", report.checkpoint.number);
    print(&match &report.previous_disk {
        None => format!("{words}\n"),
        Some(previous) => format!("{words}; the one before it is {} until the next login\n", previous.display()),
    })
}

pub(super) fn resize(globals: &Globals, name: &ClientName, size: u64) -> Result<(), Error> {
    let report: ResizeReport = match told(globals, name, "resize", &ResizeRequest { size })? {
        Some(report) => report,
        None => AtRest::open(globals, name)?.run(|app, client| async move {
            let report = app.resize(&client, size).await?;
            finish(&app, &client, true).await?;
            Ok(report)
        })?,
    };
    if globals.json {
        return print_json(&report);
    }
    let (old, new) = (bytes(report.old_size), bytes(report.new_size));
    if report.old_size == report.new_size {
        return print(&format!("{name}: its disk has {new} already; there is nothing to do\n"));
    }
    print(&format!("{name}: its disk had {old} and has {new}; its system has to grow its partition and file system\n"))
}

pub(super) fn compact(globals: &Globals, name: &ClientName) -> Result<(), Error> {
    let state = lab::state(globals)?;
    let work = match tell::<WorkReport>(&state, &format!("/v1/clients/{name}/compact"), &())? {
        Answer::Got(_) => watch(globals, &state, name)?,
        Answer::NotFound(error) => return Err(error),
        Answer::NothingRuns => AtRest::open(globals, name)?.run(|app, client| async move {
            app.compact(&client).await?;
            finish(&app, &client, globals.json).await
        })?,
    };
    let returned = work.map_or(0, |work| work.bytes_returned);
    if globals.json {
        return print_json(&json!({ "name": name.to_string(), "bytes_returned": returned }));
    }
    print(&format!("{name}: {}\n", space(returned)))
}

fn space(returned: u64) -> String {
    if returned == 0 { "no space came back".to_owned() } else { format!("{} came back to the host", bytes(returned)) }
}

/// `None` where nothing runs.
fn told<T: DeserializeOwned>(
    globals: &Globals,
    name: &ClientName,
    verb: &str,
    request: &impl Serialize,
) -> Result<Option<T>, Error> {
    match tell(&lab::state(globals)?, &format!("/v1/clients/{name}/{verb}"), request)? {
        Answer::Got(report) => Ok(Some(report)),
        Answer::NotFound(error) => Err(error),
        Answer::NothingRuns => Ok(None),
    }
}

/// Waits until the running process's long operation on this disk is over, and shows how far it is.
fn watch(globals: &Globals, state: &Path, name: &ClientName) -> Result<Option<WorkReport>, Error> {
    let mut shown = Shown::new(globals.json);
    loop {
        match ask::<Option<WorkReport>>(state, &format!("/v1/clients/{name}/work"))? {
            Answer::Got(work) => {
                if let Some(over) = shown.show(work) {
                    return over;
                }
            }
            Answer::NotFound(error) => return Err(error),
            Answer::NothingRuns => {
                return Err(Error::failed("the running roost has stopped meanwhile")
                    .help("what was done is done; the same command does the rest"));
            }
        }
        std::thread::sleep(POLL);
    }
}

/// The same where nothing runs.
async fn finish(app: &App, client: &Client, quiet: bool) -> Result<Option<WorkReport>, Error> {
    let mut shown = Shown::new(quiet);
    loop {
        if let Some(over) = shown.show(app.works.of(&client.name)) {
            return over;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The progress of what is being done, each thing with its own.
struct Shown {
    doing: String,
    progress: Progress,
    quiet: bool,
}

impl Shown {
    fn new(quiet: bool) -> Self {
        Self { doing: String::new(), progress: Progress::new("working", quiet), quiet }
    }

    /// What came of it, once it is over.
    fn show(&mut self, work: Option<WorkReport>) -> Option<Result<Option<WorkReport>, Error>> {
        let Some(work) = work else { return Some(Ok(None)) };
        if work.finished {
            self.progress.end();
            return Some(match &work.error {
                None => Ok(Some(work)),
                Some(error) => Err(Error::failed(error).help("what was done is done; the same command does the rest")),
            });
        }
        if work.doing != self.doing {
            self.progress.end();
            self.progress = Progress::new("working", self.quiet);
            self.doing.clone_from(&work.doing);
        }
        if work.total > 0 {
            self.progress.tell(work.done, work.total);
        }
        None
    }
}

impl From<OverlayError> for Error {
    fn from(error: OverlayError) -> Self {
        let kind = match error {
            OverlayError::Refused { .. } | OverlayError::Running { .. } => Kind::Refused,
            OverlayError::Failed(_) => Kind::Failed,
        };
        let failure = Self::new(kind, &error);
        match error.help() {
            Some(help) => failure.help(help),
            None => failure,
        }
    }
}

/// Reads a size as a person writes it: `50G`, `1.5T`, `512 MiB`, or bytes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    fleet::size::parse(text).ok_or_else(|| format!("`{text}` is no size: write `50G`, `1.5T`, or a number of bytes"))
}
