//! What the kernel knows and no crate wraps: interfaces, datagrams that tell on which address they arrived, frames to
//! machines that have no address yet, questions by ARP, datagrams for a port that another process has, and which process
//! that is, who has which address on the wire, IPv6's router solicitations, and what of a file is in memory.
//!
//! The only room with `unsafe` in it; each block says why it is sound. Not here: waiting (`net` does, with
//! tokio) and meaning (who may have which address). Linux only.
#![expect(unsafe_code, reason = "the system calls below have no safe wrapper; every block carries its argument")]

pub mod arp;
pub mod datagram;
pub mod frame;
pub mod interface;
pub mod neighbour;
pub mod port;
pub mod resident;
pub mod servers;
pub mod solicitation;

use std::io;

pub use arp::ArpSocket;
pub use datagram::{Local, Received};
pub use frame::{Overheard, PacketSocket, RawSocket, Traffic};
pub use interface::{Interface, InterfaceError, choose, interfaces};
pub use neighbour::neighbour;
pub use port::{Taken, Transport};
pub use resident::is_resident;
pub use servers::{Asked, ServersSocket};
pub use solicitation::{Solicitation, SolicitationSocket};

/// The identity of this boot of this host: it changes at every boot and at nothing else (`random(4)`).
///
/// # Errors
/// `/proc` is not mounted.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_has_one_identity() {
        let id = boot_id().unwrap();
        assert_eq!(id.len(), 36, "{id}");
        assert_eq!(boot_id().unwrap(), id);
    }
}
