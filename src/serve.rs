//! The one place that knows every part: opens the state, starts the adapters, drains, stops.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use ipnetwork::Ipv4Network;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::app::App;
use crate::app::bootfiles::{BootContext, BootFiles, Wanted};
use crate::app::keeper::Keeper;
use crate::app::pi::PiFiles;
use crate::app::recorder::Recorder;
use crate::app::report::Reporter;
use crate::app::secrets::SecretBook;
use crate::app::{scrub, space};
use crate::config::{DhcpMode, Loaded, Report};
use crate::dhcp::{Guide, LeaseChange, Leases, Role, Site, v6};
use crate::fleet::platform::RASPBERRY_PI_LOADER;
use crate::fleet::web::{HTTP_PORT, ISCSI_PORT, TFTP_PORT};
use crate::fleet::{Fleet, Holder, Lease, Loader, Mac, Platform, Sighting, Timestamp};
use crate::http::boot;
use crate::http::control::{Control, ControlSocket};
use crate::http::files::Files;
use crate::net::advert::Advertiser;
use crate::net::dhcp::{self, BootServer, Durable, Lookout, Place, Proxy, Six};
use crate::net::iscsi;
use crate::net::tftp::TftpServer;
use crate::script;
use crate::store::{Record, StateLock, Store, WriteError, Writer};
use crate::sys::{self, Interface};

/// The mapping file does not fit this host: the report says where and why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Misfit(pub Report);

