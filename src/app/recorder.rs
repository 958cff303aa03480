//! The one place through which adapters say what they saw of a machine: a log line, and a record in the store.
//!
//! Nothing here blocks, and nothing that a stranger sends makes it grow: the maps have bounds, and what repeats is
//! recorded once.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::Hash;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::packets::Packets;
use crate::fleet::lease::MAX_STRANGERS;
use crate::fleet::{ClientName, Event, Fact, Habit, Mac, Platform, Port, Sighting, Stage, Timestamp};
use crate::store::{Record, Writer};

/// Machines whose address is remembered; the one seen longest ago goes first. It decides who may log in, so nobody may push
/// out a client's machine: there is room for as many as a mapping file has and as many strangers as get an address.
const MAX_MACHINES: usize = 4_096 + MAX_STRANGERS;

/// Machines without an address that are remembered. Anybody can make them up.
const MAX_PASSERS_BY: usize = 4_096;

/// What is recorded of machines without an address, and of stages of machines that are in no client's place: so many at once,
/// and so many each second after that. A room full of new machines is fewer; a flood would fill logs, take the disk's time, and
/// push out what there is of clients.
const STRANGERS_AT_ONCE: u64 = 512;
const STRANGERS_A_SECOND: u64 = 32;

/// Stages that are remembered, to know what repeats: each of every client, and of as many strangers.
const MAX_STAGES: usize = 2 * 4_096 * Stage::ALL.len();

/// A stage that repeats with the same particulars within this time is one event: firmware asks for its address three or
/// four times while it waits.
const REPEAT: Duration = Duration::from_secs(10);

/// Loaders fetched within this time of the first count as one row. A loader that loads itself does so every few seconds.
pub const LOOP: Duration = Duration::from_secs(180);

/// Lost sessions are counted for so long.
pub const A_MINUTE: Duration = Duration::from_secs(60);

/// Lost sessions of a client that are counted; more say nothing new.
const MAX_LOST: usize = 100;

/// How often a machine that stays where it is has its sighting stored.
const STORE_SIGHTING: Duration = Duration::from_secs(60);

/// Longest detail of an event, in characters: file names and initiator names come from strangers. The longest of our own
/// name two files and two identities.
const MAX_DETAIL: usize = 400;

/// Takes what adapters saw. Never blocks: what cannot be queued is dropped with a warning. Clones share one memory.
#[derive(Debug, Clone)]
pub struct Recorder {
    shared: Arc<Shared>,
}

struct Shared {
    sink: Sink,
    packets: Packets,
    memory: Mutex<Memory>,
}

/// Where records go.
enum Sink {
    Store(Writer),
    Memory(Mutex<Vec<Record>>),
}

struct Memory {
    machines: Recent<Mac, Machine>,
    /// What firmware said to be, of clients' machines and of those above.
    platforms: Recent<Mac, Option<Platform>>,
    /// Machines that were seen without an address, and when that was stored.
    passers_by: Recent<Mac, Option<Timestamp>>,
    sightings_of_strangers: Allowance,
    stages_of_strangers: Allowance,
    stages: Recent<(Who, Stage), Option<Noted>>,
    loads: Recent<Mac, Loads>,
    lost: Recent<ClientName, Vec<Timestamp>>,
}

/// Whose stage it was: the client's, or that of a machine in nobody's place.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Who {
    Client(ClientName),
    Machine(Option<Mac>),
}

#[derive(Debug, Default)]
struct Machine {
    address: Option<Ipv4Addr>,
    stored: Option<Timestamp>,
}

/// How often a machine fetched one loader without a script after it.
#[derive(Debug, Default)]
struct Loads {
    name: String,
    times: u32,
    first: Timestamp,
}

