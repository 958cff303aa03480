//! `roost client secret NAME`: what an initiator other than the client's own machine needs to pass CHAP, by the running
//! process, or from the store under the state's lock where nothing runs.

use std::fmt::Write;

use super::ask::{Answer, tell};
use super::at_rest::AtRest;
use super::error::{Error, Kind};
use super::output::{print, print_json};
use super::{Globals, lab};
use crate::app::secrets::{SecretBook, SecretReport};
use crate::fleet::ClientName;
use crate::store::{Store, Writer};

pub(super) fn run(globals: &Globals, name: &ClientName) -> Result<(), Error> {
    let state = lab::state(globals)?;
    let report = match tell(&state, &format!("/v1/clients/{name}/secret"), &())? {
        Answer::Got(report) => report,
        Answer::NotFound(error) => return Err(error),
        Answer::NothingRuns => at_rest(globals, name)?,
    };
    if globals.json { print_json(&report) } else { print(&page(&report)) }
}

fn at_rest(globals: &Globals, name: &ClientName) -> Result<SecretReport, Error> {
    let lab = AtRest::open(globals, name)?;
    let store = Store::open(&lab.app.settings.state).map_err(Error::failed)?;
    let writer = Writer::start(store.clone());
    let book = SecretBook::new(writer, store.secrets().map_err(Error::failed)?);
    lab.run(|app, client| async move {
        book.report(&client, &app.naming).await.map_err(|refused| {
            let kind = if client.chap { Kind::Failed } else { Kind::Refused };
            refused.help().map(str::to_owned).into_iter().fold(Error::new(kind, refused), Error::help)
        })
    })
}

fn page(report: &SecretReport) -> String {
    let mut page = format!("{}  {}\n", report.client, report.target);
    let lines = [
        ("username", &report.user),
        ("password", &report.secret),
        ("reverse-username", &report.server_user),
        ("reverse-password", &report.server_secret),
    ];
    for (key, value) in lines {
        // Writing to a string does not fail.
        let _ = writeln!(page, "  {key:<16}  {value}");
    }
    page + "Whoever has these and may log in by its name has the disk. They stand nowhere else but in the client's boot\n\
            script, and `roost replace` makes them void.\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_told_in_the_words_of_the_boot_script() {
        let report = SecretReport {
            client: "pc-01".into(),
            target: "iqn.2026-11.internal.roost:pc-01".into(),
            user: "pc-01".into(),
            secret: "ABCDEFGHIJKLMNOP".into(),
            server_user: "roost".into(),
            server_secret: "QRSTUVWXYZabcdef".into(),
        };
        let page = page(&report);
        let lines: Vec<&str> = page.lines().take(5).collect();
        let wanted = [
            "pc-01  iqn.2026-11.internal.roost:pc-01",
            "  username          pc-01",
            "  password          ABCDEFGHIJKLMNOP",
            "  reverse-username  roost",
            "  reverse-password  QRSTUVWXYZabcdef",
        ];
        assert_eq!(lines, wanted);
        assert_eq!(format!("{report:?}"), "SecretReport(..)");
    }
}