/// Serves this lab until it is told to stop by SIGTERM or SIGINT. `file` is the mapping file that it was read from, which is
/// edited from here on.
///
/// # Errors
/// What could not be started, with the reason: among them [`Misfit`], [`crate::store::LockError`] and
/// [`crate::store::StoreError`].
pub async fn run(loaded: Loaded, file: PathBuf) -> anyhow::Result<()> {
    raise_descriptor_limit(loaded.config.fleet.clients().len());
    let settings = loaded.config.settings.clone();
    let interfaces = sys::interfaces().context("cannot list the network interfaces")?;
    let places = places_for(&loaded, &interfaces)?;
    for Place { interface: Interface { name, .. }, .. } in places.iter().filter(|place| !place.interface.carrier) {
        tracing::warn!(
            "interface {name} has no carrier: nothing answers at the other end of its cable; serving all the same"
        );
    }

    let lock = StateLock::acquire(&settings.state)?;
    let store = Store::open(&settings.state)?;
    let writer = Writer::start(store.clone());
    // Where another server gives addresses, those that we once gave may be anybody's by now.
    let leases = if settings.dhcp == DhcpMode::Full { store.leases()? } else { Vec::new() };
    // Who has a lease may be up, and log in again, though nothing was seen of it yet.
    let holder = |lease: &Lease| Sighting { mac: lease.mac, address: Some(lease.address), at: Timestamp(0) };
    let seen = leases.iter().map(holder).chain(store.sightings()?);
    let recorder = Recorder::new(writer.clone(), seen.collect::<Vec<_>>());

    let boot_id = sys::boot_id().context("cannot read this boot's id")?;
    let secrets = SecretBook::new(writer.clone(), store.secrets()?);
    let fleet = leases.iter().fold(loaded.config.fleet, plugged);
    // What was seen at a port last says more than a lease, which may be older.
    let fleet = store.plugged()?.iter().fold(fleet, |fleet, (port, mac)| fleet.plug(*mac, port).unwrap_or(fleet));
    let app = App::new(settings.clone(), fleet, recorder, boot_id).with_secrets(secrets);
    let app = Arc::new(app);
    let files = BootFiles::load_with(&Wanted {
        dir: settings.loader_dir.clone(),
        of: settings.loaders.clone(),
        others: app.fleet().clients().filter_map(|client| client.start.loader.clone()).collect(),
    })?;
    for remark in files.remarks() {
        tracing::info!("loaders: {remark}");
    }
    let pi = settings
        .files
        .as_deref()
        .map(PiFiles::within)
        .transpose()
        .context("cannot read the folder rpi in [server] files")?;
    let pi = pi.flatten().map(Arc::new);
    let mut loaders = files.loaders().clone();
    if pi.is_some() && loaders.of(Platform::RaspberryPi).is_none() {
        loaders.set(Platform::RaspberryPi, Loader { name: RASPBERRY_PI_LOADER, spare: None });
    }
    let guide = Guide::new(loaders);
    guide.remember(store.habits()?);

    let control = ControlSocket::bind(&settings.state, &lock)?;
    let mut dhcp = Vec::new();
    match settings.dhcp {
        DhcpMode::Off => {}
        DhcpMode::Full => {
            let stored = Stored(writer.clone());
            let server = dhcp::Server::bind(Arc::clone(&app), &places, HTTP_PORT, Leases::restore(leases), stored)?
                .with_guide(&guide);
            for address in server.without_pool() {
                tracing::warn!(
                    "DHCP: no pool is of the subnet of {address}: only machines behind relays get addresses there"
                );
            }
            dhcp.push(Dhcp::Full(Box::new(server)));
        }
        DhcpMode::Proxy => {
            for place in &places {
                let site = site(&app, place, Role::Proxy, &guide);
                dhcp.push(Dhcp::Proxy(Box::new(Proxy::bind(Arc::clone(&app), &place.interface, site)?)));
            }
        }
    }
    if settings.dhcp != DhcpMode::Off && settings.dhcp_probe {
        dhcp.extend(lookouts(&app, &places).into_iter().map(|lookout| Dhcp::Lookout(Box::new(lookout))));
    }
    let open = |folder: &PathBuf| {
        Files::open(folder).with_context(|| {
            format!("cannot serve the files in {}: make the folder, or change [server] files", folder.display())
        })
    };
    let folder = settings.files.as_ref().map(open).transpose()?.map(Arc::new);
    let (mut tftp, mut http, mut targets) = (Vec::new(), Vec::new(), Vec::new());
    for place in &places {
        let (interface, address) = (&place.interface, place.address);
        let role = if settings.dhcp == DhcpMode::Full { Role::Server } else { Role::Proxy };
        if settings.dhcp != DhcpMode::Off {
            let boot_server = BootServer::bind(Arc::clone(&app), interface, site(&app, place, role, &guide))?;
            dhcp.push(Dhcp::BootServer(Box::new(boot_server)));
            let advertiser = if settings.ipv6_answer { advertiser(&app, interface) } else { None };
            dhcp.extend(advertiser.map(|advertiser| Dhcp::Advertiser(Box::new(advertiser))));
        }
        let boot = Arc::new(boot_context(&app, files.clone(), address));
        let at = SocketAddrV4::new(address, TFTP_PORT);
        let server = TftpServer::bind(at, interface.mtu, Arc::clone(&boot)).await?;
        tftp.push(server.over_one_port(settings.tftp_single_port).with_pi(pi.clone()));
        let router = boot::router(Arc::clone(&boot));
        if let Some(six) = over_ipv6(&app, place, boot, &guide).await? {
            dhcp.extend(six.dhcp.map(|six| Dhcp::Six(Box::new(six))));
            tftp.push(six.tftp);
            http.push((six.http.with_files(folder.clone()), router.clone()));
        }
        let server = boot::BootServer::bind(SocketAddrV4::new(address, HTTP_PORT)).await?;
        http.push((server.with_files(folder.clone()), router));
        let target = iscsi::Server::bind(SocketAddr::from((address, ISCSI_PORT)), Arc::clone(&app)).await?;
        let networks = interface.addresses.iter().filter_map(|(ip, prefix)| Ipv4Network::new(*ip, *prefix).ok());
        targets.push(target.with_portals(networks).await.context("cannot listen for iSCSI")?);
    }

    let clients = app.fleet().clients().len();
    let dhcp_words = match settings.dhcp {
        DhcpMode::Full => "DHCP, ",
        DhcpMode::Proxy => "DHCP beside another server, ",
        DhcpMode::Off => "",
    };
    let many = if clients == 1 { "" } else { "s" };
    let at = |place: &Place| format!("{} ({})", place.interface.name, place.address);
    let at = places.iter().map(at).collect::<Vec<_>>().join(", ");
    tracing::info!("serving {clients} client{many} on {at}: {dhcp_words}TFTP, HTTP, iSCSI");

    let reporter = Reporter::new(settings, Some(store), app.sessions.clone());
    let keeper = Arc::new(Keeper::new(Arc::clone(&app), file));
    let (stop, stopped) = watch::channel(false);
    let until = || {
        let mut stopped = stopped.clone();
        async move { drop(stopped.wait_for(|stop| *stop).await) }
    };
    let mut adapters = JoinSet::new();
    for tftp in tftp {
        adapters.spawn(tftp.run(until()));
    }
    for (http, router) in http {
        adapters.spawn(http.run(router, until()));
    }
    for target in targets {
        adapters.spawn(target.run(until()));
    }
    let serving = async {
        let _ = tokio::join!(
            control.serve(Control { app: Arc::clone(&app), keeper, reporter }, until()),
            adapters.join_all(),
            async {
                tokio::select! {
                    () = scrub::run(&app) => {}
                    () = space::run(&app) => {}
                    () = until() => {}
                }
            },
            async {
                let mut answering: JoinSet<Infallible> = dhcp.into_iter().map(Dhcp::run).collect();
                tokio::select! {
                    Some(Err(error)) = answering.join_next() => {
                        // None of them ends by itself; where one panicked, the process must not look as if it served.
                        if error.is_panic() {
                            std::panic::resume_unwind(error.into_panic());
                        }
                    }
                    () = until() => {}
                }
            },
        );
    };
    let told = async {
        let word = told_to_stop().await;
        tracing::info!("{word}: stopping");
        let _ = stop.send(true);
    };
    tokio::join!(serving, told);

    app.works.stop();
    app.disks.close_all().await;
    writer.flush().await.context("what was seen last could not be stored")?;
    tracing::info!("stopped; every disk is settled");
    Ok(())
}

