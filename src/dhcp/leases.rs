//! Which address is whose. A client's address sticks to its *name*, a stranger's to its MAC; option 61 decides nothing, since
//! firmware, loader and operating system of one machine each send another one.
//!
//! An offer is held in memory for a while and may be lost; a lease is a [`LeaseChange`] that must be durable before the client
//! hears of it. Every table has a bound, because strangers cause most of what is in it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::offers::{Offer, Offers};
use super::scope::Scope;
use crate::fleet::lease::MAX_STRANGERS;
use crate::fleet::{Client, ClientName, Fleet, Holder, Lease, Mac, Pool, Port, Timestamp};

/// How long an offered address is kept for the one it was offered to. EDK2 takes 4 s and more to collect offers, and asks
/// again after 4, 8, 16 and 32 s.
pub const OFFER_HOLD: Duration = Duration::from_secs(60);

/// The same for machines that are in nobody's place. A flood of made-up ones has the pool for no longer; a machine that takes
/// longer gets the address all the same if it stayed free.
pub const STRANGERS_OFFER_HOLD: Duration = Duration::from_secs(15);

/// Most offers held at once to machines that are in nobody's place and plugged in at one port; the oldest goes first. There
/// may be a small switch there, not a flood.
pub const MAX_OFFERS_OF_PORT: usize = 16;

/// How long a question whether somebody uses an address may take. Firmware and iPXE ask again after a second, and the whole
/// exchange has more than one step; a machine on the wire answers ARP within milliseconds.
pub const PROBE: Duration = Duration::from_millis(250);

/// How long it counts that nobody answered.
const SILENCE: Duration = Duration::from_secs(600);

/// Most addresses of which that is known; the one that was asked first goes first.
const MAX_SILENT: usize = 1_024;

/// Most offers held at once; the oldest goes first, and can still be taken up if its address stays free.
pub const MAX_OFFERS: usize = 1_024;

/// How long an address that a client found in use is given to nobody.
pub const QUARANTINE: Duration = Duration::from_secs(300);

/// Most addresses in quarantine; the oldest leaves first.
pub const MAX_QUARANTINED: usize = 256;

/// A pool in which a stranger found no address is not searched for strangers again for so long, unless something in it becomes
/// free. A search looks at all of the pool and at all leases; a flood asks for one with every packet.
const SEARCH_AGAIN: Duration = Duration::from_secs(1);

/// How long addresses whose rest is over may be kept in their tables.
const TIDY: Duration = Duration::from_secs(1);

/// A change that must outlive a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseChange {
    /// This lease takes the place of its holder's last one.
    Held(Lease),
    /// This holder's address went to another.
    Gone(Holder),
}

/// Every lease and offer of all subnets. Each holder has one lease: that of the subnet where it was last.
#[derive(Debug, Default)]
pub struct Leases {
    held: HashMap<Holder, Lease>,
    /// The same leases by address; no address has two.
    holders: BTreeMap<Ipv4Addr, Holder>,
    /// The same by the machine that has them, which may have been in the place of several.
    machines: HashMap<Mac, Vec<Holder>>,
    /// The same by their ends.
    ends: BTreeSet<(Timestamp, Ipv4Addr)>,
    offers: Offers,
    /// Until when.
    quarantined: BTreeMap<Ipv4Addr, Timestamp>,
    /// Addresses that nobody was found to use, and until when that counts.
    silent: BTreeMap<Ipv4Addr, Timestamp>,
    /// How many of `held` are strangers'.
    strangers: usize,
    /// What is known of each pool, by its first address, so that it need not be searched from its beginning.
    searched: BTreeMap<Ipv4Addr, Searched>,
    /// When tables were rid of what is over.
    tidied: Timestamp,
}

/// What the last searches of a pool found.
#[derive(Debug, Clone, Copy)]
struct Searched {
    /// Every address below was somebody's, or was kept from everybody, when it was looked at, and has not become free since.
    from: u32,
    /// When all of it was looked at last: what keeps an address from everybody may have gone without a word.
    whole: Timestamp,
    /// When there was nothing for a stranger.
    nothing: Option<Timestamp>,
}

