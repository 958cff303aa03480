//! `[defaults]`, `[clients]` and the groups: three levels become one fleet, the nearest level winning whole.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::ops::Range;

use toml::Spanned;
use toml::de::DeValue;

use super::options;
use super::report::{Draft, quoted};
use super::schema::{self, Level};
use super::server::{PoolSection, Server, unknown_word};
use super::values::{self, Refusal, bad_name};
use super::walk::{Given, Located, Section, Walker, type_word};
use super::{DhcpMode, Group, MAX_CLIENTS, MAX_MACS, MAX_WINDOWS_NAME};
use crate::fleet::{Client, ClientName, DiskPolicy, ExtraOption, Fleet, ImageName, Initiators, Mac, Port, Pxe, Start};

/// What may stand at each of the three levels, defaults, group and client.
#[derive(Debug, Clone)]
struct Common {
    image: Given<ImageName>,
    disk: Given<DiskPolicy>,
    chap: Given<bool>,
    /// Whether the disk may only be read.
    mode: Given<bool>,
    /// The most bytes of its own that the disk may take up.
    limit: Given<u64>,
    /// DHCP options of the operator's own.
    options: Given<Vec<ExtraOption>>,
    /// The size of a second disk in bytes.
    data: Given<u64>,
    off: Given<bool>,
    pxe: Given<Pxe>,
    loader: Given<String>,
    gateway: Given<bool>,
    root_path: Given<bool>,
}

impl Common {
    const NOTHING: Self = Self {
        image: Given::Absent,
        disk: Given::Absent,
        mode: Given::Absent,
        limit: Given::Absent,
        options: Given::Absent,
        data: Given::Absent,
        chap: Given::Absent,
        off: Given::Absent,
        pxe: Given::Absent,
        loader: Given::Absent,
        gateway: Given::Absent,
        root_path: Given::Absent,
    };

    fn read<'a>(walker: &mut Walker<'a>, section: &Section<'a>) -> Self {
        Self {
            image: walker.parsed(section, "image", values::image),
            disk: walker.parsed(section, "disk", disk_policy),
            chap: walker.flag(section, "chap"),
            mode: walker.parsed(section, "mode", read_only),
            limit: walker.parsed(section, "limit", values::limit),
            options: match walker.table(section, "options") {
                Given::Good(Located { value: table, at }) => match options::read(walker, table) {
                    Some(value) => Given::Good(Located { value, at }),
                    None => Given::Wrong,
                },
                Given::Wrong => Given::Wrong,
                Given::Absent => Given::Absent,
            },
            data: walker.parsed(section, "data", values::data),
            off: walker.flag(section, "off"),
            pxe: walker.parsed(section, "pxe", pxe),
            loader: walker.parsed(section, "loader", loader),
            gateway: walker.flag(section, "gateway"),
            root_path: walker.flag(section, "root_path"),
        }
    }

    fn or(&self, farther: &Self) -> Self {
        Self {
            image: self.image.or(&farther.image),
            disk: self.disk.or(&farther.disk),
            chap: self.chap.or(&farther.chap),
            mode: self.mode.or(&farther.mode),
            limit: self.limit.or(&farther.limit),
            options: self.options.or(&farther.options),
            data: self.data.or(&farther.data),
            off: self.off.or(&farther.off),
            pxe: self.pxe.or(&farther.pxe),
            loader: self.loader.or(&farther.loader),
            gateway: self.gateway.or(&farther.gateway),
            root_path: self.root_path.or(&farther.root_path),
        }
    }
}

/// A client as it stands in the file.
#[derive(Debug)]
struct Entry {
    label: String,
    at: usize,
    name: Option<ClientName>,
    group: Option<String>,
    macs: Vec<Located<Mac>>,
    port: Given<Port>,
    ip: Given<Ipv4Addr>,
    initiators: Given<Vec<Located<String>>>,
    title: Given<String>,
    note: Given<String>,
    own: Common,
    all: Common,
}

/// Every client of the file, its groups, and the places of their images.
#[derive(Debug, Default)]
pub(super) struct Clients {
    entries: Vec<Entry>,
    pub(super) groups: Vec<Group>,
    pub(super) images: Vec<Located<ImageName>>,
    /// Where `options` stand.
    options: Vec<usize>,
}

