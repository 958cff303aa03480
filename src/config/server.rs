//! The `[server]` section and its pools.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnetwork::Ipv4Network;

use super::report::{Draft, quoted};
use super::schema::{self, Level};
use super::values::{self, Refusal, bad_name};
use super::walk::{Given, Located, Section, Walker};
use super::{DEFAULT_LEASE, DEFAULT_STATE, DhcpMode, MAX_DNS, Settings, is_end};
use crate::fleet::iqn::DEFAULT_PREFIX;
use crate::fleet::{ClientName, Platform, Pool, Subnet};

/// What stands under `[server]`.
#[derive(Debug)]
pub(super) struct Server {
    interfaces: Given<Vec<Located<String>>>,
    pub(super) dhcp: Given<DhcpMode>,
    state: Given<String>,
    iqn: Given<String>,
    loader_dir: Given<String>,
    files: Given<String>,
    loaders: BTreeMap<Platform, Given<String>>,
    tftp_single_port: Given<bool>,
    ipv6_answer: Given<bool>,
    dhcp_probe: Given<bool>,
    ipv6_boot: Given<bool>,
    pub(super) pool: Given<PoolSection>,
    /// `[server.pools]`; wrong where one of them is.
    further: Given<Vec<PoolSection>>,
}

/// What stands under `[server.pool]`, or under `[server.pools.NAME]`.
#[derive(Debug, Clone)]
pub(super) struct PoolSection {
    /// The operator's name for it, and its subnet; `None` for `[server.pool]`.
    further: Option<(String, Given<Ipv4Network>)>,
    pub(super) range: Given<(Ipv4Addr, Ipv4Addr)>,
    pub(super) router: Given<Ipv4Addr>,
    dns: Given<Vec<Located<Ipv4Addr>>>,
    lease: Given<Duration>,
}

