//! What Roost tells about itself: the JSON that the control socket answers with and the CLI prints, and how it is made
//! from the fleet, the store and the open sessions.
//!
//! Not here: text for people, which is `cli`'s. Fields are only ever added, so that scripts that read them go on working.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::disks::ServeError;
use super::others::{FindingReport, Others};
use super::places::{data_path, disk_path, master_path};
use super::recorder::now;
use super::space::bytes_of;
use super::tally::{Tally, TallyReport};
use crate::config::{DhcpMode, Settings};
use crate::disk::checksum::{Fitness, fitness};
use crate::disk::data;
use crate::disk::overlay::{self, Layer, Place, Tree};
use crate::fleet::{Client, ClientName, Event, Fact, Fleet, Holder, ImageName, Stage, Timestamp};
use crate::store::{Store, StoreError};

/// A machine that is silent for longer, and then asks DHCP or fetches a loader or script, boots anew.
pub const BOOT_PAUSE: Duration = Duration::from_secs(120);

/// Events that are read to find a client's last boot; a boot has about ten.
const LAST_BOOT_EVENTS: usize = 64;

/// One client: what is wanted of it and what is known about it. `GET /v1/clients` is a list of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientReport {
    /// Its name.
    pub name: String,
    /// The group it is in.
    pub group: Option<String>,
    /// Its title for lists.
    pub title: Option<String>,
    /// The MAC addresses of its machine, `52:54:00:aa:00:01`.
    pub macs: Vec<String>,
    /// Its fixed address, else that of its lease, else the one that its machine was last seen to use.
    pub address: Option<Ipv4Addr>,
    /// The image its disk is a child of.
    pub image: String,
    /// Its own disk on the host. There is no such file before its first boot.
    pub disk_path: PathBuf,
    /// What that file takes up on the host, in bytes; a sparse file takes less than it is long.
    pub disk_bytes_on_host: Option<u64>,
    /// The most that it may take up on the host with its checkpoints, in bytes.
    #[serde(default)]
    pub limit: Option<u64>,
    /// What it takes up with its checkpoints, in bytes: what counts against the limit.
    #[serde(default)]
    pub bytes_of_limit: u64,
    /// What happens to it between boots: `keep` or `reset`.
    pub disk_policy: String,
    /// The disk before it, where nobody has logged in on the present one yet.
    pub previous_disk: Option<PathBuf>,
    /// The size of the disk that the client sees, in bytes; unknown where the disk cannot be read.
    pub disk_size: Option<u64>,
    /// Its second disk, if it is to have one or there is one.
    #[serde(default)]
    pub data: Option<DataReport>,
    /// The disk's checkpoints, by their numbers.
    #[serde(default)]
    pub checkpoints: Vec<CheckpointReport>,
    /// Files that a read may have to ask, one below the other: the disk, its layers, the master. None without a disk.
    #[serde(default)]
    pub chain_depth: Option<usize>,
    /// The iSCSI sessions that are open now.
    pub sessions: Vec<SessionReport>,
    /// Out of service: no offer, no login.
    pub off: bool,
    /// Its last boot, as far as it got.
    pub last_boot: Option<Boot>,
    /// Why its disk is not served, where that is known before it logs in: its image is missing or not what was imported.
    #[serde(default)]
    pub problem: Option<String>,
}

/// A client's second disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataReport {
    /// Its file. There is none before the first login.
    pub path: PathBuf,
    /// The size that the mapping file gives it, in bytes; nothing: it is not served.
    pub wanted: Option<u64>,
    /// The size that it has, in bytes; unknown where there is no file or it cannot be read.
    pub size: Option<u64>,
    /// What its file takes up on the host, in bytes.
    pub bytes_on_host: Option<u64>,
    /// What a person should know about it: it is left over, or larger than it is wanted.
    pub note: Option<String>,
}

