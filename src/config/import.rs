//! What other DHCP servers' files say of addresses: leases that are in force, and reservations.
//!
//! Read are the lease files of dnsmasq, ISC dhcpd and Kea (memfile), `dhcp-host=` lines of dnsmasq, `host` declarations of ISC
//! dhcpd, `reservations` of Kea, and tables of `mac,ip,name`. What is not understood is told with its line, and nothing else
//! fails for it. Not here: what becomes of them, which depends on the fleet and its pools.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::Value;

use crate::fleet::{Mac, Timestamp};

/// Largest file that is read: a hundred thousand leases of the wordiest format.
pub const MAX_IMPORT: u64 = 64 << 20;

/// A machine's address by the word of another server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The machine.
    pub mac: Mac,
    /// Its address.
    pub address: Ipv4Addr,
    /// What it is called there.
    pub name: Option<String>,
    /// When its lease ends; `None` for a reservation.
    pub expires: Option<Timestamp>,
}

/// What a file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// What kind of file it is, in words.
    pub format: &'static str,
    /// Leases and reservations; of several about one address the last.
    pub known: Vec<Known>,
    /// Lines that say nothing of use, and why.
    pub skipped: Vec<(usize, String)>,
}

/// No form that is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// Nothing in it looks like one.
    #[error("it is no file of dnsmasq, ISC dhcpd or Kea, and no table of mac,ip,name")]
    Unknown,
    /// It begins like Kea's configuration.
    #[error("it looks like Kea's configuration, and is no JSON: {0}")]
    Json(String),
}

/// Reads such a file.
///
/// # Errors
/// It is none.
pub fn read(text: &str) -> Result<Imported, ImportError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let bare = without_comments(text);
    if text.starts_with("address,hwaddr,") {
        return Ok(kea_leases(text));
    }
    if bare.trim_start().starts_with('{') {
        return kea_reservations(&bare);
    }
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    if lines().any(|line| line.starts_with("dhcp-host=")) {
        return Ok(dnsmasq_hosts(text));
    }
    if lines().any(|line| {
        line.split_whitespace().next().is_some_and(|word| word == "lease" || word == "host") && line.contains('{')
    }) {
        return Ok(isc(text));
    }
    let first = lines().next().ok_or(ImportError::Unknown)?;
    if first.contains(',') && first.split(',').any(|field| field.trim().parse::<Mac>().is_ok() || field.trim() == "mac")
    {
        return Ok(table(text));
    }
    let fields: Vec<&str> = first.split_whitespace().collect();
    if fields.len() >= 4 && fields[0].parse::<u64>().is_ok() && fields[2].parse::<Ipv4Addr>().is_ok() {
        return Ok(dnsmasq_leases(text));
    }
    Err(ImportError::Unknown)
}

/// Takes note of what a file says, one finding after the other.
struct Reader {
    imported: Imported,
    /// Where in `known` an address stands.
    at: BTreeMap<Ipv4Addr, usize>,
}

impl Reader {
    fn new(format: &'static str) -> Self {
        Self { imported: Imported { format, ..Imported::default() }, at: BTreeMap::new() }
    }

    fn skip(&mut self, line: usize, why: impl Into<String>) {
        self.imported.skipped.push((line, why.into()));
    }

    /// A finding; the last word about an address counts.
    fn add(&mut self, known: Known) {
        match self.at.get(&known.address) {
            Some(at) => self.imported.known[*at] = known,
            None => {
                self.at.insert(known.address, self.imported.known.len());
                self.imported.known.push(known);
            }
        }
    }

    /// The address is nobody's any more.
    fn free(&mut self, address: Ipv4Addr) {
        if let Some(at) = self.at.remove(&address) {
            self.imported.known.remove(at);
            self.at.values_mut().filter(|other| **other > at).for_each(|other| *other -= 1);
        }
    }

    /// A finding in two texts.
    fn found(&mut self, line: usize, mac: &str, address: &str, name: Option<&str>, expires: Option<Timestamp>) {
        let name = name.map(|name| name.trim_matches('"')).filter(|name| !matches!(*name, "" | "*")).map(str::to_owned);
        match (mac.parse(), address.parse()) {
            (Ok(mac), Ok(address)) => self.add(Known { mac, address, name, expires }),
            (Err(error), _) => self.skip(line, error.to_string()),
            (_, Err(_)) => self.skip(line, format!("`{address}` is not an IPv4 address")),
        }
    }
}

