//! Which hardware address the kernel last saw for an on-link address: for IPv4 from `/proc/net/arp`, for IPv6, which has no
//! such file, by `rtnetlink(7)`. Nobody is asked, and nothing is waited for.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

/// Longest part of the kernel's answer, which comes in pages (`NLMSG_GOODSIZE`).
const PART: usize = 32 << 10;
/// Most parts that are read: a wire of 100,000 neighbours.
const MOST_PARTS: usize = 1_024;
/// `struct nlmsghdr`: length, type, flags, sequence, port.
const HEADER: usize = 16;
/// `AF_INET6`, as one byte.
const FAMILY: u8 = 10;
/// `struct ndmsg`: family, padding, interface, state, flags, type.
const NEIGHBOUR: usize = 12;

/// The hardware address that the kernel last saw for this on-link address; `None` if it knows none.
/// For a link-local address of IPv6 too: it can be several machines', on several interfaces.
#[must_use]
pub fn neighbour(address: impl Into<IpAddr>) -> Option<[u8; 6]> {
    match address.into() {
        IpAddr::V4(address) => neighbour_in(&std::fs::read_to_string("/proc/net/arp").ok()?, address),
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(address) => neighbour(address),
            None if address.is_unicast_link_local() => None,
            None => dump().ok()?.into_iter().find(|known| known.address == address).map(|known| known.mac),
        },
    }
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

/// An entry of the kernel's table of IPv6 neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    address: Ipv6Addr,
    mac: [u8; 6],
}

/// The whole table, of all interfaces.
fn dump() -> io::Result<Vec<Known>> {
    // NETLINK_ROUTE is protocol 0.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    send(&socket, &question(), SendFlags::empty())?;
    let (mut known, mut part) = (Vec::new(), vec![0; PART]);
    for _ in 0..MOST_PARTS {
        // The kernel answers within the call that asks, and then whenever something is read.
        let (len, _) = recv(&socket, &mut part[..], RecvFlags::DONTWAIT)?;
        if !read(&part[..len.min(PART)], &mut known) {
            break;
        }
    }
    Ok(known)
}

fn number(constant: libc::c_int) -> u16 {
    u16::try_from(constant).expect("types and flags of netlink have 16 bits")
}

/// RTM_GETNEIGH: all that is known of IPv6.
fn question() -> [u8; HEADER + NEIGHBOUR] {
    let mut bytes = [0; HEADER + NEIGHBOUR];
    // In the order of this host, as everything here.
    bytes[..4].copy_from_slice(&28_u32.to_ne_bytes());
    bytes[4..6].copy_from_slice(&libc::RTM_GETNEIGH.to_ne_bytes());
    bytes[6..8].copy_from_slice(&number(libc::NLM_F_REQUEST | libc::NLM_F_DUMP).to_ne_bytes());
    bytes[HEADER] = FAMILY;
    bytes
}

/// Takes the entries out of one part of the answer; whether another part follows.
fn read(mut part: &[u8], known: &mut Vec<Known>) -> bool {
    while let Some((header, _)) = part.split_first_chunk::<HEADER>() {
        let [a, b, c, d, e, f, ..] = *header;
        let len = usize::try_from(u32::from_ne_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let Some(message) = part.get(HEADER..len) else { return false };
        match u16::from_ne_bytes([e, f]) {
            libc::RTM_NEWNEIGH => known.extend(entry(message)),
            kind if [number(libc::NLMSG_DONE), number(libc::NLMSG_ERROR)].contains(&kind) => return false,
            _ => {}
        }
        part = part.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    true
}

fn entry(message: &[u8]) -> Option<Known> {
    /// Attributes (`linux/neighbour.h`).
    const ADDRESS: u16 = 1;
    const HARDWARE_ADDRESS: u16 = 2;
    let (_, mut rest) = message.split_first_chunk::<NEIGHBOUR>()?;
    let (mut address, mut mac) = (None, None);
    while let Some((&[a, b, c, d], _)) = rest.split_first_chunk::<4>() {
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let value = rest.get(4..len)?;
        match u16::from_ne_bytes([c, d]) {
            ADDRESS => address = <[u8; 16]>::try_from(value).ok(),
            HARDWARE_ADDRESS => mac = <[u8; 6]>::try_from(value).ok(),
            _ => {}
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    let mac = mac.filter(|mac| *mac != [0; 6])?;
    Some(Known { address: address?.into(), mac })
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

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let len = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(HEADER + body.len()).unwrap();
        [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], body].concat()
    }

    fn told(attributes: &[Vec<u8>]) -> Vec<u8> {
        message(libc::RTM_NEWNEIGH, &[vec![0; NEIGHBOUR], attributes.concat()].concat())
    }

    #[test]
    fn an_ipv6_neighbour_is_read_from_what_the_kernel_tells_and_what_is_cut_is_left_out() {
        let address: Ipv6Addr = "fd00::1e3".parse().unwrap();
        let mac = [0x52, 0x54, 0, 0x77, 1, 0];
        let whole = told(&[attribute(9, &[1]), attribute(1, &address.octets()), attribute(2, &mac)]);
        let unresolved = told(&[attribute(1, &address.octets())]);
        let mut known = Vec::new();
        assert!(read(&[&unresolved[..], &whole].concat(), &mut known));
        assert_eq!(known, [Known { address, mac }]);
        assert!(!read(&[message(3, &[0; 4]), whole.clone()].concat(), &mut known), "nothing follows the end");
        assert_eq!(known.len(), 1);
        for len in 0..whole.len() {
            let mut none = Vec::new();
            read(&whole[..len], &mut none);
            assert_eq!(none, [], "{len} bytes");
        }
    }

    #[test]
    fn the_kernel_tells_its_table_to_the_end() {
        dump().unwrap();
        assert_eq!(neighbour(Ipv6Addr::LOCALHOST), None);
    }
}
