//! What was seen and must outlive a restart: leases, sightings of machines, and the events of their boots.
//!
//! Not here: what the operator wants, which is the mapping file's (`config`), and bytes of disks. One redb file,
//! `STATE/roost.redb`, holds leases by holder, sightings by MAC, events by time, indexes over the events, what machines are known to
//! do with an offer, the machines at clients' ports, and CHAP secrets by client, for which nobody but its owner may read the file.
//! Values are JSON, so that a rescuer can read them; [`SCHEMA`] is their version. Every table has a bound, because strangers on the
//! wire cause most of what is written here.
//!
//! [`Store`] is synchronous. [`Writer`] is how async code writes: one task that gathers what many adapters record into few
//! commits. [`StateLock`] makes one process the owner of the folder.

mod lock;
mod rows;
mod writer;

use std::fmt;
use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind};
use std::ops::RangeInclusive;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use redb::{
    Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition,
};

use crate::fleet::{ClientName, Event, Habit, Holder, Lease, Mac, Port, Secrets, Sighting};

pub use lock::{LockError, StateLock};
pub use writer::{WriteError, Writer};

/// Version of the tables and of the values in them. It goes up with each change that an older Roost would misread.
pub const SCHEMA: u64 = 2;

/// The store's file in the state folder.
pub const FILE: &str = "roost.redb";

/// Sightings kept; the oldest goes first. A forger of MAC addresses can cause as many as it likes.
pub const MAX_SIGHTINGS: u64 = 4_096;

/// Habits of machines kept, and machines at ports. Both are of clients alone, of which a mapping file has no more.
pub const MAX_HABITS: u64 = 4_096;

/// Events kept of one client or of one MAC address: some forty boots of seven stages.
pub const MAX_EVENTS_OF_ONE: u64 = 288;

/// Events kept of all machines that are in no client's place, together, so that strangers never push out the boots of clients.
pub const MAX_EVENTS_OF_STRANGERS: u64 = 4_096;

/// Events kept in all: the whole history of 256 clients, under 32 MiB on disk.
pub const MAX_EVENTS: u64 = 256 * MAX_EVENTS_OF_ONE;

/// redb's page cache. Its default is 1 GiB; the whole state of a lab is a few MiB, and reads are rare.
const CACHE_BYTES: usize = 2 << 20;

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const LEASES: TableDefinition<&str, &[u8]> = TableDefinition::new("leases");
const SIGHTINGS: TableDefinition<&str, &[u8]> = TableDefinition::new("sightings");
/// (milliseconds, MAC): which sighting is the oldest.
const SIGHTINGS_BY_AGE: TableDefinition<(u64, &str), ()> = TableDefinition::new("sightings-by-age");
/// A client's CHAP secrets.
const SECRETS: TableDefinition<&str, &[u8]> = TableDefinition::new("secrets");
/// What a machine, by its MAC, is known to do with an offer.
const HABITS: TableDefinition<&str, &[u8]> = TableDefinition::new("habits");
/// Which machine was seen at a port last.
const PLUGGED: TableDefinition<&str, &str> = TableDefinition::new("plugged");
/// (milliseconds, sequence number): events in the order in which they happened, and within one millisecond, were recorded.
const EVENTS: TableDefinition<(u64, u64), &[u8]> = TableDefinition::new("events");
/// (subject, milliseconds, sequence number): the events of one subject.
const EVENTS_BY_SUBJECT: TableDefinition<(&str, u64, u64), ()> = TableDefinition::new("events-by-subject");
/// How many events a subject has.
const EVENT_COUNTS: TableDefinition<&str, u64> = TableDefinition::new("event-counts");

const META_SCHEMA: &str = "schema";
const META_SEQUENCE: &str = "next-event";

