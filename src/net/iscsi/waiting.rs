//! Connections that have no session: those that log in, and those that only list targets.
//!
//! Anybody can open them, so there is a bound. When it is reached, whoever holds most of them gives one up: one address
//! cannot keep the others out.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Connections without a session, in all.
pub(super) const MAX_WAITING: usize = 256;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    room: Mutex<Room>,
}

#[derive(Debug, Default)]
struct Room {
    /// By their numbers, so oldest first. A sender that is dropped shows its connection out.
    seats: BTreeMap<u64, (IpAddr, oneshot::Sender<()>)>,
    last: u64,
}

/// A connection's leave to wait, until it is dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    number: u64,
    shown_out: oneshot::Receiver<()>,
    waiting: Arc<Waiting>,
}

impl Waiting {
    /// Lets a connection from this address in; `None` if there is no room and nobody holds more than one place.
    pub(super) fn admit(self: &Arc<Self>, from: IpAddr) -> Option<Ticket> {
        let mut room = self.room();
        if room.seats.len() >= MAX_WAITING {
            let oldest = room.oldest_of_the_greediest()?;
            room.seats.remove(&oldest);
        }
        room.last += 1;
        let number = room.last;
        let (sender, shown_out) = oneshot::channel();
        room.seats.insert(number, (from, sender));
        Some(Ticket { number, shown_out, waiting: Arc::clone(self) })
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    /// The oldest connection of the address that has most of them, if that is more than one.
    fn oldest_of_the_greediest(&self) -> Option<u64> {
        let mut by_address: HashMap<IpAddr, (usize, u64)> = HashMap::new();
        for (number, (address, _)) in &self.seats {
            by_address.entry(*address).or_insert((0, *number)).0 += 1;
        }
        let greediest = by_address.into_values().max_by_key(|(count, oldest)| (*count, u64::MAX - oldest));
        greediest.filter(|(count, _)| *count > 1).map(|(_, oldest)| oldest)
    }
}

impl Ticket {
    /// Returns when the connection has to make room for another.
    pub(super) async fn shown_out(&mut self) {
        // Nothing is ever sent: the sender is dropped.
        let _ = (&mut self.shown_out).await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.waiting.room().seats.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn is_shown_out(ticket: &mut Ticket) -> bool {
        ticket.shown_out.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn the_greediest_address_makes_room_and_nobody_else() {
        let waiting = Arc::<Waiting>::default();
        let mut modest = waiting.admit(address(1)).unwrap();
        let mut greedy: Vec<Ticket> = (1..MAX_WAITING).map(|_| waiting.admit(address(2)).unwrap()).collect();
        let mut third = waiting.admit(address(3)).unwrap();
        let again = waiting.admit(address(2)).unwrap();
        assert!(is_shown_out(&mut greedy[0]) && is_shown_out(&mut greedy[1]), "its oldest two");
        assert!(!is_shown_out(&mut greedy[2]) && !is_shown_out(&mut modest) && !is_shown_out(&mut third));
        drop((greedy, again));
        assert_eq!(waiting.room().seats.len(), 2, "who left, or was shown out, holds no place");
    }

    #[test]
    fn nobody_is_shown_out_where_each_holds_one() {
        let waiting = Arc::<Waiting>::default();
        let all: Vec<Ticket> =
            (0..MAX_WAITING).map(|n| waiting.admit(address(u8::try_from(n).unwrap())).unwrap()).collect();
        assert!(waiting.admit(IpAddr::from([10, 0, 1, 0])).is_none());
        drop(all);
        assert!(waiting.admit(IpAddr::from([10, 0, 1, 0])).is_some());
    }
}
