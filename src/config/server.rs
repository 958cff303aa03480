//! The `[server]` section and its pool.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::report::{Draft, quoted};
use super::schema::{self, Level};
use super::values::{self, Refusal};
use super::walk::{Given, Located, Section, Walker};
use super::{DEFAULT_LEASE, DEFAULT_STATE, DhcpMode, MAX_DNS, Settings};
use crate::fleet::iqn::DEFAULT_PREFIX;
use crate::fleet::{Platform, Pool};

/// What stands under `[server]`.
#[derive(Debug)]
pub(super) struct Server {
    interface: Given<String>,
    pub(super) dhcp: Given<DhcpMode>,
    state: Given<String>,
    iqn: Given<String>,
    loader_dir: Given<String>,
    files: Given<String>,
    loaders: BTreeMap<Platform, Given<String>>,
    tftp_single_port: Given<bool>,
    ipv6_answer: Given<bool>,
    pub(super) pool: Given<PoolSection>,
}

/// What stands under `[server.pool]`.
#[derive(Debug, Clone)]
pub(super) struct PoolSection {
    pub(super) range: Given<(Ipv4Addr, Ipv4Addr)>,
    pub(super) router: Given<Ipv4Addr>,
    dns: Given<Vec<Located<Ipv4Addr>>>,
    lease: Given<Duration>,
}

impl Server {
    pub(super) fn read<'a>(walker: &mut Walker<'a>, top: &Section<'a>) -> Self {
        let mut server = Self {
            interface: Given::Absent,
            dhcp: Given::Absent,
            state: Given::Absent,
            iqn: Given::Absent,
            loader_dir: Given::Absent,
            files: Given::Absent,
            loaders: loaders(walker, top),
            tftp_single_port: Given::Absent,
            ipv6_answer: Given::Absent,
            pool: Given::Absent,
        };
        match walker.table(top, "server") {
            Given::Good(Located { value: table, at: start }) => {
                let section = Section { table, level: Level::Server, name: "[server]".to_owned(), at: start };
                walker.check_keys(&section);
                server.interface = walker.parsed(&section, "interface", values::interface);
                server.dhcp = walker.parsed(&section, "dhcp", dhcp_mode);
                walker.parsed(&section, "unknown", unknown_machines);
                server.state = walker.parsed(&section, "state", values::path);
                server.iqn = walker.parsed(&section, "iqn", values::iqn);
                server.loader_dir = walker.parsed(&section, "loader_dir", values::path);
                server.files = walker.parsed(&section, "files", values::path);
                server.tftp_single_port = walker.flag(&section, "tftp_single_port");
                server.ipv6_answer = walker.flag(&section, "ipv6_answer");
                server.pool = PoolSection::read(walker, &section);
            }
            Given::Wrong => return server,
            Given::Absent => {}
        }
        server.check_mode(walker);
        server
    }

    /// Who gives addresses; `None` where the file says something wrong of it.
    pub(super) fn mode(&self) -> Option<DhcpMode> {
        if self.dhcp.is_absent() { Some(DhcpMode::Proxy) } else { self.dhcp.value() }
    }

    fn check_mode(&self, walker: &mut Walker<'_>) {
        match (self.dhcp.located(), &self.pool) {
            (Some(Located { value: DhcpMode::Full, at }), Given::Absent) => {
                let help = "add [server.pool] with range = \"FIRST-LAST\"";
                let message = "dhcp = \"full\" needs addresses to give, and there is no [server.pool]";
                walker.push(Draft::error(*at, message).help(help).missing(&["pool"]));
            }
            (Some(Located { value: DhcpMode::Off, at: mode }), Given::Good(pool)) => {
                let draft = Draft::warning(pool.at, "[server.pool] has no effect: we give no addresses");
                walker.push(draft.note(*mode, "DHCP is off here").help("write dhcp = \"full\", or take the pool out"));
            }
            (Some(Located { value: DhcpMode::Proxy, at: mode }), Given::Good(pool)) => {
                let draft = Draft::warning(pool.at, "[server.pool] has no effect: another server gives the addresses");
                let draft = draft.note(*mode, "which is said here");
                walker.push(draft.help("write dhcp = \"full\" to give them from here, or take the pool out"));
            }
            (None, Given::Good(pool)) if self.dhcp.is_absent() => {
                let message = "[server.pool] has no effect: `dhcp` is left out, so another server gives the addresses";
                let help = "write dhcp = \"full\" under [server] to give them from here, or take the pool out";
                walker.push(Draft::warning(pool.at, message).help(help).missing(&["dhcp", "server"]));
            }
            _ => {}
        }
    }

    /// The settings; `None` where something is wrong. Relative paths start at `folder`.
    pub(super) fn settings(&self, folder: &Path) -> Option<Settings> {
        let dhcp = self.mode()?;
        let path = |given: &Given<String>| given.value().map(|path| folder.join(path));
        Some(Settings {
            interface: self.interface.value(),
            dhcp,
            pool: match self.pool.value() {
                Some(pool) if dhcp == DhcpMode::Full => Some(pool.pool()?),
                _ => None,
            },
            state: path(&self.state).unwrap_or_else(|| PathBuf::from(DEFAULT_STATE)),
            iqn: self.iqn.value().unwrap_or_else(|| DEFAULT_PREFIX.to_owned()),
            loader_dir: path(&self.loader_dir),
            loaders: self.loaders.iter().filter_map(|(of, path)| Some((*of, loader(path.value()?, folder)))).collect(),
            files: path(&self.files),
            tftp_single_port: self.tftp_single_port.value().unwrap_or(false),
            ipv6_answer: self.ipv6_answer.value().unwrap_or(true),
        })
    }
}