/// Who looks for other DHCP servers. Machines boot without them too.
fn lookouts(app: &Arc<App>, places: &[Place]) -> Vec<Lookout> {
    let role = if app.settings.dhcp == DhcpMode::Full { Role::Server } else { Role::Proxy };
    let own: Arc<[Ipv4Addr]> =
        places.iter().flat_map(|place| place.interface.addresses.iter().map(|(address, _)| *address)).collect();
    let on = |place: &Place| {
        Lookout::bind(Arc::clone(app), &place.interface, role, Arc::clone(&own))
            .inspect_err(|error| tracing::warn!("DHCP: other servers are not looked for: {error}"))
            .ok()
            .flatten()
    };
    places.iter().filter_map(on).collect()
}

/// What spares iPXE its wait for an IPv6 router. Machines boot without it too.
fn advertiser(app: &Arc<App>, interface: &Interface) -> Option<Advertiser> {
    Advertiser::bind(Arc::clone(app), interface)
        .inspect_err(|error| {
            tracing::warn!("IPv6: iPXE's search for a router is not answered, and may take it 16 s: {error}");
        })
        .ok()
}

/// What serves machines over IPv6 on one wire.
struct OverIpv6 {
    /// `None` where DHCP is off.
    dhcp: Option<Six>,
    tftp: TftpServer,
    http: boot::BootServer,
}