impl DataReport {
    /// What lies there; `None` where there is nothing, and nothing wanted.
    fn of(state: &Path, client: &Client) -> Option<Self> {
        let path = data_path(state, &client.name);
        let bytes_on_host = bytes_on_host(&path);
        if client.data.is_none() && bytes_on_host.is_none() {
            return None;
        }
        let size = data::size_of(&path).ok();
        let note = match client.data {
            None => {
                Some("is not served, for `data` is not in roost.toml; its file stays until it is removed".to_owned())
            }
            Some(wanted) => size.filter(|size| *size > wanted).map(|size| does_not_shrink(wanted, size)),
        };
        Some(Self { path, wanted: client.data, size, bytes_on_host, note })
    }
}

/// The sentence about a second disk that is larger than it is wanted.
pub(super) fn does_not_shrink(wanted: u64, size: u64) -> String {
    format!(
        "has {size} bytes, and `data` says {wanted}: a disk does not shrink, what lies at its end would be cut off; it stays as it is"
    )
}

/// A checkpoint of a client's disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointReport {
    /// Its number, by which it is rolled back to.
    pub number: u32,
    /// When it was made, in milliseconds since 1970-01-01T00:00Z.
    pub made_ms: u64,
    /// What its maker said of it.
    pub note: String,
    /// The size of the disk as it was then, in bytes.
    pub size: u64,
    /// What its file takes up on the host, in bytes.
    pub bytes_on_host: u64,
    /// Its file.
    pub path: PathBuf,
    /// Whether the disk as it is now stands on it. Others are branches, from which it was rolled back or reset.
    pub below_disk: bool,
}

/// An open iSCSI session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionReport {
    /// The initiator's name.
    pub initiator: String,
    /// Where it comes from.
    pub address: IpAddr,
    /// Who is at the other end.
    pub kind: SessionKind,
    /// When it logged in, in milliseconds since 1970-01-01T00:00Z.
    pub since_ms: u64,
    /// Read commands since then.
    pub reads: u64,
    /// Write commands since then.
    pub writes: u64,
    /// Bytes read since then.
    pub bytes_read: u64,
    /// Bytes written since then.
    pub bytes_written: u64,
}

/// Who is at the other end of a session, as far as its login tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionKind {
    /// iPXE, or firmware of its kind.
    Loader,
    /// The client's operating system.
    System,
    /// An initiator that the client allows besides itself.
    Other,
}

impl fmt::Display for SessionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Loader => "loader",
            Self::System => "system",
            Self::Other => "other",
        })
    }
}

/// One boot as a timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// When its first stage was seen, in UTC: `2026-11-23T08:00:00.250Z`.
    pub started: String,
    /// What was seen, oldest first; never empty.
    pub stages: Vec<BootStage>,
}

/// One stage of a boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootStage {
    /// Which: `replaced`, `offer`, `loader`, `script`, `login`, `first-read`, `os-session`, `idle`, `refused` or `trouble`.
    pub stage: String,
    /// When, in milliseconds since 1970-01-01T00:00Z.
    pub at_ms: u64,
    /// How long after the boot's first stage, in milliseconds.
    pub after_ms: u64,
    /// The particulars, for a person.
    pub detail: String,
    /// What a program may have to go by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fact: Option<Fact>,
}

/// The running process: `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// Roost's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// When it started, in milliseconds since 1970-01-01T00:00Z.
    pub started_ms: u64,
    /// The state folder.
    pub state: PathBuf,
    /// Who gives addresses: `full` (Roost), `proxy` (another server, and Roost says how to boot) or `off` (not Roost).
    pub dhcp: String,
    /// How many clients the mapping file has.
    pub clients: usize,
    /// How many of them are out of service.
    pub off: usize,
    /// How many iSCSI sessions are open.
    pub sessions: usize,
    /// What went wrong at the iSCSI port since the start, in numbers.
    #[serde(default)]
    pub iscsi: TallyReport,
    /// What other DHCP servers on the wires do that keeps machines from booting.
    #[serde(default)]
    pub other_servers: Vec<FindingReport>,
}

