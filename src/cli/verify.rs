//! `roost verify [FILE|--all|--masters]`: are disk files sound? With `--repair`, what can be put right without a guess is.
//!
//! That something is damaged is an answer, with an exit code of its own, and no failure of the verb.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::error::{Error, Kind};
use super::output::{print, print_json};
use super::progress::Progress;
use super::{DAMAGED, DONE, Globals, lab};
use crate::app::places::{client_disks, masters as all_masters};
use crate::disk::DiskError;
use crate::disk::check::{Checked, Checker, Finding, Severity};
use crate::disk::checksum::{Checksum, record_path};

/// What to verify.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Which {
    /// This disk file, and all that it stands on
    file: Option<PathBuf>,
    /// Every master and every client's disk of the state folder
    #[arg(long)]
    all: bool,
    /// The masters of the state folder, against the checksums of their import
    #[arg(long)]
    masters: bool,
}

pub(super) fn run(globals: &Globals, which: &Which, repair: bool) -> Result<u8, Error> {
    let mut masters = Vec::new();
    let mut files = Vec::new();
    match &which.file {
        Some(file) => files.push(file.clone()),
        None => {
            let state = lab::state(globals)?;
            masters.extend(all_masters(&state).into_iter().map(|(_, path)| path));
            files.clone_from(&masters);
            if which.all {
                files.extend(client_disks(&state));
            }
        }
    }
    if files.is_empty() && !globals.json {
        print("there are no masters and no disks\n")?;
        return Ok(DONE);
    }
    let (mut sound, mut answers) = (true, Vec::new());
    let mut checker = Checker::new(repair);
    for file in &files {
        let checked = one(globals, &mut checker, file, masters.contains(file), repair);
        let checked = match checked {
            // One of many that cannot be looked at is an answer about that one.
            Err(error) if which.file.is_none() => Checked {
                files: vec![file.clone()],
                findings: vec![Finding {
                    severity: Severity::Damage,
                    path: file.clone(),
                    offset: None,
                    what: error.to_string(),
                    repairable: false,
                }],
                repaired: Vec::new(),
            },
            checked => checked.map_err(why)?,
        };
        sound &= checked.is_sound();
        if globals.json { answers.push(value(&checked)) } else { print(&words(file, &checked))? }
    }
    if globals.json {
        print_json(&json!({ "sound": sound, "disks": answers }))?;
    }
    Ok(if sound { DONE } else { DAMAGED })
}

fn one(
    globals: &Globals,
    checker: &mut Checker,
    file: &Path,
    master: bool,
    repair: bool,
) -> Result<Checked, DiskError> {
    let mut progress = Progress::new("checking", globals.json);
    let mut step = |done, total| {
        progress.tell(done, total);
        ControlFlow::Continue(())
    };
    let mut checked = checker.check(file, &mut step)?;
    if master && checked.is_sound() && !record_path(file).exists() {
        if repair {
            Checksum::record(file, &mut step)?;
            checked.repaired.push(format!("{}: recorded its checksum as it is now", file.display()));
        } else {
            let what = "has no recorded checksum yet: roost run records one, and so does --repair".to_owned();
            let (severity, path) = (Severity::Notice, file.to_owned());
            checked.findings.push(Finding { severity, path, offset: None, what, repairable: true });
        }
    }
    progress.end();
    Ok(checked)
}

fn why(error: DiskError) -> Error {
    match error {
        locked @ DiskError::Locked { .. } => Error::new(Kind::Refused, locked).help(
            "a file is repaired only while nobody else has it open; verify without --repair looks at it all the same",
        ),
        other => other.into(),
    }
}

fn words(file: &Path, checked: &Checked) -> String {
    let mut text: String = checked.repaired.iter().map(|what| format!("repaired: {what}\n")).collect();
    for Finding { severity, path, offset, what, repairable } in &checked.findings {
        let word = match severity {
            Severity::Damage => "damaged",
            Severity::Notice => "notice",
        };
        let place = offset.map_or_else(String::new, |offset| format!("at byte {offset}: "));
        text += &format!("{word}: {}: {place}{what}\n", path.display());
        if *repairable {
            text += "  help: --repair puts it right\n";
        }
    }
    let verdict = if checked.is_sound() { "sound" } else { "damaged" };
    let below = match checked.files.len() {
        0 | 1 => String::new(),
        files => format!(" (a chain of {files} files)"),
    };
    text + &format!("{}: {verdict}{below}\n", file.display())
}

fn value(checked: &Checked) -> Value {
    let findings: Vec<Value> = checked
        .findings
        .iter()
        .map(|Finding { severity, path, offset, what, repairable }| {
            let severity = match severity {
                Severity::Damage => "damage",
                Severity::Notice => "notice",
            };
            json!({ "severity": severity, "path": path, "offset": offset, "what": what, "repairable": repairable })
        })
        .collect();
    json!({
        "path": checked.files.first(),
        "sound": checked.is_sound(),
        "files": checked.files,
        "findings": findings,
        "repaired": checked.repaired,
    })
}