impl Clients {
    pub(super) fn read<'a>(walker: &mut Walker<'a>, top: &Section<'a>) -> Self {
        let mut clients = Self::default();
        let mut defaults = Common::NOTHING;
        if let Given::Good(Located { value: table, at }) = walker.table(top, "defaults") {
            let section = Section { table, level: Level::Defaults, name: "[defaults]".to_owned(), at };
            walker.check_keys(&section);
            defaults = Common::read(walker, &section);
            clients.note(&defaults);
        }
        clients.read_members(walker, top, None, &defaults);
        if let Given::Good(Located { value: groups, .. }) = walker.table(top, "group") {
            for (key, value) in groups.iter() {
                clients.read_group(walker, key, value, &defaults);
            }
        }
        // The parser sorts by name; what is wrong with the second of two is said at the second in the file.
        clients.entries.sort_by_key(|entry| entry.at);
        if clients.entries.is_empty() {
            let help = "add one under [clients]: pc-01 = \"52:54:00:aa:00:01\"";
            walker.push(Draft::warning(None, "there is no client yet").help(help).missing(&["clients", "group"]));
        }
        if let Some(beyond) = clients.entries.get(MAX_CLIENTS) {
            let count = clients.entries.len();
            walker
                .push(Draft::error(beyond.at, format!("{count} clients are too many; one server takes {MAX_CLIENTS}")));
        }
        clients.check_names(walker);
        clients.check_macs(walker);
        clients.check_ports(walker);
        clients.check_images(walker);
        clients
    }

    /// What is checked against other things once all is read.
    fn note(&mut self, level: &Common) {
        self.images.extend(level.image.located().cloned());
        self.options.extend(level.options.located().map(|options| options.at));
    }

    fn read_group<'a>(
        &mut self,
        walker: &mut Walker<'a>,
        key: &'a Spanned<std::borrow::Cow<'a, str>>,
        value: &'a Spanned<DeValue<'a>>,
        defaults: &Common,
    ) {
        let (label, at) = (key.get_ref().as_ref(), key.span().start);
        if let Err(reason) = label.parse::<ClientName>() {
            walker.handled.push(key.span());
            walker.refuse(at, bad_name("group", label, &reason));
        }
        let name = format!("[group.{}]", quoted(label));
        let Given::Good(Located { value: table, at }) = walker.as_table(at, &name, value) else { return };
        let section = Section { table, level: Level::Group, name, at };
        walker.check_keys(&section);
        let own = Common::read(walker, &section);
        self.note(&own);
        let title = walker.text(&section, "title").value().map(str::to_owned);
        let note = walker.text(&section, "note").value().map(str::to_owned);
        self.groups.push(Group { name: label.to_owned(), title, note });
        self.read_members(walker, &section, Some(label), &own.or(defaults));
    }

    /// The clients under `clients` of this section.
    fn read_members<'a>(
        &mut self,
        walker: &mut Walker<'a>,
        parent: &Section<'a>,
        group: Option<&str>,
        farther: &Common,
    ) {
        let Given::Good(Located { value: members, .. }) = walker.table(parent, "clients") else { return };
        for (key, value) in members.iter() {
            let entry = Entry::read(walker, key.get_ref(), key.span(), value, group, farther);
            self.note(&entry.own);
            self.entries.push(entry);
        }
    }

    fn check_names(&self, walker: &mut Walker<'_>) {
        let mut seen: HashMap<&str, &Entry> = HashMap::new();
        for entry in &self.entries {
            let Some(first) = seen.get(entry.label.as_str()) else {
                seen.insert(&entry.label, entry);
                continue;
            };
            let place = |entry: &Entry| match &entry.group {
                Some(group) => format!("[group.{}.clients]", quoted(group)),
                None => "[clients]".to_owned(),
            };
            let label = quoted(&entry.label);
            let draft = Draft::error(entry.at, format!("there are two clients `{label}`"));
            let note = format!("the first stands under {}", place(first));
            walker.push(draft.note(first.at, note).help("a client is in one group only; take one out or rename it"));
        }
    }

    fn check_macs(&self, walker: &mut Walker<'_>) {
        let mut seen: HashMap<Mac, (&Entry, usize)> = HashMap::new();
        for entry in &self.entries {
            for Located { value: mac, at } in &entry.macs {
                let Some((first, first_at)) = seen.get(mac) else {
                    seen.insert(*mac, (entry, *at));
                    continue;
                };
                let (one, other) = (quoted(&first.label), quoted(&entry.label));
                let draft = if first.at == entry.at {
                    Draft::warning(*at, format!("`{one}` has MAC {mac} twice"))
                        .note(*first_at, "it is given here first")
                        .help("one of them is enough")
                } else {
                    Draft::error(*at, format!("MAC {mac} is given to two clients, `{one}` and `{other}`"))
                        .note(*first_at, format!("`{one}` has it here"))
                        .help("two machines would write one disk; change one of the two")
                };
                walker.push(draft);
            }
        }
    }

    fn check_ports(&self, walker: &mut Walker<'_>) {
        let mut seen: HashMap<&Port, (&Entry, usize)> = HashMap::new();
        for entry in &self.entries {
            let Some(Located { value: port, at }) = entry.port.located() else { continue };
            let Some((first, first_at)) = seen.insert(port, (entry, *at)) else { continue };
            let (one, other) = (quoted(&first.label), quoted(&entry.label));
            let draft = Draft::error(
                *at,
                format!("port {} is given to two clients, `{one}` and `{other}`", quoted(port.as_str())),
            );
            let draft = draft.note(first_at, format!("`{one}` has it here"));
            walker
                .push(draft.help("whatever is plugged in there would write one disk for both; change one of the two"));
        }
    }

    /// Without a default there may be hundreds of clients without an image; the first stands for all.
    fn check_images(&self, walker: &mut Walker<'_>) {
        let mut without = self.entries.iter().filter(|entry| entry.all.image.is_absent());
        let Some(first) = without.next() else { return };
        let label = quoted(&first.label);
        let message = match without.count() {
            0 => format!("`{label}` has no image"),
            1 => format!("`{label}` has no image, and one more client has none"),
            more => format!("`{label}` has no image, and {more} more clients have none"),
        };
        let help = "give it one, or all: image = \"NAME\" under [defaults]";
        walker.push(Draft::error(first.at, message).help(help).missing(&["image", "defaults"]));
    }

    /// Checks what a boot without a script cannot do.
    pub(super) fn check_root_paths(&self, walker: &mut Walker<'_>) {
        let mut said = BTreeSet::new();
        for entry in &self.entries {
            let Some(Located { value: true, at }) = entry.all.root_path.located() else { continue };
            if entry.all.disk.value() == Some(DiskPolicy::Reset) && said.insert(*at) {
                let label = quoted(&entry.label);
                let message = format!("the disk of `{label}` is not made anew when it boots by `root_path`");
                let help = "such a boot fetches no script, by which it would begin; disk = \"keep\" says what happens";
                walker.push(Draft::warning(*at, message).help(help));
            }
        }
    }

    /// Checks what depends on who gives the addresses.
    pub(super) fn check_addresses(&self, walker: &mut Walker<'_>, server: &Server) {
        let mut seen: HashMap<Ipv4Addr, (&Entry, usize)> = HashMap::new();
        let pools: Vec<&PoolSection> = server.pools().collect();
        let router_at = |ip| pools.iter().filter_map(|pool| pool.router.located()).find(|router| router.value == ip);
        for entry in &self.entries {
            let Some(&Located { value: ip, at }) = entry.ip.located() else { continue };
            let label = quoted(&entry.label);
            if let Some((first, first_at)) = seen.get(&ip) {
                let one = quoted(&first.label);
                let draft = Draft::error(at, format!("{ip} is given to two clients, `{one}` and `{label}`"));
                walker.push(draft.note(*first_at, format!("`{one}` has it here")).help("change one of the two"));
            } else {
                seen.insert(ip, (entry, at));
            }
            if let Some(router) = router_at(ip) {
                let draft = Draft::error(at, format!("`{label}` has the router's address {ip}"));
                walker.push(draft.note(router.at, "the router is here").help("give the client another address"));
            }
            let why = match server.mode() {
                Some(DhcpMode::Off) => "we give no addresses",
                Some(DhcpMode::Proxy) => "another server gives the addresses",
                Some(DhcpMode::Full) | None => continue,
            };
            let message = format!("the `ip` of `{label}` has no effect: {why}");
            walker.push(Draft::warning(at, message).help("it works with dhcp = \"full\""));
        }
        let why = match server.mode() {
            Some(DhcpMode::Off) => Some("we answer no DHCP"),
            Some(DhcpMode::Proxy) => Some("another server gives addresses and options"),
            Some(DhcpMode::Full) | None => None,
        };
        for (at, why) in self.options.iter().zip(std::iter::repeat(why)).filter_map(|(at, why)| Some((*at, why?))) {
            let draft = Draft::warning(at, format!("`options` has no effect: {why}"));
            walker.push(draft.help("it works with dhcp = \"full\""));
        }
        if server.dhcp.value() == Some(DhcpMode::Full) {
            self.check_pool_size(walker, &pools);
        }
    }

    fn check_pool_size(&self, walker: &mut Walker<'_>, pools: &[&PoolSection]) {
        let Some(ranges) = pools.iter().map(|pool| pool.range_at()).collect::<Option<Vec<_>>>() else { return };
        let Some(&(.., at)) = ranges.first() else { return };
        let size: u64 = ranges.iter().map(|(first, last, _)| u64::from(u32::from(*last) - u32::from(*first)) + 1).sum();
        let inside = |ip: Ipv4Addr| ranges.iter().any(|(first, last, _)| (*first..=*last).contains(&ip));
        let outside = |entry: &&Entry| entry.ip.value().is_some_and(|ip| !inside(ip));
        let needed = self.entries.iter().filter(|entry| !outside(entry)).count();
        if u64::try_from(needed).unwrap_or(u64::MAX) > size {
            let addresses = if size == 1 { "address" } else { "addresses" };
            let have = if ranges.len() == 1 { "the pool has" } else { "all pools together have" };
            let message = format!("{have} {size} {addresses} for {needed} clients");
            let help = "widen the range, and leave room for machines that are not known yet";
            walker.push(Draft::error(at, message).help(help));
        }
    }

    /// Fixed addresses, with their places and whose they are.
    pub(super) fn addresses(&self) -> Vec<(Located<Ipv4Addr>, String)> {
        let fixed = |entry: &Entry| Some((entry.ip.located()?.clone(), entry.label.clone()));
        self.entries.iter().filter_map(fixed).collect()
    }

    /// Every client, with the place and the size of its second disk; without one, with its own place.
    pub(super) fn data(&self) -> Vec<(ClientName, usize, Option<u64>)> {
        let data = |entry: &Entry| {
            let (at, size) = entry.all.data.located().map_or((entry.at, None), |data| (data.at, Some(data.value)));
            Some((entry.name.clone()?, at, size))
        };
        self.entries.iter().filter_map(data).collect()
    }

    /// The fleet; `None` where something is wrong.
    pub(super) fn fleet(self) -> Option<Fleet> {
        let clients: Option<Vec<Client>> = self.entries.into_iter().map(Entry::client).collect();
        Fleet::new(clients?).ok()
    }
}

