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

use crate::app::App;
use crate::app::bootfiles::{BootContext, BootFiles, Wanted};
use crate::app::keeper::Keeper;
use crate::app::recorder::Recorder;
use crate::app::report::Reporter;
use crate::app::secrets::SecretBook;
use crate::app::{scrub, space};
use crate::config::{DhcpMode, Loaded, Report};
use crate::dhcp::{Guide, LeaseChange, Leases, Role, Site};
use crate::fleet::web::{HTTP_PORT, ISCSI_PORT, TFTP_PORT};
use crate::fleet::{Lease, Mac, Sighting, Timestamp};
use crate::http::boot;
use crate::http::control::{Control, ControlSocket};
use crate::http::files::Files;
use crate::net::advert::Advertiser;
use crate::net::dhcp::{self, BootServer, Durable, Proxy};
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
    let interface = sys::choose(&interfaces, settings.interface.as_deref())?;
    let address = address_for(&loaded, interface)?;
    if !interface.carrier {
        let name = &interface.name;
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
    let app = App::new(settings.clone(), loaded.config.fleet, recorder, boot_id).with_secrets(secrets);
    let app = Arc::new(app);
    let files = BootFiles::load_with(&Wanted {
        dir: settings.loader_dir.clone(),
        of: settings.loaders.clone(),
        others: app.fleet().clients().filter_map(|client| client.start.loader.clone()).collect(),
    })?;
    for remark in files.remarks() {
        tracing::info!("loaders: {remark}");
    }
    let guide = Guide::new(files.loaders().clone());
    let folder = match &settings.files {
        Some(folder) => Some(Files::open(folder).with_context(|| {
            format!("cannot serve the files in {}: make the folder, or change [server] files", folder.display())
        })?),
        None => None,
    };
    let boot = Arc::new(boot_context(&app, files, address));

    let control = ControlSocket::bind(&settings.state, &lock)?;
    let dhcp = match settings.dhcp {
        DhcpMode::Off => None,
        DhcpMode::Full => {
            let stored = Stored(writer.clone());
            let server = dhcp::Server::bind(Arc::clone(&app), interface, HTTP_PORT, Leases::restore(leases), stored)?
                .with_guide(guide);
            let site = server.scope().site().clone();
            Some((Dhcp::Full(Box::new(server)), BootServer::bind(Arc::clone(&app), interface, site)?))
        }
        DhcpMode::Proxy => {
            let naming = app.naming.clone();
            let site = Site { server: address, http_port: HTTP_PORT, naming, role: Role::Proxy, guide };
            let proxy = Proxy::bind(Arc::clone(&app), interface, site.clone())?;
            Some((Dhcp::Proxy(proxy), BootServer::bind(Arc::clone(&app), interface, site)?))
        }
    };
    let advertiser = match settings.dhcp {
        DhcpMode::Full | DhcpMode::Proxy if settings.ipv6_answer => advertiser(&app, interface),
        _ => None,
    };
    let tftp = TftpServer::bind(SocketAddrV4::new(address, TFTP_PORT), interface.mtu, Arc::clone(&boot))
        .await?
        .over_one_port(settings.tftp_single_port);
    let http = boot::BootServer::bind(SocketAddrV4::new(address, HTTP_PORT)).await?;
    let target = iscsi::Server::bind(SocketAddr::from((address, ISCSI_PORT)), Arc::clone(&app)).await?;
    let networks = interface.addresses.iter().filter_map(|(ip, prefix)| Ipv4Network::new(*ip, *prefix).ok());
    let target = target.with_portals(networks).await.context("cannot listen for iSCSI")?;

    let router = boot::router(boot);
    let router = match folder {
        Some(folder) => folder.mount(router),
        None => router,
    };

    let clients = app.fleet().clients().len();
    let dhcp_words = match settings.dhcp {
        DhcpMode::Full => "DHCP, ",
        DhcpMode::Proxy => "DHCP beside another server, ",
        DhcpMode::Off => "",
    };
    let many = if clients == 1 { "" } else { "s" };
    tracing::info!("serving {clients} client{many} on {} ({address}): {dhcp_words}TFTP, HTTP, iSCSI", interface.name);

    let reporter = Reporter::new(settings, Some(store), app.sessions.clone());
    let keeper = Arc::new(Keeper::new(Arc::clone(&app), file));
    let (stop, stopped) = watch::channel(false);
    let until = || {
        let mut stopped = stopped.clone();
        async move { drop(stopped.wait_for(|stop| *stop).await) }
    };
    let serving = async {
        let _ = tokio::join!(
            control.serve(Control { app: Arc::clone(&app), keeper, reporter }, until()),
            tftp.run(until()),
            http.run(router, until()),
            target.run(until()),
            async {
                match advertiser {
                    Some(advertiser) => tokio::select! {
                        never = advertiser.run() => match never {},
                        () = until() => {}
                    },
                    None => until().await,
                }
            },
            async {
                tokio::select! {
                    () = scrub::run(&app) => {}
                    () = space::run(&app) => {}
                    () = until() => {}
                }
            },
            async {
                match dhcp {
                    Some((dhcp, boot_server)) => tokio::select! {
                        never = dhcp.run() => match never {},
                        never = boot_server.run() => match never {},
                        () = until() => {}
                    },
                    None => until().await,
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

/// What spares iPXE its wait for an IPv6 router. Machines boot without it too.
fn advertiser(app: &Arc<App>, interface: &Interface) -> Option<Advertiser> {
    Advertiser::bind(Arc::clone(app), interface)
        .inspect_err(|error| {
            tracing::warn!("IPv6: iPXE's search for a router is not answered, and may take it 16 s: {error}");
        })
        .ok()
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

/// The address that machines are told: the one in whose network the file's addresses are.
fn address_for(loaded: &Loaded, interface: &Interface) -> anyhow::Result<Ipv4Addr> {
    let mut misfit = None;
    for (address, prefix) in &interface.addresses {
        let network = Ipv4Network::new(*address, *prefix).context("an interface's prefix is at most 32")?;
        let report = loaded.check_against(network);
        if !report.has_errors() {
            return Ok(*address);
        }
        misfit = misfit.or(Some(report));
    }
    Err(misfit
        .map_or_else(|| sys::InterfaceError::NoAddress(interface.name.clone()).into(), |report| Misfit(report).into()))
}

fn boot_context(app: &Arc<App>, files: BootFiles, address: Ipv4Addr) -> BootContext {
    let (fleet, seen, boots) = (Arc::clone(app), app.recorder.clone(), Arc::clone(app));
    let neighbour = |at| sys::neighbour(at).and_then(Mac::from_octets);
    BootContext {
        files,
        fleet: Box::new(move || fleet.fleet()),
        server: script::Server {
            iscsi: SocketAddrV4::new(address, ISCSI_PORT),
            http: SocketAddrV4::new(address, HTTP_PORT),
            naming: app.naming.clone(),
        },
        recorder: app.recorder.clone(),
        resolver: Box::new(move |at| neighbour(at).or_else(|| seen.machine_at(at))),
        begin: Box::new(move |mac, from| {
            let app = Arc::clone(&boots);
            Box::pin(async move {
                let neighbour = match from {
                    IpAddr::V4(from) => neighbour(from),
                    IpAddr::V6(_) => None,
                };
                app.begin_boot_of(mac, from, neighbour).await
            })
        }),
    }
}

/// Either way in which DHCP is answered.
enum Dhcp {
    Full(Box<dhcp::Server<Stored>>),
    Proxy(Proxy),
}

impl Dhcp {
    async fn run(self) -> Infallible {
        match self {
            Self::Full(server) => server.run().await,
            Self::Proxy(proxy) => proxy.run().await,
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
