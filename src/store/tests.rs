use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;
use crate::fleet::{Fact, Finding, Stage, Timestamp};

fn mac(last: u16) -> Mac {
    let [high, low] = last.to_be_bytes();
    Mac::from_octets([0x52, 0x54, 0, 0xaa, high, low]).unwrap()
}

fn client(number: u8) -> ClientName {
    format!("pc-{number:02}").parse().unwrap()
}

fn event(at: u64, who: Option<u8>, hardware: Option<u16>, stage: Stage) -> Event {
    Event {
        at: Timestamp(at),
        mac: hardware.map(mac),
        client: who.map(client),
        stage,
        detail: format!("at {at}"),
        fact: fact(at),
    }
}

/// What the store is to hold, in maps that cannot be wrong.
#[derive(Default)]
struct Model {
    leases: BTreeMap<Holder, Lease>,
    sightings: BTreeMap<Mac, Sighting>,
    secrets: BTreeMap<ClientName, Secrets>,
    habits: BTreeMap<Mac, Habit>,
    plugged: BTreeMap<Port, Mac>,
    /// In the order recorded; sorted by time when asked, which keeps that order within a millisecond.
    events: Vec<Event>,
}

impl Model {
    fn apply(&mut self, record: &Record) {
        match record {
            Record::Lease(lease) => {
                self.leases.insert(lease.holder.clone(), lease.clone());
            }
            Record::LeaseGone(holder) => {
                self.leases.remove(holder);
            }
            Record::Sighting(sighting) => {
                self.sightings.insert(sighting.mac, sighting.clone());
            }
            Record::Event(event) => self.events.push(event.clone()),
            Record::Secrets(client, secrets) => {
                self.secrets.insert(client.clone(), secrets.clone());
            }
            Record::SecretsGone(client) => {
                self.secrets.remove(client);
            }
            Record::Habit(mac, habit) => {
                self.habits.insert(*mac, *habit);
            }
            Record::Plugged(port, Some(mac)) => {
                self.plugged.insert(port.clone(), *mac);
            }
            Record::Plugged(port, None) => {
                self.plugged.remove(port);
            }
        }
    }

    fn events(&self, wanted: impl Fn(&Event) -> bool) -> Vec<Event> {
        let mut found: Vec<Event> = self.events.iter().filter(|event| wanted(event)).cloned().collect();
        found.sort_by_key(|event| event.at);
        found
    }
}

/// Some events say something for programs.
fn fact(at: u64) -> Option<Fact> {
    match at % 3 {
        0 => None,
        1 => Some(Fact::Fetched { bytes: at, ms: None }),
        _ => Some(Fact::OtherServer(Finding::BootFile { server: [10, 9, 0, 9].into(), file: "a\u{fffd}".to_owned() })),
    }
}

fn holders() -> impl Strategy<Value = Holder> {
    prop_oneof![
        (0..4_u8).prop_map(|who| Holder::Client(client(who))),
        (0..4_u16).prop_map(|who| Holder::Stranger(mac(who)))
    ]
}

fn records() -> impl Strategy<Value = Record> {
    let address = any::<[u8; 4]>().prop_map(Ipv4Addr::from);
    let lease =
        (holders(), address.clone(), 0..6_u16, any::<u64>()).prop_map(|(holder, address, hardware, expires)| {
            Record::Lease(Lease { holder, address, mac: mac(hardware), expires: Timestamp(expires) })
        });
    let sighting = (0..6_u16, proptest::option::of(address), 0..1_000_u64).prop_map(|(hardware, address, at)| {
        Record::Sighting(Sighting { mac: mac(hardware), address, at: Timestamp(at) })
    });
    let stage = prop::sample::select(Stage::ALL.to_vec());
    let event = (0..50_u64, proptest::option::of(0..3_u8), proptest::option::of(0..4_u16), stage)
        .prop_map(|(at, who, hardware, stage)| Record::Event(event(at, who, hardware, stage)));
    let secrets = (0..4_u8, "[a-z]{4}", "[A-Z]{4}")
        .prop_map(|(who, machine, server)| Record::Secrets(client(who), Secrets { machine, server }));
    let secrets_gone = (0..4_u8).prop_map(|who| Record::SecretsGone(client(who)));
    let habit = (0..6_u16, any::<bool>()).prop_map(|(hardware, file)| Record::Habit(mac(hardware), Habit { file }));
    let plugged = (0..3_u8, proptest::option::of(0..6_u16))
        .prop_map(|(port, hardware)| Record::Plugged(format!("sw1/{port}").parse().unwrap(), hardware.map(mac)));
    let gone = holders().prop_map(Record::LeaseGone);
    prop_oneof![lease, gone, sighting, event, secrets, secrets_gone, habit, plugged]
}

