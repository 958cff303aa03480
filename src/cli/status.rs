//! `roost status`: the running process as a whole.

use std::fmt::Write;

use super::ask::{Answer, ask};
use super::error::{Error, Kind};
use super::output::{local_time, print, print_json};
use super::{Globals, lab};
use crate::app::report::StatusReport;
use crate::fleet::Timestamp;

pub(super) fn run(globals: &Globals) -> Result<(), Error> {
    let state = lab::state(globals)?;
    let status: StatusReport = match ask(&state, "/v1/status")? {
        Answer::Got(status) => status,
        Answer::NotFound(error) => return Err(error),
        Answer::NothingRuns => {
            let message = format!("no roost is running with the state folder {}", state.display());
            return Err(Error::new(Kind::NothingRuns, message).help("start it with `roost run`"));
        }
    };
    if globals.json { print_json(&status) } else { print(&page(&status)) }
}

fn page(status: &StatusReport) -> String {
    let since = local_time(Timestamp(status.started_ms));
    let mut page = format!("roost {}, process {}, since {since}\n", status.version, status.pid);
    let mut line = |key: &str, value: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(page, "  {key:<11}  {value}");
    };
    line("state", &status.state.display().to_string());
    let dhcp = match status.dhcp.as_str() {
        "full" => "full: this server gives addresses",
        "proxy" => "proxy: another server gives addresses",
        "off" => "off",
        other => other,
    };
    line("dhcp", dhcp);
    let off = if status.off == 0 { String::new() } else { format!(", {} of them out of service", status.off) };
    line("clients", &format!("{}{off}", status.clients));
    line("sessions", &status.sessions.to_string());
    let mut first = "others";
    for found in &status.other_servers {
        line(first, &format!("{}: {}", found.interface, found.words));
        line("", &format!("help: {}; last seen {}", found.help, local_time(Timestamp(found.last_ms))));
        first = "";
    }
    let went_wrong = status.iscsi.in_words();
    match went_wrong.split_first() {
        None => line("iscsi", "nothing went wrong since the start"),
        Some((first, others)) => {
            line("iscsi", first);
            others.iter().for_each(|other| line("", other));
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::others::FindingReport;
    use crate::app::tally::TallyReport;
    use crate::fleet::Finding;

    #[test]
    fn a_status_is_one_page_that_names_only_what_went_wrong() {
        let mut status = StatusReport {
            version: "1.0.0".to_owned(),
            pid: 7,
            started_ms: 1_000,
            state: "/var/lib/roost".into(),
            dhcp: "proxy".to_owned(),
            clients: 12,
            off: 1,
            sessions: 9,
            iscsi: TallyReport::default(),
            other_servers: Vec::new(),
        };
        let since = local_time(Timestamp(1_000));
        let head = format!(
            "roost 1.0.0, process 7, since {since}
  state        /var/lib/roost
  dhcp         proxy: another server gives addresses
  clients      12, 1 of them out of service
  sessions     9
"
        );
        assert_eq!(page(&status), format!("{head}  iscsi        nothing went wrong since the start\n"));
        status.iscsi = TallyReport { refused_logins: 3, bad_digests: 1, ..TallyReport::default() };
        let tail = "  iscsi        3 logins refused\n               1 PDUs spoilt on their way (digests)\n";
        assert_eq!(page(&status), format!("{head}{tail}"));
        let finding = Finding::SecondServer { server: [10, 9, 0, 9].into() };
        status.other_servers = vec![FindingReport {
            words: finding.to_string(),
            help: finding.help(),
            finding,
            interface: "lan0".to_owned(),
            first_ms: 1_000,
            last_ms: 1_000,
        }];
        let page = page(&status);
        assert!(page.contains("  others       lan0: 10.9.0.9 gives addresses on this wire too"), "{page}");
        assert!(page.contains("               help: stop DHCP for this wire on 10.9.0.9, or write"), "{page}");
    }
}