#[derive(Debug)]
struct Noted {
    detail: String,
    at: Timestamp,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Recorder {
    /// A recorder that writes to the store and remembers these sightings, which the store had at start.
    #[must_use]
    pub fn new(writer: Writer, sightings: impl IntoIterator<Item = Sighting>) -> Self {
        let recorder = Self::with(Sink::Store(writer));
        let mut sightings: Vec<Sighting> = sightings.into_iter().collect();
        sightings.sort_by_key(|sighting| sighting.at);
        let mut memory = recorder.memory();
        for Sighting { mac, address, at } in sightings {
            match address {
                Some(_) => *memory.machines.touch(mac) = Machine { address, stored: Some(at) },
                None => *memory.passers_by.touch(mac) = Some(at),
            }
        }
        drop(memory);
        recorder
    }

    /// A recorder without a store: what it is told stays in memory, where a test reads it with [`Recorder::events`].
    #[must_use]
    pub fn detached() -> Self {
        Self::with(Sink::Memory(Mutex::default()))
    }

    fn with(sink: Sink) -> Self {
        let memory = Memory {
            machines: Recent::new(MAX_MACHINES),
            platforms: Recent::new(MAX_MACHINES),
            passers_by: Recent::new(MAX_PASSERS_BY),
            sightings_of_strangers: Allowance::default(),
            stages_of_strangers: Allowance::default(),
            stages: Recent::new(MAX_STAGES),
            loads: Recent::new(MAX_MACHINES),
            lost: Recent::new(MAX_MACHINES),
        };
        Self { shared: Arc::new(Shared { sink, packets: Packets::default(), memory: Mutex::new(memory) }) }
    }

    /// A machine reached a stage of its boot. `detail` is for a person; control characters in it are replaced, and it is
    /// cut after 400 characters.
    pub fn note(&self, mac: Option<Mac>, client: Option<&ClientName>, stage: Stage, detail: &str) {
        self.note_at(now(), mac, client, stage, detail, None);
    }

    /// The same, with what a program may have to go by.
    pub fn note_fact(
        &self,
        mac: Option<Mac>,
        client: Option<&ClientName>,
        stage: Stage,
        detail: &str,
        fact: impl Into<Option<Fact>>,
    ) {
        self.note_at(now(), mac, client, stage, detail, fact.into());
    }

    fn note_at(
        &self,
        at: Timestamp,
        mac: Option<Mac>,
        client: Option<&ClientName>,
        stage: Stage,
        detail: &str,
        fact: Option<Fact>,
    ) {
        if client.is_none() {
            match self.memory().stages_of_strangers.take(at) {
                Some(0) => {}
                Some(unsaid) => {
                    tracing::warn!("{unsaid} stages of machines in no client's place were not recorded: so many ask");
                }
                None => return,
            }
        }
        let detail = printable(detail);
        let who = client.map_or(Who::Machine(mac), |name| Who::Client(name.clone()));
        let shown = who.to_string();
        if self.repeats(at, who, stage, &detail) {
            tracing::debug!(target: "roost::boot", "{shown:<6} {stage:<11} {detail} (again)");
            return;
        }
        // The fields are for JSON logs; the message alone is a whole line for a person.
        tracing::info!(
            target: "roost::boot",
            mac = mac.map(tracing::field::display),
            client = client.map(tracing::field::display),
            stage = stage.word(),
            "{shown:<6} {stage:<11} {detail}"
        );
        self.store(Record::Event(Event { at, mac, client: client.cloned(), stage, detail, fact }));
    }

    /// Whether the same was noted a moment ago. If not, it is now.
    fn repeats(&self, at: Timestamp, who: Who, stage: Stage, detail: &str) -> bool {
        let mut memory = self.memory();
        let last = memory.stages.touch((who, stage));
        match last {
            Some(last) if last.detail == detail && at.since(last.at) < REPEAT => true,
            _ => {
                *last = Some(Noted { detail: detail.to_owned(), at });
                false
            }
        }
    }

    /// A machine was seen, using this address where one is known. A sighting without an address leaves the last one standing.
    pub fn saw(&self, mac: Mac, address: Option<Ipv4Addr>) {
        self.saw_at(now(), mac, address);
    }

    fn saw_at(&self, at: Timestamp, mac: Mac, address: Option<Ipv4Addr>) {
        let mut memory = self.memory();
        let memory = &mut *memory;
        if address.is_none() && memory.machines.peek(&mac).is_none() {
            let due = |stored: Timestamp| at.since(stored) >= STORE_SIGHTING;
            let stored = memory.passers_by.touch(mac);
            if stored.is_none_or(due) && memory.sightings_of_strangers.take(at).is_some() {
                *stored = Some(at);
                self.store(Record::Sighting(Sighting { mac, address: None, at }));
            }
            return;
        }
        let machine = memory.machines.touch(mac);
        let moved = address.is_some() && address != machine.address;
        machine.address = address.or(machine.address);
        // A new address at once: after a restart it decides who may log in.
        let due = machine.stored.is_none_or(|stored| at.since(stored) >= STORE_SIGHTING);
        if !(moved || due) {
            return;
        }
        machine.stored = Some(at);
        self.store(Record::Sighting(Sighting { mac, address: machine.address, at }));
    }

    /// The packets of the machines' last boots.
    #[must_use]
    pub fn packets(&self) -> &Packets {
        &self.shared.packets
    }

    /// Firmware said what it is. Of machines in nobody's place, those that were not [seen](Recorder::saw) with an address are not
    /// remembered. `known`: it stands in a client's place.
    pub fn is_of(&self, mac: Mac, known: bool, platform: Platform) {
        let mut memory = self.memory();
        if known || memory.machines.peek(&mac).is_some() {
            *memory.platforms.touch(mac) = Some(platform);
        }
    }

    /// What this machine's firmware said to be.
    #[must_use]
    pub fn platform_of(&self, mac: Mac) -> Option<Platform> {
        *self.memory().platforms.peek(&mac)?
    }

    /// A machine has fetched this loader. How often in a row, without a [script](Recorder::got_script) in between and within
    /// [`LOOP`].
    pub fn loaded(&self, mac: Mac, loader: &str) -> u32 {
        self.loaded_at(now(), mac, loader)
    }

    fn loaded_at(&self, at: Timestamp, mac: Mac, loader: &str) -> u32 {
        let mut memory = self.memory();
        let loads = memory.loads.touch(mac);
        if loads.name != loader || at.since(loads.first) > LOOP {
            *loads = Loads { name: loader.to_owned(), times: 0, first: at };
        }
        loads.times = loads.times.saturating_add(1);
        loads.times
    }

    /// A machine has fetched its script: its loader did what it is for.
    pub fn got_script(&self, mac: Mac) {
        *self.memory().loads.touch(mac) = Loads::default();
    }

    /// A session of the client's operating system was lost. How many were within [`A_MINUTE`], this one among them.
    pub fn lost_session(&self, client: &ClientName) -> u32 {
        self.lost_session_at(now(), client)
    }

    fn lost_session_at(&self, at: Timestamp, client: &ClientName) -> u32 {
        let mut memory = self.memory();
        let lost = memory.lost.touch(client.clone());
        lost.retain(|before| at.since(*before) < A_MINUTE);
        if lost.len() < MAX_LOST {
            lost.push(at);
        }
        u32::try_from(lost.len()).unwrap_or(u32::MAX)
    }

    /// The address that this machine was last seen to use.
    #[must_use]
    pub fn address_seen(&self, mac: Mac) -> Option<Ipv4Addr> {
        self.memory().machines.peek(&mac)?.address
    }

    /// The machine that was last seen to use this address.
    #[must_use]
    pub fn machine_at(&self, address: Ipv4Addr) -> Option<Mac> {
        let memory = self.memory();
        let at =
            |(_, (touched, machine)): &(&Mac, &(u64, Machine))| (machine.address == Some(address)).then_some(*touched);
        memory.machines.entries.iter().filter(|entry| at(entry).is_some()).max_by_key(at).map(|(mac, _)| *mac)
    }

    /// What a [`Recorder::detached`] recorder was told; nothing of one with a store, which is asked instead.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        let Sink::Memory(records) = &self.shared.sink else { return Vec::new() };
        let records = records.lock().unwrap_or_else(PoisonError::into_inner);
        let event = |record: &Record| if let Record::Event(event) = record { Some(event.clone()) } else { None };
        records.iter().filter_map(event).collect()
    }