fn seconds(seconds: u64) -> Timestamp {
    Timestamp(0).after(Duration::from_secs(seconds))
}

/// dnsmasq: `EXPIRY MAC ADDRESS NAME CLIENT-ID`. An expiry of 0 is never.
fn dnsmasq_leases(text: &str) -> Imported {
    let mut reader = Reader::new("leases of dnsmasq");
    for (index, line) in text.lines().enumerate() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match fields[..] {
            [] => {}
            ["duid", ..] => break, // DHCPv6 from here on
            [expiry, mac, address, name, ..] => {
                // With another kind of hardware its number stands before the address.
                let mac = mac.strip_prefix("01-").unwrap_or(mac);
                match expiry.parse() {
                    Ok(0) => reader.found(index + 1, mac, address, Some(name), Some(Timestamp(u64::MAX))),
                    Ok(expiry) => reader.found(index + 1, mac, address, Some(name), Some(seconds(expiry))),
                    Err(_) => reader.skip(index + 1, format!("`{expiry}` is no time")),
                }
            }
            _ => reader.skip(index + 1, "too few words"),
        }
    }
    reader.imported
}

/// dnsmasq: `dhcp-host=MAC[,MAC…][,ADDRESS][,NAME][,TIME]`, in any order, with tags and client identifiers between them.
fn dnsmasq_hosts(text: &str) -> Imported {
    let mut reader = Reader::new("dhcp-host lines of dnsmasq");
    for (index, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some(fields) = line.strip_prefix("dhcp-host=") else { continue };
        let fields: Vec<&str> = fields.split(',').map(str::trim).collect();
        let macs: Vec<&str> = fields.iter().copied().filter(|field| field.parse::<Mac>().is_ok()).collect();
        let address = fields.iter().find(|field| field.parse::<Ipv4Addr>().is_ok());
        let is_time = |field: &str| {
            field == "infinite" || field.trim_end_matches(['s', 'm', 'h', 'd', 'w']).parse::<u64>().is_ok()
        };
        let name = fields.iter().copied().find(|field| {
            !(field.is_empty() || field.contains(':') || *field == "ignore" || is_time(field))
                && field.parse::<Mac>().is_err()
                && field.parse::<Ipv4Addr>().is_err()
        });
        match (macs.as_slice(), address) {
            ([mac], Some(address)) => reader.found(index + 1, mac, address, name, None),
            ([], _) => reader.skip(index + 1, "it names no MAC address"),
            (_, None) => reader.skip(index + 1, "it gives no address"),
            (_, Some(_)) => reader.skip(index + 1, "it has several MAC addresses; write mac = [\"…\", \"…\"] yourself"),
        }
    }
    reader.imported
}

/// A table with or without a head. The head says in which order the columns are; without one it is `mac,ip,name`.
fn table(text: &str) -> Imported {
    let mut reader = Reader::new("table of mac,ip,name");
    let mut columns = [Some(0), Some(1), Some(2)];
    for (index, line) in text.lines().enumerate() {
        let fields: Vec<&str> = line.split(',').map(|field| field.trim().trim_matches('"')).collect();
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        if fields.contains(&"mac") {
            columns = [&["mac"][..], &["ip", "address"], &["name", "hostname"]]
                .map(|words| fields.iter().position(|field| words.contains(field)));
            continue;
        }
        let field = |column: Option<usize>| column.and_then(|column| fields.get(column)).copied();
        match columns.map(field) {
            [Some(mac), Some(address), name] => reader.found(index + 1, mac, address, name, None),
            _ => reader.skip(index + 1, "too few columns"),
        }
    }
    reader.imported
}

