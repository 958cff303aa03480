//! `roost.toml`, the mapping file: which machine boots what, and how the server stands on its network.
//!
//! [`load`] reads the file, [`parse`] a text; both check all of it and speak about everything that is wrong at once, each
//! with its line and a caret. The format is TOML 1.1. Not here: whether the images exist and whether the addresses fit the
//! wire, which the file alone cannot tell; the caller has the facts and asks [`Loaded::check_images`] and
//! [`Loaded::check_against`].
//!
//! A text passes four hands: `syntax` (what TOML cannot read), `walk` (values of the wanted type, with their places),
//! `server` and `clients` (what they mean together), `report` (how it is told).

mod clients;
pub mod edit;
pub mod import;
mod options;
mod report;
mod schema;
mod server;
mod syntax;
mod values;
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnetwork::Ipv4Network;

use self::clients::Clients;
use self::report::{Draft, Source};
use self::schema::Level;
use self::server::{PoolSection, Server};
use self::walk::{Located, Section, Walker};
use crate::fleet::{ClientName, Fleet, ImageName, Platform, Pool, Subnet};

pub use self::report::{MAX_LINE_SHOWN, MAX_SHOWN, Note, Place, Problem, Report, Severity};
pub use self::values::{MAX_DATA, MAX_LEASE, MAX_POOL, MIN_DATA, MIN_LIMIT};
pub use crate::fleet::lease::{MAX_DNS, MIN_LEASE};

/// Largest mapping file in bytes. [`MAX_CLIENTS`] with a long note each fit well; more is not a mapping file.
pub const MAX_FILE: u64 = 1 << 20;

/// Most clients of one server.
pub const MAX_CLIENTS: usize = 4096;

/// Most MAC addresses of one client: a machine has a few adapters, not a switch full of them.
pub const MAX_MACS: usize = 16;

/// Longest host name that Windows keeps whole (a NetBIOS name has 15 characters).
pub const MAX_WINDOWS_NAME: usize = 15;

/// `[server] state` when it is left out.
pub const DEFAULT_STATE: &str = "/var/lib/roost";

/// `[server.pool] lease` when it is left out: a working day.
pub const DEFAULT_LEASE: Duration = Duration::from_secs(8 * 3_600);

/// A whole, checked mapping file.
#[derive(Debug, Clone)]
pub struct Config {
    /// The `[server]` section.
    pub settings: Settings,
    /// The clients.
    pub fleet: Fleet,
    /// The groups, in the order of their names, those without clients too.
    pub groups: Vec<Group>,
}

/// A group of clients. Its title and note are its own; its clients have theirs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name, which [`crate::fleet::Client::group`] repeats.
    pub name: String,
    /// A title for lists.
    pub title: Option<String>,
    /// The operator's own words.
    pub note: Option<String>,
}

/// Who gives addresses on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DhcpMode {
    /// We do.
    Full,
    /// Another server does; we add how to boot.
    Proxy,
    /// DHCP is not answered at all.
    Off,
}

/// The `[server]` section, with what was left out filled in. Paths that the file gives relative start at its own folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The wires that the clients are on; none: the one wired interface with carrier and an address.
    pub interfaces: Vec<String>,
    /// Who gives addresses.
    pub dhcp: DhcpMode,
    /// The addresses that we give on the interface's own subnet; there with `dhcp = "full"` only. At most [`MAX_POOL`] addresses and
    /// [`MAX_DNS`] name servers, which like the router are outside the range; a lease of [`MIN_LEASE`] to [`MAX_LEASE`].
    pub pool: Option<Pool>,
    /// Further subnets with addresses that we give, which do not overlap; there with `dhcp = "full"` only.
    pub pools: Vec<Subnet>,
    /// Images, disks and the store.
    pub state: PathBuf,
    /// Prefix of target and initiator names.
    pub iqn: String,
    /// Where loaders are looked for; `None`: `/usr/lib/ipxe`.
    pub loader_dir: Option<PathBuf>,
    /// `[loaders]`: which file machines of a platform are told. A bare name is in the folder of loaders.
    pub loaders: BTreeMap<Platform, PathBuf>,
    /// The folder whose files machines may fetch by HTTP under `/files/`.
    pub files: Option<PathBuf>,
    /// Whether TFTP uses its one port for everything.
    pub tftp_single_port: bool,
    /// Whether iPXE's search for an IPv6 router is answered: there is none.
    pub ipv6_answer: bool,
    /// Whether other DHCP servers are looked for.
    pub dhcp_probe: bool,
    /// Whether machines may boot over IPv6 too; `None`: where the interface has an address for it.
    pub ipv6_boot: Option<bool>,
}

