//! The values that are more than text: addresses, ranges, durations, names.

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnetwork::Ipv4Network;

use super::report::quoted;
use crate::fleet::iqn::MAX_ISCSI_NAME;
use crate::fleet::lease::MIN_LEASE;
use crate::fleet::port::PortError;
use crate::fleet::{ImageName, Port, client, size};

/// Most addresses in a pool, a /16: it is walked to find a free one.
pub const MAX_POOL: u32 = 65_536;

/// Prefixes of subnets: up to a private network as wide as there is, down to two hosts.
const SUBNETS: std::ops::RangeInclusive<u8> = 8..=30;

/// Longest lease: a year; what should stay for good is an `ip`.
pub const MAX_LEASE: Duration = Duration::from_secs(365 * 86_400);

/// Smallest `limit` of a client: the tables of the largest disk fit, and some of what is written to it.
pub const MIN_LIMIT: u64 = 16 << 20;

/// Smallest `data` of a client, and what it is a multiple of: disks are whole MiB, as every partitioner expects.
pub const MIN_DATA: u64 = 1 << 20;

/// Largest `data` of a client: the file is a VHDX, and the format knows no larger disk.
pub const MAX_DATA: u64 = 64 << 40;

/// Longest name of a network interface in bytes: Linux' `IFNAMSIZ` is 16 with the final zero.
const MAX_INTERFACE: usize = 15;

/// What a prefix must leave room for: `:client.` and a name.
const NAME_ROOM: usize = ":client.".len() + client::MAX_NAME;

/// Why a value is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) message: String,
    pub(super) help: Option<String>,
}

fn refuse<T>(message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { message: message.into(), help: None })
}

impl Refusal {
    pub(super) fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { message: message.into(), help: Some(help.into()) }
    }
}

/// An address that one machine can have.
pub(super) fn address(text: &str) -> Result<Ipv4Addr, Refusal> {
    let shown = quoted(text);
    let Ok(address) = text.parse::<Ipv4Addr>() else {
        return Err(Refusal::new(format!("`{shown}` is not an IPv4 address"), "write it like 10.20.0.50"));
    };
    let kind = match address.octets()[0] {
        0 => "stands for no machine",
        127 => "is this machine itself (loopback)",
        224..=239 => "is a multicast address",
        240.. => "is reserved or broadcast",
        _ => return Ok(address),
    };
    refuse(format!("{address} {kind}; no client can have it"))
}

/// A pool's first and last address.
pub(super) fn range(text: &str) -> Result<(Ipv4Addr, Ipv4Addr), Refusal> {
    let Some((first, last)) = text.split_once('-') else {
        let message = format!("`{}` is not a range of addresses", quoted(text));
        return Err(Refusal::new(message, "write the first and the last: \"10.20.0.100-10.20.0.199\""));
    };
    let (first, last) = (address(first.trim())?, address(last.trim())?);
    if first > last {
        let help = format!("write it the other way round: \"{last}-{first}\"");
        return Err(Refusal::new(format!("the range begins at {first}, after its end {last}"), help));
    }
    if u32::from(last) - u32::from(first) >= MAX_POOL {
        return refuse(format!("the range holds more than {MAX_POOL} addresses"));
    }
    Ok((first, last))
}

/// A subnet: its first address, and how many bits its addresses share.
pub(super) fn subnet(text: &str) -> Result<Ipv4Network, Refusal> {
    let shown = quoted(text);
    let malformed = || Refusal::new(format!("`{shown}` is not a subnet"), "write it like 10.30.0.0/24");
    let (first, prefix) = text.split_once('/').ok_or_else(malformed)?;
    let first = address(first)?;
    let prefix = prefix.parse().map_err(|_| malformed())?;
    if !SUBNETS.contains(&prefix) {
        let (widest, narrowest) = (SUBNETS.start(), SUBNETS.end());
        return refuse(format!("a subnet of /{prefix} is not taken; from /{widest} to /{narrowest} they are"));
    }
    let subnet = Ipv4Network::new(first, prefix).map_err(|_| malformed())?;
    if subnet.network() != first {
        let right = format!("write {}/{prefix}, or another prefix", subnet.network());
        return Err(Refusal::new(format!("{first} is not the first address of a subnet of /{prefix}"), right));
    }
    Ok(subnet)
}