/// Kea's memfile: a log, of which the last line about an address counts.
fn kea_leases(text: &str) -> Imported {
    let mut reader = Reader::new("leases of Kea");
    let head: Vec<&str> = text.lines().next().unwrap_or_default().split(',').collect();
    let column = |name: &str| head.iter().position(|column| *column == name);
    let (address, mac, expire) = (column("address"), column("hwaddr"), column("expire"));
    let (name, state, lifetime) = (column("hostname"), column("state"), column("valid_lifetime"));
    for (index, line) in text.lines().enumerate().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        let field = |column: Option<usize>| column.and_then(|column| fields.get(column)).copied();
        let (Some(address), Some(mac), Some(expire)) = (field(address), field(mac), field(expire)) else {
            if !line.trim().is_empty() {
                reader.skip(index + 1, "too few columns");
            }
            continue;
        };
        if field(state).is_some_and(|state| state != "0") || field(lifetime) == Some("0") {
            if let Ok(address) = address.parse() {
                reader.free(address);
            }
            continue;
        }
        match expire.parse() {
            Ok(expire) => reader.found(index + 1, mac, address, field(name), Some(seconds(expire))),
            Err(_) => reader.skip(index + 1, format!("`{expire}` is no time")),
        }
    }
    reader.imported
}

/// Kea's configuration: every object in a list called `reservations`, wherever it stands.
fn kea_reservations(bare: &str) -> Result<Imported, ImportError> {
    let root: Value = serde_json::from_str(bare).map_err(|error| ImportError::Json(error.to_string()))?;
    let mut reader = Reader::new("reservations of Kea");
    let mut open = vec![&root];
    while let Some(value) = open.pop() {
        match value {
            Value::Array(items) => open.extend(items),
            Value::Object(fields) => {
                for (name, value) in fields {
                    match (name.as_str(), value) {
                        ("reservations", Value::Array(items)) => {
                            items.iter().for_each(|item| kea_reservation(&mut reader, item));
                        }
                        _ => open.push(value),
                    }
                }
            }
            _ => {}
        }
    }
    Ok(reader.imported)
}

fn kea_reservation(reader: &mut Reader, item: &Value) {
    let text = |key: &str| item.get(key).and_then(Value::as_str);
    match (text("hw-address"), text("ip-address")) {
        // JSON has no lines here.
        (Some(mac), Some(address)) => reader.found(0, mac, address, text("hostname"), None),
        (None, _) => reader.skip(0, format!("a reservation without `hw-address`: {item}")),
        (_, None) => reader.skip(0, format!("a reservation without `ip-address`: {item}")),
    }
}

/// ISC dhcpd: `lease ADDRESS { … }` of the lease file, of which the last about an address counts, and `host NAME { … }` of
/// the configuration or, made over OMAPI, of the lease file.
fn isc(text: &str) -> Imported {
    let mut reader = Reader::new("leases and hosts of ISC dhcpd");
    let words = words(text);
    let mut rest = words.as_slice();
    while let [(line, word), tail @ ..] = rest {
        rest = tail;
        let ([(_, subject), (_, "{"), body @ ..], "lease" | "host") = (tail, *word) else { continue };
        let end = body.iter().position(|(_, word)| *word == "}").unwrap_or(body.len());
        let statements: Vec<Vec<&str>> = body[..end]
            .split(|(_, word)| *word == ";")
            .map(|statement| statement.iter().map(|(_, word)| *word).collect())
            .collect();
        rest = &body[end..];
        let value = |start: &[&'static str]| value_of(&statements, start);
        let Some(mac) = value(&["hardware", "ethernet"]) else {
            if *word == "host" {
                reader.skip(*line, format!("host {subject} has no `hardware ethernet`"));
            }
            continue;
        };
        if *word == "host" {
            match value(&["fixed-address"]) {
                Some(address) => reader.found(*line, mac, address, Some(subject), None),
                None => reader.skip(*line, format!("host {subject} has no `fixed-address`")),
            }
            continue;
        }
        if value(&["binding", "state"]).is_some_and(|state| state != "active") {
            if let Ok(address) = subject.parse() {
                reader.free(address);
            }
            continue;
        }
        let ends = statements.iter().find_map(|statement| statement.strip_prefix(&["ends"]));
        match ends.and_then(isc_time) {
            Some(ends) => reader.found(*line, mac, subject, value(&["client-hostname"]), Some(ends)),
            None => reader.skip(*line, format!("the lease of {subject} does not say when it ends")),
        }
    }
    reader.imported
}

/// The word behind these, in the statement that begins with them.
fn value_of<'text>(statements: &[Vec<&'text str>], start: &[&'static str]) -> Option<&'text str> {
    statements.iter().find_map(|statement| statement.strip_prefix(start)?.first().copied())
}

/// `never`, `epoch SECONDS`, or `WEEKDAY YYYY/MM/DD HH:MM:SS` in UTC.
fn isc_time(words: &[&str]) -> Option<Timestamp> {
    match words {
        ["never", ..] => Some(Timestamp(u64::MAX)),
        ["epoch", since, ..] => since.parse().ok().map(seconds),
        [_, date, time, ..] => {
            let text = format!("{}T{time}Z", date.replace('/', "-"));
            let at: jiff::Timestamp = text.parse().ok()?;
            u64::try_from(at.as_second()).ok().map(seconds)
        }
        _ => None,
    }
}

/// The words of ISC dhcpd's language, each with its line: braces, semicolons and commas are words, texts lose their quotes.
fn words(text: &str) -> Vec<(usize, &str)> {
    let mut words = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let len = match first {
                '#' => break,
                '{' | '}' | ';' | ',' => 1,
                '"' => {
                    let text = &rest[1..];
                    let mut escaped = false;
                    let ends = |c: char| {
                        let end = c == '"' && !escaped;
                        escaped = c == '\\' && !escaped;
                        end
                    };
                    let end = text.find(ends).unwrap_or(text.len());
                    words.push((index + 1, &text[..end]));
                    rest = text.get(end + 1..).unwrap_or_default().trim_start();
                    continue;
                }
                _ => rest.find(|c: char| c.is_whitespace() || "{};,#\"".contains(c)).unwrap_or(rest.len()),
            };
            words.push((index + 1, &rest[..len]));
            rest = rest[len..].trim_start();
        }
    }
    words
}