#[test]
fn the_file_is_its_owners_alone_also_if_an_older_roost_made_it() {
    use std::os::unix::fs::PermissionsExt;
    let state = tempfile::tempdir().unwrap();
    let mode = || std::fs::metadata(state.path().join(FILE)).unwrap().permissions().mode() & 0o777;
    drop(Store::open(state.path()).unwrap());
    assert_eq!(mode(), 0o600);
    std::fs::set_permissions(state.path().join(FILE), std::fs::Permissions::from_mode(0o644)).unwrap();
    drop(Store::open(state.path()).unwrap());
    assert_eq!(mode(), 0o600);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn what_was_committed_is_read_back_also_after_a_restart(
        commits in prop::collection::vec((prop::collection::vec(records(), 0..12), any::<bool>()), 1..6),
    ) {
        let state = tempfile::tempdir().unwrap();
        let mut model = Model::default();
        let mut store = Store::open(state.path()).unwrap();
        for (records, reopen) in commits {
            store.commit(&records).unwrap();
            records.iter().for_each(|record| model.apply(record));
            if reopen {
                drop(store);
                store = Store::open(state.path()).unwrap();
            }
            prop_assert_eq!(sorted(store.leases().unwrap()), model.leases.values().cloned().collect::<Vec<_>>());
            prop_assert_eq!(store.sightings().unwrap(), model.sightings.values().cloned().collect::<Vec<_>>());
            prop_assert_eq!(store.secrets().unwrap(), model.secrets.clone().into_iter().collect::<Vec<_>>());
            prop_assert_eq!(store.habits().unwrap(), model.habits.clone().into_iter().collect::<Vec<_>>());
            prop_assert_eq!(store.plugged().unwrap(), model.plugged.clone().into_iter().collect::<Vec<_>>());
            for who in 0..3 {
                let name = client(who);
                let expected = model.events(|event| event.client.as_ref() == Some(&name));
                prop_assert_eq!(store.latest_events_of(&name, 3).unwrap(), &expected[expected.len().saturating_sub(3)..]);
                prop_assert_eq!(store.events_of(&name).unwrap(), expected);
            }
            for holder in (0..4).map(|who| Holder::Client(client(who))) {
                prop_assert_eq!(store.lease_of(&holder).unwrap(), model.leases.get(&holder).cloned());
            }
            for who in 0..4 {
                let expected = model.events(|event| event.mac == Some(mac(who)));
                prop_assert_eq!(store.events_of_mac(mac(who)).unwrap(), expected);
                prop_assert_eq!(store.sighting_of(mac(who)).unwrap(), model.sightings.get(&mac(who)).cloned());
            }
        }
    }

    #[test]
    fn one_machine_keeps_its_latest_events_in_whatever_order_they_come(times in prop::collection::vec(0..400_u64, 280..600)) {
        let state = tempfile::tempdir().unwrap();
        let store = Store::open(state.path()).unwrap();
        let limit = usize::try_from(MAX_EVENTS_OF_ONE).unwrap();
        // The rule, step by step: after each event, the oldest goes while there are too many.
        let mut model: Vec<Event> = Vec::new();
        let mut recorded = Vec::new();
        for (number, at) in times.into_iter().enumerate() {
            let mut event = event(at, Some(0), Some(0), Stage::Offer);
            event.detail = format!("number {number}");
            recorded.push(Record::Event(event.clone()));
            model.push(event);
            model.sort_by_key(|event| event.at);
            if model.len() > limit {
                model.remove(0);
            }
        }
        store.commit(&recorded).unwrap();
        prop_assert_eq!(&store.events_of(&client(0)).unwrap(), &model);
        prop_assert_eq!(&store.events_of_mac(mac(0)).unwrap(), &model);
    }
}