/// How long a lease lasts: `8h`, `30m`, `90s`, `1d`.
pub(super) fn lease(text: &str) -> Result<Duration, Refusal> {
    let malformed = || {
        let message = format!("`{}` is not a duration", quoted(text));
        Refusal::new(message, "a number and s, m, h or d: \"90s\", \"30m\", \"8h\", \"1d\"")
    };
    let unit = text.chars().next_back().ok_or_else(malformed)?;
    let number = &text[..text.len() - unit.len_utf8()];
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(malformed()),
    };
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
        return Err(malformed());
    }
    let lease =
        number.parse::<u64>().ok().and_then(|n| n.checked_mul(seconds)).map_or(Duration::MAX, Duration::from_secs);
    if lease < MIN_LEASE {
        let why = "firmware does not renew it, and it must hold until the operating system asks for its own";
        return Err(Refusal::new(format!("a lease of {text} is too short; the shortest is 2m"), why));
    }
    if lease > MAX_LEASE {
        let message = format!("a lease of {} is too long; the longest is 365d", quoted(text));
        return Err(Refusal::new(message, "for an address that stays, give the client an `ip`"));
    }
    Ok(lease)
}

/// How far a client's own disk may grow: `20G`, `512M`.
pub(super) fn limit(text: &str) -> Result<u64, Refusal> {
    let shown = quoted(text);
    let Some(limit) = size::parse(text) else {
        let help = "a number and M, G or T: \"512M\", \"20G\", \"1.5T\"";
        return Err(Refusal::new(format!("`{shown}` is no size"), help));
    };
    if limit < MIN_LIMIT {
        let help = "for a disk that takes no writes at all: mode = \"read-only\"";
        let least = MIN_LIMIT >> 20;
        return Err(Refusal::new(format!("a limit of {shown} is too small; the smallest is {least}M"), help));
    }
    Ok(limit)
}

/// How large a client's second disk is: `50G`, `1.5T`.
pub(super) fn data(text: &str) -> Result<u64, Refusal> {
    let shown = quoted(text);
    let Some(size) = size::parse(text) else {
        let help = "a number and M, G or T: \"512M\", \"50G\", \"1.5T\"; without a second disk the key is left out";
        return Err(Refusal::new(format!("`{shown}` is no size"), help));
    };
    if size < MIN_DATA {
        return Err(Refusal::new(format!("a data disk of {shown} is too small"), "the smallest is 1M"));
    }
    if size > MAX_DATA {
        return Err(Refusal::new(format!("a data disk of {shown} is too large"), "the largest is 64T"));
    }
    if !size.is_multiple_of(MIN_DATA) {
        let near = size.div_ceil(MIN_DATA);
        return Err(Refusal::new(format!("a data disk of {shown} has no whole MiB"), format!("write \"{near}M\"")));
    }
    Ok(size)
}

