//! Connections that have no session: those that log in, and those that only list targets.
//!
//! Anybody can open them, so there is a bound, on all and on those of one address. An address that has as many as it may
//! gives up its oldest for the next; when there are as many as may be in all, whoever holds most of them gives one up. So
//! one address cannot keep the others out, nor its own next connection.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Connections without a session, in all. A whole school is switched on at once: each machine has one, and a second while
/// its old session is probed. One that says nothing costs a task and a socket, some KiB.
pub(super) const MAX_WAITING: usize = 2048;

/// Connections of one address without a session. A machine has one or two, a host that lists targets a few.
pub(super) const MAX_WAITING_OF_ONE: usize = 32;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    room: Mutex<Room>,
}

#[derive(Debug, Default)]
struct Room {
    /// Of each address that has any, by their numbers, so oldest first. A sender that is dropped shows its connection out.
    seats: HashMap<IpAddr, BTreeMap<u64, oneshot::Sender<()>>>,
    /// In all.
    taken: usize,
    last: u64,
}

/// A connection's leave to wait, until it is dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    number: u64,
    from: IpAddr,
    shown_out: oneshot::Receiver<()>,
    waiting: Arc<Waiting>,
}

impl Waiting {
    /// Lets a connection from this address in; `None` if there is no room and nobody holds more than one place.
    pub(super) fn admit(self: &Arc<Self>, from: IpAddr) -> Option<Ticket> {
        let mut room = self.room();
        let own = room.seats.get(&from).map_or(0, BTreeMap::len);
        if own >= MAX_WAITING_OF_ONE {
            room.show_out_oldest(from);
        } else if room.taken >= MAX_WAITING {
            let greediest = room.greediest()?;
            room.show_out_oldest(greediest);
        }
        room.last += 1;
        room.taken += 1;
        let number = room.last;
        let (sender, shown_out) = oneshot::channel();
        room.seats.entry(from).or_default().insert(number, sender);
        Some(Ticket { number, from, shown_out, waiting: Arc::clone(self) })
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    /// The address that has most connections, if that is more than one; of several the one that has been there longest.
    fn greediest(&self) -> Option<IpAddr> {
        let rank =
            |seats: &BTreeMap<u64, _>| (seats.len(), Reverse(seats.first_key_value().map(|(number, _)| *number)));
        let (address, seats) = self.seats.iter().max_by_key(|(_, seats)| rank(seats))?;
        (seats.len() > 1).then_some(*address)
    }

    fn show_out_oldest(&mut self, from: IpAddr) {
        let oldest = self.seats.get(&from).and_then(|seats| seats.first_key_value()).map(|(number, _)| *number);
        if let Some(number) = oldest {
            self.free(from, number);
        }
    }

    /// A place is free again, if it was not before.
    fn free(&mut self, from: IpAddr, number: u64) {
        let Some(seats) = self.seats.get_mut(&from) else { return };
        if seats.remove(&number).is_some() {
            self.taken -= 1;
        }
        if seats.is_empty() {
            self.seats.remove(&from);
        }
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
        self.waiting.room().free(self.from, self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: usize) -> IpAddr {
        let [.., high, low] = u32::try_from(number).unwrap().to_be_bytes();
        IpAddr::from([10, 0, high, low])
    }

    fn is_shown_out(ticket: &mut Ticket) -> bool {
        ticket.shown_out.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn an_address_gives_up_its_own_oldest() {
        let waiting = Arc::<Waiting>::default();
        let mut modest = waiting.admit(address(1)).unwrap();
        let mut greedy: Vec<Ticket> = (0..=MAX_WAITING_OF_ONE).map(|_| waiting.admit(address(2)).unwrap()).collect();
        assert!(is_shown_out(&mut greedy[0]) && !is_shown_out(&mut greedy[1]) && !is_shown_out(&mut modest));
        assert_eq!(waiting.room().taken, 1 + MAX_WAITING_OF_ONE);
        drop(greedy);
        let room = waiting.room();
        assert_eq!((room.taken, room.seats.len()), (1, 1), "who left, or was shown out, holds no place");
    }

    #[test]
    fn the_greediest_address_makes_room_and_nobody_else() {
        let waiting = Arc::<Waiting>::default();
        let mut greedy: Vec<Ticket> = (0..3).map(|_| waiting.admit(address(0)).unwrap()).collect();
        let mut modest: Vec<Ticket> = (3..MAX_WAITING).map(|n| waiting.admit(address(n)).unwrap()).collect();
        let mut third = waiting.admit(address(1)).unwrap();
        assert!(is_shown_out(&mut greedy[0]), "its oldest");
        let again = waiting.admit(address(0)).unwrap();
        assert!(is_shown_out(&mut greedy[1]) && !is_shown_out(&mut greedy[2]));
        assert!(!is_shown_out(&mut third) && !modest.iter_mut().any(is_shown_out));
        assert_eq!(waiting.room().taken, MAX_WAITING);
        drop((greedy, modest, third, again));
        let room = waiting.room();
        assert_eq!((room.taken, room.seats.len()), (0, 0));
    }

    #[test]
    fn nobody_is_shown_out_where_each_holds_one() {
        let waiting = Arc::<Waiting>::default();
        let all: Vec<Ticket> = (0..MAX_WAITING).map(|n| waiting.admit(address(n)).unwrap()).collect();
        assert!(waiting.admit(address(MAX_WAITING)).is_none());
        drop(all);
        assert!(waiting.admit(address(MAX_WAITING)).is_some());
    }
}
