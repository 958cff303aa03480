//! `roost packets NAME|MAC`: the last packets of a machine, from the running process.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::ask::{Answer, ask};
use super::error::{Error, Kind};
use super::output::{print, print_json, print_table};
use super::{Globals, lab};
use crate::app::packets::{PacketReport, PacketsReport, pcap_header, pcap_record};

/// How often `--follow` asks what is new.
const EVERY: Duration = Duration::from_millis(500);

pub(super) fn run(globals: &Globals, who: &str, pcap: Option<&Path>, follow: bool) -> Result<(), Error> {
    let state = lab::state(globals)?;
    let report = fetch(&state, who, 0)?;
    let mut shown = Shown::begin(globals.json, pcap, follow)?;
    shown.first(&report)?;
    let mut last = report.packets.last().map_or(0, |packet| packet.number);
    while follow && !shown.enough {
        thread::sleep(EVERY);
        let news = fetch(&state, who, last)?.packets;
        shown.more(&news)?;
        last = news.last().map_or(last, |packet| packet.number);
    }
    Ok(())
}

fn fetch(state: &Path, who: &str, after: u64) -> Result<PacketsReport, Error> {
    // What is no name and no address finds nothing there; it must only not end the line.
    if !who.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b':' | b'.')) {
        return Err(Error::new(
            Kind::Refused,
            format!("`{}` is neither a client nor a MAC address", who.escape_debug()),
        ));
    }
    match ask(state, &format!("/v1/packets/{who}?after={after}"))? {
        Answer::Got(report) => Ok(report),
        Answer::NotFound(error) => Err(error.help("or name a machine by its MAC address")),
        Answer::NothingRuns => {
            let message = format!("no roost is running with the state folder {}", state.display());
            Err(Error::new(Kind::NothingRuns, message)
                .help("packets are kept in memory, by the process that sees them: start it with `roost run`"))
        }
    }
}

/// Where packets are shown, and how.
struct Shown {
    form: Form,
    /// Whoever reads has gone away.
    enough: bool,
}

enum Form {
    Table,
    Json { lines: bool },
    Capture(Box<dyn Write>),
}

impl Shown {
    fn begin(json: bool, pcap: Option<&Path>, follow: bool) -> Result<Self, Error> {
        let form = match pcap {
            None if json => Form::Json { lines: follow },
            None => Form::Table,
            Some(path) => {
                let to: Box<dyn Write> = if path == Path::new("-") {
                    Box::new(io::stdout())
                } else {
                    let cannot = |error| Error::failed(format!("cannot write {}: {error}", path.display()));
                    Box::new(File::create(path).map_err(cannot)?)
                };
                Form::Capture(to)
            }
        };
        let mut shown = Self { form, enough: false };
        if pcap.is_some() {
            shown.write(&pcap_header())?;
        }
        Ok(shown)
    }

    fn first(&mut self, report: &PacketsReport) -> Result<(), Error> {
        match &self.form {
            Form::Json { lines: false } => print_json(report),
            Form::Table if report.packets.is_empty() => {
                let who = report.client.clone().unwrap_or_else(|| report.macs.join(", "));
                print(&format!("no packet of {who} was seen since roost started\n"))
            }
            Form::Table => {
                let rows: Vec<_> = report.packets.iter().map(row).collect();
                print_table(["TIME", "WAY", "PROTOCOL", "WHAT", "DECISION", "REASON"], &rows)
            }
            _ => self.more(&report.packets),
        }
    }

    fn more(&mut self, packets: &[PacketReport]) -> Result<(), Error> {
        for packet in packets {
            match &self.form {
                Form::Table => print(&format!("{}\n", row(packet).join("  ")))?,
                Form::Json { .. } => {
                    let line = serde_json::to_string(packet).map_err(Error::failed)?;
                    print(&format!("{line}\n"))?;
                }
                Form::Capture(_) => {
                    if let Some(frame) = packet.frame_bytes() {
                        self.write(&pcap_record(packet.at_ns, &frame))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes into the capture. A reader that has gone away has seen enough.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let Form::Capture(to) = &mut self.form else { return Ok(()) };
        match to.write_all(bytes).and_then(|()| to.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.enough = true;
                Ok(())
            }
            done => done.map_err(|error| Error::failed(format!("cannot write the capture: {error}"))),
        }
    }
}

fn row(packet: &PacketReport) -> [String; 6] {
    [
        time(packet.at_ns),
        packet.direction.to_string(),
        packet.protocol.to_string(),
        packet.what.clone(),
        packet.decision.to_string(),
        packet.reason.clone(),
    ]
}

/// A time on this host's clock: `08:31:02.250`, with the day before it where that is not today.
fn time(at_ns: u64) -> String {
    let Ok(at) = jiff::Timestamp::from_nanosecond(i128::from(at_ns)) else { return format!("{at_ns} ns") };
    let at = at.to_zoned(jiff::tz::TimeZone::system());
    let form = if at.date() == jiff::Zoned::now().date() { "%H:%M:%S%.3f" } else { "%Y-%m-%d %H:%M:%S%.3f" };
    at.strftime(form).to_string()
}