/// A prefix of iSCSI names: `iqn.YYYY-MM.reversed.domain[:…]` (RFC 7143 §4.2.7.4).
pub(super) fn iqn(text: &str) -> Result<String, Refusal> {
    let shown = quoted(text);
    let wrong = |why: &str| {
        let help =
            "write it like iqn.2026-11.internal.roost: a month in which you held the domain, and the domain reversed";
        Err(Refusal::new(format!("`{shown}` is not an iSCSI name: {why}"), help))
    };
    if text.chars().any(|c| c.is_ascii_uppercase()) {
        return Err(Refusal::new(
            format!("`{shown}` has capital letters"),
            format!("write {}", quoted(&text.to_lowercase())),
        ));
    }
    let Some(rest) = text.strip_prefix("iqn.") else { return wrong("it does not begin with `iqn.`") };
    let (date, rest) = rest.split_once('.').unwrap_or((rest, ""));
    let digits = |part: &str, length: usize| part.len() == length && part.bytes().all(|b| b.is_ascii_digit());
    let good_date = date.split_once('-').is_some_and(|(year, month)| {
        digits(year, 4) && digits(month, 2) && (1..=12).contains(&month.parse().unwrap_or(0))
    });
    if !good_date {
        return wrong("after `iqn.` come a year and a month, like 2026-11");
    }
    let (domain, extra) = rest.split_once(':').map_or((rest, None), |(domain, extra)| (domain, Some(extra)));
    let good_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
    };
    if !domain.split('.').all(good_label) {
        return wrong("after the date comes a domain, reversed, like internal.roost");
    }
    if let Some(extra) = extra
        && (extra.is_empty() || !extra.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b':')))
    {
        return wrong("after the colon come a to z, 0 to 9, -, . and :");
    }
    let most = MAX_ISCSI_NAME - NAME_ROOM;
    if text.len() > most {
        return refuse(format!(
            "the prefix has {} bytes; with a client's name behind it, at most {most} fit an iSCSI name",
            text.len()
        ));
    }
    Ok(text.to_owned())
}

/// The port of a switch, as option 82 tells it.
pub(super) fn port(text: &str) -> Result<Port, Refusal> {
    let help = "write it as the log and the events of an offer tell it: \"sw1/ge-0/0/4\"";
    text.parse().map_err(|error: PortError| Refusal::new(error.to_string(), help))
}

/// An initiator's name: `iqn.`, `eui.` or `naa.` (RFC 7143 §4.2.7), in lower case as it is compared; or `*`.
pub(super) fn initiator(text: &str) -> Result<String, Refusal> {
    let name = text.to_ascii_lowercase();
    let shown = quoted(text);
    if name == "*" {
        return Ok(name);
    }
    let hex =
        |part: &str, lengths: &[usize]| lengths.contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit());
    let good = match name.split_once('.') {
        Some(("iqn", rest)) => !rest.is_empty() && !rest.chars().any(|c| c.is_whitespace() || c.is_control()),
        Some(("eui", rest)) => hex(rest, &[16]),
        Some(("naa", rest)) => hex(rest, &[16, 32]),
        _ => false,
    };
    if !good {
        let help = "write it like iqn.2026-11.internal.backup:reader, or \"*\" for anybody";
        return Err(Refusal::new(format!("`{shown}` is not an initiator's name"), help));
    }
    if name.len() > MAX_ISCSI_NAME {
        return refuse(format!("the name has {} bytes; an iSCSI name has at most {MAX_ISCSI_NAME}", name.len()));
    }
    Ok(name)
}

/// An image's name. Versions and channels come later.
pub(super) fn image(text: &str) -> Result<ImageName, Refusal> {
    if let Some((name, _)) = text.split_once('@') {
        let message = "versions and channels of images are not supported yet";
        return Err(Refusal::new(message, format!("write the name alone: \"{}\"", quoted(name))));
    }
    text.parse().map_err(|reason| bad_name("image", text, &reason))
}

/// Why this is no name of a client, a group or an image, and what would be one.
pub(super) fn bad_name(what: &str, text: &str, reason: &client::NameError) -> Refusal {
    let message = match reason {
        client::NameError::Empty => format!("the name of this {what} is empty"),
        client::NameError::Long(length) => {
            format!("the name of this {what} has {length} characters; it may have {}", client::MAX_NAME)
        }
        client::NameError::Character(c) => format!("`{c}` cannot stand in the name of the {what} `{}`", quoted(text)),
    };
    let better: String =
        text.to_lowercase().chars().map(|c| if matches!(c, '_' | ' ' | '.') { '-' } else { c }).collect();
    let help = match better.parse::<ImageName>() {
        Ok(name) if name.as_str() != text => format!("write `{name}`: names are made of a to z, 0 to 9 and -"),
        _ => "names are made of a to z, 0 to 9 and -".to_owned(),
    };
    Refusal::new(message, help)
}

