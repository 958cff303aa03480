//! Network interfaces as the kernel lists them (`getifaddrs(3)`), and which of them the clients are on.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::ptr;

/// ARP hardware type of Ethernet (`if_arp.h`).
const ARPHRD_ETHER: u16 = 1;

/// One network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name: `enp3s0`.
    pub name: String,
    /// Its index, which packets and sockets go by.
    pub index: u32,
    /// Its hardware address; `None` where it has none of six octets.
    pub mac: Option<[u8; 6]>,
    /// Its IPv4 addresses, each with the length of its prefix, the first one first.
    pub addresses: Vec<(Ipv4Addr, u8)>,
    /// Its IPv6 addresses that machines can be told: none that is link-local or will go soon; those that somebody gave it before
    /// those that it made by itself.
    pub ipv6: Vec<Ipv6Addr>,
    /// An operator has switched it on.
    pub up: bool,
    /// Something answers at the other end of the wire.
    pub carrier: bool,
    /// Ethernet, and not by radio. The loopback interface is not.
    pub wired: bool,
    /// Largest packet in bytes.
    pub mtu: u16,
}

impl fmt::Display for Interface {
    /// What decides whether clients can be on it: `enp3s0 (10.20.0.2/16)`, `enp4s0 (no address, no carrier)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut facts: Vec<String> = self.addresses.iter().map(|(ip, prefix)| format!("{ip}/{prefix}")).collect();
        if facts.is_empty() {
            facts.push("no address".into());
        }
        if !self.up {
            facts.push("down".into());
        } else if !self.carrier {
            facts.push("no carrier".into());
        }
        if !self.wired {
            facts.push("not wired".into());
        }
        write!(f, "{} ({})", self.name, facts.join(", "))
    }
}

/// Why there is no interface to serve clients on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InterfaceError {
    /// The one that was asked for does not exist.
    #[error("there is no interface `{name}`; this host has {}", list(.have))]
    Missing {
        /// The name.
        name: String,
        /// What there is.
        have: Vec<Interface>,
    },
    /// It exists, without an IPv4 address.
    #[error(
        "interface `{0}` has no IPv4 address; give it a fixed one, for example: ip address add 10.20.0.1/16 dev {0}"
    )]
    NoAddress(String),
    /// It exists and is switched off.
    #[error("interface `{0}` is down; switch it on: ip link set {0} up")]
    Down(String),
    /// None was asked for, and none fits.
    #[error("no wired interface has carrier and an IPv4 address; this host has {}", list(.have))]
    NoneFits {
        /// What there is.
        have: Vec<Interface>,
    },
    /// None was asked for, and several fit.
    #[error("the clients could be on any of {}; say which one: [server] interface = \"{}\"", list(.fit), .fit[0].name)]
    SeveralFit {
        /// Those that fit; more than one.
        fit: Vec<Interface>,
    },
}

fn list(interfaces: &[Interface]) -> String {
    match interfaces {
        [] => "none".into(),
        some => some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

/// The interface that the clients are on: the one that is wanted by name, else the one wired interface with carrier and
/// an address. One that is wanted may be without carrier: a switch that is still starting is no reason not to start.
///
/// # Errors
/// An [`InterfaceError`] that says what there is to choose from.
pub fn choose<'a>(interfaces: &'a [Interface], wanted: Option<&str>) -> Result<&'a Interface, InterfaceError> {
    if let Some(name) = wanted {
        let found = interfaces.iter().find(|interface| interface.name == name);
        let found =
            found.ok_or_else(|| InterfaceError::Missing { name: name.to_owned(), have: interfaces.to_vec() })?;
        return match found {
            Interface { up: false, .. } => Err(InterfaceError::Down(name.to_owned())),
            Interface { addresses, .. } if addresses.is_empty() => Err(InterfaceError::NoAddress(name.to_owned())),
            fits => Ok(fits),
        };
    }
    let mut fit = interfaces.iter().filter(|i| i.wired && i.up && i.carrier && !i.addresses.is_empty());
    match (fit.next(), fit.next()) {
        (Some(only), None) => Ok(only),
        (Some(first), Some(second)) => {
            let fit = [first, second].into_iter().chain(fit).cloned().collect();
            Err(InterfaceError::SeveralFit { fit })
        }
        (None, _) => Err(InterfaceError::NoneFits { have: interfaces.to_vec() }),
    }
}

