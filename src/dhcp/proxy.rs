//! Beside another DHCP server: that one gives the addresses, and here is said how to boot (PXE 2.1 §2.2, "proxyDHCP").
//!
//! A machine hears both offers. Ours has no address, so whatever the other server says of booting, firmware takes ours for
//! that. BIOS and iPXE go by the offer alone; UEFI asks again on port 4011 once it has its address. That port is answered
//! where we give the addresses too: some firmware asks it whatever it was offered.
//!
//! Both functions are pure and remember nothing. Not here: giving addresses ([`handle`](super::handle)).

use super::boot::{self, Handout};
use super::reply::{Answer, Encoder};
use super::scope::{Role, Site};
use super::wire::{Kind, Request, code};
use super::{Arrival, Asker, Destination, Note, Outcome, Reason, Reply, finish, recognise};
use crate::fleet::{Client, Fact, Fleet, Stage};

/// Handles one packet that was heard on port 67 of a wire where another server gives the addresses.
#[must_use]
pub fn overheard(fleet: &Fleet, site: &Site, bytes: &[u8]) -> Outcome {
    let request = match Request::parse(bytes) {
        Ok(request) => request,
        Err(why) => return nothing(None, Reason::Malformed(why)),
    };
    let place = match Place::of(fleet, site, &request) {
        Ok(place) => place,
        Err(ignored) => return *ignored,
    };
    let server = request.address(code::SERVER);
    match request.kind {
        Kind::Discover => place.answer(Answer::Offer, Destination::Broadcast),
        // What it claims here, anybody can claim for it: the address counts when it is seen in use. Behind a relay nobody here
        // sees that; there the claim is all that there will be, and the adapter decides.
        Kind::Request => {
            let address = request.address(code::REQUESTED);
            let mut place = place;
            if !request.giaddr.is_unspecified() && server.is_some() {
                place.asker.address = address;
            }
            let note = address.zip(server).map(|(address, server)| Note {
                mac: place.asker.mac,
                client: place.asker.client.clone(),
                stage: Stage::Offer,
                detail: format!("it takes {address} from {server}"),
                fact: Some(Fact::TookOther { server }),
            });
            Outcome { note, ..nothing(Some(place.asker), Reason::Elsewhere { address, server }) }
        }
        Kind::Decline | Kind::Release | Kind::Inform => {
            nothing(Some(place.asker), Reason::Elsewhere { address: None, server })
        }
    }
}

/// Handles one packet that came to our port 4011, whoever gives the addresses.
#[must_use]
pub fn asked(fleet: &Fleet, site: &Site, arrival: &Arrival, bytes: &[u8]) -> Outcome {
    let request = match Request::parse(bytes) {
        Ok(request) => request,
        Err(why) => return nothing(None, Reason::Malformed(why)),
    };
    let mut place = match Place::of(fleet, site, &request) {
        Ok(place) => place,
        Err(ignored) => return *ignored,
    };
    if !matches!(request.kind, Kind::Request | Kind::Inform) {
        return nothing(Some(place.asker), Reason::NotForBootServer(request.kind));
    }
    // Only what the packet says twice: in its own header, and in that of IP.
    place.asker.address = Some(request.ciaddr).filter(|address| address == arrival.from.ip());
    place.answer(Answer::Ack, Destination::Asker(arrival.from))
}

fn nothing(asker: Option<Asker>, reason: Reason) -> Outcome {
    Outcome { asker, reason, persist: Vec::new(), probe: None, reply: None, note: None }
}

/// A machine that may be answered.
struct Place<'a> {
    site: &'a Site,
    request: &'a Request,
    client: Option<&'a Client>,
    asker: Asker,
}

impl<'a> Place<'a> {
    /// Who asks, and in whose place it stands; or why it is not answered.
    fn of(fleet: &'a Fleet, site: &'a Site, request: &'a Request) -> Result<Self, Box<Outcome>> {
        let (client, asker) = recognise(fleet, request)?;
        let reason = match client {
            None if site.role == Role::Proxy => Reason::Stranger,
            _ if !(asker.machine.netboot || asker.machine.ipxe) => Reason::NoNetboot,
            _ => return Ok(Self { site, request, client, asker }),
        };
        Err(Box::new(nothing(Some(asker), reason)))
    }

    /// The answer: a boot file, and no address.
    fn answer(self, answer: Answer, to: Destination) -> Outcome {
        let Self { site, request, client, asker } = self;
        let at = asker.at();
        let mut reply = Encoder::new(request, answer, site.server);
        let handout = boot::hand_out(&mut reply, site, request, &asker.machine, client);
        let note = |detail: String| {
            let (mac, client) = (asker.mac, asker.client.clone());
            Some(Note { detail: detail + &at, mac, client, stage: Stage::Offer, fact: handout.fact() })
        };
        if let Handout::NoLoader(architecture) = handout {
            let note = note(handout.to(&asker.machine));
            return Outcome { note, ..nothing(Some(asker), Reason::NoLoader(architecture)) };
        }
        let mut reason = Reason::OfferedBoot(handout);
        if answer == Answer::Ack {
            reason = Reason::ToldBoot(handout);
            reply.ciaddr(request.ciaddr);
            if boot::boot_item(request).is_some() {
                // Other boot servers repeat it there, and firmware of many years was tried with them.
                reply.yiaddr(request.ciaddr);
            }
        }
        let words = match reason {
            Reason::ToldBoot(_) => format!("{}, asked on port {}", handout.to(&asker.machine), super::BOOT_SERVER_PORT),
            _ => handout.to(&asker.machine),
        };
        let (note, reply): (_, Reply) = (note(words), finish(request, reply, to));
        Outcome { note, reply: Some(reply), ..nothing(Some(asker), reason) }
    }
}