impl Server {
    pub(super) fn read<'a>(walker: &mut Walker<'a>, top: &Section<'a>) -> Self {
        let mut server = Self {
            interfaces: Given::Absent,
            dhcp: Given::Absent,
            state: Given::Absent,
            iqn: Given::Absent,
            loader_dir: Given::Absent,
            files: Given::Absent,
            loaders: loaders(walker, top),
            tftp_single_port: Given::Absent,
            ipv6_answer: Given::Absent,
            dhcp_probe: Given::Absent,
            ipv6_boot: Given::Absent,
            pool: Given::Absent,
            further: Given::Absent,
        };
        match walker.table(top, "server") {
            Given::Good(Located { value: table, at: start }) => {
                let section = Section { table, level: Level::Server, name: "[server]".to_owned(), at: start };
                walker.check_keys(&section);
                server.interfaces = walker.one_or_list(&section, "interface", values::interface);
                server.check_interfaces(walker);
                server.dhcp = walker.parsed(&section, "dhcp", dhcp_mode);
                walker.parsed(&section, "unknown", unknown_machines);
                server.state = walker.parsed(&section, "state", values::path);
                server.iqn = walker.parsed(&section, "iqn", values::iqn);
                server.loader_dir = walker.parsed(&section, "loader_dir", values::path);
                server.files = walker.parsed(&section, "files", values::path);
                server.tftp_single_port = walker.flag(&section, "tftp_single_port");
                server.ipv6_answer = walker.flag(&section, "ipv6_answer");
                server.dhcp_probe = walker.flag(&section, "dhcp_probe");
                server.ipv6_boot = walker.flag(&section, "ipv6_boot");
                server.pool = match walker.table(&section, "pool") {
                    Given::Good(Located { value: table, at }) => {
                        let section = Section { table, level: Level::Pool, name: "[server.pool]".to_owned(), at };
                        Given::Good(Located { value: PoolSection::read(walker, &section, None), at })
                    }
                    Given::Wrong => Given::Wrong,
                    Given::Absent => Given::Absent,
                };
                server.further = further_pools(walker, &section);
                server.check_overlaps(walker);
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

    /// Every pool.
    pub(super) fn pools(&self) -> impl Iterator<Item = &PoolSection> {
        let own = self.pool.located().map(|pool| &pool.value);
        own.into_iter().chain(self.further.located().into_iter().flat_map(|pools| &pools.value))
    }

    fn check_interfaces(&self, walker: &mut Walker<'_>) {
        let Some(Located { value: names, at }) = self.interfaces.located() else { return };
        if names.is_empty() {
            let draft = Draft::error(*at, "the list of interfaces is empty");
            walker.push(draft.help("name the wires that the clients are on, or take `interface` out"));
        }
        for (index, Located { value: name, at }) in names.iter().enumerate() {
            if let Some(first) = names[..index].iter().find(|other| other.value == *name) {
                let draft = Draft::error(*at, format!("interface `{name}` is named twice"));
                walker.push(draft.note(first.at, "it stands here first").help("once is enough"));
            }
        }
    }

    /// One address is of one pool, and of one subnet.
    fn check_overlaps(&self, walker: &mut Walker<'_>) {
        let pools: Vec<&PoolSection> = self.pools().collect();
        for (index, pool) in pools.iter().enumerate() {
            let Some((name, Given::Good(Located { value: subnet, at }))) = &pool.further else { continue };
            for other in &pools[..index] {
                let (overlaps, place) = match &other.further {
                    Some((_, Given::Good(theirs))) => (theirs.value.overlaps(*subnet), theirs.at),
                    Some(_) => continue,
                    None => match other.range_at() {
                        Some((first, last, at)) => (subnet.contains(first) || subnet.contains(last), at),
                        None => continue,
                    },
                };
                if overlaps {
                    let draft = Draft::error(
                        *at,
                        format!("the subnet {subnet} of `{}` overlaps with that of another pool", quoted(name)),
                    );
                    walker.push(draft.note(place, "the other one is here").help("each subnet has one pool"));
                }
            }
        }
    }

    fn check_mode(&self, walker: &mut Walker<'_>) {
        let pool = match (&self.pool, &self.further) {
            (Given::Good(pool), _) => Given::Good(Located { value: "[server.pool]", at: pool.at }),
            (_, Given::Good(pools)) => Given::Good(Located { value: "[server.pools]", at: pools.at }),
            (Given::Absent, Given::Absent) => Given::Absent,
            _ => Given::Wrong,
        };
        match (self.dhcp.located(), &pool) {
            (Some(Located { value: DhcpMode::Full, at }), Given::Absent) => {
                let help = "add [server.pool] with range = \"FIRST-LAST\"";
                let message = "dhcp = \"full\" needs addresses to give, and there is no [server.pool]";
                walker.push(Draft::error(*at, message).help(help).missing(&["pool"]));
            }
            (Some(Located { value: DhcpMode::Off, at: mode }), Given::Good(pool)) => {
                let draft = Draft::warning(pool.at, format!("{} has no effect: we give no addresses", pool.value));
                walker.push(draft.note(*mode, "DHCP is off here").help("write dhcp = \"full\", or take the pool out"));
            }
            (Some(Located { value: DhcpMode::Proxy, at: mode }), Given::Good(pool)) => {
                let message = format!("{} has no effect: another server gives the addresses", pool.value);
                let draft = Draft::warning(pool.at, message);
                let draft = draft.note(*mode, "which is said here");
                walker.push(draft.help("write dhcp = \"full\" to give them from here, or take the pool out"));
            }
            (None, Given::Good(pool)) if self.dhcp.is_absent() => {
                let message =
                    format!("{} has no effect: `dhcp` is left out, so another server gives the addresses", pool.value);
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
            interfaces: self.interfaces.value().unwrap_or_default().into_iter().map(|name| name.value).collect(),
            dhcp,
            pool: match self.pool.value() {
                Some(pool) if dhcp == DhcpMode::Full => Some(pool.pool()?),
                _ => None,
            },
            pools: match self.further.value() {
                Some(pools) if dhcp == DhcpMode::Full => {
                    pools.iter().map(PoolSection::subnet).collect::<Option<_>>()?
                }
                _ => Vec::new(),
            },
            state: path(&self.state).unwrap_or_else(|| PathBuf::from(DEFAULT_STATE)),
            iqn: self.iqn.value().unwrap_or_else(|| DEFAULT_PREFIX.to_owned()),
            loader_dir: path(&self.loader_dir),
            loaders: self.loaders.iter().filter_map(|(of, path)| Some((*of, loader(path.value()?, folder)))).collect(),
            files: path(&self.files),
            tftp_single_port: self.tftp_single_port.value().unwrap_or(false),
            ipv6_answer: self.ipv6_answer.value().unwrap_or(true),
            dhcp_probe: self.dhcp_probe.value().unwrap_or(true),
            ipv6_boot: self.ipv6_boot.value(),
        })
    }
}

impl PoolSection {
    fn read<'a>(walker: &mut Walker<'a>, section: &Section<'a>, name: Option<String>) -> Self {
        walker.check_keys(section);
        let pool = Self {
            further: name.map(|name| (name, walker.parsed(section, "subnet", values::subnet))),
            range: walker.parsed(section, "range", values::range),
            router: walker.parsed(section, "router", values::address),
            dns: walker.list(section, "dns", values::address),
            lease: walker.parsed(section, "lease", values::lease),
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
        pool.check_subnet(walker, section);
        pool
    }

    /// Range and router are of the subnet, and the range gives none of its ends.
    fn check_subnet(&self, walker: &mut Walker<'_>, section: &Section<'_>) {
        let Some((_, subnet)) = &self.further else { return };
        if subnet.is_absent() {
            let draft = Draft::error(section.at, format!("{} has no `subnet`", section.name));
            let help = "write its first address and its prefix: subnet = \"10.30.0.0/24\"";
            walker.push(draft.help(help).missing(&["subnet"]));
        }
        let Some(&Located { value: subnet, at: place }) = subnet.located() else { return };
        let note = format!("the subnet is {subnet}, from {} to {}", subnet.network(), subnet.broadcast());
        let ends = self.range.located().map(|range| {
            let (first, last) = range.value;
            [("first address of the pool", first, range.at), ("last address of the pool", last, range.at)]
        });
        let router = self.router.located().map(|router| ("router", router.value, router.at));
        for (what, address, at) in ends.into_iter().flatten().chain(router) {
            if !subnet.contains(address) {
                let draft = Draft::error(at, format!("the {what}, {address}, is outside the subnet"));
                walker.push(draft.note(place, &note).help("change one of the two"));
            } else if is_end(subnet, address) {
                let draft = Draft::error(at, format!("the {what}, {address}, is an end of the subnet"));
                walker.push(
                    draft.note(place, &note).help("no machine can have the first or the last address of a network"),
                );
            }
        }
    }

    /// The first and the last address, and where they stand.
    pub(super) fn range_at(&self) -> Option<(Ipv4Addr, Ipv4Addr, usize)> {
        self.range.located().map(|range| (range.value.0, range.value.1, range.at))
    }

    fn subnet(&self) -> Option<Subnet> {
        let (name, subnet) = self.further.as_ref()?;
        let subnet = subnet.value()?;
        Some(Subnet { name: name.clone(), network: subnet.network(), prefix: subnet.prefix(), pool: self.pool()? })
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

/// `[server.pools]`: one table for each.
fn further_pools<'a>(walker: &mut Walker<'a>, server: &Section<'a>) -> Given<Vec<PoolSection>> {
    let (table, at) = match walker.table(server, "pools") {
        Given::Good(Located { value, at }) => (value, at),
        Given::Wrong => return Given::Wrong,
        Given::Absent => return Given::Absent,
    };
    let mut pools = Vec::new();
    for (key, value) in table.iter() {
        let (label, at) = (key.get_ref().as_ref(), key.span().start);
        if let Err(reason) = label.parse::<ClientName>() {
            walker.handled.push(key.span());
            walker.refuse(at, bad_name("pool", label, &reason));
        }
        let name = format!("[server.pools.{}]", quoted(label));
        let Given::Good(Located { value: table, at }) = walker.as_table(at, &name, value) else { return Given::Wrong };
        let section = Section { table, level: Level::Subnet, name, at };
        pools.push(PoolSection::read(walker, &section, Some(label.to_owned())));
    }
    Given::Good(Located { value: pools, at })
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