impl PoolSection {
    fn read<'a>(walker: &mut Walker<'a>, server: &Section<'a>) -> Given<Self> {
        let (table, at) = match walker.table(server, "pool") {
            Given::Good(Located { value, at }) => (value, at),
            Given::Wrong => return Given::Wrong,
            Given::Absent => return Given::Absent,
        };
        let section = Section { table, level: Level::Pool, name: "[server.pool]".to_owned(), at };
        walker.check_keys(&section);
        let pool = Self {
            range: walker.parsed(&section, "range", values::range),
            router: walker.parsed(&section, "router", values::address),
            dns: walker.list(&section, "dns", values::address),
            lease: walker.parsed(&section, "lease", values::lease),
        };
        if pool.range.is_absent() {
            let draft = Draft::error(section.at, "the pool has no `range`");
            walker.push(draft.help("write the first and the last address: range = \"FIRST-LAST\"").missing(&["range"]));
        }
        if let Some(dns) = pool.dns.located()
            && dns.value.len() > MAX_DNS
        {
            walker.push(Draft::error(dns.at, format!("{} name servers are too many; {MAX_DNS} fit", dns.value.len())));
        }
        pool.check_fixed_addresses(walker);
        Given::Good(Located { value: pool, at })
    }

    /// A router or a name server has its address already; the pool must not give it to a client.
    fn check_fixed_addresses(&self, walker: &mut Walker<'_>) {
        let Some(Located { value: (first, last), at: range }) = self.range.located() else { return };
        let router = self.router.located().map(|router| ("router", router));
        let dns = self.dns.located().map(|dns| dns.value.iter()).into_iter().flatten().map(|dns| ("name server", dns));
        for (what, Located { value, at }) in router.into_iter().chain(dns) {
            if (first..=last).contains(&value) {
                let draft = Draft::error(*at, format!("the {what} {value} is inside the pool"));
                let help = format!("a client would be given the {what}'s address; end the range before it");
                walker.push(draft.note(*range, format!("the pool is {first}-{last}")).help(help));
            }
        }
    }

    fn pool(&self) -> Option<Pool> {
        let (first, last) = self.range.value()?;
        Some(Pool {
            first,
            last,
            router: self.router.value(),
            dns: self.dns.value().unwrap_or_default().into_iter().map(|dns| dns.value).collect(),
            lease: self.lease.value().unwrap_or(DEFAULT_LEASE),
        })
    }
}

/// `[loaders]`.
fn loaders<'a>(walker: &mut Walker<'a>, top: &Section<'a>) -> BTreeMap<Platform, Given<String>> {
    let Given::Good(Located { value: table, at }) = walker.table(top, "loaders") else { return BTreeMap::new() };
    let section = Section { table, level: Level::Loaders, name: "[loaders]".to_owned(), at };
    walker.check_keys(&section);
    Platform::ALL.map(|platform| (platform, walker.parsed(&section, platform.word(), values::path))).into()
}

/// A bare name is in the folder of loaders; a path starts at the mapping file's.
fn loader(path: String, folder: &Path) -> PathBuf {
    if path.contains('/') { folder.join(path) } else { PathBuf::from(path) }
}

fn dhcp_mode(text: &str) -> Result<DhcpMode, Refusal> {
    match text {
        "full" => Ok(DhcpMode::Full),
        "off" => Ok(DhcpMode::Off),
        "proxy" => Ok(DhcpMode::Proxy),
        _ => Err(unknown_word("dhcp", text, &["full", "off", "proxy"])),
    }
}

/// What becomes of machines that no client stands for. Only one answer is followed yet, so nothing is kept of it.
fn unknown_machines(text: &str) -> Result<(), Refusal> {
    match text {
        "ignore" => Ok(()),
        "enrol" => Err(Refusal::new("unknown = \"enrol\" is not supported yet", "write \"ignore\"")),
        _ if text.starts_with("image:") => {
            Err(Refusal::new("unknown = \"image:NAME\" is not supported yet", "write \"ignore\""))
        }
        _ => Err(unknown_word("unknown", text, &["ignore", "enrol", "image:NAME"])),
    }
}

/// A value that is none of the words that a key takes.
pub(super) fn unknown_word(key: &str, text: &str, words: &[&str]) -> Refusal {
    let help = match schema::nearest(text, words.iter().copied()) {
        Some(word) => format!("did you mean \"{word}\"?"),
        None => format!("it takes {}", schema::listed(words.iter().map(|word| format!("\"{word}\"")))),
    };
    Refusal::new(format!("`{key}` cannot be `{}`", quoted(text)), help)
}
