//! `roost replace NAME --mac MAC`: a new machine in a client's place.
//!
//! The running process does it, because it owns the fleet and knows whether the old machine still runs. Where none runs, the
//! mapping file is edited here, under the state folder's lock.

use super::ask::{Answer, tell};
use super::error::{Error, Kind};
use super::output::{print, print_json};
use super::{Globals, lab};
use crate::app::keeper::{records, replaced};
use crate::app::report::{ReplaceReport, ReplaceRequest};
use crate::config::edit::{self, EditError};
use crate::fleet::change::{Change, Changed};
use crate::fleet::{ClientName, Mac};
use crate::store::{StateLock, Store};

pub(super) fn run(globals: &Globals, name: &ClientName, mac: Mac, force: bool) -> Result<(), Error> {
    let state = lab::state(globals)?;
    let request = ReplaceRequest { mac: mac.to_string(), force };
    let report = match tell(&state, &format!("/v1/clients/{name}/replace"), &request)? {
        Answer::Got(report) => report,
        Answer::NotFound(error) => return Err(error),
        Answer::NothingRuns => by_hand(globals, &state, name, mac)?,
    };
    if globals.json { print_json(&report) } else { print(&line(&report)) }
}

/// Without a running roost: nobody is logged in, and the next start reads the file.
fn by_hand(globals: &Globals, state: &std::path::Path, name: &ClientName, mac: Mac) -> Result<ReplaceReport, Error> {
    // A lab that was never run has no state, and needs none for this.
    let lock = if state.exists() { Some(StateLock::acquire(state)?) } else { None };
    let change = Change::Replace { client: name.clone(), mac };
    let fleet = lab::config(globals)?.fleet;
    let Changed { effects, .. } = change.apply(&fleet).map_err(EditError::from)?;
    edit::edit(&globals.config, &change)?;
    if lock.is_some() && !effects.is_empty() {
        Store::open(state)?.commit(&records(&effects))?;
    }
    Ok(replaced(name, mac, &effects))
}

fn line(report: &ReplaceReport) -> String {
    let ReplaceReport { client, old, new, changed } = report;
    if !changed {
        return format!("{client}: {new} is its machine already; there is nothing to do.\n");
    }
    let old = old.join(", ");
    format!("{client}: {old} is now {new}; its disk, name and address stay. Switch the new machine on.\n")
}

impl From<EditError> for Error {
    fn from(error: EditError) -> Self {
        let kind = match error {
            EditError::Wrong(_) => Kind::Configuration,
            EditError::Refused(_) => Kind::Refused,
            EditError::NotFound(_) | EditError::Busy(_) | EditError::Unwritable { .. } => Kind::Failed,
        };
        let help = error.help();
        let failure = Self::new(kind, error);
        help.into_iter().fold(failure, Self::help)
    }
}