impl Entry {
    fn read<'a>(
        walker: &mut Walker<'a>,
        label: &str,
        span: Range<usize>,
        value: &'a Spanned<DeValue<'a>>,
        group: Option<&str>,
        farther: &Common,
    ) -> Self {
        let at = span.start;
        let name = label.parse::<ClientName>();
        match &name {
            Err(reason) => {
                walker.handled.push(span);
                walker.refuse(at, bad_name("client", label, reason));
            }
            Ok(name) if name.as_str().len() > MAX_WINDOWS_NAME => {
                let length = name.as_str().len();
                let message =
                    format!("the host name `{name}` has {length} characters; Windows keeps {MAX_WINDOWS_NAME}");
                walker
                    .push(Draft::warning(at, message).help("a shorter name keeps machines apart on a Windows network"));
            }
            Ok(_) => {}
        }
        let mut entry = Self {
            label: label.to_owned(),
            at,
            name: name.ok(),
            group: group.map(str::to_owned),
            macs: Vec::new(),
            port: Given::Absent,
            ip: Given::Absent,
            initiators: Given::Absent,
            title: Given::Absent,
            note: Given::Absent,
            own: Common::NOTHING,
            all: farther.clone(),
        };
        // A setting that slipped in among the clients would be read as a client with a strange MAC.
        let setting = schema::find(label).filter(|_| !walker.is_client(value));
        match (value.get_ref(), setting) {
            (DeValue::Table(table), _) => {
                let section = Section { table, level: Level::Client, name: format!("`{}`", quoted(label)), at };
                entry.read_table(walker, &section);
                entry.all = entry.own.or(farther);
            }
            (_, Some(setting)) => {
                walker.handled.push(value.span());
                let draft = Draft::error(at, format!("`{label}` stands among the clients, and is none"));
                walker.push(draft.help(format!("it belongs {}", schema::homes(setting))));
            }
            (found @ DeValue::Array(_), None) => {
                walker.handled.push(value.span());
                let message = format!("`{}` takes a MAC address or a table, not {}", quoted(label), type_word(found));
                let help = format!("several MACs are written {} = {{ mac = [\"…\", \"…\"] }}", quoted(label));
                walker.push(Draft::error(value.span().start, message).help(help));
            }
            (_, None) => entry.macs.extend(walker.mac(&quoted(label), &format!("{} = ", quoted(label)), value)),
        }
        entry
    }

    fn read_table<'a>(&mut self, walker: &mut Walker<'a>, section: &Section<'a>) {
        walker.check_keys(section);
        self.read_macs(walker, section);
        self.port = walker.parsed(section, "port", values::port);
        self.ip = walker.parsed(section, "ip", values::address);
        self.initiators = walker.list(section, "initiators", values::initiator);
        self.title = walker.parsed(section, "title", |text| Ok(text.to_owned()));
        self.note = walker.parsed(section, "note", |text| Ok(text.to_owned()));
        self.own = Common::read(walker, section);
        let anyone = self.initiators.located().and_then(|list| list.value.iter().find(|name| name.value == "*"));
        if let Some(anyone) = anyone {
            let message = format!("anybody may log in to the disk of {}", section.name);
            walker.push(Draft::warning(anyone.at, message).help("name the initiators that may, instead of \"*\""));
        }
    }

    fn read_macs<'a>(&mut self, walker: &mut Walker<'a>, section: &Section<'a>) {
        match section.table.get("mac") {
            None if schema::OTHER_IDENTITIES.iter().any(|key| section.table.contains_key(*key)) => {}
            None => {
                let draft = Draft::error(self.at, format!("{} has no `mac`", section.name));
                walker.push(draft.help("a machine is recognised by it: mac = \"52:54:00:aa:00:01\"").missing(&["mac"]));
            }
            Some(value) => match value.get_ref() {
                DeValue::Array(items) if items.is_empty() => {
                    let draft =
                        Draft::error(value.span().start, format!("the list of MACs of {} is empty", section.name));
                    walker.push(draft.help("a machine is recognised by at least one").missing(&["mac"]));
                }
                DeValue::Array(items) if items.len() > MAX_MACS => {
                    let message = format!("{} MACs are too many for one client; {MAX_MACS} are taken", items.len());
                    let help = "a client is one machine: its board, its dock, its adapters";
                    walker.push(Draft::error(value.span().start, message).help(help));
                }
                DeValue::Array(items) => {
                    self.macs.extend(items.iter().filter_map(|item| walker.mac("mac", "", item)));
                }
                _ => self.macs.extend(walker.mac("mac", "mac = ", value)),
            },
        }
    }

    fn client(self) -> Option<Client> {
        let initiators = match self.initiators.value() {
            Some(list) if list.iter().any(|name| name.value == "*") => Initiators::Anyone,
            Some(list) if !list.is_empty() => Initiators::Also(list.into_iter().map(|name| name.value).collect()),
            _ => Initiators::OwnOnly,
        };
        let mut macs = Vec::with_capacity(self.macs.len());
        for Located { value: mac, .. } in self.macs {
            if !macs.contains(&mac) {
                macs.push(mac);
            }
        }
        Some(Client {
            name: self.name?,
            group: self.group,
            macs,
            port: self.port.value(),
            ip: self.ip.value(),
            image: self.all.image.value()?,
            disk: self.all.disk.value().unwrap_or_default(),
            initiators,
            chap: self.all.chap.value().unwrap_or(false),
            read_only: self.all.mode.value().unwrap_or(false),
            options: self.all.options.value().unwrap_or_default(),
            limit: self.all.limit.value(),
            data: self.all.data.value(),
            off: self.all.off.value().unwrap_or(false),
            start: Start {
                pxe: self.all.pxe.value().unwrap_or_default(),
                loader: self.all.loader.value(),
                no_gateway: !self.all.gateway.value().unwrap_or(true),
                root_path: self.all.root_path.value().unwrap_or(false),
            },
            title: self.title.value(),
            note: self.note.value(),
        })
    }
}

