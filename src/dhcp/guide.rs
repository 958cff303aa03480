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
//! [`Guide::learn`] takes in what came of a packet, after it was answered. Nothing here outlives the process, and strangers
//! cannot make it grow.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::boot::{Handout, Machine, Missing};
use super::wire::Kind;
use super::{Note, Outcome, Reason};
use crate::fleet::{ClientName, Loaders, Mac, Stage};

/// Machines that are remembered; when there are more, what they did is forgotten and learned anew.
pub(super) const MAX_MACHINES: usize = 4_096;
/// A machine is told its platform's loader so often in a row without iPXE ever asking; then it is told another, where there is
/// one, every other time.
pub(super) const ROUNDS: u8 = 2;

/// Which loaders there are, and what machines made of them. Clones share one memory.
#[derive(Debug, Clone, Default)]
pub struct Guide(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    loaders: Loaders,
    habits: Mutex<HashMap<Mac, Habit>>,
}

impl PartialEq for Guide {
    fn eq(&self, other: &Self) -> bool {
        self.0.loaders == other.0.loaders
    }
}

impl Eq for Guide {}

/// What is known of a machine, before its present exchange and with it.
#[derive(Debug, Clone, Copy, Default)]
struct Habit {
    exchange: Option<[u8; 4]>,
    before: Known,
    now: Known,
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

    /// Takes in what came of a packet. Returns what an operator should know of it.
    pub fn learn(&self, outcome: &Outcome) -> Option<Note> {
        let asker = outcome.asker.as_ref()?;
        let (handout, asked) = match outcome.reason {
            Reason::Offered(_, handout) | Reason::OfferedBoot(handout) => (handout, false),
            Reason::ToldBoot(handout) => (handout, true),
            _ => return None,
        };
        self.take_in(asker.mac, asker.client.as_ref(), &asker.machine, handout, asked)
    }

    /// Takes in what a machine was handed out, in an offer or because it `asked` by itself.
    pub(super) fn take_in(
        &self,
        mac: Mac,
        client: Option<&ClientName>,
        machine: &Machine,
        handout: Handout,
        asked: bool,
    ) -> Option<Note> {
        let mut habits = self.habits();
        if habits.len() >= MAX_MACHINES && !habits.contains_key(&mac) {
            habits.clear();
        }
        let habit = habits.entry(mac).or_default();
        let begins = !asked && habit.exchange != Some(machine.exchange);
        let last = habit.now;
        if begins {
            (habit.exchange, habit.before) = (Some(machine.exchange), last.next());
        }
        let mut words = None;
        match handout {
            Handout::Script => {
                habit.now = Known { file: last.file, ..Known::default() };
                if let Some(missing) = machine.missing() {
                    habit.now.chained = last.chained.saturating_add(u8::from(begins));
                    words = (begins && last.chained == ROUNDS).then(|| still_missing(missing));
                }
            }
            Handout::Chain(_) if begins => {
                habit.now = Known { chained: last.chained.saturating_add(1), file: last.file, ..Known::default() };
            }
            // It runs no iPXE of ours, and needs none.
            _ if machine.raspberry_pi => {}
            // It asks port 4011 by itself: that way works.
            Handout::Loader(_) | Handout::LoaderUrl(_) if asked => (habit.now.file, habit.now.asked) = (false, true),
            Handout::Loader(_) | Handout::LoaderUrl(_) if machine.is_u_boot() => {}
            Handout::Loader(name) | Handout::LoaderUrl(name) if begins => {
                habit.now = Known { told: last.told.saturating_add(1), asked: false, ..habit.before };
                words = (habit.now.told == ROUNDS + 1).then(|| in_a_loop(name));
            }
            _ => {}
        }
        words.map(|detail| Note { mac, client: client.cloned(), stage: Stage::Offer, detail })
    }

    fn habits(&self) -> MutexGuard<'_, HashMap<Mac, Habit>> {
        self.0.habits.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