/// JSON without the comments that Kea allows: `#` and `//` to the end of the line, and `/* … */`.
fn without_comments(text: &str) -> String {
    let mut bare = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let len = match first {
            '"' => {
                let mut end = 1;
                while let Some(byte) = rest.as_bytes().get(end) {
                    end += if *byte == b'\\' { 2 } else { 1 };
                    if *byte == b'"' {
                        break;
                    }
                }
                let mut end = end.min(rest.len());
                while !rest.is_char_boundary(end) {
                    end += 1;
                }
                bare.push_str(&rest[..end]);
                end
            }
            '#' => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            other => {
                bare.push(other);
                other.len_utf8()
            }
        };
        rest = &rest[len..];
    }
    bare
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Vec<String> {
        let imported = read(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let mut said: Vec<String> = imported
            .known
            .iter()
            .map(|Known { mac, address, name, expires }| {
                let name = name.as_deref().unwrap_or("-");
                let until = expires.map_or_else(|| "reserved".to_owned(), |at| (at.0 / 1000).to_string());
                format!("{mac} {address} {name} {until}")
            })
            .collect();
        said.extend(imported.skipped.iter().map(|(line, why)| format!("{line}: {why}")));
        said
    }

    #[test]
    fn leases_of_dnsmasq() {
        let text = "1795000000 52:54:00:aa:00:01 10.20.0.101 pc-01 01:52:54:00:aa:00:01\n\
                    0 52:54:00:AA:00:02 10.20.0.102 * *\n1795000000 xx 10.20.0.103 * *\nduid 00:01\n1 2 3 4 5\n";
        let mac = "3: `xx` is not a MAC address: it has 0 hexadecimal digits, not 12";
        let never = u64::MAX / 1000;
        assert_eq!(
            said(text),
            [
                "52:54:00:aa:00:01 10.20.0.101 pc-01 1795000000",
                &format!("52:54:00:aa:00:02 10.20.0.102 - {never}"),
                mac
            ]
        );
    }

    #[test]
    fn hosts_of_dnsmasq() {
        let text = "# lab\ninterface=eth0\ndhcp-host=52:54:00:aa:00:01,pc-01,10.20.0.50,infinite # desk\n\
                    dhcp-host=set:red,52:54:00:aa:00:02,10.20.0.51\ndhcp-host=52:54:00:aa:00:03,ignore\n\
                    dhcp-host=52:54:00:aa:00:04,52:54:00:aa:00:05,10.20.0.52\ndhcp-host=id:*,10.20.0.53\n";
        assert_eq!(
            said(text),
            [
                "52:54:00:aa:00:01 10.20.0.50 pc-01 reserved",
                "52:54:00:aa:00:02 10.20.0.51 - reserved",
                "5: it gives no address",
                "6: it has several MAC addresses; write mac = [\"…\", \"…\"] yourself",
                "7: it names no MAC address"
            ]
        );
    }

    #[test]
    fn leases_and_hosts_of_isc_dhcpd() {
        let text = "# The format of this file is documented\nauthoring-byte-order little-endian;\n\
            lease 10.20.0.101 {\n  starts 1 2026/11/23 08:00:00;\n  ends 1 2026/11/23 20:00:00;\n  binding state active;\n  \
            hardware ethernet 52:54:00:aa:00:01;\n  uid \"\\001R\\\"T\\000}\";\n  client-hostname \"pc-01\";\n}\n\
            lease 10.20.0.102 {\n ends epoch 1795000000; # x\n binding state active;\n hardware ethernet 52:54:00:aa:00:02;\n}\n\
            lease 10.20.0.102 {\n ends never;\n binding state free;\n hardware ethernet 52:54:00:aa:00:02;\n}\n\
            subnet 10.20.0.0 netmask 255.255.0.0 { group { host desk { hardware ethernet 52:54:00:aa:00:03; \
            fixed-address 10.20.0.50, 10.20.0.51; } } }\nhost half { hardware ethernet 52:54:00:aa:00:04; }\n";
        assert_eq!(
            said(text),
            [
                "52:54:00:aa:00:01 10.20.0.101 pc-01 1795464000",
                "52:54:00:aa:00:03 10.20.0.50 desk reserved",
                "22: host half has no `fixed-address`"
            ]
        );
    }

    #[test]
    fn leases_and_reservations_of_kea() {
        let text = "address,hwaddr,client_id,valid_lifetime,expire,subnet_id,fqdn_fwd,fqdn_rev,hostname,state,user_context\n\
            10.20.0.101,52:54:00:aa:00:01,,3600,1795000000,1,0,0,pc-01,0,\n\
            10.20.0.101,52:54:00:aa:00:01,,3600,1795003600,1,0,0,pc-01,0,\n\
            10.20.0.102,52:54:00:aa:00:02,,3600,1795000000,1,0,0,,0,\n10.20.0.102,52:54:00:aa:00:02,,0,1795000000,1,0,0,,0,\n\
            10.20.0.103,52:54:00:aa:00:03,,3600,1795000000,1,0,0,,1,\n";
        assert_eq!(said(text), ["52:54:00:aa:00:01 10.20.0.101 pc-01 1795003600"]);
        let text = "// Kea\n{ \"Dhcp4\": { # four\n \"subnet4\": [ { \"subnet\": \"10.20.0.0/16\", \"reservations\": [\n\
            { \"hw-address\": \"52:54:00:aa:00:01\", \"ip-address\": \"10.20.0.50\", \"hostname\": \"a\\\"//b\" },\n\
            /* no */ { \"client-id\": \"01\", \"ip-address\": \"10.20.0.51\" } ] } ] } }";
        let said = said(text);
        assert_eq!(said[0], "52:54:00:aa:00:01 10.20.0.50 a\"//b reserved");
        assert!(said[1].starts_with("0: a reservation without `hw-address`"), "{said:?}");
        assert!(matches!(read("{ \"Dhcp4\": "), Err(ImportError::Json(_))));
    }

    #[test]
    fn tables_with_and_without_a_head() {
        let rows = "52-54-00-AA-00-01,10.20.0.50,pc-01\n525400aa0002,10.20.0.51\n52:54:00:aa:00:03\n";
        let wanted = ["52:54:00:aa:00:01 10.20.0.50 pc-01 reserved", "52:54:00:aa:00:02 10.20.0.51 - reserved"];
        assert_eq!(said(rows)[..2], wanted);
        let turned = "name,ip,mac\npc-01,10.20.0.50,52:54:00:aa:00:01\n";
        assert_eq!(said(turned), wanted[..1]);
    }

    #[test]
    fn what_is_none_of_these_is_said_so_and_nothing_panics() {
        for text in ["", "hello", "# nothing\n", "a,b,c\n", "lease\n", "1 2\n"] {
            assert_eq!(read(text), Err(ImportError::Unknown), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_file_is_too_strange(text in "(lease |host |dhcp-host=|address,hwaddr,|[{}\";,#/*\\\\]|52:54:00:aa:00:01|10.20.0.1| |\\n|é|[a-z0-9]){0,60}") {
            let _ = read(&text);
        }
    }
}
