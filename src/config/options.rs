//! `options`: DHCP options of the operator's own, by name or number.

use std::net::Ipv4Addr;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::report::{Draft, quoted};
use super::schema;
use super::values::{self, Refusal};
use super::walk::{Located, Walker, type_word};
use crate::fleet::extra::{ExtraOption, MAX_VALUE};

/// What an option's value is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Addresses,
    /// An unsigned number of so many bytes.
    Number(usize),
    /// A list of domain names (RFC 3397).
    Names,
    /// Bytes, which have no other form here.
    Bytes,
}

/// The options with names (RFC 2132 and others; the names are IANA's, shortened).
const NAMED: &[(&str, u8, Kind)] = &[
    ("router", 3, Kind::Addresses),
    ("time-servers", 4, Kind::Addresses),
    ("dns", 6, Kind::Addresses),
    ("log-servers", 7, Kind::Addresses),
    ("domain-name", 15, Kind::Text),
    ("mtu", 26, Kind::Number(2)),
    ("nis-domain", 40, Kind::Text),
    ("nis-servers", 41, Kind::Addresses),
    ("ntp-servers", 42, Kind::Addresses),
    ("vendor", 43, Kind::Bytes),
    ("netbios-name-servers", 44, Kind::Addresses),
    ("netbios-node-type", 46, Kind::Number(1)),
    ("netbios-scope", 47, Kind::Text),
    ("smtp-servers", 69, Kind::Addresses),
    ("posix-timezone", 100, Kind::Text),
    ("timezone", 101, Kind::Text),
    ("domain-search", 119, Kind::Names),
    ("classless-routes", 121, Kind::Bytes),
    ("tftp-server-address", 150, Kind::Addresses),
    ("wpad", 252, Kind::Text),
];

/// Options that Roost says itself, or that have no meaning from a server, and what they are.
const OWN: &[(u8, &str)] = &[
    (0, "padding"),
    (1, "the subnet's mask"),
    (12, "the client's name"),
    (17, "the root path"),
    (28, "the subnet's broadcast address"),
    (50, "the address that a client asks for"),
    (51, "the time of the lease, `lease` of the pool"),
    (52, "overload"),
    (53, "the kind of message"),
    (54, "the server's address"),
    (55, "what a client asks for"),
    (56, "why a request is refused"),
    (57, "the largest message"),
    (58, "when a lease is renewed"),
    (59, "when a lease is renewed by anybody"),
    (60, "the vendor class, by which firmware takes an offer"),
    (61, "the client's identifier"),
    (66, "the boot server"),
    (67, "the boot file"),
    (82, "what a relay says"),
    (93, "the client's architecture"),
    (94, "the client's network interface"),
    (97, "the machine's UUID"),
    (118, "the subnet that a relay selects"),
    (175, "iPXE's settings"),
    (203, "the initiator's name"),
    (255, "the end of the options"),
];

/// The options of one table; `None` where something is wrong with one of them.
pub(super) fn read<'a>(walker: &mut Walker<'a>, table: &'a DeTable<'a>) -> Option<Vec<ExtraOption>> {
    let mut options: Vec<Located<ExtraOption>> = Vec::new();
    let mut whole = true;
    // The parser sorts by name; what is wrong with the second of two is said at the second in the file.
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    for (key, value) in entries {
        let (name, at) = (key.get_ref().as_ref(), key.span().start);
        let read = code(name).and_then(|(code, kind)| {
            let value = bytes(kind, value).map_err(|refusal| about(name, refusal))?;
            if value.len() > MAX_VALUE {
                let message = format!("option `{}` has {} bytes; {MAX_VALUE} fit", quoted(name), value.len());
                return Err(Refusal { message, help: None });
            }
            Ok(ExtraOption { code, value })
        });
        let option = match read {
            Ok(option) => option,
            Err(refusal) => {
                walker.handled.push(value.span());
                walker.refuse(at, refusal);
                whole = false;
                continue;
            }
        };
        if let Some(first) = options.iter().find(|other| other.value.code == option.code) {
            let draft = Draft::error(at, format!("option {} is given twice, by name and by number", option.code));
            walker.push(draft.note(first.at, "it stands here first").help("take one of the two out"));
            whole = false;
        }
        options.push(Located { value: option, at });
    }
    whole.then(|| options.into_iter().map(|option| option.value).collect())
}

fn about(name: &str, refusal: Refusal) -> Refusal {
    Refusal { message: format!("option `{}`: {}", quoted(name), refusal.message), help: refusal.help }
}

