//! The keys of `roost.toml`: where each belongs, and whether this version follows it.
//!
//! A key that is documented but not followed yet is refused by name, never ignored: a lab that believes in a setting
//! which does nothing is worse off than one that cannot start.

pub(super) use crate::fleet::nearest::nearest;

/// A kind of section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// The top of the file.
    Top,
    /// `[server]`
    Server,
    /// `[server.pool]`
    Pool,
    /// `[server.pools.NAME]`
    Subnet,
    /// `[loaders]`
    Loaders,
    /// `[defaults]`
    Defaults,
    /// `[group.NAME]`
    Group,
    /// One client's own table.
    Client,
}

impl Level {
    /// How a sentence says that a key belongs here.
    fn home(self) -> &'static str {
        match self {
            Self::Top => "at the top",
            Self::Server => "under [server]",
            Self::Pool => "under [server.pool]",
            Self::Subnet => "under [server.pools.NAME]",
            Self::Loaders => "under [loaders]",
            Self::Defaults => "under [defaults]",
            Self::Group => "on a group",
            Self::Client => "on a client",
        }
    }
}

/// A documented key.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    /// Where it may stand.
    pub(super) levels: &'static [Level],
    /// A value for a help text, as it is written in the file.
    pub(super) example: &'static str,
    /// Whether this version follows it.
    pub(super) supported: bool,
}

use Level::{Client, Defaults, Group, Loaders, Pool, Server, Subnet, Top};

const EVERY: &[Level] = &[Defaults, Group, Client];

const fn key(name: &'static str, levels: &'static [Level], example: &'static str) -> Key {
    Key { name, levels, example, supported: true }
}

const fn later(name: &'static str, levels: &'static [Level], example: &'static str) -> Key {
    Key { name, levels, example, supported: false }
}

/// Every documented key.
pub(super) const KEYS: &[Key] = &[
    key("server", &[Top], "{}"),
    key("defaults", &[Top], "{}"),
    key("group", &[Top], "{}"),
    key("clients", &[Top, Group], "{}"),
    key("interface", &[Server], "\"enp3s0\""),
    key("dhcp", &[Server], "\"full\""),
    key("unknown", &[Server], "\"ignore\""),
    key("state", &[Server], "\"/var/lib/roost\""),
    key("iqn", &[Server], "\"iqn.2026-11.internal.roost\""),
    key("loader_dir", &[Server], "\"/usr/lib/ipxe\""),
    key("tftp_single_port", &[Server], "true"),
    key("ipv6_answer", &[Server], "false"),
    key("dhcp_probe", &[Server], "false"),
    key("ipv6_boot", &[Server], "false"),
    key("loaders", &[Top], "{}"),
    key("bios", &[Loaders], "\"undionly.kpxe\""),
    key("ia32", &[Loaders], "\"snponly-i386.efi\""),
    key("x64", &[Loaders], "\"snponly.efi\""),
    key("arm32", &[Loaders], "\"snponly-arm32.efi\""),
    key("arm64", &[Loaders], "\"snponly-arm64.efi\""),
    key("riscv32", &[Loaders], "\"snponly-riscv32.efi\""),
    key("riscv64", &[Loaders], "\"snponly-riscv64.efi\""),
    key("riscv128", &[Loaders], "\"/srv/loaders/riscv128.efi\""),
    key("loongarch32", &[Loaders], "\"snponly-loong32.efi\""),
    key("loongarch64", &[Loaders], "\"snponly-loong64.efi\""),
    key("rpi", &[Loaders], "\"/srv/loaders/bootcode.bin\""),
    key("files", &[Server], "\"/srv/roost\""),
    later("boots_at_once", &[Server], "32"),
    key("pool", &[Server], "{}"),
    key("pools", &[Server], "{}"),
    key("subnet", &[Subnet], "\"10.30.0.0/24\""),
    key("range", &[Pool, Subnet], "\"10.20.0.100-10.20.0.199\""),
    key("router", &[Pool, Subnet], "\"10.20.0.1\""),
    key("dns", &[Pool, Subnet], "[\"10.20.0.1\"]"),
    key("lease", &[Pool, Subnet], "\"8h\""),
    key("image", EVERY, "\"debian-12\""),
    key("disk", EVERY, "\"keep\""),
    key("chap", EVERY, "true"),
    key("mode", EVERY, "\"read-only\""),
    key("limit", EVERY, "\"20G\""),
    key("options", EVERY, "{ ntp-servers = \"10.20.0.1\" }"),
    key("data", EVERY, "\"50G\""),
    key("off", EVERY, "true"),
    key("title", &[Group, Client], "\"Room A\""),
    key("note", &[Group, Client], "\"new board\""),
    key("mac", &[Client], "\"52:54:00:aa:00:01\""),
    key("port", &[Client], "\"sw1/ge-0/0/4\""),
    key("ip", &[Client], "\"10.20.0.50\""),
    key("initiators", &[Client], "[\"iqn.2026-11.internal.backup:reader\"]"),
    key("pxe", EVERY, "\"file\""),
    key("loader", EVERY, "\"ipxe.efi\""),
    key("gateway", EVERY, "false"),
    key("root_path", EVERY, "true"),
    later("args", EVERY, "\"console=ttyS0\""),
    later("wake", EVERY, "true"),
    later("script", EVERY, "\"/etc/roost/own.ipxe\""),
    later("serial", &[Client], "\"ABC123\""),
    later("asset", &[Client], "\"4711\""),
    later("uuid", &[Client], "\"4c4c4544-0051-3510-8052-b4c04f4a3132\""),
];

/// The keys by which a machine is recognised, besides `mac`.
pub(super) const OTHER_IDENTITIES: &[&str] = &["port", "serial", "asset", "uuid"];

/// The documented key of this name, wherever it belongs.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The names that this version knows at this level.
pub(super) fn names(level: Level) -> impl Iterator<Item = &'static str> {
    KEYS.iter().filter(move |key| key.supported && key.levels.contains(&level)).map(|key| key.name)
}

/// `under [defaults], on a group or on a client`
pub(super) fn homes(key: &Key) -> String {
    listed(key.levels.iter().map(|level| level.home()))
}

/// `a, b or c`
pub(super) fn listed<S: AsRef<str>>(words: impl IntoIterator<Item = S>) -> String {
    let words: Vec<S> = words.into_iter().collect();
    let mut text = String::new();
    for (index, word) in words.iter().enumerate() {
        if index > 0 {
            text.push_str(if index + 1 == words.len() { " or " } else { ", " });
        }
        text.push_str(word.as_ref());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_its_word() {
        let at = |word, level| nearest(word, names(level));
        assert_eq!(at("interfcae", Level::Server), Some("interface"));
        assert_eq!(at("Imge", Level::Defaults), Some("image"));
        assert_eq!(at("client", Level::Top), Some("clients"));
        assert_eq!(at("dhpc", Level::Server), Some("dhcp"));
        assert_eq!(at("colour", Level::Client), None);
        assert_eq!(at("ix", Level::Client), Some("ip"));
    }

    #[test]
    fn the_example_explains_every_key() {
        let example = include_str!("../../config/roost.toml");
        for Key { name, .. } in KEYS {
            let shown = [format!("{name} = "), format!("[{name}"), format!(".{name}]")];
            assert!(shown.iter().any(|shown| example.contains(shown.as_str())), "{name}");
        }
    }

    #[test]
    fn no_key_is_documented_twice() {
        for (index, key) in KEYS.iter().enumerate() {
            assert!(KEYS[..index].iter().all(|other| other.name != key.name), "{}", key.name);
        }
    }
}
