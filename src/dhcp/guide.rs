//! What machines are told of booting, beyond what their packets say: which loaders there are, and what each machine did the
//! last times that it was told something.
//!
//! Firmware never says that an offer was of no use to it; it just begins again. So what counts is what comes next: a question
//! on port 4011, iPXE's own DISCOVER, or the same DISCOVER once more. From the first two a machine's way is known to work; by the
//! third, another is tried. An exchange is one DISCOVER and what follows it: within one, the answers do not change.
//!
//! U-Boot asks as itself before it asks as the UEFI that it also is, for a script of its own, and takes a new exchange for every
//! DISCOVER that it repeats. What it is told then says nothing of the loader, and does not count.
//!
//! [`Guide::learn`] takes in what came of a packet, after it was answered, and says what is worth keeping over a restart: the way
//! that a client's machine was seen to take. Strangers cannot make it grow, nor push out a client's machine.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::boot::{Handout, Machine, Missing};
use super::wire::Kind;
use super::{Note, Outcome, Reason};
use crate::fleet::fact::LATE_SECS;
use crate::fleet::{ClientName, Fact, Habit, Loaders, Mac, Stage};

/// Machines that are remembered; when there are more, what they did is forgotten and learned anew.
pub(super) const MAX_MACHINES: usize = 4_096;
/// A machine is told its platform's loader so often in a row without iPXE ever asking; then it is told another, where there is
/// one, every other time.
pub(super) const ROUNDS: u8 = 2;
/// A DISCOVER that comes so often in one exchange, though each was answered, is one to which answers mean nothing.
const UNHEEDED: u8 = 3;

/// Which loaders there are, and what machines made of them. Clones share one memory.
#[derive(Debug, Clone, Default)]
pub struct Guide(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    loaders: Loaders,
    habits: Mutex<HashMap<Mac, Ways>>,
}

impl PartialEq for Guide {
    fn eq(&self, other: &Self) -> bool {
        self.0.loaders == other.0.loaders
    }
}

impl Eq for Guide {}

/// How a machine was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// With its address.
    WithAddress,
    /// Beside the server that gives its address.
    Beside,
    /// The same over IPv6, where a machine repeats its question also because nobody gives it an address.
    Six,
}

/// What is known of a machine, before its present exchange and with it.
#[derive(Debug, Clone, Copy, Default)]
struct Ways {
    exchange: Option<[u8; 4]>,
    /// How often it was told in this exchange, and took nothing of it up.
    unheeded: u8,
    before: Known,
    now: Known,
    /// What is kept of it over a restart.
    kept: Habit,
    /// It stands in a client's place.
    known: bool,
}

/// What is to be said, and to be kept, of what came of a packet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lesson {
    /// What an operator should know of it.
    pub notes: Vec<Note>,
    /// The way that a client's machine took, where that is news.
    pub habit: Option<(Mac, Habit)>,
}

/// What is known of a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// How often firmware was told a loader in a row, without iPXE asking in between.
    pub(super) told: u8,
    /// How often an iPXE that lacks something was told our own in a row.
    pub(super) chained: u8,
    /// Beside another server, UEFI is told in the offer alone: it was told to ask port 4011, and did not.
    pub(super) file: bool,
    /// Firmware asked port 4011 since it was told last.
    asked: bool,
}

impl Known {
    /// For the next exchange: another way, if firmware was told twice and nothing came of it.
    fn next(self) -> Self {
        Self { file: self.file ^ (self.told >= ROUNDS && !self.asked), ..self }
    }
}

impl Guide {
    /// With these loaders.
    #[must_use]
    pub fn new(loaders: Loaders) -> Self {
        Self(Arc::new(Inner { loaders, habits: Mutex::default() }))
    }

    /// Remembers what these machines did before the last restart.
    pub fn remember(&self, habits: impl IntoIterator<Item = (Mac, Habit)>) {
        let ways = |habit: Habit| {
            let known = Known { file: habit.file, ..Known::default() };
            Ways { before: known, now: known, kept: habit, known: true, ..Ways::default() }
        };
        self.habits().extend(habits.into_iter().map(|(mac, habit)| (mac, ways(habit))));
    }

    pub(super) fn loaders(&self) -> &Loaders {
        &self.0.loaders
    }

    /// What is known of a machine, for the answer to a packet of this exchange.
    pub(super) fn known(&self, mac: Mac, kind: Kind, exchange: [u8; 4]) -> Known {
        match self.habits().get(&mac) {
            None => Known::default(),
            Some(habit) if kind == Kind::Discover && habit.exchange != Some(exchange) => habit.now.next(),
            Some(habit) => habit.before,
        }
    }

    /// Takes in what came of a packet.
    pub fn learn(&self, outcome: &Outcome) -> Lesson {
        self.lesson(outcome).unwrap_or_default()
    }