/// What the control socket answers when it cannot answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReport {
    /// What happened, for a person.
    pub error: String,
    /// What to do about it, one hint each.
    #[serde(default)]
    pub help: Vec<String>,
}

/// What `POST /v1/clients/NAME/replace` asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplaceRequest {
    /// The new machine's MAC address, in every usual spelling.
    pub mac: String,
    /// End the old machine's sessions although it answers.
    #[serde(default)]
    pub force: bool,
}

/// What came of a replacement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplaceReport {
    /// The client.
    pub client: String,
    /// The MAC addresses of the machine that was in its place, `52:54:00:aa:00:01`.
    pub old: Vec<String>,
    /// The MAC address of the machine that is in its place now.
    pub new: String,
    /// Whether anything changed: `false` where it was that machine already.
    pub changed: bool,
}

/// Who knows the open sessions.
pub trait SessionsView: fmt::Debug + Send + Sync {
    /// The sessions on this client's target, oldest first.
    fn sessions_of(&self, client: &ClientName) -> Vec<SessionReport>;
}

/// Where nothing runs, nobody is logged in.
#[derive(Debug, Clone, Copy)]
pub struct NoSessions;

impl SessionsView for NoSessions {
    fn sessions_of(&self, _client: &ClientName) -> Vec<SessionReport> {
        Vec::new()
    }
}

/// What reports are made from. It reads the store and the file system, so async code calls it on a blocking thread.
#[derive(Debug, Clone)]
pub struct Reporter {
    /// The `[server]` section.
    pub settings: Settings,
    /// The store; `None` where no state has been made yet.
    pub store: Option<Store>,
    /// The open sessions.
    pub sessions: Arc<dyn SessionsView>,
    /// When this process started.
    pub started: Timestamp,
}

impl Reporter {
    /// The reporter of a process that starts now.
    #[must_use]
    pub fn new(settings: Settings, store: Option<Store>, sessions: Arc<dyn SessionsView>) -> Self {
        Self { settings, store, sessions, started: now() }
    }

    /// Every client, in the order of names.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn clients(&self, fleet: &Fleet) -> Result<Vec<ClientReport>, StoreError> {
        fleet.clients().map(|client| self.client(client)).collect()
    }

    /// One client.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn client(&self, client: &Client) -> Result<ClientReport, StoreError> {
        let name = &client.name;
        let disk_path = disk_path(&self.settings.state, client);
        let place = Place::new(disk_path.clone());
        let tree = Tree::read(&place).ok();
        let tell = |tree: &Tree| tree.checkpoints().map(|layer| checkpoint(&place, tree, layer)).collect();
        let (address, last_boot) = match &self.store {
            Some(store) => {
                let events = store.latest_events_of(name, LAST_BOOT_EVENTS)?;
                (address(client, store)?, boot_timeline(&events))
            }
            None => (client.ip, None),
        };
        Ok(ClientReport {
            name: name.to_string(),
            group: client.group.clone(),
            title: client.title.clone(),
            macs: client.macs.iter().map(ToString::to_string).collect(),
            address,
            image: client.image.to_string(),
            disk_policy: client.disk.word().to_owned(),
            previous_disk: Some(place.previous()).filter(|path| path.exists()),
            disk_bytes_on_host: bytes_on_host(&disk_path),
            limit: client.limit,
            bytes_of_limit: bytes_of(&disk_path),
            disk_size: disk_size(&disk_path).or_else(|| disk_size(&master_path(&self.settings.state, &client.image))),
            data: DataReport::of(&self.settings.state, client),
            checkpoints: tree.as_ref().map(tell).unwrap_or_default(),
            chain_depth: tree.filter(|_| disk_path.exists()).map(|tree| tree.below_top().len() + 2),
            disk_path,
            sessions: self.sessions.sessions_of(name),
            off: client.off,
            last_boot,
            problem: image_problem(&self.settings.state, &client.image),
        })
    }

    /// The running process.
    #[must_use]
    pub fn status(&self, fleet: &Fleet, tally: &Tally, others: &Others) -> StatusReport {
        StatusReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_ms: self.started.0,
            state: self.settings.state.clone(),
            dhcp: match self.settings.dhcp {
                DhcpMode::Full => "full".to_owned(),
                DhcpMode::Proxy => "proxy".to_owned(),
                DhcpMode::Off => "off".to_owned(),
            },
            clients: fleet.clients().len(),
            off: fleet.clients().filter(|client| client.off).count(),
            sessions: fleet.clients().map(|client| self.sessions.sessions_of(&client.name).len()).sum(),
            iscsi: tally.report(),
            other_servers: others.report(now()),
        }
    }
}

