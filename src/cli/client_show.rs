//! `roost client show NAME`: one client of the running process.

use std::fmt::Write;
use std::time::Duration;

use super::ask::{Answer, ask};
use super::error::{Error, Kind};
use super::output::{bytes, local_time, or_dash, print, print_json, seconds};
use super::{Globals, lab};
use crate::app::report::{Boot, CheckpointReport, ClientReport, DataReport, SessionReport};
use crate::fleet::{ClientName, Timestamp};

pub(super) fn run(globals: &Globals, name: &ClientName) -> Result<(), Error> {
    let state = lab::state(globals)?;
    let client: ClientReport = match ask(&state, &format!("/v1/clients/{name}"))? {
        Answer::Got(client) => client,
        Answer::NotFound(error) => return Err(error),
        Answer::NothingRuns => {
            let message = format!("no roost is running with the state folder {}", state.display());
            return Err(Error::new(Kind::NothingRuns, message)
                .help("start it with `roost run`; `roost client list` shows what is known without it"));
        }
    };
    if globals.json { print_json(&client) } else { print(&page(&client)) }
}

fn page(client: &ClientReport) -> String {
    let mut page = client.name.clone();
    let of: Vec<&str> = client.group.as_deref().into_iter().chain(client.title.as_deref()).collect();
    if !of.is_empty() {
        page += &format!("  ({})", of.join(", "));
    }
    if client.off {
        page += "  out of service";
    }
    page.push('\n');
    let mut line = |key: &str, value: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(page, "  {key:<11}  {value}");
    };
    line("machine", &client.macs.join(", "));
    line("address", &or_dash(client.address));
    line("image", &client.image);
    line("disk", &disk(client));
    if let Some(limit) = client.limit {
        line("", &format!("{} of its limit of {}", bytes(client.bytes_of_limit), bytes(limit)));
    }
    line("", policy(&client.disk_policy));
    if let Some(previous) = &client.previous_disk {
        line("", &format!("the one before it is {} until the next login", previous.display()));
    }
    if let Some(data) = &client.data {
        line("data disk", &data_disk(data));
        if let Some(note) = &data.note {
            line("", &format!("it {note}"));
        }
    }
    let mut first = "checkpoints";
    for checkpoint in &client.checkpoints {
        line(first, &checkpoint_line(checkpoint));
        first = "";
    }
    if let Some(depth) = client.chain_depth.filter(|depth| *depth > 2) {
        line("", &format!("the disk is a chain of {depth} files"));
    }
    if let Some(problem) = &client.problem {
        line("problem", problem);
    }
    match client.sessions.split_first() {
        None => line("sessions", "none"),
        Some((first, others)) => {
            line("sessions", &session(first));
            others.iter().for_each(|other| line("", &session(other)));
        }
    }
    match &client.last_boot {
        None => line("last boot", "none seen"),
        Some(boot) => {
            line("last boot", &started(boot));
            for stage in &boot.stages {
                let after = seconds(Duration::from_millis(stage.after_ms));
                line("", format!("{after:>8}  {:<11} {}", stage.stage, stage.detail).trim_end());
            }
        }
    }
    page
}

fn disk(client: &ClientReport) -> String {
    let path = client.disk_path.display();
    match (client.disk_bytes_on_host, client.disk_size) {
        (None, _) => format!("{path}, which its first boot makes"),
        (Some(stored), None) => format!("{path}, {} on the host", bytes(stored)),
        (Some(stored), Some(size)) => format!("{path}, {} on the host for a disk of {}", bytes(stored), bytes(size)),
    }
}

fn data_disk(data: &DataReport) -> String {
    let path = data.path.display();
    match (data.bytes_on_host, data.size) {
        (None, _) => format!("{path}, which its first login makes with {}", bytes(data.wanted.unwrap_or_default())),
        (Some(_), None) => format!("{path}, which cannot be read: roost inspect {path}"),
        (Some(stored), Some(size)) => format!("{path}, {} on the host for a disk of {}", bytes(stored), bytes(size)),
    }
}

fn checkpoint_line(checkpoint: &CheckpointReport) -> String {
    let CheckpointReport { number, made_ms, bytes_on_host, note, .. } = checkpoint;
    let made = local_time(Timestamp(*made_ms));
    let note = if note.is_empty() { String::new() } else { format!("  {}", note.escape_debug()) };
    format!("{number}  {made}  {}{note}", bytes(*bytes_on_host))
}