    fn lesson(&self, outcome: &Outcome) -> Option<Lesson> {
        let asker = outcome.asker.as_ref()?;
        let way = if matches!(outcome.reason, Reason::Offered(..)) { Way::WithAddress } else { Way::Beside };
        let (handout, asked) = match outcome.reason {
            Reason::Offered(_, handout) | Reason::OfferedBoot(handout) => (handout, false),
            Reason::ToldBoot(handout) => (handout, true),
            // It took something up.
            Reason::Acked(..) | Reason::Elsewhere { .. } | Reason::ChoseOther(_) => {
                if let Some(ways) = self.habits().get_mut(&asker.mac) {
                    ways.unheeded = 0;
                }
                return None;
            }
            _ => return None,
        };
        Some(self.take_in(asker.mac, asker.client.as_ref(), &asker.machine, way, handout, asked))
    }

    /// Takes in what a machine was handed out, in an offer or because it `asked` by itself.
    pub(super) fn take_in(
        &self,
        mac: Mac,
        client: Option<&ClientName>,
        machine: &Machine,
        way: Way,
        handout: Handout,
        asked: bool,
    ) -> Lesson {
        let mut habits = self.habits();
        if habits.len() >= MAX_MACHINES && !habits.contains_key(&mac) {
            habits.retain(|_, ways| ways.known);
            if habits.len() >= MAX_MACHINES {
                habits.clear();
            }
        }
        let habit = habits.entry(mac).or_default();
        habit.known = client.is_some();
        let begins = !asked && habit.exchange != Some(machine.exchange);
        let last = habit.now;
        if begins {
            (habit.exchange, habit.before, habit.unheeded) = (Some(machine.exchange), last.next(), 0);
        }
        let mut said = Vec::new();
        // What was seen to work: iPXE came, or port 4011 was asked.
        let mut works = None;
        // U-Boot counts from when it was started.
        if begins && machine.secs >= LATE_SECS && !machine.is_u_boot() {
            said.push((heard_late(machine.secs), Some(Fact::HeardLate { secs: machine.secs })));
        }
        match handout {
            Handout::Script => {
                works = (last.told > 0).then_some(last.file);
                habit.now = Known { file: last.file, ..Known::default() };
                if let Some(missing) = machine.missing() {
                    habit.now.chained = last.chained.saturating_add(u8::from(begins));
                    said.extend((begins && last.chained == ROUNDS).then(|| (still_missing(missing), None)));
                }
            }
            Handout::Chain(_) if begins => {
                habit.now = Known { chained: last.chained.saturating_add(1), file: last.file, ..Known::default() };
            }
            // It runs no iPXE of ours, and needs none.
            _ if machine.raspberry_pi => {}
            // It asks port 4011 by itself: that way works.
            Handout::Loader(_) | Handout::LoaderUrl(_) if asked => {
                (habit.now.file, habit.now.asked, habit.unheeded) = (false, true, 0);
                works = Some(false);
            }
            Handout::Loader(_) | Handout::LoaderUrl(_) if machine.is_u_boot() => {}
            Handout::Loader(name) | Handout::LoaderUrl(name) if begins => {
                habit.now = Known { told: last.told.saturating_add(1), asked: false, ..habit.before };
                habit.unheeded = 1;
                if habit.now.told == ROUNDS + 1 {
                    let fact = Fact::Unheeded {
                        times: habit.now.told,
                        proxy: way != Way::WithAddress,
                        asked_4011: last.asked,
                    };
                    said.push((in_a_loop(name), Some(fact)));
                }
            }
            Handout::Loader(name) | Handout::LoaderUrl(name) => {
                habit.unheeded = habit.unheeded.saturating_add(1);
                // In a row of exchanges that come to nothing, the first time says it.
                if habit.unheeded == UNHEEDED && habit.now.told == 1 && way != Way::Six {
                    let proxy = way == Way::Beside;
                    let fact = Fact::Unheeded { times: UNHEEDED, proxy, asked_4011: habit.now.asked };
                    said.push((not_taken(name), Some(fact)));
                }
            }
            _ => {}
        }
        let note = |(detail, fact)| Note { mac, client: client.cloned(), stage: Stage::Offer, detail, fact };
        let works = works.map(|file| Habit { file });
        let works = works.filter(|works| way == Way::Beside && habit.known && *works != habit.kept);
        habit.kept = works.unwrap_or(habit.kept);
        Lesson { notes: said.into_iter().map(note).collect(), habit: works.map(|works| (mac, works)) }
    }

    fn habits(&self) -> MutexGuard<'_, HashMap<Mac, Ways>> {
        self.0.habits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn heard_late(secs: u16) -> String {
    format!(
        "the first that is heard of it says that it has been asking for {secs} s: its switch port forwards only some time after \
         link-up (spanning tree), or nobody was there to answer"
    )
}

fn not_taken(name: &str) -> String {
    format!(
        "told {name} three times in one exchange, and it only asked again: its firmware ignores or does not hear the offer"
    )
}

fn in_a_loop(name: &str) -> String {
    format!(
        "told {name} for the third time, and iPXE never asked: the loader does not run, or another server answers it; \
         another way is tried"
    )
}

fn still_missing(missing: Missing) -> String {
    format!(
        "its iPXE has no {missing}, and neither had the loader that it was told instead, twice: it gets its script as it is"
    )
}

#[cfg(test)]
impl Guide {
    /// How many machines are remembered.
    pub(super) fn remembered(&self) -> usize {
        self.habits().len()
    }
}