/// A file that can be taken, with what is odd about it and where its values stand.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What the operator wants.
    pub config: Config,
    /// Warnings; no errors.
    pub warnings: Report,
    source: Source,
    images: Vec<Located<ImageName>>,
    addresses: Vec<Fixed>,
    /// The pools' first and last addresses, and where they stand.
    ranges: Vec<(Ipv4Addr, Ipv4Addr, usize)>,
    /// Every client, where its `data` stands (or it itself, without one), and how many bytes that is.
    data: Vec<(ClientName, usize, Option<u64>)>,
}

/// An address that the file names, and what for.
#[derive(Debug, Clone)]
struct Fixed {
    address: Ipv4Addr,
    at: usize,
    /// How a sentence begins: ``the `ip` of `a-01` ``.
    what: String,
    /// Whether a client is given it, so that nobody else may have it.
    given: bool,
    /// Whether it may be of a subnet of `[server.pools]` as well.
    further: bool,
}

/// Reads and checks the mapping file at `path`. Paths in it that are relative start at its folder and are made absolute.
///
/// # Errors
/// All that is wrong with it, warnings included: not readable, larger than [`MAX_FILE`], no text, or any error in it.
pub fn load(path: &Path) -> Result<Loaded, Report> {
    let name = path.display().to_string();
    let text = read(path).map_err(|(message, help)| Report::whole_file(&name, message, help))?;
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    check(&text, &name, absolute.parent().unwrap_or(Path::new("/")))
}

/// Checks a mapping file's text. `name` is the file's path, which the report repeats and at whose folder relative paths
/// start.
///
/// # Errors
/// All that is wrong with it, warnings included.
pub fn parse(text: &str, name: &str) -> Result<Loaded, Report> {
    check(text, name, Path::new(name).parent().unwrap_or(Path::new("")))
}

/// The text of the file; else what is wrong and what to do.
fn read(path: &Path) -> Result<String, (String, Option<String>)> {
    let failed = |error: &std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            ("there is no such file".to_owned(), Some("another one is named by --config FILE".to_owned()))
        }
        _ => (format!("cannot be read: {error}"), None),
    };
    let file = File::open(path).map_err(|error| failed(&error))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err((format!("is larger than {} KiB, which no mapping file is", MAX_FILE >> 10), None));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..valid].iter().filter(|byte| **byte == b'\n').count() + 1;
        let message = format!("line {line} is not UTF-8 text");
        (message, Some("save the file with the encoding UTF-8".to_owned()))
    })
}

fn check(text: &str, name: &str, folder: &Path) -> Result<Loaded, Report> {
    let source = Source::new(name, text);
    let (readable, mut faults) = syntax::readable(&source);
    let (tree, more) = syntax::parse(&readable);
    faults.extend(more);

    let top = Section { table: &tree, level: Level::Top, name: "the top of the file".to_owned(), at: 0 };
    let mut walker = Walker::new(&source);
    walker.check_keys(&top);
    let server = Server::read(&mut walker, &top);
    let clients = Clients::read(&mut walker, &top);
    clients.check_addresses(&mut walker, &server);
    clients.check_root_paths(&mut walker);

    let Walker { mut drafts, handled, misspelt, .. } = walker;
    let remains = syntax::remains(&source, &tree, faults, &handled);
    let misled = |draft: &Draft| {
        (!draft.absent.is_empty() && remains.hides)
            || draft.absent.iter().any(|key| misspelt.contains(key))
            || remains.garbled_from.is_some_and(|from| draft.at.is_some_and(|at| at > from))
    };
    drafts.retain(|draft| !misled(draft));
    drafts.extend(remains.drafts);
    let report = source.report(drafts);
    if report.has_errors() {
        return Err(report);
    }
    let addresses = fixed_addresses(&server, &clients);
    let ranges = server.pools().filter_map(PoolSection::range_at).collect();
    let data = clients.data();
    let (images, groups) = (clients.images.clone(), clients.groups.clone());
    let whole = server.settings(folder).zip(clients.fleet());
    let (settings, fleet) = whole.expect("whatever keeps a section from being whole was reported as an error");
    let config = Config { settings, fleet, groups };
    Ok(Loaded { config, warnings: report, source: source.clone(), images, addresses, ranges, data })
}

fn fixed_addresses(server: &Server, clients: &Clients) -> Vec<Fixed> {
    if server.dhcp.value() != Some(DhcpMode::Full) {
        return Vec::new();
    }
    let mut fixed = Vec::new();
    if let Some(Located { value: pool, .. }) = server.pool.located() {
        if let Some((first, last, at)) = pool.range_at() {
            let end = |address, what: &str| Fixed { address, at, what: what.to_owned(), given: true, further: false };
            fixed.extend([end(first, "the pool's first address"), end(last, "the pool's last address")]);
        }
        if let Some(&Located { value: address, at }) = pool.router.located() {
            fixed.push(Fixed { address, at, what: "the router".to_owned(), given: false, further: false });
        }
    }
    for (Located { value: address, at }, label) in clients.addresses() {
        fixed.push(Fixed { address, at, what: format!("the `ip` of `{label}`"), given: true, further: true });
    }
    fixed
}