/// What there is to say about a layer that is a checkpoint.
pub(super) fn checkpoint(place: &Place, tree: &Tree, layer: &Layer) -> CheckpointReport {
    let path = place.layer(layer.number);
    CheckpointReport {
        number: layer.number,
        made_ms: layer.note.made_ms,
        note: layer.note.text.clone(),
        size: layer.size,
        bytes_on_host: bytes_on_host(&path).unwrap_or_default(),
        below_disk: tree.below_top().iter().any(|below| below.id == layer.id),
        path,
    }
}

/// Why no disk of this image is served, if none is.
#[must_use]
pub fn image_problem(state: &Path, image: &ImageName) -> Option<String> {
    let master = master_path(state, image);
    match fitness(&master) {
        _ if !master.exists() => Some(ServeError::NoImage { image: image.clone() }.to_string()),
        Ok(Fitness::Fit | Fitness::Unrecorded) => None,
        Ok(Fitness::Changed(why)) => Some(ServeError::Changed { image: image.clone(), why }.to_string()),
        Ok(Fitness::Touched) => Some(ServeError::Doubtful { image: image.clone() }.to_string()),
        Err(error) => Some(error.to_string()),
    }
}

/// What a file takes up, in bytes; `None` where there is no such file.
#[must_use]
pub fn bytes_on_host(path: &Path) -> Option<u64> {
    /// The unit of `st_blocks`, whatever the file system's own (stat(2)).
    const STAT_BLOCK: u64 = 512;
    Some(std::fs::metadata(path).ok()?.blocks() * STAT_BLOCK)
}

/// The size of the disk that this file holds, in bytes; `None` where it cannot be read.
#[must_use]
pub fn disk_size(path: &Path) -> Option<u64> {
    overlay::size(path).ok()
}

fn address(client: &Client, store: &Store) -> Result<Option<Ipv4Addr>, StoreError> {
    if client.ip.is_some() {
        return Ok(client.ip);
    }
    if let Some(lease) = store.lease_of(&Holder::Client(client.name.clone()))? {
        return Ok(Some(lease.address));
    }
    let mut latest = None;
    for mac in &client.macs {
        latest = latest.max(store.sighting_of(*mac)?.and_then(|seen| Some((seen.at, seen.address?))));
    }
    Ok(latest.map(|(_, address)| address))
}