/// The store could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the file open.
    #[error("the store {0} is open in another process; stop that one first")]
    Busy(PathBuf),
    /// The file is of a later schema.
    #[error(
        "the store {path} was made by a newer roost (schema {found}; this one knows {SCHEMA}); start that roost, or move the file away and lose leases and boot histories"
    )]
    Newer {
        /// The store's file.
        path: PathBuf,
        /// The schema that it has.
        found: u64,
    },
    /// The file is no store, or is damaged beyond redb's own repair.
    #[error("cannot open the store {path}: {source}")]
    Open {
        /// The store's file.
        path: PathBuf,
        /// What redb says.
        source: Box<redb::Error>,
    },
    /// A row that this schema does not have: somebody else wrote it.
    #[error("the store's table `{table}` holds a row that cannot be read: {why}")]
    Row {
        /// The table.
        table: &'static str,
        /// What is wrong with the row.
        why: String,
    },
    /// A read or a commit failed.
    #[error("the store failed: {0}")]
    Failed(Box<redb::Error>),
}

impl StoreError {
    /// Whether the host has no space left.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let (Self::Open { source, .. } | Self::Failed(source)) = self else { return false };
        matches!(&**source, redb::Error::Io(error)
            if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
    }
}

/// Turns each of redb's errors into [`StoreError::Failed`].
fn failed(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Failed(Box::new(error.into()))
}

/// Something to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A lease, new or renewed; it takes the place of its holder's last one.
    Lease(Lease),
    /// A holder whose address was given to another.
    LeaseGone(Holder),
    /// A machine was seen; it takes the place of this machine's last sighting.
    Sighting(Sighting),
    /// A stage of a boot.
    Event(Event),
    /// A client's new CHAP secrets.
    Secrets(ClientName, Secrets),
    /// A client whose CHAP secrets are void.
    SecretsGone(ClientName),
    /// What a client's machine is known to do with an offer.
    Habit(Mac, Habit),
    /// Which machine was seen at a client's port last; none where it was seen elsewhere since.
    Plugged(Port, Option<Mac>),
}