/// Why somebody cannot have a particular address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// It is not of this subnet, or is the server's, the gateway's, the network's or everybody's.
    NoHost,
    /// It is not in the pool, and not the client's fixed one.
    NotInPool,
    /// It is this client's fixed address.
    Reserved(ClientName),
    /// The client has another fixed address.
    Fixed(Ipv4Addr),
    /// The holder has a lease of another address.
    Elsewhere(Ipv4Addr),
    /// This one has a lease of it.
    Leased(Holder),
    /// It was just offered to this one.
    Offered(Holder),
    /// It was found in use by somebody else.
    Quarantined,
    /// The machine of this client runs from its disk at it.
    InSession(ClientName),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHost => f.write_str("it is no address for a client of this subnet"),
            Self::NotInPool => f.write_str("it is not in the pool"),
            Self::Reserved(name) => write!(f, "it is the fixed address of {name}"),
            Self::Fixed(address) => write!(f, "the client's fixed address is {address}"),
            Self::Elsewhere(address) => write!(f, "the client's address is {address}"),
            Self::Leased(holder) => write!(f, "{} has a lease of it", who(holder)),
            Self::Offered(holder) => write!(f, "it is offered to {}", who(holder)),
            Self::Quarantined => f.write_str("it was found in use by another machine"),
            Self::InSession(name) => write!(f, "{name} runs from its disk at it"),
        }
    }
}

/// Why there is no address for somebody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoAddress {
    /// Its fixed address cannot be given.
    #[error("its fixed address {address} cannot be given: {why}")]
    Fixed {
        /// The address.
        address: Ipv4Addr,
        /// What is in the way.
        why: Obstacle,
    },
    /// Every address of the pool is somebody's.
    #[error("the pool {first}-{last} is used up: {leases} leases, {offers} offers; enlarge [server.pool] range")]
    Exhausted {
        /// First address of the pool.
        first: Ipv4Addr,
        /// Last address of the pool.
        last: Ipv4Addr,
        /// Leases known, expired ones of clients among them.
        leases: usize,
        /// Offers that wait to be taken up.
        offers: usize,
    },
    /// [`MAX_STRANGERS`] is reached.
    #[error("{MAX_STRANGERS} unknown machines have addresses already")]
    Strangers,
}

/// A holder as a person calls it.
pub(super) fn who(holder: &Holder) -> String {
    match holder {
        Holder::Client(name) => name.to_string(),
        Holder::Stranger(mac) => mac.to_string(),
    }
}

/// What the configuration says about addresses.
pub(super) struct Rules<'a> {
    scope: &'a Scope,
    fleet: &'a Fleet,
    in_session: InSession<'a>,
}

/// Whose disk the machine at this address has open; `None` where there is no session from it. A machine that runs from its
/// disk loses the disk with its address.
pub type InSession<'a> = &'a dyn Fn(Ipv4Addr) -> Option<ClientName>;

impl<'a> Rules<'a> {
    pub(super) fn new(scope: &'a Scope, fleet: &'a Fleet, in_session: InSession<'a>) -> Self {
        Self { scope, fleet, in_session }
    }

    /// The holder's fixed address, where it is of this subnet. Plugged in elsewhere, a client has one of the pool there.
    fn fixed(&self, holder: &Holder) -> Option<Ipv4Addr> {
        match holder {
            Holder::Client(name) => self.fleet.client(name)?.ip.filter(|address| self.scope.contains(*address)),
            Holder::Stranger(_) => None,
        }
    }

    /// What the configuration has against it.
    fn forbid(&self, address: Ipv4Addr, holder: &Holder) -> Option<Obstacle> {
        if !self.scope.is_host(address) {
            return Some(Obstacle::NoHost);
        }
        match (self.fleet.by_ip(address), self.fixed(holder)) {
            (Some(client), _) if *holder != Holder::Client(client.name.clone()) => {
                Some(Obstacle::Reserved(client.name.clone()))
            }
            (_, Some(fixed)) => (fixed != address).then_some(Obstacle::Fixed(fixed)),
            (_, None) => (!self.scope.in_pool(address)).then_some(Obstacle::NotInPool),
        }
    }

    /// This holder runs from its disk at this address.
    pub(super) fn runs_at(&self, holder: &Holder, address: Ipv4Addr) -> bool {
        matches!(holder, Holder::Client(name) if (self.in_session)(address).as_ref() == Some(name))
    }