/// The last boot of one machine, from its events in the order of time; `None` without events.
///
/// Firmware, loader and operating system each ask DHCP for themselves, and machines are power-cycled half-way, so where a
/// boot begins takes rules:
///
/// 1. `offer`, `loader` and `script` can begin a boot. The other stages belong to the boot they happen in.
/// 2. They begin one where they lead *back*: a loader after the script, or a script after the login; and after a pause of
///    [`BOOT_PAUSE`]. (A loader may be fetched twice, for its size and for itself; so may a script.)
/// 3. Offers belong to the loader, script or login that they led to: the loader's own offer to the boot in progress, the
///    offer after a power cycle to the boot whose loader or script comes next, the operating system's to the boot whose
///    session comes next.
/// 4. An offer that has led to nothing yet begins a boot if the last one had become idle or had paused; else it may be the
///    operating system's, and belongs to the boot in progress.
///
/// A new machine in the client's place begins a boot too: what the old one did is another machine's story.
///
/// What is the same twice in a row is shown once.
#[must_use]
pub fn boot_timeline(events: &[Event]) -> Option<Boot> {
    let mut boot: Vec<&Event> = Vec::new();
    // Offers that have led to nothing yet.
    let mut offers: Vec<&Event> = Vec::new();
    for event in events {
        if event.stage == Stage::Replaced {
            boot = vec![event];
            offers.clear();
            continue;
        }
        if event.stage == Stage::Offer {
            // A machine that asks in vain, and asks again after a pause, begins anew.
            if offers.last().is_some_and(|last| event.at.since(last.at) > BOOT_PAUSE) {
                boot.clear();
                offers.clear();
            }
            offers.push(event);
            continue;
        }
        // What an open session goes on doing says nothing of the offers since: its machine may have been power-cycled. In a
        // boot that has no session yet, it is the session before it that went on.
        if matches!(event.stage, Stage::FirstRead | Stage::Idle | Stage::Refused | Stage::Trouble) {
            let logged_in = boot.iter().any(|event| matches!(event.stage, Stage::Login | Stage::OsSession));
            if logged_in || boot.is_empty() || event.stage == Stage::Refused {
                boot.push(event);
            }
            continue;
        }
        let first = offers.first().copied().unwrap_or(event);
        if begins_boot(&boot, event.stage, first.at) {
            boot.clear();
        }
        boot.append(&mut offers);
        boot.push(event);
    }
    if let Some(first) = offers.first()
        && (paused(&boot, first.at) || boot.iter().any(|event| event.stage == Stage::Idle))
    {
        boot.clear();
    }
    boot.append(&mut offers);
    // In the order of the slice, which times alone do not tell: several events may have one millisecond.
    boot.sort_by_key(|event| std::ptr::from_ref(*event));
    boot.dedup_by(|later, earlier| later.stage == earlier.stage && later.detail == earlier.detail);
    timeline(&boot)
}

/// Whether a stage that was asked for at `at` leads back from what this boot has reached.
fn begins_boot(boot: &[&Event], stage: Stage, at: Timestamp) -> bool {
    let reached = |least: Stage| boot.iter().any(|event| event.stage >= least && event.stage != Stage::Trouble);
    match stage {
        Stage::Loader => reached(Stage::Script) || paused(boot, at),
        Stage::Script => reached(Stage::Login) || paused(boot, at),
        _ => false,
    }
}

fn paused(boot: &[&Event], at: Timestamp) -> bool {
    boot.last().is_some_and(|last| at.since(last.at) > BOOT_PAUSE)
}

fn timeline(boot: &[&Event]) -> Option<Boot> {
    let start = boot.first()?.at;
    let stage = |event: &&Event| BootStage {
        stage: event.stage.word().to_owned(),
        at_ms: event.at.0,
        after_ms: event.at.0.saturating_sub(start.0),
        detail: event.detail.clone(),
        fact: event.fact.clone(),
    };
    Some(Boot { started: rfc3339(start), stages: boot.iter().map(stage).collect() })
}