/// The open store. Clones share it.
///
/// redb gives up a database whose file failed once. The usual failure is a full file system, which passes: so a failed
/// database is closed, and the next call opens the file anew. What was not durable by then is lost.
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    open: Box<dyn Fn() -> Result<Database, DatabaseError> + Send + Sync>,
    /// `None` after a failure, until the next call.
    db: RwLock<Option<Database>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens `STATE/roost.redb`, or makes it.
    ///
    /// # Errors
    /// The file is another process's, a newer roost's, or cannot be read or written.
    pub fn open(state: &Path) -> Result<Self, StoreError> {
        let path = state.join(FILE);
        let io = |error: io::Error| StoreError::Open { path: path.clone(), source: Box::new(error.into()) };
        if !path.exists() {
            // Made beside its place: where the host is full, or the process dies, no half of a store is left there.
            let made = path.with_extension("redb.new");
            match fs::remove_file(&made) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(io(error)),
                _ => {}
            }
            drop(Self::at(made.clone())?);
            // The file's name is durable only when its folder is.
            fs::rename(&made, &path).and_then(|()| File::open(state)?.sync_all()).map_err(io)?;
        }
        // It holds secrets.
        let private = fs::metadata(&path).and_then(|found| match found.permissions().mode() & 0o077 {
            0 => Ok(()),
            _ => fs::set_permissions(&path, Permissions::from_mode(0o600)),
        });
        private.map_err(io)?;
        Self::at(path)
    }

    fn at(path: PathBuf) -> Result<Self, StoreError> {
        let file = path.clone();
        let open = move || {
            // A lab's store is small: to read it whole once is cheap, and damage becomes an error instead of a panic.
            redb::Builder::new().set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true).create(&file)
        };
        Self::with(path, Box::new(open))
    }

    fn with(
        path: PathBuf,
        open: Box<dyn Fn() -> Result<Database, DatabaseError> + Send + Sync>,
    ) -> Result<Self, StoreError> {
        let store = Self { shared: Arc::new(Shared { path, open, db: RwLock::new(None) }) };
        match store.use_db(schema)? {
            None => store.use_db(create_tables)?,
            Some(SCHEMA) => {}
            // Schema 1 has fewer tables and one stage less: it is as good, once it says what it is.
            Some(1) => store.use_db(create_tables)?,
            Some(found) => return Err(StoreError::Newer { path: store.shared.path.clone(), found }),
        }
        Ok(store)
    }

    /// Works with the database, which is opened where it is not.
    fn use_db<T>(&self, work: impl Fn(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let Shared { path, open, db } = &*self.shared;
        let done = loop {
            // A panic inside redb leaves a database that says itself whether it still works.
            let opened = db.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(db) = &*opened {
                break work(db);
            }
            drop(opened);
            let mut closed = db.write().unwrap_or_else(PoisonError::into_inner);
            if closed.is_none() {
                *closed = Some(open().map_err(|error| match error {
                    DatabaseError::DatabaseAlreadyOpen => StoreError::Busy(path.clone()),
                    other => StoreError::Open { path: path.clone(), source: Box::new(other.into()) },
                })?);
            }
        };
        if let Err(StoreError::Failed(error)) = &done
            && matches!(**error, redb::Error::Io(_) | redb::Error::PreviousIo)
        {
            *db.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
        done
    }

    /// Every lease, expired ones too, in the order of holders.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn leases(&self) -> Result<Vec<Lease>, StoreError> {
        self.use_db(|db| {
            let read = db.begin_read().map_err(failed)?;
            let table = read.open_table(LEASES).map_err(failed)?;
            let rows = table.range::<&str>(..).map_err(failed)?;
            rows.map(|row| row.map_err(failed).and_then(|(holder, row)| rows::lease(holder.value(), row.value())))
                .collect()
        })
    }

    /// Every machine that was seen, at most [`MAX_SIGHTINGS`], in the order of MAC addresses.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn sightings(&self) -> Result<Vec<Sighting>, StoreError> {
        self.use_db(|db| {
            let read = db.begin_read().map_err(failed)?;
            let table = read.open_table(SIGHTINGS).map_err(failed)?;
            let rows = table.range::<&str>(..).map_err(failed)?;
            rows.map(|row| row.map_err(failed).and_then(|(mac, row)| rows::sighting(mac.value(), row.value())))
                .collect()
        })
    }

    /// The CHAP secrets of every client that has some, in the order of names.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn secrets(&self) -> Result<Vec<(ClientName, Secrets)>, StoreError> {
        self.rows_of_later(SECRETS, rows::secrets)
    }

    /// What machines are known to do with an offer, at most [`MAX_HABITS`], in the order of MAC addresses.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn habits(&self) -> Result<Vec<(Mac, Habit)>, StoreError> {
        self.rows_of_later(HABITS, rows::habit)
    }

    /// Which machine was seen at which client's port last, at most [`MAX_HABITS`], in the order of ports.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn plugged(&self) -> Result<Vec<(Port, Mac)>, StoreError> {
        self.rows_of_later(PLUGGED, rows::plugged)
    }

    /// Every row of a table that was not there from the beginning: in a store that an older Roost made, and that was not written to
    /// since, it is missing, and that is no error.
    fn rows_of_later<V: redb::Value + 'static, T>(
        &self,
        table: TableDefinition<&str, V>,
        row: impl Fn(&str, V::SelfType<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        self.use_db(|db| {
            let read = db.begin_read().map_err(failed)?;
            let table = match read.open_table(table) {
                Ok(table) => table,
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                Err(other) => return Err(failed(other)),
            };
            let rows = table.range::<&str>(..).map_err(failed)?;
            rows.map(|read| read.map_err(failed).and_then(|(key, value)| row(key.value(), value.value()))).collect()
        })
    }

    /// This holder's lease, expired or not.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn lease_of(&self, holder: &Holder) -> Result<Option<Lease>, StoreError> {
        let key = rows::holder_key(holder);
        self.use_db(|db| {
            let read = db.begin_read().map_err(failed)?;
            let table = read.open_table(LEASES).map_err(failed)?;
            let row = table.get(key.as_str()).map_err(failed)?;
            row.map(|row| rows::lease(&key, row.value())).transpose()
        })
    }

    /// When and where this machine was last seen.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn sighting_of(&self, mac: Mac) -> Result<Option<Sighting>, StoreError> {
        let key = mac.to_string();
        self.use_db(|db| {
            let read = db.begin_read().map_err(failed)?;
            let table = read.open_table(SIGHTINGS).map_err(failed)?;
            let row = table.get(key.as_str()).map_err(failed)?;
            row.map(|row| rows::sighting(&key, row.value())).transpose()
        })
    }

    /// What is kept of one client's boots, oldest first.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn events_of(&self, client: &ClientName) -> Result<Vec<Event>, StoreError> {
        self.events_of_subject(&rows::client_key(client), usize::MAX)
    }

    /// The last `most` events of one client, oldest first.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn latest_events_of(&self, client: &ClientName, most: usize) -> Result<Vec<Event>, StoreError> {
        self.events_of_subject(&rows::client_key(client), most)
    }

    /// What is kept of one machine's boots, in whosever place it stood, oldest first.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn events_of_mac(&self, mac: Mac) -> Result<Vec<Event>, StoreError> {
        self.events_of_subject(&rows::mac_key(mac), usize::MAX)
    }

    fn events_of_subject(&self, subject: &str, most: usize) -> Result<Vec<Event>, StoreError> {
        self.use_db(|db| {
            let read = db.begin_read().map_err(failed)?;
            let index = read.open_table(EVENTS_BY_SUBJECT).map_err(failed)?;
            let events = read.open_table(EVENTS).map_err(failed)?;
            let mut found = Vec::new();
            for entry in index.range(of_subject(subject)).map_err(failed)?.rev().take(most) {
                let (key, ()) = entry.map(|(key, value)| (key, value.value())).map_err(failed)?;
                let (_, at, sequence) = key.value();
                let row = events.get((at, sequence)).map_err(failed)?.ok_or_else(|| missing(at, sequence))?;
                found.push(rows::event(at, row.value())?);
            }
            found.reverse();
            Ok(found)
        })
    }

    /// Stores all of these or none, and returns when they are on the disk.
    ///
    /// # Errors
    /// The file cannot be written: nobody may count on any of this being stored.
    pub fn commit(&self, records: &[Record]) -> Result<(), StoreError> {
        self.write(records, Durability::Immediate)
    }

    /// Stores all of these or none. Readers see them at once; the next [`Store::commit`] makes them durable.
    fn commit_soon(&self, records: &[Record]) -> Result<(), StoreError> {
        self.write(records, Durability::None)
    }

    fn write(&self, records: &[Record], durability: Durability) -> Result<(), StoreError> {
        self.use_db(|db| {
            let mut write = db.begin_write().map_err(failed)?;
            write.set_durability(durability).map_err(failed)?;
            let mut tables = Tables::of(&write);
            records.iter().try_for_each(|record| tables.apply(record))?;
            drop(tables);
            write.commit().map_err(failed)
        })
    }
}