/// The name of a network interface, as Linux allows it.
pub(super) fn interface(text: &str) -> Result<String, Refusal> {
    let good = !text.is_empty()
        && !matches!(text, "." | "..")
        && text.len() <= MAX_INTERFACE
        && !text.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
    if good {
        return Ok(text.to_owned());
    }
    Err(Refusal::new(format!("`{}` is not the name of an interface", quoted(text)), "`ip -brief link` lists them"))
}

/// A path that is not empty.
pub(super) fn path(text: &str) -> Result<String, Refusal> {
    if text.is_empty() || text.contains('\0') {
        return refuse("the path is empty");
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_a_number_and_a_unit() {
        for (text, seconds) in [("120s", 120), ("30m", 1_800), ("8h", 28_800), ("1d", 86_400), ("365d", 31_536_000)] {
            assert_eq!(lease(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "h", "8", "8 h", "-8h", "+8h", "8h30m", "8ü", "1m", "119s", "366d", "99999999999999999999d"] {
            assert!(lease(text).is_err(), "{text}");
        }
    }

    #[test]
    fn iscsi_prefixes_follow_the_standard_and_leave_room_for_names() {
        for good in ["iqn.2026-11.internal.roost", "iqn.1999-01.org", "iqn.2026-12.a.b-c:room:1"] {
            assert_eq!(iqn(good).as_deref(), Ok(good));
        }
        let long = format!("iqn.2026-11.a:{}", "x".repeat(MAX_ISCSI_NAME));
        let most = &long[..MAX_ISCSI_NAME - NAME_ROOM];
        assert!(iqn(most).is_ok() && iqn(&long[..most.len() + 1]).is_err());
        for bad in ["", "iqn", "iqn.", "iqn.2026-11", "iqn.2026-11.", "iqn.2026-13.a", "iqn.26-11.a", "iqn.2026-11.-a"]
        {
            assert!(iqn(bad).is_err(), "{bad}");
        }
        for bad in ["iqn.2026-11.a.", "iqn.2026-11.a:", "iqn.2026-11.A", "eui.0123456789abcdef", "iqn.2026-11.a b"] {
            assert!(iqn(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges_have_an_order_and_an_end() {
        assert_eq!(range("10.0.0.1 - 10.0.0.2"), Ok((Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2))));
        assert!(range("10.0.0.0-10.0.255.255").is_ok());
        for bad in ["10.0.0.2-10.0.0.1", "10.0.0.0-10.1.0.0", "10.0.0.1", "10.0.0.1-9", "127.0.0.1-127.0.0.9", "-"] {
            assert!(range(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_subnet_begins_with_its_first_address() {
        let good = subnet("10.30.0.0/24").unwrap();
        assert_eq!((good.network(), good.prefix()), (Ipv4Addr::new(10, 30, 0, 0), 24));
        for bad in ["10.30.0.1/24", "10.30.0.0", "10.30.0.0/33", "10.30.0.0/31", "0.0.0.0/0", "/24", "10.30.0.0/x"] {
            assert!(subnet(bad).is_err(), "{bad}");
        }
        assert!(subnet("10.30.0.7/24").unwrap_err().help.unwrap().contains("10.30.0.0/24"));
    }

    #[test]
    fn initiators_are_names_of_the_three_kinds() {
        assert_eq!(initiator("IQN.2026-11.internal.a:B"), Ok("iqn.2026-11.internal.a:b".to_owned()));
        for good in ["*", "eui.0123456789abcdef", "naa.0123456789abcdef", "naa.0123456789abcdef0123456789ABCDEF"] {
            assert!(initiator(good).is_ok(), "{good}");
        }
        for bad in ["", "iqn.", "pc-01", "eui.0", "iqn.2026-11.a b", "**"] {
            assert!(initiator(bad).is_err(), "{bad}");
        }
    }
}