impl Loaded {
    /// How many different images the clients boot.
    #[must_use]
    pub fn image_count(&self) -> usize {
        self.config.fleet.clients().map(|client| &client.image).collect::<BTreeSet<_>>().len()
    }

    /// What is wrong with the images that the file names, when there are only these.
    #[must_use]
    pub fn check_images(&self, there: &[ImageName]) -> Report {
        let names = || there.iter().map(ImageName::as_str);
        let missing = self.images.iter().filter(|image| !there.contains(&image.value));
        let drafts = missing.map(|Located { value: image, at }| {
            let help = match (schema::nearest(image.as_str(), names()), there) {
                (Some(near), _) => format!("did you mean `{near}`?"),
                (None, []) => format!("there is none yet: roost image import FILE --name {image}"),
                (None, _) => format!("there is {}", schema::listed(names().map(|name| format!("`{name}`")))),
            };
            Draft::error(*at, format!("there is no image `{image}`")).help(help)
        });
        self.source.report(drafts.collect())
    }

    /// What is wrong with the images that the file names, when these are not what was imported, for these reasons.
    #[must_use]
    pub fn check_changed(&self, changed: &[(ImageName, String)]) -> Report {
        let named = |image: &Located<ImageName>| {
            let (_, why) = changed.iter().find(|(name, _)| *name == image.value)?;
            let draft = Draft::error(image.at, format!("image `{}`: {why}", image.value));
            Some(draft.help("put back the file that was imported, then: roost verify --masters"))
        };
        self.source.report(self.images.iter().filter_map(named).collect())
    }

    /// What is wrong with the second disks that the file wants, where there are these already, of so many bytes.
    #[must_use]
    pub fn check_data(&self, there: &[(ClientName, u64)]) -> Report {
        let drafts = self.data.iter().filter_map(|(client, at, wanted)| {
            let (_, size) = there.iter().find(|(name, _)| name == client)?;
            match wanted {
                Some(wanted) if wanted < size => {
                    let message = format!(
                        "the data disk of `{client}` has {size} bytes, and does not shrink to {wanted}: what lies at its end \
                         would be cut off"
                    );
                    let help = "give it its size again; or export it (roost client export NAME FILE --data) and remove its file";
                    Some(Draft::error(*at, message).help(help))
                }
                Some(_) => None,
                None => {
                    let message = format!("`{client}` has a data disk of {size} bytes, which is not served without `data`");
                    let help = format!("its file stays as it is, disks/{client}.data.vhdx: remove it, or give it back: data = \"…\"");
                    Some(Draft::warning(*at, message).help(help))
                }
            }
        });
        self.source.report(drafts.collect())
    }

    /// What is wrong with the addresses that the file names, where this server has these addresses, each with the length of
    /// its prefix, on the wires of the clients.
    #[must_use]
    pub fn check_against(&self, own: &[Ipv4Network]) -> Report {
        let mut drafts = Vec::new();
        let nets = || own.iter().map(|own| format!("{}/{}", own.network(), own.prefix()));
        for Fixed { address, at, what, given, further } in &self.addresses {
            let further = *further && self.config.settings.pools.iter().any(|subnet| subnet.contains(*address));
            match own.iter().find(|own| own.contains(*address)) {
                None if further => {}
                None => {
                    let help = "addresses that a client is given, and its router, are on the wire that it boots from";
                    let draft = Draft::error(*at, format!("{what}, {address}, is not in {}", schema::listed(nets())));
                    drafts.push(draft.help(help));
                }
                Some(net) if is_end(*net, *address) => {
                    let help = "no machine can have the first or the last address of a network";
                    let net = format!("{}/{}", net.network(), net.prefix());
                    drafts.push(
                        Draft::error(*at, format!("{what}, {address}, is an end of the network {net}")).help(help),
                    );
                }
                Some(_) if *given && own.iter().any(|own| own.ip() == *address) => {
                    let help = "two machines would answer for one address";
                    drafts.push(Draft::error(*at, format!("{what}, {address}, is this server's own")).help(help));
                }
                Some(_) => {}
            }
        }
        for (first, last, at) in &self.ranges {
            for own in own.iter().map(|own| own.ip()).filter(|own| first < own && own < last) {
                let draft = Draft::error(*at, format!("the pool holds this server's own address, {own}"));
                drafts.push(draft.help("a client would be given it; end the range before it, or begin behind it"));
            }
        }
        self.source.report(drafts)
    }
}

/// It is the first or the last address of this network, which no machine has.
fn is_end(net: Ipv4Network, address: Ipv4Addr) -> bool {
    net.prefix() < 31 && (address == net.network() || address == net.broadcast())
}