/// Every interface of this network namespace, in the order of their indexes.
///
/// # Errors
/// What `getifaddrs(3)` says.
pub fn interfaces() -> io::Result<Vec<Interface>> {
    let mut found: BTreeMap<String, Interface> = BTreeMap::new();
    for entry in &entries()? {
        let interface = found.entry(entry.name.clone()).or_insert_with(|| Interface {
            name: entry.name.clone(),
            index: 0,
            mac: None,
            addresses: Vec::new(),
            ipv6: Vec::new(),
            up: entry.has(libc::IFF_UP),
            carrier: carrier(&entry.name).unwrap_or_else(|| entry.has(libc::IFF_RUNNING)),
            wired: false,
            mtu: mtu(&entry.name),
        });
        match entry.address {
            Address::Ip(ip, prefix) => interface.addresses.push((ip, prefix)),
            Address::Link { index, kind, mac } => {
                interface.index = index;
                interface.mac = mac;
                interface.wired = kind == ARPHRD_ETHER && !is_wireless(&entry.name);
            }
            Address::Other => {}
        }
    }
    // A kernel without IPv6 has no such file.
    let table = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    for (name, interface) in &mut found {
        interface.ipv6 = ipv6_of(&table, name);
    }
    let mut interfaces: Vec<Interface> = found.into_values().filter(|interface| interface.index != 0).collect();
    interfaces.sort_by_key(|interface| interface.index);
    Ok(interfaces)
}

/// [`Interface::ipv6`], from the text of `/proc/net/if_inet6`: address, interface, prefix, scope, flags (all hexadecimal), name.
fn ipv6_of(table: &str, name: &str) -> Vec<Ipv6Addr> {
    /// Everything but link, host and site (`IPV6_ADDR_*`, `net/ipv6.h`).
    const GLOBAL: u32 = 0;
    const NOT_FOR_LONG: u32 =
        libc::IFA_F_TEMPORARY | libc::IFA_F_DADFAILED | libc::IFA_F_DEPRECATED | libc::IFA_F_TENTATIVE;
    let mut addresses: Vec<(bool, Ipv6Addr)> = table
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let [address, _, _, scope, flags, of] = fields[..] else { return None };
            let number = |digits| u32::from_str_radix(digits, 16).ok();
            let address = Ipv6Addr::from(u128::from_str_radix(address, 16).ok()?);
            let (scope, flags) = (number(scope)?, number(flags)?);
            let fits = of == name && scope == GLOBAL && flags & NOT_FOR_LONG == 0;
            fits.then_some((flags & libc::IFA_F_PERMANENT == 0, address))
        })
        .collect();
    addresses.sort_by_key(|(made_by_itself, _)| *made_by_itself);
    addresses.into_iter().map(|(_, address)| address).collect()
}

/// Whether something answers at the other end of the wire, as the driver knows it now: `IFF_RUNNING` follows up to a second
/// later (RFC 2863's operational state, `net/core/link_watch.c`). `None` where the interface is down, or there is no `/sys`.
fn carrier(name: &str) -> Option<bool> {
    let text = std::fs::read_to_string(Path::new("/sys/class/net").join(name).join("carrier")).ok()?;
    Some(text.trim() == "1")
}

/// The interface's MTU; that of Ethernet where the kernel does not say. The loopback interface's does not fit 16 bits.
fn mtu(name: &str) -> u16 {
    const ETHERNET: u16 = 1500;
    let text = std::fs::read_to_string(Path::new("/sys/class/net").join(name).join("mtu")).unwrap_or_default();
    text.trim().parse::<u32>().map_or(ETHERNET, |mtu| u16::try_from(mtu).unwrap_or(u16::MAX))
}

fn is_wireless(name: &str) -> bool {
    let folder = Path::new("/sys/class/net").join(name);
    folder.join("wireless").exists() || folder.join("phy80211").exists()
}

/// One entry of `getifaddrs(3)`, copied out of the C library's list.
struct Entry {
    name: String,
    flags: libc::c_uint,
    address: Address,
}

enum Address {
    Ip(Ipv4Addr, u8),
    Link { index: u32, kind: u16, mac: Option<[u8; 6]> },
    Other,
}

impl Entry {
    fn has(&self, flag: libc::c_int) -> bool {
        self.flags & flag.cast_unsigned() != 0
    }
}

fn entries() -> io::Result<Vec<Entry>> {
    let mut first: *mut libc::ifaddrs = ptr::null_mut();
    // SAFETY: `first` is a valid place for the pointer that the call writes.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut entries = Vec::new();
    let mut next = first.cast_const();
    // SAFETY: the list is ours until freeifaddrs; each link and each name in it is valid or null, and every pointer into
    // it is dead before it is freed.
    unsafe {
        while let Some(entry) = next.as_ref() {
            entries.push(Entry {
                name: CStr::from_ptr(entry.ifa_name).to_string_lossy().into_owned(),
                flags: entry.ifa_flags,
                address: socket_address(entry),
            });
            next = entry.ifa_next;
        }
        libc::freeifaddrs(first);
    }
    Ok(entries)
}