    /// The way that a client's machine takes with an offer is to be known after a restart.
    pub fn keep_habit(&self, mac: Mac, habit: Habit) {
        self.store(Record::Habit(mac, habit));
    }

    /// Which machine is at which client's port, is to be known after a restart.
    pub(super) fn keep_plugged(&self, port: Port, mac: Option<Mac>) {
        self.store(Record::Plugged(port, mac));
    }

    fn store(&self, record: Record) {
        match &self.shared.sink {
            Sink::Store(writer) => writer.record(record),
            Sink::Memory(records) => records.lock().unwrap_or_else(PoisonError::into_inner).push(record),
        }
    }

    /// Every change of the memory is whole before anything can panic, so a poisoned lock guards sound data.
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(name) => name.fmt(f),
            Self::Machine(Some(mac)) => mac.fmt(f),
            Self::Machine(None) => f.write_str("-"),
        }
    }
}

/// How much strangers may have recorded: a sum that each takes from, and that grows with time.
#[derive(Debug, Default)]
struct Allowance {
    taken: u64,
    since: Timestamp,
    refused: u64,
}

impl Allowance {
    /// Takes one, if there is one: gives how many were refused since the last. In thousandths, so that no time is lost.
    fn take(&mut self, now: Timestamp) -> Option<u64> {
        let millis = u64::try_from(now.since(self.since).as_millis()).unwrap_or(u64::MAX);
        self.since = now;
        self.taken = self.taken.saturating_sub(millis.saturating_mul(STRANGERS_A_SECOND));
        if self.taken + 1_000 > STRANGERS_AT_ONCE * 1_000 {
            self.refused += 1;
            return None;
        }
        self.taken += 1_000;
        Some(std::mem::take(&mut self.refused))
    }
}