fn read_only(text: &str) -> Result<bool, Refusal> {
    match text {
        "read-only" => Ok(true),
        "read-write" => Ok(false),
        _ => Err(unknown_word("mode", text, &["read-only", "read-write"])),
    }
}

fn pxe(text: &str) -> Result<Pxe, Refusal> {
    match text {
        "auto" => Ok(Pxe::Auto),
        "file" => Ok(Pxe::File),
        "binl" => Ok(Pxe::Binl),
        _ => Err(unknown_word("pxe", text, &["auto", "file", "binl"])),
    }
}

/// The name of a loader, which is in the folder of loaders.
fn loader(text: &str) -> Result<String, Refusal> {
    match text.is_empty() || text.contains(['/', '\\', ':']) || text.starts_with('.') || !text.is_ascii() {
        false => Ok(text.to_owned()),
        true => Err(Refusal::new(
            format!("`loader` takes the name of a file in the folder of loaders, not `{}`", quoted(text)),
            "write it like loader = \"ipxe.efi\"; the folder is [server] loader_dir",
        )),
    }
}

fn disk_policy(text: &str) -> Result<DiskPolicy, Refusal> {
    match text {
        "keep" => Ok(DiskPolicy::Keep),
        "reset" => Ok(DiskPolicy::Reset),
        _ => Err(unknown_word("disk", text, &["keep", "reset"])),
    }
}