fn policy(word: &str) -> &str {
    match word {
        "keep" => "keep: changes stay",
        "reset" => "reset: made anew at every boot",
        other => other,
    }
}

fn session(session: &SessionReport) -> String {
    let SessionReport { initiator, address, kind, reads, writes, .. } = session;
    let (read, written) = (bytes(session.bytes_read), bytes(session.bytes_written));
    let since = local_time(Timestamp(session.since_ms));
    format!("{kind} {initiator} from {address} since {since}: {reads} reads ({read}), {writes} writes ({written})")
}

fn started(boot: &Boot) -> String {
    or_dash(boot.stages.first().map(|first| local_time(Timestamp(first.at_ms))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::report::{BootStage, SessionKind};

    #[test]
    fn a_client_is_one_page_with_its_boot_as_a_timeline() {
        let stage = |stage: &str, after_ms, detail: &str| BootStage {
            fact: None,
            stage: stage.to_owned(),
            at_ms: 1_000 + after_ms,
            after_ms,
            detail: detail.to_owned(),
        };
        let client = ClientReport {
            name: "pc-01".to_owned(),
            group: Some("lab-a".to_owned()),
            title: Some("By the door".to_owned()),
            macs: vec!["52:54:00:aa:00:01".to_owned()],
            address: Some([10, 0, 0, 7].into()),
            image: "debian-12".to_owned(),
            disk_path: "/var/lib/roost/disks/pc-01.vhd".into(),
            disk_bytes_on_host: Some(12 << 20),
            limit: Some(20 << 30),
            data: Some(DataReport {
                path: "/var/lib/roost/disks/pc-01.data.vhdx".into(),
                wanted: Some(10 << 30),
                size: Some(50 << 30),
                bytes_on_host: Some(3 << 20),
                note: Some("does not shrink".to_owned()),
            }),
            bytes_of_limit: 17 << 20,
            disk_policy: "reset".to_owned(),
            previous_disk: Some("/var/lib/roost/disks/pc-01.vhd.previous".into()),
            disk_size: Some(2 << 30),
            checkpoints: vec![CheckpointReport {
                number: 3,
                made_ms: 1_000,
                note: "before the update".to_owned(),
                size: 2 << 30,
                bytes_on_host: 5 << 20,
                path: "/var/lib/roost/disks/pc-01.checkpoint-3.vhd".into(),
                below_disk: true,
            }],
            chain_depth: Some(3),
            sessions: vec![SessionReport {
                initiator: "iqn.2026-11.internal.roost:client.pc-01".to_owned(),
                address: [10, 0, 0, 7].into(),
                kind: SessionKind::System,
                since_ms: 1_000,
                reads: 3,
                writes: 1,
                bytes_read: 12_288,
                bytes_written: 512,
            }],
            off: false,
            problem: None,
            last_boot: Some(Boot {
                started: "1970-01-01T00:00:01.000Z".to_owned(),
                stages: vec![stage("offer", 0, "10.0.0.7"), stage("first-read", 12_345, "")],
            }),
        };
        let since = local_time(Timestamp(1_000));
        let expected = format!(
            "pc-01  (lab-a, By the door)
  machine      52:54:00:aa:00:01
  address      10.0.0.7
  image        debian-12
  disk         /var/lib/roost/disks/pc-01.vhd, 12.0 MiB on the host for a disk of 2.0 GiB
               17.0 MiB of its limit of 20.0 GiB
               reset: made anew at every boot
               the one before it is /var/lib/roost/disks/pc-01.vhd.previous until the next login
  data disk    /var/lib/roost/disks/pc-01.data.vhdx, 3.0 MiB on the host for a disk of 50.0 GiB
               it does not shrink
  checkpoints  3  {since}  5.0 MiB  before the update
               the disk is a chain of 3 files
  sessions     system iqn.2026-11.internal.roost:client.pc-01 from 10.0.0.7 since {since}: 3 reads (12.0 KiB), 1 writes (512 bytes)
  last boot    {since}
                  0.0 s  offer       10.0.0.7
                 12.3 s  first-read
"
        );
        assert_eq!(page(&client), expected);
    }
}