/// The detail as one line of bounded length, which cannot steer a terminal.
fn printable(detail: &str) -> String {
    let clean = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    let mut text: String = detail.chars().take(MAX_DETAIL).map(clean).collect();
    if detail.chars().nth(MAX_DETAIL).is_some() {
        text.push('…');
    }
    text
}

/// A map that holds so many entries and no more: the one touched longest ago makes room.
pub(super) struct Recent<K, V> {
    most: usize,
    touches: u64,
    entries: HashMap<K, (u64, V)>,
    order: BTreeMap<u64, K>,
}

impl<K: Clone + Eq + Hash, V: Default> Recent<K, V> {
    pub(super) fn new(most: usize) -> Self {
        Self { most, touches: 0, entries: HashMap::new(), order: BTreeMap::new() }
    }

    /// The entry of this key, made where it is missing, and now the youngest.
    pub(super) fn touch(&mut self, key: K) -> &mut V {
        self.touches += 1;
        if let Some((touched, _)) = self.entries.get(&key) {
            self.order.remove(touched);
        } else if self.entries.len() >= self.most
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.entries.remove(&oldest);
        }
        self.order.insert(self.touches, key.clone());
        let (touched, value) = self.entries.entry(key).or_default();
        *touched = self.touches;
        value
    }

    pub(super) fn peek(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(_, value)| value)
    }

    /// Takes out the entry that was touched longest ago.
    pub(super) fn pop_oldest(&mut self) -> Option<V> {
        let (_, key) = self.order.pop_first()?;
        self.entries.remove(&key).map(|(_, value)| value)
    }

    /// Takes out this entry.
    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let (touched, value) = self.entries.remove(key)?;
        self.order.remove(&touched);
        Some(value)
    }

    pub(super) fn is_full(&self) -> bool {
        self.entries.len() >= self.most
    }
}