    /// This lease's address waits for its holder even after it expired.
    fn sticks(&self, lease: &Lease) -> bool {
        match &lease.holder {
            Holder::Client(name) => {
                self.fleet.client(name).is_some() && self.forbid(lease.address, &lease.holder).is_none()
            }
            Holder::Stranger(_) => false,
        }
    }
}

/// What the book says about an address that a client claims.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// It is the client's: by lease, by offer, or fixed.
    Theirs,
    /// Nobody's, and the client has none; it may have this one.
    Free,
    /// It cannot be the client's.
    Wrong(Obstacle),
}

impl Leases {
    /// The leases that outlived a restart. Should two disagree about an address, the one that lasts longer is believed.
    #[must_use]
    pub fn restore(mut leases: Vec<Lease>) -> Self {
        leases.sort_by_key(|lease| lease.expires);
        let mut restored = Self::default();
        for lease in leases {
            restored.insert(lease);
        }
        restored
    }

    /// Every lease, expired ones too, in the order of addresses.
    pub fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.holders.values().map(|holder| &self.held[holder])
    }

    #[cfg(test)]
    pub(super) fn offer_count(&self) -> usize {
        self.offers.len()
    }

    #[cfg(test)]
    pub(super) fn silent_count(&self) -> usize {
        self.silent.len()
    }

    /// Makes a machine's lease its present holder's: the machine was a stranger and is now in a client's place, or its
    /// client was renamed or removed while it ran.
    pub(super) fn adopt(&mut self, holder: &Holder, mac: Mac, rules: &Rules<'_>) -> Vec<LeaseChange> {
        let orphan = |lease: &&Lease| {
            lease.holder != *holder
                && match &lease.holder {
                    Holder::Client(name) => rules.fleet.client(name).is_none(),
                    Holder::Stranger(_) => true,
                }
        };
        let Some(lease) = self.of_machine(mac).filter(orphan).max_by_key(|lease| lease.expires).cloned() else {
            return Vec::new();
        };
        self.remove(&lease.holder);
        let mut changes = vec![LeaseChange::Gone(lease.holder.clone())];
        if !self.held.contains_key(holder) {
            let adopted = Lease { holder: holder.clone(), ..lease };
            self.insert(adopted.clone());
            changes.push(LeaseChange::Held(adopted));
        }
        changes
    }

    /// An address for this holder, kept for it for [`OFFER_HOLD`] or [`STRANGERS_OFFER_HOLD`]: its fixed one, the one it has or had, the one it was
    /// offered, the one it wishes, one that nobody had, the one whose last holder is longest gone (RFC 2131 §4.3.1).
    pub(super) fn offer(
        &mut self,
        holder: &Holder,
        wish: Option<Ipv4Addr>,
        port: Option<&Port>,
        rules: &Rules<'_>,
        now: Timestamp,
    ) -> Result<Ipv4Addr, NoAddress> {
        self.tidy(now);
        let stranger = matches!(holder, Holder::Stranger(_));
        if let (true, None, Some(port)) = (stranger, self.offers.to(holder), port)
            && let (MAX_OFFERS_OF_PORT.., Some(oldest)) = self.offers.strangers_at(port)
        {
            self.take_back(oldest);
        }
        let address = self.choose(holder, wish, rules, now)?;
        let last = self.offers.to(holder);
        if last.is_none() && self.offers.len() >= MAX_OFFERS {
            let oldest = self.offers.by_age().next().map(|(address, _)| address);
            if let Some(address) = oldest {
                self.take_back(address);
            }
        }
        let until = now.after(if stranger { STRANGERS_OFFER_HOLD } else { OFFER_HOLD });
        self.offers.insert(address, Offer { holder: holder.clone(), port: port.cloned(), until });
        if let Some(last) = last.filter(|last| *last != address) {
            self.freed(last);
        }
        Ok(address)
    }

    /// Forgets what is over.
    fn tidy(&mut self, now: Timestamp) {
        while let Some(address) = self.offers.pop_over(now) {
            self.freed(address);
        }
        if now.since(self.tidied) < TIDY && now >= self.tidied {
            return;
        }
        self.tidied = now;
        self.silent.retain(|_, until| *until > now);
        let rested: Vec<Ipv4Addr> =
            self.quarantined.iter().filter(|(_, until)| **until <= now).map(|(address, _)| *address).collect();
        for address in rested {
            self.quarantined.remove(&address);
            self.freed(address);
        }
    }

    /// Takes back an offer.
    fn take_back(&mut self, address: Ipv4Addr) {
        if self.offers.remove(address).is_some() {
            self.freed(address);
        }
    }

    /// An address may be for somebody again.
    fn freed(&mut self, address: Ipv4Addr) {
        let nobodys = !self.holders.contains_key(&address);
        for searched in self.searched.range_mut(..=address).map(|(_, searched)| searched) {
            searched.nothing = None;
            if nobodys {
                searched.from = searched.from.min(address.into());
            }
        }
    }

    /// Somebody who knows nothing of us may use the address that this holder was offered: it is neither its fixed one nor the
    /// one that it had, and nobody was asked about it lately.
    pub(super) fn is_doubtful(&self, address: Ipv4Addr, holder: &Holder, rules: &Rules<'_>) -> bool {
        rules.fixed(holder) != Some(address)
            && self.held.get(holder).is_none_or(|lease| lease.address != address)
            && !self.silent.contains_key(&address)
    }

    /// Nobody answered when the wire was asked who uses this address.
    pub fn found_silent(&mut self, address: Ipv4Addr, now: Timestamp) {
        if self.silent.len() >= MAX_SILENT {
            let oldest = self.silent.iter().min_by_key(|(_, until)| **until).map(|(address, _)| *address);
            oldest.map(|address| self.silent.remove(&address));
        }
        self.silent.insert(address, now.after(SILENCE));
    }

    /// Somebody uses this address: nobody gets it for [`QUARANTINE`].
    pub fn found_in_use(&mut self, address: Ipv4Addr, now: Timestamp) {
        self.offers.remove(address);
        self.silent.remove(&address);
        self.quarantine(address, now);
    }

    fn quarantine(&mut self, address: Ipv4Addr, now: Timestamp) {
        if self.quarantined.len() >= MAX_QUARANTINED {
            let oldest = self.quarantined.iter().min_by_key(|(_, until)| **until).map(|(address, _)| *address);
            if let Some(address) = oldest {
                self.quarantined.remove(&address);
                self.freed(address);
            }
        }
        self.quarantined.insert(address, now.after(QUARANTINE));
    }

    fn choose(
        &mut self,
        holder: &Holder,
        wish: Option<Ipv4Addr>,
        rules: &Rules<'_>,
        now: Timestamp,
    ) -> Result<Ipv4Addr, NoAddress> {
        if let Some(address) = rules.fixed(holder) {
            return match self.obstacle(address, holder, rules, now) {
                Some(why) => Err(NoAddress::Fixed { address, why }),
                None => Ok(address),
            };
        }
        let clear = |leases: &Self, address: Ipv4Addr| leases.obstacle(address, holder, rules, now).is_none();
        let held = self.held.get(holder).map(|lease| lease.address);
        let had = held.filter(|address| clear(self, *address));
        if let Some(address) = had.or_else(|| self.offers.to(holder).filter(|address| clear(self, *address))) {
            return Ok(address);
        }
        let new_stranger = matches!(holder, Holder::Stranger(_)) && held.is_none();
        let full = new_stranger && self.strangers >= MAX_STRANGERS;
        let fresh = |leases: &Self, address: Ipv4Addr| !leases.holders.contains_key(&address) && clear(leases, address);
        let wish = wish.filter(|address| !full && fresh(self, *address));
        if let Some(address) = wish {
            return Ok(address);
        }
        let pool = rules.scope.pool();
        if !(new_stranger && self.has_nothing(pool.first, now)) {
            if !full && let Some(address) = self.search(pool, fresh, now) {
                return Ok(address);
            }
            let over = self.ends.iter().take_while(|(expires, _)| *expires <= now).map(|(_, address)| *address);
            if let Some(address) =
                over.filter(|address| self.holders[address] != *holder).find(|address| clear(self, *address))
            {
                return Ok(address);
            }
            if new_stranger && let Some(searched) = self.searched.get_mut(&pool.first) {
                searched.nothing = Some(now);
            }
        }
        if full {
            return Err(NoAddress::Strangers);
        }
        if matches!(holder, Holder::Client(_)) {
            // A flood of strangers that only ask must not keep a client from booting.
            let mut idle = self.offers.by_age().filter(|(address, offer)| {
                offer.is_to_stranger()
                    && rules.forbid(*address, holder).is_none()
                    && self.lease_obstacle(*address, holder, rules, now).is_none()
            });
            if let Some((address, _)) = idle.next() {
                return Ok(address);
            }
        }
        let (leases, offers) = (self.held.len(), self.offers.len());
        Err(NoAddress::Exhausted { first: pool.first, last: pool.last, leases, offers })
    }

    /// There was nothing for a stranger in this pool a moment ago.
    fn has_nothing(&self, pool: Ipv4Addr, now: Timestamp) -> bool {
        let nothing = self.searched.get(&pool).and_then(|searched| searched.nothing);
        nothing.is_some_and(|at| now >= at && now.since(at) < SEARCH_AGAIN)
    }

    /// The first address of a pool that is fresh. Below `from` there is none, unless something ended without a word: a
    /// reservation, or a session. So where there is none at all, the search begins anew, but not with each packet.
    fn search(&mut self, pool: &Pool, fresh: impl Fn(&Self, Ipv4Addr) -> bool, now: Timestamp) -> Option<Ipv4Addr> {
        let (first, last) = (u32::from(pool.first), u32::from(pool.last));
        let never = Searched { from: first, whole: now, nothing: None };
        let Searched { from, whole, .. } = *self.searched.entry(pool.first).or_insert(never);
        let find =
            |range: std::ops::RangeInclusive<u32>| range.map(Ipv4Addr::from).find(|address| fresh(self, *address));
        let mut found = find(from.max(first)..=last);
        let mut whole = whole;
        if found.is_none() && from > first && !(now >= whole && now.since(whole) < SEARCH_AGAIN) {
            found = find(first..=from.min(last));
            whole = now;
        }
        let from = found.map_or(last.saturating_add(1), u32::from);
        self.searched.insert(pool.first, Searched { from, whole, nothing: None });
        found
    }

    /// Whether a client that says it has this address, or asks for it, is right.
    pub(super) fn claim(&self, holder: &Holder, address: Ipv4Addr, rules: &Rules<'_>, now: Timestamp) -> Claim {
        if let Some(why) = self.obstacle(address, holder, rules, now) {
            return Claim::Wrong(why);
        }
        let fixed_or_offered = rules.fixed(holder) == Some(address) || self.offers.to(holder) == Some(address);
        if fixed_or_offered || rules.runs_at(holder, address) {
            return Claim::Theirs;
        }
        match self.held.get(holder) {
            Some(lease) if lease.address == address => Claim::Theirs,
            Some(lease) => Claim::Wrong(Obstacle::Elsewhere(lease.address)),
            None => Claim::Free,
        }
    }

    /// The machine that runs in a client's place while another one, which is the client's by its port alone, asks.
    pub(super) fn rival(&self, client: &Client, mac: Mac, in_session: InSession<'_>) -> Option<Mac> {
        if client.port.is_none() || client.macs.contains(&mac) {
            return None;
        }
        let lease = self.held.get(&Holder::Client(client.name.clone()))?;
        (lease.mac != mac && in_session(lease.address).as_ref() == Some(&client.name)).then_some(lease.mac)
    }

    /// The holder has, or had, a lease.
    pub(super) fn knows(&self, holder: &Holder) -> bool {
        self.held.contains_key(holder)
    }

    /// Gives the holder this address, which [`Leases::claim`] did not find wrong, until `expires`.
    pub(super) fn grant(
        &mut self,
        holder: &Holder,
        address: Ipv4Addr,
        mac: Mac,
        expires: Timestamp,
    ) -> Vec<LeaseChange> {
        let lease = Lease { holder: holder.clone(), address, mac, expires };
        let mut changes: Vec<LeaseChange> = self.insert(lease.clone()).map(LeaseChange::Gone).into_iter().collect();
        changes.push(LeaseChange::Held(lease));
        // Only now: an address that is somebody's is not searched for.
        self.withdraw(holder);
        changes
    }

    /// Forgets what was offered to this holder.
    pub(super) fn withdraw(&mut self, holder: &Holder) {
        if let Some(address) = self.offers.to(holder) {
            self.take_back(address);
        }
    }

    /// The holder needs its lease of this address no longer. It is still the one that it gets next time.
    pub(super) fn release(&mut self, holder: &Holder, address: Ipv4Addr, now: Timestamp) -> Option<LeaseChange> {
        let lease = self.held.get(holder).filter(|lease| lease.address == address)?.clone();
        let released = Lease { expires: lease.expires.min(now), ..lease };
        self.insert(released.clone());
        self.freed(address);
        Some(LeaseChange::Held(released))
    }

    /// The holder found its address in use by somebody else: nobody gets it for [`QUARANTINE`]. `None` if it was never the
    /// holder's, so that nobody can spoil the addresses of others.
    pub(super) fn decline(&mut self, holder: &Holder, address: Ipv4Addr, now: Timestamp) -> Option<Vec<LeaseChange>> {
        let offered = self.offers.to(holder) == Some(address);
        let change = self.release(holder, address, now);
        if !offered && change.is_none() {
            return None;
        }
        self.withdraw(holder);
        self.quarantine(address, now);
        // It may have been offered to somebody else since.
        self.take_back(address);
        Some(change.into_iter().collect())
    }

    /// Why this holder cannot have this address; `None` if it can.
    fn obstacle(&self, address: Ipv4Addr, holder: &Holder, rules: &Rules<'_>, now: Timestamp) -> Option<Obstacle> {
        match self.obstacle_in_book(address, holder, rules, now) {
            // Whatever was changed or found out since: a system that runs keeps its address until it boots anew.
            Some(Obstacle::NotInPool | Obstacle::Reserved(_) | Obstacle::Fixed(_) | Obstacle::Quarantined)
                if rules.runs_at(holder, address) =>
            {
                None
            }
            None if self.held.get(holder).is_none_or(|lease| lease.address != address) => {
                let other = (rules.in_session)(address)?;
                (*holder != Holder::Client(other.clone())).then_some(Obstacle::InSession(other))
            }
            found => found,
        }
    }

    /// What rules and tables have against it.
    fn obstacle_in_book(
        &self,
        address: Ipv4Addr,
        holder: &Holder,
        rules: &Rules<'_>,
        now: Timestamp,
    ) -> Option<Obstacle> {
        if let Some(why) = rules.forbid(address, holder) {
            return Some(why);
        }
        if self.quarantined.get(&address).is_some_and(|until| *until > now) {
            return Some(Obstacle::Quarantined);
        }
        if let Some(offer) = self.offers.of(address)
            && offer.until > now
            && offer.holder != *holder
        {
            return Some(Obstacle::Offered(offer.holder.clone()));
        }
        self.lease_obstacle(address, holder, rules, now)
    }

    /// Somebody else's lease, in force or kept for its holder.
    fn lease_obstacle(
        &self,
        address: Ipv4Addr,
        holder: &Holder,
        rules: &Rules<'_>,
        now: Timestamp,
    ) -> Option<Obstacle> {
        let lease = &self.held[self.holders.get(&address)?];
        let theirs = lease.holder != *holder && (lease.expires > now || rules.sticks(lease));
        theirs.then(|| Obstacle::Leased(lease.holder.clone()))
    }

    /// The leases that a machine has, in whosever place it was.
    fn of_machine(&self, mac: Mac) -> impl Iterator<Item = &Lease> {
        self.machines.get(&mac).into_iter().flatten().map(|holder| &self.held[holder])
    }

    /// Puts a lease in the book; gives whose lease of the same address it took the place of.
    fn insert(&mut self, lease: Lease) -> Option<Holder> {
        let last = self.take_out(&lease.holder);
        let ousted = self.holders.get(&lease.address).cloned();
        if let Some(holder) = &ousted {
            self.take_out(holder);
        }
        self.strangers += usize::from(matches!(lease.holder, Holder::Stranger(_)));
        self.holders.insert(lease.address, lease.holder.clone());
        self.machines.entry(lease.mac).or_default().push(lease.holder.clone());
        self.ends.insert((lease.expires, lease.address));
        let address = lease.address;
        self.held.insert(lease.holder.clone(), lease);
        if let Some(last) = last.filter(|last| last.address != address) {
            self.freed(last.address);
        }
        ousted
    }

    fn remove(&mut self, holder: &Holder) {
        if let Some(lease) = self.take_out(holder) {
            self.freed(lease.address);
        }
    }

    fn take_out(&mut self, holder: &Holder) -> Option<Lease> {
        let lease = self.held.remove(holder)?;
        self.holders.remove(&lease.address);
        self.ends.remove(&(lease.expires, lease.address));
        if let Some(holders) = self.machines.get_mut(&lease.mac) {
            holders.retain(|other| other != holder);
            if holders.is_empty() {
                self.machines.remove(&lease.mac);
            }
        }
        self.strangers -= usize::from(matches!(holder, Holder::Stranger(_)));
        Some(lease)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fleet::Naming;

    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
    const LEASE: Duration = Duration::from_secs(120);

    fn stranger(number: u8) -> Mac {
        Mac::from_octets([0x52, 0x54, 0, 0, 1, number]).unwrap()
    }

    /// What a new stranger is to get, by a look at every address and every lease.
    fn by_looking_everywhere(leases: &Leases, holder: &Holder, rules: &Rules<'_>, now: Timestamp) -> Option<Ipv4Addr> {
        let clear = |address: &Ipv4Addr| leases.obstacle(*address, holder, rules, now).is_none();
        let pool = rules.scope.pool();
        let mut all = (u32::from(pool.first)..=u32::from(pool.last)).map(Ipv4Addr::from);
        let fresh = all.find(|address| !leases.holders.contains_key(address) && clear(address));
        let over = leases.held.values().filter(|lease| clear(&lease.address));
        fresh.or_else(|| over.min_by_key(|lease| (lease.expires, lease.address)).map(|lease| lease.address))
    }

    proptest! {
        /// Whatever is remembered of earlier searches, a search finds what one without any memory finds.
        #[test]
        fn a_stranger_gets_the_address_that_a_look_at_everything_finds(
            acts in prop::collection::vec((0..10_u8, 0..14_u8, 0..14_u8), 1..200), reserved in 100..112_u8,
        ) {
            let last = Ipv4Addr::new(10, 9, 0, 107);
            let pool = Pool { first: Ipv4Addr::new(10, 9, 0, 100), last, router: None, dns: Vec::new(), lease: LEASE };
            let scope = Scope::new(SERVER, 24, pool, 80, Naming::new("iqn.2026-11.test")).unwrap();
            let pc = crate::dhcp::tests::client("pc-01", &[1], Some([10, 9, 0, reserved]));
            let fleet = Fleet::new([pc, crate::dhcp::tests::client("pc-02", &[2], None)]).unwrap();
            let rules = Rules::new(&scope, &fleet, &|_| None);
            let (mut leases, mut now) = (Leases::default(), Timestamp(1_700_000_000_000));
            for (what, who, address) in acts {
                let holder = match who {
                    0 => Holder::Client("pc-01".parse().unwrap()),
                    1 => Holder::Client("pc-02".parse().unwrap()),
                    number => Holder::Stranger(stranger(number)),
                };
                let address = Ipv4Addr::new(10, 9, 0, 98 + address);
                match what {
                    0..4 => {
                        let new = who > 1 && !leases.knows(&holder) && leases.offers.to(&holder).is_none();
                        // Only what is over by now is not there any more.
                        leases.tidy(now);
                        let wanted = new.then(|| by_looking_everywhere(&leases, &holder, &rules, now));
                        let offered = leases.offer(&holder, None, None, &rules, now).ok();
                        prop_assert!(wanted.is_none_or(|wanted| wanted == offered), "{:?}, not {:?}", offered, wanted);
                    }
                    4 | 5 => {
                        let address = leases.offers.to(&holder).unwrap_or(address);
                        if !matches!(leases.claim(&holder, address, &rules, now), Claim::Wrong(_)) {
                            leases.grant(&holder, address, stranger(who.max(1)), now.after(LEASE));
                        }
                    }
                    6 => leases.withdraw(&holder),
                    7 => drop(leases.release(&holder, address, now)),
                    8 => drop(leases.decline(&holder, address, now)),
                    _ => now = now.after(Duration::from_secs(1 + u64::from(who) * 5)),
                }
                prop_assert_eq!(leases.held.len(), leases.holders.len());
                prop_assert_eq!(leases.held.len(), leases.ends.len());
                prop_assert_eq!(leases.held.len(), leases.machines.values().map(Vec::len).sum::<usize>());
                for lease in leases.held.values() {
                    prop_assert!(leases.ends.contains(&(lease.expires, lease.address)));
                    prop_assert!(leases.of_machine(lease.mac).any(|other| other == lease));
                }
            }
        }
    }
}