/// The schema that the file has; `None`: it is new.
fn schema(db: &Database) -> Result<Option<u64>, StoreError> {
    let read = db.begin_read().map_err(failed)?;
    match read.open_table(META) {
        Ok(meta) => Ok(meta.get(META_SCHEMA).map_err(failed)?.map(|version| version.value())),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(other) => Err(failed(other)),
    }
}

fn create_tables(db: &Database) -> Result<(), StoreError> {
    let write = db.begin_write().map_err(failed)?;
    // To open them makes them.
    let mut tables = Tables::of(&write);
    tables.leases()?;
    tables.sightings()?;
    tables.secrets()?;
    tables.habits()?;
    tables.plugged()?;
    tables.events()?.meta.insert(META_SCHEMA, SCHEMA).map_err(failed)?;
    drop(tables);
    write.commit().map_err(failed)
}

/// Every key of one subject.
fn of_subject(subject: &str) -> RangeInclusive<(&str, u64, u64)> {
    (subject, 0, 0)..=(subject, u64::MAX, u64::MAX)
}

fn missing(at: u64, sequence: u64) -> StoreError {
    StoreError::Row { table: "events", why: format!("event {at}.{sequence} is in the index alone") }
}

/// The tables of one write transaction, each opened when something is for it: to open one takes longer than to store a lease.
struct Tables<'txn> {
    write: &'txn redb::WriteTransaction,
    leases: Option<redb::Table<'txn, &'static str, &'static [u8]>>,
    sightings: Option<SightingTables<'txn>>,
    secrets: Option<redb::Table<'txn, &'static str, &'static [u8]>>,
    habits: Option<redb::Table<'txn, &'static str, &'static [u8]>>,
    plugged: Option<redb::Table<'txn, &'static str, &'static str>>,
    events: Option<EventTables<'txn>>,
}