/// The code that this key is about, and what its value is; `None` where nothing is known of that.
fn code(name: &str) -> Result<(u8, Option<Kind>), Refusal> {
    if let Some((_, code, kind)) = NAMED.iter().find(|named| named.0 == name) {
        return Ok((*code, Some(*kind)));
    }
    let Ok(code) = name.parse::<u8>() else {
        let names = || NAMED.iter().map(|named| named.0);
        let help = match schema::nearest(name, names()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("a number from 1 to 254, or {}", schema::listed(names())),
        };
        return Err(Refusal::new(format!("no DHCP option is called `{}`", quoted(name)), help));
    };
    if let Some((_, what)) = OWN.iter().find(|own| own.0 == code) {
        let help = "Roost says it itself, or nobody does; take it out";
        return Err(Refusal::new(format!("option {code} is {what}, and cannot be given here"), help));
    }
    Ok((code, NAMED.iter().find(|named| named.1 == code).map(|named| named.2)))
}

/// The value as a packet has it.
fn bytes(kind: Option<Kind>, value: &Spanned<DeValue<'_>>) -> Result<Vec<u8>, Refusal> {
    let wrong = |wanted: &str| {
        Err(Refusal::new(format!("it takes {wanted}, not {}", type_word(value.get_ref())), "or its bytes: \"0x01ff\""))
    };
    let text = match value.get_ref() {
        DeValue::String(text) => Some(text.as_ref()),
        _ => None,
    };
    if let Some(digits) = text.and_then(|text| text.strip_prefix("0x")) {
        return hexadecimal(digits)
            .ok_or_else(|| Refusal::new("these are no bytes", "two hexadecimal digits for each: \"0x01ff\""));
    }
    let texts = || -> Option<Vec<&str>> {
        match value.get_ref() {
            DeValue::String(text) => Some(vec![text.as_ref()]),
            DeValue::Array(items) => items.iter().map(|item| item.get_ref().as_str()).collect(),
            _ => None,
        }
    };
    let addresses = |texts: &[&str]| -> Result<Vec<u8>, Refusal> {
        let addresses = texts.iter().map(|text| values::address(text)).collect::<Result<Vec<Ipv4Addr>, _>>()?;
        Ok(addresses.iter().flat_map(Ipv4Addr::octets).collect())
    };
    match kind {
        Some(Kind::Text) => text.filter(|text| !text.is_empty()).map_or_else(|| wrong("text"), |text| Ok(text.into())),
        Some(Kind::Addresses) => match texts() {
            Some(texts) if !texts.is_empty() => addresses(&texts),
            _ => wrong("an address, or a list of them"),
        },
        Some(Kind::Names) => match texts() {
            Some(names) if !names.is_empty() => {
                names.into_iter().map(domain).collect::<Result<Vec<_>, _>>().map(|all| all.concat())
            }
            _ => wrong("a domain, or a list of them"),
        },
        Some(Kind::Number(len)) => {
            let number = match value.get_ref() {
                DeValue::Integer(number) => number.as_str().parse::<u64>().ok(),
                _ => return wrong("a number"),
            };
            let number = number.filter(|number| *number < 1 << (8 * len));
            let Some(number) = number else {
                return Err(Refusal::new("the number is too large", format!("it has {len} byte(s)")));
            };
            Ok(number.to_be_bytes()[8 - len..].to_vec())
        }
        Some(Kind::Bytes) => wrong("bytes"),
        // Of a code without a name, the form says what it is; the length of a number it does not say.
        None => match texts() {
            Some(texts) if !texts.is_empty() && texts.iter().all(|text| text.parse::<Ipv4Addr>().is_ok()) => {
                addresses(&texts)
            }
            _ => match text {
                Some(text) if !text.is_empty() => Ok(text.into()),
                _ => wrong("text, addresses or bytes"),
            },
        },
    }
}

fn hexadecimal(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    pairs
        .map(|pair| {
            let [high, low] = *pair else { return None };
            let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            Some(digit(high)? << 4 | digit(low)?)
        })
        .collect::<Option<Vec<_>>>()
        .filter(|bytes| !bytes.is_empty())
}

/// A domain as RFC 1035 §3.1 writes it, without compression.
fn domain(name: &str) -> Result<Vec<u8>, Refusal> {
    let mut bytes = Vec::new();
    for label in name.trim_end_matches('.').split('.') {
        let good = (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        let len = u8::try_from(label.len()).unwrap_or(0);
        if !good {
            return Err(Refusal::new(format!("`{}` is no domain", quoted(name)), "write it like \"lab.example\""));
        }
        bytes.push(len);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_option_is_both_named_and_ours() {
        for (name, code, _) in NAMED {
            assert!(OWN.iter().all(|own| own.0 != *code), "{name}");
            assert_eq!(NAMED.iter().filter(|other| other.0 == *name || other.1 == *code).count(), 1, "{name}");
        }
    }

    #[test]
    fn domains_and_bytes_are_written_as_packets_have_them() {
        assert_eq!(domain("lab.example").unwrap(), b"\x03lab\x07example\0");
        assert!(domain("").is_err() && domain("a..b").is_err() && domain("a b").is_err());
        assert_eq!(hexadecimal("01fF"), Some(vec![1, 255]));
        assert_eq!((hexadecimal(""), hexadecimal("1"), hexadecimal("0g"), hexadecimal("é")), (None, None, None, None));
    }
}