/// Serves this wire by IPv6 too, where it has an address for that. A file that says nothing of IPv6 does not keep Roost from
/// starting by it.
async fn over_ipv6(
    app: &Arc<App>,
    place: &Place,
    boot: Arc<BootContext>,
    guide: &Guide,
) -> anyhow::Result<Option<OverIpv6>> {
    let (Interface { name, mtu, .. }, settings) = (&place.interface, &app.settings);
    if settings.ipv6_boot == Some(false) {
        return Ok(None);
    }
    let mac = place.interface.mac.and_then(Mac::from_octets);
    let (Some(&address), Some(mac)) = (place.interface.ipv6.first(), mac) else {
        if settings.ipv6_boot == Some(true) {
            tracing::warn!(
                "IPv6: interface {name} has no address that machines could be told, so they boot over IPv4 alone there"
            );
        }
        return Ok(None);
    };
    let serve = async {
        let dhcp = if settings.dhcp == DhcpMode::Off {
            None
        } else {
            let role = if settings.dhcp == DhcpMode::Full { Role::Server } else { Role::Proxy };
            let site = v6::Site { address, mac, wired: site(app, place, role, guide) };
            Some(Six::bind(Arc::clone(app), &place.interface, site).await?)
        };
        let tftp = TftpServer::bind((address, TFTP_PORT), *mtu, boot).await?;
        let tftp = tftp.over_one_port(settings.tftp_single_port);
        let http = boot::BootServer::bind((address, HTTP_PORT)).await?;
        anyhow::Ok(OverIpv6 { dhcp, tftp, http })
    };
    match serve.await {
        Ok(six) => {
            tracing::info!("IPv6: machines on {name} may boot from {address} too");
            Ok(Some(six))
        }
        Err(error) if settings.ipv6_boot.is_none() => {
            tracing::warn!("IPv6: machines on {name} cannot boot from {address}: {error:#}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Lets this process open as many files as the system allows it, and says so where that is too few. Sockets of sessions
/// are files too, and many systems allow a process 1,024 until it asks for more.
fn raise_descriptor_limit(clients: usize) {
    /// The store, logs, images, listening sockets, TFTP and HTTP transfers.
    const OTHER: usize = 512;
    /// A client's disk, its pending map, and a checkpoint or two.
    const PER_DISK: usize = 4;
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!("cannot raise the limit of open files: {error}");
        }
    }
    let needed = iscsi::MAX_CONNECTIONS + PER_DISK * clients + OTHER;
    // No limit at all is `None`.
    if let Some(allowed) = getrlimit(Resource::Nofile).current
        && allowed < needed as u64
    {
        tracing::warn!(
            "{clients} clients may need {needed} open files, and the system allows {allowed}: raise the hard limit \
             (`LimitNOFILE=` of systemd, `ulimit -Hn`)"
        );
    }
}

/// The wires that the clients are on: those that the file names, else the only one that there can be. On each, machines are
/// told the address in whose network there are addresses to give, else the first one.
fn places_for(loaded: &Loaded, interfaces: &[Interface]) -> anyhow::Result<Vec<Place>> {
    let settings = &loaded.config.settings;
    let wanted: Vec<Option<&str>> = match settings.interfaces.as_slice() {
        [] => vec![None],
        names => names.iter().map(|name| Some(name.as_str())).collect(),
    };
    let given: Vec<Ipv4Addr> =
        settings.pool.iter().chain(settings.pools.iter().map(|subnet| &subnet.pool)).map(|pool| pool.first).collect();
    let mut places = Vec::new();
    let mut own = Vec::new();
    for name in wanted {
        let interface = sys::choose(interfaces, name)?;
        let network = |(address, prefix): &(Ipv4Addr, u8)| {
            Ipv4Network::new(*address, *prefix).context("an interface's prefix is at most 32")
        };
        let networks = interface.addresses.iter().map(network).collect::<Result<Vec<_>, _>>()?;
        let gives = |network: &&Ipv4Network| given.iter().any(|address| network.contains(*address));
        let network = networks.iter().find(gives).or_else(|| networks.first());
        let network = *network.ok_or_else(|| sys::InterfaceError::NoAddress(interface.name.clone()))?;
        own.push(network);
        places.push(Place { interface: interface.clone(), address: network.ip() });
    }
    let report = loaded.check_against(&own);
    if report.has_errors() { Err(Misfit(report).into()) } else { Ok(places) }
}

/// The fleet with the machine of this lease at its client's port, where it was recognised by that.
fn plugged(fleet: Fleet, lease: &Lease) -> Fleet {
    let Holder::Client(name) = &lease.holder else { return fleet };
    let seen = fleet.client(name).and_then(|client| client.port.as_ref()).and_then(|port| fleet.plug(lease.mac, port));
    seen.unwrap_or(fleet)
}

/// Where machines on this wire find us.
fn site(app: &App, place: &Place, role: Role, guide: &Guide) -> Site {
    let (naming, guide) = (app.naming.clone(), guide.clone());
    Site { server: place.address, http_port: HTTP_PORT, naming, role, guide }
}

fn boot_context(app: &Arc<App>, files: BootFiles, address: Ipv4Addr) -> BootContext {
    let (fleet, seen, boots) = (Arc::clone(app), app.recorder.clone(), Arc::clone(app));
    let neighbour = |at: IpAddr| sys::neighbour(at).and_then(Mac::from_octets);
    let seen_at = move |at| if let IpAddr::V4(at) = at { seen.machine_at(at) } else { None };
    BootContext {
        files,
        fleet: Box::new(move || fleet.fleet()),
        server: script::Server {
            iscsi: SocketAddrV4::new(address, ISCSI_PORT),
            http: SocketAddrV4::new(address, HTTP_PORT),
            naming: app.naming.clone(),
        },
        recorder: app.recorder.clone(),
        resolver: Box::new(move |at| neighbour(at).or_else(|| seen_at(at))),
        begin: Box::new(move |mac, from| {
            let app = Arc::clone(&boots);
            Box::pin(async move { app.begin_boot_of(mac, from, neighbour(from)).await })
        }),
    }
}

/// What answers DHCP.
enum Dhcp {
    Full(Box<dhcp::Server<Stored>>),
    Proxy(Box<Proxy>),
    BootServer(Box<BootServer>),
    Advertiser(Box<Advertiser>),
    Lookout(Box<Lookout>),
    Six(Box<Six>),
}

impl Dhcp {
    async fn run(self) -> Infallible {
        match self {
            Self::Full(server) => server.run().await,
            Self::Proxy(proxy) => proxy.run().await,
            Self::BootServer(server) => server.run().await,
            Self::Advertiser(advertiser) => advertiser.run().await,
            Self::Lookout(lookout) => lookout.run().await,
            Self::Six(six) => six.run().await,
        }
    }
}

/// Leases go to the store, and an ACK waits until they are durable there.
#[derive(Debug)]
struct Stored(Writer);

impl Durable for Stored {
    type Error = WriteError;

    async fn commit(&self, changes: Vec<LeaseChange>) -> Result<(), WriteError> {
        let record = |change| match change {
            LeaseChange::Held(lease) => Record::Lease(lease),
            LeaseChange::Gone(holder) => Record::LeaseGone(holder),
        };
        self.0.commit(changes.into_iter().map(record).collect()).await
    }
}

async fn told_to_stop() -> &'static str {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        // Without handlers the signals end the process at once, which it survives too.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