struct SightingTables<'txn> {
    sightings: redb::Table<'txn, &'static str, &'static [u8]>,
    sightings_by_age: redb::Table<'txn, (u64, &'static str), ()>,
}

struct EventTables<'txn> {
    meta: redb::Table<'txn, &'static str, u64>,
    events: redb::Table<'txn, (u64, u64), &'static [u8]>,
    events_by_subject: redb::Table<'txn, (&'static str, u64, u64), ()>,
    event_counts: redb::Table<'txn, &'static str, u64>,
}

impl<'txn> Tables<'txn> {
    fn of(write: &'txn redb::WriteTransaction) -> Self {
        Self { write, leases: None, sightings: None, secrets: None, habits: None, plugged: None, events: None }
    }

    fn leases(&mut self) -> Result<&mut redb::Table<'txn, &'static str, &'static [u8]>, StoreError> {
        opened(&mut self.leases, || self.write.open_table(LEASES).map_err(failed))
    }

    fn sightings(&mut self) -> Result<&mut SightingTables<'txn>, StoreError> {
        opened(&mut self.sightings, || SightingTables::open(self.write))
    }

    fn secrets(&mut self) -> Result<&mut redb::Table<'txn, &'static str, &'static [u8]>, StoreError> {
        opened(&mut self.secrets, || self.write.open_table(SECRETS).map_err(failed))
    }

    fn habits(&mut self) -> Result<&mut redb::Table<'txn, &'static str, &'static [u8]>, StoreError> {
        opened(&mut self.habits, || self.write.open_table(HABITS).map_err(failed))
    }

    fn plugged(&mut self) -> Result<&mut redb::Table<'txn, &'static str, &'static str>, StoreError> {
        opened(&mut self.plugged, || self.write.open_table(PLUGGED).map_err(failed))
    }

    fn events(&mut self) -> Result<&mut EventTables<'txn>, StoreError> {
        opened(&mut self.events, || EventTables::open(self.write))
    }

    fn apply(&mut self, record: &Record) -> Result<(), StoreError> {
        match record {
            Record::Lease(lease) => {
                let row = rows::lease_row(lease);
                self.leases()?.insert(rows::holder_key(&lease.holder).as_str(), row.as_slice()).map_err(failed)?;
                Ok(())
            }
            Record::LeaseGone(holder) => {
                self.leases()?.remove(rows::holder_key(holder).as_str()).map_err(failed)?;
                Ok(())
            }
            Record::Sighting(sighting) => self.sightings()?.put_sighting(sighting),
            Record::Event(event) => self.events()?.put_event(event),
            Record::Secrets(client, secrets) => {
                let row = rows::secrets_row(secrets);
                self.secrets()?.insert(client.as_str(), row.as_slice()).map_err(failed)?;
                Ok(())
            }
            Record::SecretsGone(client) => {
                self.secrets()?.remove(client.as_str()).map_err(failed)?;
                Ok(())
            }
            Record::Habit(mac, habit) => {
                let (row, habits) = (rows::habit_row(*habit), self.habits()?);
                habits.insert(mac.to_string().as_str(), row.as_slice()).map_err(failed)?;
                // Whose goes is all the same: it is learned anew.
                while habits.len().map_err(failed)? > MAX_HABITS {
                    habits.pop_first().map_err(failed)?;
                }
                Ok(())
            }
            Record::Plugged(port, Some(mac)) => {
                let plugged = self.plugged()?;
                plugged.insert(port.as_str(), mac.to_string().as_str()).map_err(failed)?;
                while plugged.len().map_err(failed)? > MAX_HABITS {
                    plugged.pop_first().map_err(failed)?;
                }
                Ok(())
            }
            Record::Plugged(port, None) => {
                self.plugged()?.remove(port.as_str()).map_err(failed)?;
                Ok(())
            }
        }
    }
}

/// What is in the slot, opened now if it was empty.
fn opened<T>(slot: &mut Option<T>, open: impl FnOnce() -> Result<T, StoreError>) -> Result<&mut T, StoreError> {
    match slot {
        Some(table) => Ok(table),
        empty => Ok(empty.insert(open()?)),
    }
}