/// A time in UTC with milliseconds. What no calendar has (a year beyond 9999) is given as the number it is.
fn rfc3339(at: Timestamp) -> String {
    let time = i64::try_from(at.0).ok().and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
    time.map_or_else(|| format!("{} ms", at.0), |time| format!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Events from `second:stage`, each with its number as detail so that none is the same twice.
    fn events(text: &str) -> Vec<Event> {
        let event = |(number, word): (usize, &str)| {
            let (second, stage) = word.split_once(':').unwrap();
            Event {
                at: Timestamp(second.parse::<u64>().unwrap() * 1_000),
                mac: None,
                client: None,
                stage: stage.parse().unwrap(),
                detail: number.to_string(),
                fact: None,
            }
        };
        text.split_whitespace().enumerate().map(event).collect()
    }

    /// The last boot in the same spelling, with absolute times.
    fn last_boot(text: &str) -> String {
        let boot = boot_timeline(&events(text)).unwrap();
        let stage = |stage: &BootStage| format!("{}:{}", stage.at_ms / 1_000, stage.stage);
        boot.stages.iter().map(stage).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn no_events_are_no_boot() {
        assert_eq!(boot_timeline(&[]), None);
    }

    #[test]
    fn a_whole_boot_is_one_timeline_although_firmware_and_loader_each_get_an_offer() {
        for whole in [
            "0:offer 1:loader 3:offer 4:script 5:login 6:first-read 20:os-session 40:idle",
            // A loader asked for its size first, a script of two parts, a refusal before the login.
            "0:offer 1:loader 1:loader 3:offer 4:script 5:script 6:refused 7:login 8:first-read",
            // iPXE in the option ROM; the system asks DHCP itself.
            "0:offer 2:offer 3:script 4:login 5:first-read 15:offer 16:os-session 30:idle 31:os-session",
            // DHCP is another's.
            "0:loader 2:script 3:login 4:first-read",
            // The system checks its disk for ten minutes.
            "0:offer 1:loader 3:offer 4:script 5:login 6:first-read 606:os-session",
        ] {
            assert_eq!(last_boot(whole), whole);
        }
    }

    #[test]
    fn a_power_cycle_begins_a_boot_at_the_offer_that_led_to_its_loader() {
        let first = "0:offer 1:loader 3:offer 4:script 5:login 6:first-read";
        for second in [
            "10:offer 11:loader",
            "10:offer 11:offer 12:script",
            "10:offer 12:offer 13:loader 14:offer 15:script 16:login",
            "10:loader",
            "10:script 11:login",
        ] {
            assert_eq!(last_boot(&format!("{first} {second}")), second);
        }
    }

    #[test]
    fn a_machine_reset_between_its_loader_and_its_login_begins_anew() {
        assert_eq!(last_boot("0:offer 1:loader 3:offer 4:script 6:offer 7:loader"), "6:offer 7:loader");
        assert_eq!(last_boot("0:offer 1:loader 3:offer 4:script 5:refused 6:offer 7:script"), "6:offer 7:script");
    }

    #[test]
    fn a_new_machine_begins_a_boot_that_counts_from_the_command() {
        let first = "0:offer 1:loader 3:offer 4:script 5:login 6:first-read";
        let second = "10:replaced 12:offer 13:loader 15:offer 16:script 17:login 18:first-read";
        assert_eq!(last_boot(&format!("{first} {second}")), second);
        assert_eq!(last_boot(&format!("{first} 9:offer 10:replaced")), "10:replaced");
        // Switched on the next day: its boot is not a day long.
        assert_eq!(last_boot("0:replaced 9000:offer 9001:loader"), "9000:offer 9001:loader");
    }

    #[test]
    fn an_offer_that_led_to_nothing_yet_is_a_new_boot_only_after_idle_or_a_pause() {
        let boot = "0:offer 3:script 4:login 5:first-read 6:os-session";
        assert_eq!(last_boot(&format!("{boot} 20:offer")), format!("{boot} 20:offer"));
        assert_eq!(last_boot(&format!("{boot} 20:idle 30:offer")), "30:offer");
        assert_eq!(last_boot(&format!("{boot} 200:offer")), "200:offer");
        assert_eq!(last_boot("0:offer 4:offer 200:offer 204:offer"), "200:offer 204:offer");
        assert_eq!(last_boot("0:offer 1:loader 200:offer 201:loader"), "200:offer 201:loader");
        // What happens in one moment stays in its order.
        assert_eq!(last_boot("0:offer 0:idle 0:os-session"), "0:offer 0:idle 0:os-session");
        // The old session's silence is no step of the new boot.
        assert_eq!(last_boot(&format!("{boot} 14:offer 16:idle 20:loader 21:script")), "14:offer 20:loader 21:script");
        let second = "14:offer 15:loader 20:offer 21:script 22:login";
        assert_eq!(last_boot(&format!("{boot} 14:offer 15:loader 16:idle 20:offer 21:script 22:login")), second);
    }

    #[test]
    fn times_count_from_the_first_stage_and_repeats_are_shown_once() {
        let event = |at: u64, stage, detail: &str| Event {
            at: Timestamp(1_795_420_800_250 + at),
            mac: None,
            client: None,
            stage,
            detail: detail.to_owned(),
            fact: None,
        };
        let boot = boot_timeline(&[
            event(0, Stage::Offer, "10.0.0.7"),
            event(4_000, Stage::Offer, "10.0.0.7"),
            event(5_500, Stage::Script, "boot.ipxe"),
        ])
        .unwrap();
        assert_eq!(boot.started, "2026-11-23T08:00:00.250Z");
        let times: Vec<_> = boot.stages.iter().map(|stage| (stage.stage.as_str(), stage.after_ms)).collect();
        assert_eq!(times, [("offer", 0), ("script", 5_500)]);
        assert_eq!(boot.stages[1].at_ms, 1_795_420_805_750);
    }

    mod properties {
        use proptest::prelude::*;

        use super::*;

        proptest! {
            /// Whatever was seen, the last boot is the end of it, in its order: no event after its first is left out, save
            /// those of a session that the boot before it left open.
            #[test]
            fn the_last_boot_is_the_end_of_what_was_seen(
                seen in prop::collection::vec((0..200_u64, prop::sample::select(Stage::ALL.to_vec())), 1..40),
            ) {
                let mut second = 0;
                let words = seen.into_iter().map(|(pause, stage)| {
                    second += pause;
                    format!("{second}:{stage}")
                });
                let text = words.collect::<Vec<_>>().join(" ");
                let last = last_boot(&text);
                prop_assert!(!last.is_empty());
                let mut boot = last.split(' ').rev().peekable();
                for word in text.split(' ').rev() {
                    if boot.next_if_eq(&word).is_none() && boot.peek().is_some() {
                        let left_open = ["first-read", "idle", "refused", "trouble"].iter().any(|stage| word.ends_with(stage));
                        prop_assert!(left_open, "{} is in {}, not in {}", word, text, last);
                    }
                }
                prop_assert_eq!(boot.next(), None, "{} is not in {}", last, text);
            }
        }
    }

    #[test]
    fn an_address_is_the_fixed_one_else_the_lease_else_what_was_seen() {
        use crate::fleet::{Lease, Mac, Sighting};
        use crate::store::Record;

        let state = tempfile::tempdir().unwrap();
        let store = Store::open(state.path()).unwrap();
        let macs: [Mac; 2] = ["52:54:00:aa:00:01", "52:54:00:aa:00:02"].map(|mac| mac.parse().unwrap());
        let mut client = Client {
            macs: macs.to_vec(),
            disk: crate::fleet::DiskPolicy::Keep,
            initiators: crate::fleet::Initiators::OwnOnly,
            ..Client::new("pc-01".parse().unwrap(), "debian-12".parse().unwrap())
        };
        let [fixed, leased, seen, older] = [1, 2, 3, 4].map(|last| Ipv4Addr::new(10, 0, 0, last));
        assert_eq!(address(&client, &store).unwrap(), None);

        let sighting = |mac, address, at| Record::Sighting(Sighting { mac, address: Some(address), at: Timestamp(at) });
        store.commit(&[sighting(macs[0], older, 1), sighting(macs[1], seen, 2)]).unwrap();
        assert_eq!(address(&client, &store).unwrap(), Some(seen));

        let holder = Holder::Client(client.name.clone());
        store.commit(&[Record::Lease(Lease { holder, address: leased, mac: macs[0], expires: Timestamp(9) })]).unwrap();
        assert_eq!(address(&client, &store).unwrap(), Some(leased));

        client.ip = Some(fixed);
        assert_eq!(address(&client, &store).unwrap(), Some(fixed));
    }
}