/// The wall clock, read only by adapters.
#[must_use]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(number: u16) -> Mac {
        let [high, low] = number.to_be_bytes();
        Mac::from_octets([0x52, 0x54, 0, 0xaa, high, low]).unwrap()
    }

    fn sightings(recorder: &Recorder) -> Vec<Sighting> {
        let Sink::Memory(records) = &recorder.shared.sink else { unreachable!() };
        let sighting = |record: &Record| if let Record::Sighting(seen) = record { Some(seen.clone()) } else { None };
        records.lock().unwrap().iter().filter_map(sighting).collect()
    }

    #[test]
    fn a_stage_that_repeats_at_once_is_one_event() {
        let recorder = Recorder::detached();
        let name: ClientName = "pc-01".parse().unwrap();
        for (at, detail) in [(0, "10.0.0.1"), (4_000, "10.0.0.1"), (5_000, "10.0.0.2"), (16_000, "10.0.0.2")] {
            recorder.note_at(Timestamp(at), Some(mac(1)), Some(&name), Stage::Offer, detail, None);
        }
        recorder.note_at(Timestamp(5_000), Some(mac(1)), None, Stage::Offer, "10.0.0.2", None);
        recorder.note_at(Timestamp(5_001), Some(mac(2)), None, Stage::Offer, "10.0.0.2", None);
        let at: Vec<u64> = recorder.events().iter().map(|event| event.at.0).collect();
        assert_eq!(at, [0, 5_000, 16_000, 5_000, 5_001]);
    }

    #[test]
    fn a_detail_cannot_steer_a_terminal_nor_fill_the_store() {
        let recorder = Recorder::detached();
        recorder.note(Some(mac(1)), None, Stage::Refused, &format!("\u{1b}[31m{}", "é".repeat(1_000)));
        let [event] = recorder.events().try_into().unwrap();
        assert!(event.detail.starts_with("\u{fffd}[31mé"), "{}", event.detail);
        assert_eq!(event.detail.chars().count(), MAX_DETAIL + 1);
    }

    #[test]
    fn a_sighting_is_stored_when_the_address_changes_and_each_minute() {
        let recorder = Recorder::detached();
        let [one, two] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(Ipv4Addr::from);
        for (at, address) in
            [(0, None), (10, Some(one)), (20, Some(one)), (30, None), (59_000, Some(two)), (119_000, Some(two))]
        {
            recorder.saw_at(Timestamp(at), mac(1), address);
        }
        let stored: Vec<_> = sightings(&recorder).iter().map(|seen| (seen.at.0, seen.address)).collect();
        assert_eq!(stored, [(0, None), (10, Some(one)), (59_000, Some(two)), (119_000, Some(two))]);
        assert_eq!(recorder.address_seen(mac(1)), Some(two));
        assert_eq!(recorder.address_seen(mac(2)), None);
    }

    #[test]
    fn strangers_beyond_the_limit_push_out_the_machine_seen_longest_ago() {
        let recorder = Recorder::detached();
        let address = Some(Ipv4Addr::new(10, 0, 0, 1));
        let most = u16::try_from(MAX_MACHINES).unwrap();
        for number in 0..most {
            recorder.saw_at(Timestamp(0), mac(number), address);
        }
        recorder.saw_at(Timestamp(1), mac(0), None);
        recorder.saw_at(Timestamp(2), mac(most), address);
        assert_eq!(recorder.address_seen(mac(1)), None);
        for number in [0, 2, most] {
            assert_eq!(recorder.address_seen(mac(number)), address, "{number}");
        }
        assert_eq!(recorder.memory().machines.order.len(), MAX_MACHINES);
    }

    #[test]
    fn a_flood_of_machines_without_addresses_pushes_out_nobody_and_little_of_it_is_recorded() {
        let recorder = Recorder::detached();
        let address = Some(Ipv4Addr::new(10, 0, 0, 1));
        let name: ClientName = "pc-01".parse().unwrap();
        recorder.saw_at(Timestamp(0), mac(0), address);
        for second in 0..4_u16 {
            let begins = 1_000 * u64::from(second);
            for number in 1..=10_000 {
                let (at, mac) = (Timestamp(begins + u64::from(number) / 10), mac(10_000 * second + number));
                recorder.saw_at(at, mac, None);
                recorder.note_at(at, Some(mac), None, Stage::Offer, "an address", None);
            }
            let at = Timestamp(begins + 999);
            recorder.note_at(at, Some(mac(0)), Some(&name), Stage::Offer, &format!("in second {second}"), None);
        }
        assert_eq!(recorder.address_seen(mac(0)), address);
        let most = usize::try_from(STRANGERS_AT_ONCE + 4 * STRANGERS_A_SECOND).unwrap();
        let of_strangers = recorder.events().iter().filter(|event| event.client.is_none()).count();
        assert!((most - 1..=most).contains(&of_strangers), "{of_strangers}");
        assert_eq!(recorder.events().len() - of_strangers, 4, "every stage of a client");
        assert!((most..=most + 1).contains(&sightings(&recorder).len()), "{}", sightings(&recorder).len());
        assert!(recorder.memory().passers_by.order.len() <= MAX_PASSERS_BY);
    }

    #[tokio::test]
    async fn what_was_seen_before_a_restart_is_known_after_it() {
        let state = tempfile::tempdir().unwrap();
        let store = crate::store::Store::open(state.path()).unwrap();
        let writer = Writer::start(store.clone());
        let address = Some(Ipv4Addr::new(10, 0, 0, 1));
        Recorder::new(writer.clone(), []).saw(mac(1), address);
        writer.flush().await.unwrap();
        let again = Recorder::new(writer, store.sightings().unwrap());
        assert_eq!(again.address_seen(mac(1)), address);
    }

    #[test]
    fn a_loader_that_is_fetched_again_and_again_is_counted_until_a_script_is() {
        let recorder = Recorder::detached();
        let load = |second: u64, loader| recorder.loaded_at(Timestamp(second * 1_000), mac(1), loader);
        assert_eq!([load(0, "a.efi"), load(4, "a.efi"), load(9, "a.efi")], [1, 2, 3]);
        assert_eq!(load(12, "b.efi"), 1, "another loader");
        recorder.got_script(mac(1));
        assert_eq!([load(20, "b.efi"), load(21, "b.efi")], [1, 2]);
        assert_eq!(load(500, "b.efi"), 1, "another boot");
        assert_eq!(recorder.loaded_at(Timestamp(500_001), mac(2), "b.efi"), 1, "another machine");
    }

    #[test]
    fn lost_sessions_count_for_a_minute() {
        let recorder = Recorder::detached();
        let [one, two]: [ClientName; 2] = ["pc-01".parse().unwrap(), "pc-02".parse().unwrap()];
        let lost = |second: u64, client| recorder.lost_session_at(Timestamp(second * 1_000), client);
        assert_eq!([lost(0, &one), lost(20, &one), lost(40, &one)], [1, 2, 3]);
        assert_eq!([lost(41, &two), lost(79, &one)], [1, 3]);
        for _ in 0..1_000 {
            lost(200, &one);
        }
        assert_eq!(lost(200, &one), u32::try_from(MAX_LOST).unwrap());
    }

    #[test]
    fn what_firmware_said_to_be_is_known_of_clients_machines_and_of_those_that_have_an_address() {
        let recorder = Recorder::detached();
        let said = |number, known| {
            recorder.is_of(mac(number), known, Platform::Bios);
            recorder.platform_of(mac(number))
        };
        assert_eq!([said(1, false), said(2, true)], [None, Some(Platform::Bios)]);
        recorder.saw(mac(1), Some([10, 9, 0, 1].into()));
        assert_eq!(said(1, false), Some(Platform::Bios));
    }
}