fn sorted(mut leases: Vec<Lease>) -> Vec<Lease> {
    leases.sort_by(|a, b| a.holder.cmp(&b.holder));
    leases
}

#[test]
fn beyond_the_limit_the_oldest_sighting_goes_first() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path()).unwrap();
    let limit = u16::try_from(MAX_SIGHTINGS).unwrap();
    // The first machine is seen again late: then the second is the oldest.
    let seen = |who: u16, at: u64| Record::Sighting(Sighting { mac: mac(who), address: None, at: Timestamp(at) });
    let mut records: Vec<Record> = (0..limit).map(|who| seen(who, u64::from(who))).collect();
    records.push(seen(0, 10_000));
    records.push(seen(limit, 10_001));
    records.push(seen(limit + 1, 10_002));
    store.commit(&records).unwrap();
    let kept: Vec<Mac> = store.sightings().unwrap().into_iter().map(|sighting| sighting.mac).collect();
    let expected: Vec<Mac> = std::iter::once(0).chain(3..limit + 2).map(mac).collect();
    assert_eq!(kept, expected);
}

#[test]
fn strangers_never_push_out_the_boots_of_clients() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path()).unwrap();
    let own = event(1, Some(0), Some(0), Stage::Offer);
    store.commit(&[Record::Event(own.clone())]).unwrap();
    let strangers = MAX_EVENTS_OF_STRANGERS + 100;
    let flood: Vec<Record> = (0..strangers)
        .map(|number| Record::Event(event(2 + number, None, Some(u16::try_from(number + 1).unwrap()), Stage::Offer)))
        .collect();
    store.commit(&flood).unwrap();
    assert_eq!(store.events_of(&client(0)).unwrap(), [own]);
    let kept = (0..strangers).filter(|number| {
        let hardware = mac(u16::try_from(number + 1).unwrap());
        !store.events_of_mac(hardware).unwrap().is_empty()
    });
    assert!(kept.eq(100..strangers), "the oldest strangers are forgotten");
}

#[test]
fn a_store_of_a_newer_schema_is_refused_and_left_as_it_is() {
    let state = tempfile::tempdir().unwrap();
    let lease = Lease {
        holder: Holder::Client(client(1)),
        address: Ipv4Addr::new(10, 0, 0, 1),
        mac: mac(1),
        expires: Timestamp(5),
    };
    let store = Store::open(state.path()).unwrap();
    store.commit(&[Record::Lease(lease.clone())]).unwrap();
    drop(store);
    set_schema(state.path(), SCHEMA + 1);
    let error = Store::open(state.path()).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found, .. } if found == SCHEMA + 1), "{error}");
    assert!(error.to_string().contains("made by a newer roost"), "{error}");

    set_schema(state.path(), SCHEMA);
    assert_eq!(Store::open(state.path()).unwrap().leases().unwrap(), [lease]);
}

#[test]
fn a_store_of_the_first_schema_is_taken_over() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path()).unwrap();
    store.commit(&[Record::Event(event(1, Some(0), Some(0), Stage::Offer))]).unwrap();
    drop(store);
    set_schema(state.path(), 1);
    let store = Store::open(state.path()).unwrap();
    assert_eq!(store.events_of(&client(0)).unwrap().len(), 1);
    assert_eq!(store.use_db(schema).unwrap(), Some(SCHEMA));
}

#[test]
fn ports_and_habits_beyond_their_limit_push_out_others() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path()).unwrap();
    let most = u16::try_from(MAX_HABITS).unwrap();
    let records = (0..=most).flat_map(|number| {
        let port = Record::Plugged(format!("sw1/{number:05}").parse().unwrap(), Some(mac(number)));
        [Record::Habit(mac(number), Habit { file: true }), port]
    });
    store.commit(&records.collect::<Vec<_>>()).unwrap();
    let (habits, plugged) = (store.habits().unwrap(), store.plugged().unwrap());
    assert_eq!((habits.len(), plugged.len()), (usize::from(most), usize::from(most)));
}