/// The address of one entry.
///
/// # Safety
/// `entry` is an entry of a live `getifaddrs(3)` list.
unsafe fn socket_address(entry: &libc::ifaddrs) -> Address {
    if entry.ifa_addr.is_null() {
        return Address::Other;
    }
    // SAFETY: a non-null address in the list starts with its family, which says what structure it is; they are read
    // without assuming more alignment than the list gives.
    unsafe {
        match libc::c_int::from((*entry.ifa_addr).sa_family) {
            libc::AF_INET => {
                let ip = entry.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned();
                let prefix = if entry.ifa_netmask.is_null() {
                    32
                } else {
                    entry.ifa_netmask.cast::<libc::sockaddr_in>().read_unaligned().sin_addr.s_addr.count_ones()
                };
                let prefix = u8::try_from(prefix).expect("32 bits have at most 32 ones");
                Address::Ip(Ipv4Addr::from(u32::from_be(ip.sin_addr.s_addr)), prefix)
            }
            libc::AF_PACKET => {
                let link = entry.ifa_addr.cast::<libc::sockaddr_ll>().read_unaligned();
                let [a, b, c, d, e, f, ..] = link.sll_addr;
                let mac = (link.sll_halen == 6).then_some([a, b, c, d, e, f]);
                Address::Link { index: link.sll_ifindex.unsigned_abs(), kind: link.sll_hatype, mac }
            }
            _ => Address::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, address: Option<&str>) -> Interface {
        Interface {
            name: name.into(),
            index: 2,
            mac: Some([0x52, 0x54, 0, 0, 0, 1]),
            addresses: address.map(|ip| (ip.parse().unwrap(), 24)).into_iter().collect(),
            ipv6: Vec::new(),
            up: true,
            carrier: true,
            wired: true,
            mtu: 1500,
        }
    }

    #[test]
    fn the_loopback_interface_is_listed_and_never_chosen() {
        let all = interfaces().unwrap();
        let lo = all.iter().find(|i| i.name == "lo").unwrap();
        assert_eq!(lo.index, 1);
        assert!(!lo.wired);
        assert!(!lo.up || lo.addresses.contains(&(Ipv4Addr::LOCALHOST, 8)), "{lo:?}");
        assert!(matches!(choose(std::slice::from_ref(lo), None), Err(InterfaceError::NoneFits { .. })));
    }

    #[test]
    fn machines_are_told_an_ipv6_address_that_stays() {
        let table = "fe8000000000000000fc00fffe000001 04 40 20 80     eth0\n\
                     20010db8000000000000000000000abc 04 40 00 00     eth0\n\
                     20010db8000000000000000000000bad 04 40 00 01     eth0\n\
                     20010db8000000000000000000000bad 04 40 00 e0     eth0\n\
                     fd000000000000000000000000000002 04 40 00 82     eth0\n\
                     fd000000000000000000000000000003 05 40 00 80     eth1\n\
                     00000000000000000000000000000001 01 80 10 80       lo\n\
                     garbage\n";
        let given: [Ipv6Addr; 2] = ["fd00::2", "2001:db8::abc"].map(|address| address.parse().unwrap());
        assert_eq!(ipv6_of(table, "eth0"), given);
        assert_eq!(ipv6_of(table, "lo"), [Ipv6Addr::LOCALHOST; 0]);
    }

    #[test]
    fn the_one_wired_interface_with_carrier_and_an_address_is_chosen() {
        let fits = interface("enp3s0", Some("10.20.0.1"));
        let no_carrier = Interface { carrier: false, ..interface("enp4s0", Some("10.30.0.1")) };
        let radio = Interface { wired: false, ..interface("wlan0", Some("10.40.0.1")) };
        let all = [no_carrier, interface("enp5s0", None), radio, fits.clone()];
        assert_eq!(choose(&all, None), Ok(&fits));
        let words = choose(&all[..3], None).unwrap_err().to_string();
        for part in ["enp4s0 (10.30.0.1/24, no carrier)", "enp5s0 (no address)", "wlan0 (10.40.0.1/24, not wired)"] {
            assert!(words.contains(part), "{words}");
        }
    }

    #[test]
    fn where_several_fit_the_operator_is_asked() {
        let all = [interface("enp3s0", Some("10.20.0.1")), interface("enp4s0", Some("10.30.0.1"))];
        let words = choose(&all, None).unwrap_err().to_string();
        assert!(words.contains("enp4s0") && words.contains("interface = \"enp3s0\""), "{words}");
        assert_eq!(choose(&all, Some("enp4s0")), Ok(&all[1]));
    }

    #[test]
    fn a_wanted_interface_is_taken_without_carrier_but_not_without_an_address() {
        let idle = Interface { carrier: false, ..interface("enp3s0", Some("10.20.0.1")) };
        let down = Interface { up: false, ..interface("enp4s0", Some("10.30.0.1")) };
        let all = [idle.clone(), down, interface("enp5s0", None)];
        assert_eq!(choose(&all, Some("enp3s0")), Ok(&idle));
        assert_eq!(choose(&all, Some("enp4s0")), Err(InterfaceError::Down("enp4s0".into())));
        assert_eq!(choose(&all, Some("enp5s0")), Err(InterfaceError::NoAddress("enp5s0".into())));
        assert!(choose(&all, Some("eth9")).unwrap_err().to_string().contains("no interface `eth9`"));
    }
}
