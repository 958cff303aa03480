//! What the kernel knows and no crate wraps: interfaces, datagrams that tell on which address they arrived, frames to
//! machines that have no address yet, questions by ARP, datagrams for a port that another process has, and which process
//! that is, and IPv6's router solicitations.
//!
//! The only room with `unsafe` in it; each block says why it is sound. Not here: waiting (`net` does, with
//! tokio) and meaning (who may have which address). Linux only.
#![expect(unsafe_code, reason = "the system calls below have no safe wrapper; every block carries its argument")]

pub mod arp;
pub mod datagram;
pub mod frame;
pub mod interface;
pub mod port;
pub mod solicitation;

use std::io;
use std::net::Ipv4Addr;

pub use arp::ArpSocket;
pub use datagram::{Local, Received};
pub use frame::{Overheard, PacketSocket, RawSocket, Traffic};
pub use interface::{Interface, InterfaceError, choose, interfaces};
pub use port::{Taken, Transport};
pub use solicitation::{Solicitation, SolicitationSocket};

/// The identity of this boot of this host: it changes at every boot and at nothing else (`random(4)`).
///
/// # Errors
/// `/proc` is not mounted.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// The hardware address that the kernel last saw for this on-link address; `None` if it knows none.
///
/// Reads `/proc/net/arp`, so it asks nobody and waits for nothing.
#[must_use]
pub fn neighbour(address: Ipv4Addr) -> Option<[u8; 6]> {
    neighbour_in(&std::fs::read_to_string("/proc/net/arp").ok()?, address)
}

/// `neighbour`, in the text of `/proc/net/arp`: address, hardware type, flags, hardware address, mask, device.
fn neighbour_in(table: &str, address: Ipv4Addr) -> Option<[u8; 6]> {
    let address = address.to_string();
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        if fields.next()? != address {
            return None;
        }
        let mut octets = [0; 6];
        let mut written = fields.nth(2)?.split(':');
        for octet in &mut octets {
            *octet = u8::from_str_radix(written.next()?, 16).ok()?;
        }
        // An entry whose resolution failed stands there with zeros.
        (octets != [0; 6]).then_some(octets)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neighbour_is_read_from_the_kernels_table() {
        let table = "IP address       HW type     Flags       HW address            Mask     Device\n\
                     10.9.0.25        0x1         0x2         52:54:00:aa:00:01     *        veth0\n\
                     10.9.0.2         0x1         0x0         00:00:00:00:00:00     *        veth0\n\
                     garbage\n";
        assert_eq!(neighbour_in(table, "10.9.0.25".parse().unwrap()), Some([0x52, 0x54, 0, 0xaa, 0, 1]));
        for absent in ["10.9.0.2", "10.9.0.3"] {
            assert_eq!(neighbour_in(table, absent.parse().unwrap()), None, "{absent}");
        }
    }

    #[test]
    fn a_boot_has_one_identity() {
        let id = boot_id().unwrap();
        assert_eq!(id.len(), 36, "{id}");
        assert_eq!(boot_id().unwrap(), id);
    }
}