fn set_schema(state: &Path, version: u64) {
    let db = Database::open(state.join(FILE)).unwrap();
    let write = db.begin_write().unwrap();
    write.open_table(META).unwrap().insert(META_SCHEMA, version).unwrap();
    write.commit().unwrap();
}

#[test]
fn a_store_that_is_open_elsewhere_says_so() {
    let state = tempfile::tempdir().unwrap();
    let _store = Store::open(state.path()).unwrap();
    let error = Store::open(state.path()).unwrap_err();
    assert!(matches!(error, StoreError::Busy(_)), "{error}");
}

#[test]
fn a_file_that_is_no_store_is_named() {
    let state = tempfile::tempdir().unwrap();
    std::fs::write(state.path().join(FILE), "this is a diary\n".repeat(1_000)).unwrap();
    let error = Store::open(state.path()).unwrap_err();
    assert!(error.to_string().contains("roost.redb"), "{error}");
}

#[test]
fn a_row_that_somebody_else_wrote_is_an_error_not_a_panic() {
    let state = tempfile::tempdir().unwrap();
    drop(Store::open(state.path()).unwrap());
    let db = Database::open(state.path().join(FILE)).unwrap();
    let write = db.begin_write().unwrap();
    write.open_table(LEASES).unwrap().insert("client:PC 01", b"{}".as_slice()).unwrap();
    write.commit().unwrap();
    drop(db);
    let error = Store::open(state.path()).unwrap().leases().unwrap_err();
    assert!(matches!(error, StoreError::Row { table: "leases", .. }), "{error}");
}

#[test]
fn damage_anywhere_in_the_file_is_an_error_or_harmless_but_never_a_panic() {
    let state = tempfile::tempdir().unwrap();
    let path = state.path().join(FILE);
    let store = Store::open(state.path()).unwrap();
    let events: Vec<Record> = (0..200).map(|at| Record::Event(event(at, Some(0), Some(0), Stage::Offer))).collect();
    store.commit(&events).unwrap();
    drop(store);
    let sound = std::fs::read(&path).unwrap();
    let whole = Store::open(state.path()).unwrap().events_of(&client(0)).unwrap();
    for page in 0..sound.len() / 4_096 {
        let mut damaged = sound.clone();
        damaged[page * 4_096 + 40..][..64].fill(0xa5);
        std::fs::write(&path, damaged).unwrap();
        let read = Store::open(state.path()).and_then(|store| store.events_of(&client(0)));
        assert!(read.is_err() || read.is_ok_and(|events| events == whole), "page {page}");
    }
}

/// A file on a file system that is full while a flag is set.
#[derive(Debug)]
struct Filling {
    file: redb::backends::FileBackend,
    full: Arc<AtomicBool>,
}

impl Filling {
    fn room(&self) -> io::Result<()> {
        if self.full.load(Ordering::Relaxed) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl redb::StorageBackend for Filling {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.room()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.room()?;
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.room()?;
        self.file.write(offset, data)
    }
}

#[test]
fn a_full_file_system_costs_what_was_not_stored_and_nothing_else() {
    let state = tempfile::tempdir().unwrap();
    let path = state.path().join(FILE);
    let full = Arc::new(AtomicBool::new(false));
    let (file, flag) = (path.clone(), full.clone());
    let open = move || {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&file)?;
        let file = redb::backends::FileBackend::new(file)?;
        redb::Builder::new().create_with_backend(Filling { file, full: flag.clone() })
    };
    let store = Store::with(path, Box::new(open)).unwrap();
    let lease = |number: u8| Lease {
        holder: Holder::Client(client(number)),
        address: Ipv4Addr::new(10, 0, 0, number),
        mac: mac(u16::from(number)),
        expires: Timestamp(5),
    };
    store.commit(&[Record::Lease(lease(1))]).unwrap();
    full.store(true, Ordering::Relaxed);
    for _ in 0..2 {
        store.commit(&[Record::Lease(lease(2))]).unwrap_err();
    }
    full.store(false, Ordering::Relaxed);
    store.commit(&[Record::Lease(lease(3))]).unwrap();
    assert_eq!(store.leases().unwrap(), [lease(1), lease(3)]);
}