impl<'txn> SightingTables<'txn> {
    fn open(write: &'txn redb::WriteTransaction) -> Result<Self, StoreError> {
        Ok(Self {
            sightings: write.open_table(SIGHTINGS).map_err(failed)?,
            sightings_by_age: write.open_table(SIGHTINGS_BY_AGE).map_err(failed)?,
        })
    }

    fn put_sighting(&mut self, sighting: &Sighting) -> Result<(), StoreError> {
        let mac = sighting.mac.to_string();
        let row = rows::sighting_row(sighting);
        let last = self.sightings.insert(mac.as_str(), row.as_slice()).map_err(failed)?;
        let last = last.map(|row| rows::sighting(&mac, row.value())).transpose()?;
        if let Some(last) = last {
            self.sightings_by_age.remove((last.at.0, mac.as_str())).map_err(failed)?;
        }
        self.sightings_by_age.insert((sighting.at.0, mac.as_str()), ()).map_err(failed)?;
        while self.sightings.len().map_err(failed)? > MAX_SIGHTINGS {
            let Some((oldest, _)) = self.sightings_by_age.pop_first().map_err(failed)? else { break };
            self.sightings.remove(oldest.value().1).map_err(failed)?;
        }
        Ok(())
    }
}

impl<'txn> EventTables<'txn> {
    fn open(write: &'txn redb::WriteTransaction) -> Result<Self, StoreError> {
        Ok(Self {
            meta: write.open_table(META).map_err(failed)?,
            events: write.open_table(EVENTS).map_err(failed)?,
            events_by_subject: write.open_table(EVENTS_BY_SUBJECT).map_err(failed)?,
            event_counts: write.open_table(EVENT_COUNTS).map_err(failed)?,
        })
    }

    fn put_event(&mut self, event: &Event) -> Result<(), StoreError> {
        let sequence = self.meta.get(META_SEQUENCE).map_err(failed)?.map_or(0, |next| next.value());
        self.meta.insert(META_SEQUENCE, sequence.wrapping_add(1)).map_err(failed)?;
        let row = rows::event_row(event);
        self.events.insert((event.at.0, sequence), row.as_slice()).map_err(failed)?;
        let subjects = rows::subjects(event);
        for subject in &subjects {
            self.events_by_subject.insert((subject.as_str(), event.at.0, sequence), ()).map_err(failed)?;
            let count = self.count(subject)?.saturating_add(1);
            self.event_counts.insert(subject.as_str(), count).map_err(failed)?;
        }
        // Only now: where the clock went back, the oldest event is the new one.
        for subject in &subjects {
            if self.count(subject)? > rows::most_events(subject) {
                self.forget_oldest_of(subject)?;
            }
        }
        while self.events.len().map_err(failed)? > MAX_EVENTS {
            let oldest = self.events.first().map_err(failed)?.map(|(key, _)| key.value());
            let Some(oldest) = oldest else { break };
            self.forget(oldest)?;
        }
        Ok(())
    }

    fn count(&self, subject: &str) -> Result<u64, StoreError> {
        Ok(self.event_counts.get(subject).map_err(failed)?.map_or(0, |count| count.value()))
    }

    fn forget_oldest_of(&mut self, subject: &str) -> Result<(), StoreError> {
        let oldest = match self.events_by_subject.range(of_subject(subject)).map_err(failed)?.next() {
            Some(entry) => {
                let (key, _) = entry.map_err(failed)?;
                let (_, at, sequence) = key.value();
                (at, sequence)
            }
            None => return Ok(()),
        };
        self.forget(oldest)
    }

    /// Removes one event from everywhere.
    fn forget(&mut self, (at, sequence): (u64, u64)) -> Result<(), StoreError> {
        let event = match self.events.remove((at, sequence)).map_err(failed)? {
            Some(row) => rows::event(at, row.value())?,
            None => return Err(missing(at, sequence)),
        };
        for subject in rows::subjects(&event) {
            self.events_by_subject.remove((subject.as_str(), at, sequence)).map_err(failed)?;
            match self.count(&subject)? {
                0 | 1 => self.event_counts.remove(subject.as_str()).map_err(failed)?,
                count => self.event_counts.insert(subject.as_str(), count - 1).map_err(failed)?,
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
