//! The control API: HTTP/1.1 with JSON over the Unix socket `STATE/roost.sock`, for the CLI on the same host.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/clients` | a list of [`ClientReport`](crate::app::report::ClientReport) |
//! | `GET /v1/clients/NAME` | one of them; 404 where there is no such client |
//! | `POST /v1/clients/NAME/reset` | [`ResetReport`](crate::app::boots::ResetReport); 409 where a system is running on the disk |
//! | `POST /v1/clients/NAME/release` | [`ReleaseReport`](crate::app::boots::ReleaseReport); 409 where a system is running on the disk |
//! | `POST /v1/clients/NAME/replace` with [`ReplaceRequest`] | [`ReplaceReport`](crate::app::report::ReplaceReport); 409 where it is refused, 422 where the mapping file is wrong |
//! | `GET /v1/clients/NAME/checkpoints` | a list of [`CheckpointReport`](crate::app::report::CheckpointReport) |
//! | `POST /v1/clients/NAME/checkpoints` with [`CheckpointRequest`] | the new one; 409 where it is refused |
//! | `DELETE /v1/clients/NAME/checkpoints/NUMBER` | `null`; 409 where there is none. What is left to do is `work` |
//! | `POST /v1/clients/NAME/rollback` with [`RollbackRequest`] | [`RollbackReport`](crate::app::overlays::RollbackReport); 409 where it is refused, or a system is running on the disk |
//! | `POST /v1/clients/NAME/resize` with [`ResizeRequest`] | [`ResizeReport`](crate::app::overlays::ResizeReport); 409 where it is refused |
//! | `POST /v1/clients/NAME/compact` | [`WorkReport`](crate::app::overlays::WorkReport) of what has begun; 409 where there is no disk |
//! | `POST /v1/clients/NAME/secret` | [`SecretReport`](crate::app::secrets::SecretReport), made where there is none yet; 409 where the client asks for no CHAP |
//! | `GET /v1/clients/NAME/work` | the [`WorkReport`](crate::app::overlays::WorkReport) of the client's last merge or compaction, or `null` |
//! | `GET /v1/packets/WHO?after=NUMBER` | [`PacketsReport`] of a client's machine, or of a MAC address: the packets after that number; 404 where it is neither |
//! | `GET /v1/status` | [`StatusReport`](crate::app::report::StatusReport) |
//!
//! An answer that is no 200 carries an [`ErrorReport`]. Who may open the socket is the file's mode: its owner and root.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path as Segment, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use rustix::fs::Mode;
use serde::Deserialize;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixListener;
use tokio::sync::oneshot;

use crate::app::App;
use crate::app::boots::ResetError;
use crate::app::keeper::{Keeper, KeeperError};
use crate::app::overlays::{CheckpointRequest, OverlayError, ResizeRequest, RollbackRequest};
use crate::app::packets::PacketsReport;
use crate::app::report::{ErrorReport, ReplaceRequest, Reporter};
use crate::app::secrets::SecretError;
use crate::config::edit::EditError;
use crate::fleet::change::Refusal;
use crate::fleet::{Client, ClientName, Mac};
use crate::store::StateLock;

/// The socket's name in the state folder.
pub const SOCKET: &str = "roost.sock";

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;

/// How long answers under way may take once the process is to stop.
const DRAIN: Duration = Duration::from_secs(1);

/// What the API answers from.
#[derive(Debug, Clone)]
pub struct Control {
    /// The fleet as it is now.
    pub app: Arc<App>,
    /// Who changes it.
    pub keeper: Arc<Keeper>,
    /// The rest.
    pub reporter: Reporter,
}

/// The listening socket. Its file goes when serving ends.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Listens on `STATE/roost.sock`. The lock is proof that a socket that is there already is a dead process's.
    ///
    /// # Errors
    /// The socket cannot be made; the error says which. A path of more than 107 bytes is too long (unix(7)).
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn bind(state: &Path, _lock: &StateLock) -> io::Result<Self> {
        let path = state.join(SOCKET);
        let bound = remove_stale(&path).and_then(|()| listen(&path));
        let listener = bound.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        Ok(Self { listener, path })
    }

    /// Answers until `stop` is done and the answers under way are sent, for which they have a second.
    ///
    /// # Errors
    /// None that a listening socket is known to give.
    pub async fn serve(self, control: Control, stop: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
        let Self { listener, path } = self;
        let _file = SocketFile(path);
        let (stopping, stopped) = oneshot::channel();
        let stop = async {
            stop.await;
            // Nobody waits for it where serving has ended by itself.
            let _ = stopping.send(());
        };
        // Whoever has sent half a request would keep us waiting for the other half.
        let overdue = async {
            let _ = stopped.await;
            tokio::time::sleep(DRAIN).await;
        };
        let serving = axum::serve(listener, router(control)).with_graceful_shutdown(stop);
        tokio::select! {
            done = serving.into_future() => done,
            () = overdue => Ok(()),
        }
    }
}

/// Removes the socket's file at the end.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Where it cannot be removed, the next process does.
        let _ = fs::remove_file(&self.0);
    }
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AlreadyExists, "is in the way: it is not a socket; move it away")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Before bind: Linux gives the file the mode that the socket has, so that at no time it is anybody's.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(std::os::unix::net::UnixListener::from(std::os::fd::OwnedFd::from(socket)))
}

fn router(control: Control) -> Router {
    Router::new()
        .route("/v1/clients", get(clients))
        .route("/v1/clients/{name}", get(client))
        .route("/v1/clients/{name}/reset", post(reset))
        .route("/v1/clients/{name}/release", post(release))
        .route("/v1/clients/{name}/replace", post(replace))
        .route("/v1/clients/{name}/checkpoints", get(checkpoints).post(checkpoint))
        .route("/v1/clients/{name}/checkpoints/{number}", delete(delete_checkpoint))
        .route("/v1/clients/{name}/rollback", post(roll_back))
        .route("/v1/clients/{name}/resize", post(resize))
        .route("/v1/clients/{name}/compact", post(compact))
        .route("/v1/clients/{name}/secret", post(secret))
        .route("/v1/clients/{name}/work", get(work))
        .route("/v1/packets/{who}", get(packets))
        .route("/v1/status", get(status))
        .fallback(async || problem(StatusCode::NOT_FOUND, &"there is no such resource"))
        .with_state(control)
}

async fn clients(State(control): State<Control>) -> Response {
    let fleet = control.app.fleet();
    answer(move || control.reporter.clients(&fleet)).await
}

async fn client(State(control): State<Control>, Segment(name): Segment<String>) -> Response {
    match find(&control, &name) {
        Ok(client) => answer(move || control.reporter.client(&client)).await,
        Err(missing) => missing,
    }
}

async fn reset(State(control): State<Control>, Segment(name): Segment<String>) -> Response {
    let client = match find(&control, &name) {
        Ok(client) => client,
        Err(missing) => return missing,
    };
    match control.app.reset_disk(&client).await {
        Ok(report) => {
            tracing::info!("{}: its disk was made anew on request", client.name);
            Json(report).into_response()
        }
        Err(refused @ ResetError::Running { .. }) => {
            let help = "shut that system down, or switch the machine off, and try again";
            helpful(StatusCode::CONFLICT, &refused, Some(help.to_owned()))
        }
        Err(failed) => problem(StatusCode::INTERNAL_SERVER_ERROR, &failed),
    }
}

async fn release(State(control): State<Control>, Segment(name): Segment<String>) -> Response {
    let client = match find(&control, &name) {
        Ok(client) => client,
        Err(missing) => return missing,
    };
    match control.app.release_disk(&client).await {
        Ok(report) => Json(report).into_response(),
        Err(refused @ ResetError::Running { .. }) => {
            let help = "a disk in use is not read half-way: shut that system down, and try again";
            helpful(StatusCode::CONFLICT, &refused, Some(help.to_owned()))
        }
        Err(failed) => problem(StatusCode::INTERNAL_SERVER_ERROR, &failed),
    }
}

#[expect(clippy::result_large_err, reason = "an answer, made once and sent")]
fn find(control: &Control, name: &str) -> Result<Client, Response> {
    let name: ClientName = name.parse().map_err(|_| nameless(name))?;
    let fleet = control.app.fleet();
    fleet.client(&name).cloned().ok_or_else(|| {
        let refusal = Refusal::no_such_client(&fleet, &name);
        helpful(StatusCode::NOT_FOUND, &refusal, Some(refusal.help()))
    })
}

/// What can be no client's name is none.
fn nameless(name: &str) -> Response {
    problem(StatusCode::NOT_FOUND, &format!("there is no client `{}`", name.escape_debug()))
}

async fn replace(
    State(control): State<Control>,
    Segment(name): Segment<String>,
    Json(request): Json<ReplaceRequest>,
) -> Response {
    let Ok(name) = name.parse::<ClientName>() else { return nameless(&name) };
    let mac = match request.mac.parse::<Mac>() {
        Ok(mac) => mac,
        Err(error) => return problem(StatusCode::BAD_REQUEST, &error),
    };
    match control.keeper.replace(name, mac, request.force).await {
        Ok(report) => Json(report).into_response(),
        Err(error) => helpful(status_of(&error), &error, error.help()),
    }
}

fn status_of(error: &KeeperError) -> StatusCode {
    match error {
        KeeperError::Refused(refusal) | KeeperError::Edit(EditError::Refused(refusal)) => match refusal {
            Refusal::NoSuchClient { .. } => StatusCode::NOT_FOUND,
            Refusal::MacInUse { .. } | Refusal::ByPort { .. } => StatusCode::CONFLICT,
        },
        KeeperError::Lives { .. } => StatusCode::CONFLICT,
        KeeperError::Edit(EditError::Wrong(_)) => StatusCode::UNPROCESSABLE_ENTITY,
        KeeperError::Edit(_) => StatusCode::INTERNAL_SERVER_ERROR,
        KeeperError::Stopping => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn checkpoints(State(control): State<Control>, Segment(name): Segment<String>) -> Response {
    match find(&control, &name) {
        Ok(client) => told(control.app.checkpoints(&client).await),
        Err(missing) => missing,
    }
}

async fn checkpoint(
    State(control): State<Control>,
    Segment(name): Segment<String>,
    Json(request): Json<CheckpointRequest>,
) -> Response {
    match find(&control, &name) {
        Ok(client) => told(control.app.checkpoint(&client, request.note).await),
        Err(missing) => missing,
    }
}

async fn delete_checkpoint(
    State(control): State<Control>,
    Segment((name, number)): Segment<(String, u32)>,
) -> Response {
    match find(&control, &name) {
        Ok(client) => told(control.app.delete_checkpoint(&client, number).await),
        Err(missing) => missing,
    }
}

async fn roll_back(
    State(control): State<Control>,
    Segment(name): Segment<String>,
    Json(request): Json<RollbackRequest>,
) -> Response {
    match find(&control, &name) {
        Ok(client) => told(control.app.roll_back(&client, request.checkpoint).await),
        Err(missing) => missing,
    }
}

async fn resize(
    State(control): State<Control>,
    Segment(name): Segment<String>,
    Json(request): Json<ResizeRequest>,
) -> Response {
    match find(&control, &name) {
        Ok(client) => told(control.app.resize(&client, request.size).await),
        Err(missing) => missing,
    }
}

async fn compact(State(control): State<Control>, Segment(name): Segment<String>) -> Response {
    match find(&control, &name) {
        Ok(client) => told(control.app.compact(&client).await),
        Err(missing) => missing,
    }
}

async fn secret(State(control): State<Control>, Segment(name): Segment<String>) -> Response {
    let client = match find(&control, &name) {
        Ok(client) => client,
        Err(missing) => return missing,
    };
    match control.app.secrets.report(&client, &control.app.naming).await {
        Ok(report) => {
            tracing::info!("{}: its CHAP secrets were shown on request", client.name);
            Json(report).into_response()
        }
        Err(refused @ SecretError::NoChap { .. }) => {
            helpful(StatusCode::CONFLICT, &refused, refused.help().map(str::to_owned))
        }
        Err(failed) => problem(StatusCode::INTERNAL_SERVER_ERROR, &failed),
    }
}

async fn work(State(control): State<Control>, Segment(name): Segment<String>) -> Response {
    match find(&control, &name) {
        Ok(client) => Json(control.app.works.of(&client.name)).into_response(),
        Err(missing) => missing,
    }
}

/// What came of a verb on a disk.
fn told<T: serde::Serialize>(done: Result<T, OverlayError>) -> Response {
    match done {
        Ok(report) => Json(report).into_response(),
        Err(error) => {
            let status = match error {
                OverlayError::Refused { .. } | OverlayError::Running { .. } => StatusCode::CONFLICT,
                OverlayError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            helpful(status, &error, error.help().map(str::to_owned))
        }
    }
}

async fn status(State(control): State<Control>) -> Response {
    let Control { app, reporter, .. } = control;
    Json(reporter.status(&app.fleet(), &app.tally, &app.others)).into_response()
}

/// Which packets are wanted.
#[derive(Debug, Deserialize)]
struct Since {
    #[serde(default)]
    after: u64,
}

async fn packets(
    State(control): State<Control>,
    Segment(who): Segment<String>,
    Query(Since { after }): Query<Since>,
) -> Response {
    let fleet = control.app.fleet();
    let client = who.parse::<ClientName>().ok().and_then(|name| fleet.client(&name));
    // A client's name can look like a MAC address; then it is the client.
    let (client, macs) = match (client, who.parse::<Mac>()) {
        (Some(client), _) => (Some(client), fleet.macs_of(client).collect()),
        (None, Ok(mac)) => (fleet.by_mac(mac), vec![mac]),
        (None, Err(_)) => match find(&control, &who) {
            Err(missing) => return missing,
            Ok(_) => return nameless(&who),
        },
    };
    let packets = control.app.recorder.packets().of(&macs, after);
    let macs = macs.iter().map(ToString::to_string).collect();
    Json(PacketsReport { client: client.map(|client| client.name.to_string()), macs, packets }).into_response()
}

/// Makes a report on a blocking thread: it reads files.
async fn answer<T, E>(report: impl FnOnce() -> Result<T, E> + Send + 'static) -> Response
where
    T: serde::Serialize + Send + 'static,
    E: std::fmt::Display + Send + 'static,
{
    match tokio::task::spawn_blocking(report).await {
        Ok(Ok(report)) => Json(report).into_response(),
        Ok(Err(error)) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error),
        Err(_) => problem(StatusCode::INTERNAL_SERVER_ERROR, &"the report could not be made"),
    }
}

fn problem(status: StatusCode, error: &impl std::fmt::Display) -> Response {
    helpful(status, error, None)
}

fn helpful(status: StatusCode, error: &impl std::fmt::Display, help: Option<String>) -> Response {
    let report = ErrorReport { error: error.to_string(), help: help.into_iter().collect() };
    (status, Json(report)).into_response()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;
    use crate::app::recorder::Recorder;
    use crate::app::report::{ClientReport, SessionKind, SessionReport, SessionsView, StatusReport};
    use crate::config::{DhcpMode, Settings};
    use crate::fleet::{Event, Fleet, Stage, Timestamp};
    use crate::store::{Record, Store};

    #[derive(Debug)]
    struct OneSession;

    impl SessionsView for OneSession {
        fn sessions_of(&self, client: &ClientName) -> Vec<SessionReport> {
            vec![SessionReport {
                initiator: format!("iqn.2026-11.internal.roost:client.{client}"),
                address: [10, 0, 0, 7].into(),
                kind: SessionKind::System,
                since_ms: 5,
                reads: 1,
                writes: 2,
                bytes_read: 512,
                bytes_written: 1_024,
            }]
        }
    }

    fn control(state: &Path) -> Control {
        let settings = Settings {
            interfaces: Vec::new(),
            dhcp: DhcpMode::Full,
            pool: None,
            pools: Vec::new(),
            state: state.to_owned(),
            iqn: crate::fleet::iqn::DEFAULT_PREFIX.to_owned(),
            loader_dir: None,
            loaders: Default::default(),
            files: None,
            tftp_single_port: false,
            ipv6_answer: true,
            dhcp_probe: true,
            ipv6_boot: None,
        };
        let client = Client {
            group: Some("lab-a".to_owned()),
            macs: vec!["52:54:00:aa:00:01".parse().unwrap()],
            ..Client::new("pc-01".parse().unwrap(), "debian-12".parse().unwrap())
        };
        let store = Store::open(state).unwrap();
        let event = Event {
            at: Timestamp(7),
            mac: None,
            client: Some(client.name.clone()),
            stage: Stage::Script,
            detail: "boot.ipxe".to_owned(),
            fact: None,
        };
        store.commit(&[Record::Event(event)]).unwrap();
        let fleet = Fleet::new([client]).unwrap();
        let app = Arc::new(App::new(settings.clone(), fleet, Recorder::detached(), String::new()));
        let keeper = Arc::new(Keeper::new(Arc::clone(&app), state.join("roost.toml")));
        Control { app, keeper, reporter: Reporter::new(settings, Some(store), Arc::new(OneSession)) }
    }

    async fn get(state: &Path, path: &str) -> (String, String) {
        let mut stream = UnixStream::connect(state.join(SOCKET)).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: roost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }

    #[tokio::test]
    async fn the_socket_answers_with_the_documented_types_and_goes_when_it_stops() {
        let state = tempfile::tempdir().unwrap();
        let lock = StateLock::acquire(state.path()).unwrap();
        let socket = ControlSocket::bind(state.path(), &lock).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(socket.serve(control(state.path()), async {
            let _ = stopped.await;
        }));

        let (line, body) = get(state.path(), "/v1/clients").await;
        assert!(line.contains("200"), "{line}");
        let [listed] = serde_json::from_str::<Vec<ClientReport>>(&body).unwrap().try_into().unwrap();
        assert_eq!((listed.name.as_str(), listed.group.as_deref()), ("pc-01", Some("lab-a")));
        assert_eq!(listed.disk_path, state.path().join("disks/pc-01.vhd"));
        assert_eq!(listed.sessions[0].kind, SessionKind::System);
        assert_eq!(listed.last_boot.as_ref().unwrap().stages[0].stage, "script");

        let (_, body) = get(state.path(), "/v1/clients/pc-01").await;
        assert_eq!(serde_json::from_str::<ClientReport>(&body).unwrap(), listed);

        let (_, body) = get(state.path(), "/v1/status").await;
        let status: StatusReport = serde_json::from_str(&body).unwrap();
        assert_eq!((status.pid, status.clients, status.sessions), (std::process::id(), 1, 1));

        for missing in ["/v1/clients/pc-02", "/v1/clients/..%2f..", "/v2/clients", "/"] {
            let (line, body) = get(state.path(), missing).await;
            assert!(line.contains("404"), "{missing}: {line}");
            serde_json::from_str::<ErrorReport>(&body).unwrap();
        }

        stop.send(()).unwrap();
        serving.await.unwrap().unwrap();
        assert!(!state.path().join(SOCKET).exists());
    }

    #[tokio::test]
    async fn the_socket_is_its_owners_and_a_dead_ones_makes_room() {
        let state = tempfile::tempdir().unwrap();
        let lock = StateLock::acquire(state.path()).unwrap();
        let path = state.path().join(SOCKET);
        // A process that died leaves its socket's file.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let _socket = ControlSocket::bind(state.path(), &lock).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).await.unwrap();
    }

    #[tokio::test]
    async fn a_silent_connection_does_not_keep_the_process_from_stopping() {
        let state = tempfile::tempdir().unwrap();
        let lock = StateLock::acquire(state.path()).unwrap();
        let socket = ControlSocket::bind(state.path(), &lock).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(socket.serve(control(state.path()), async {
            let _ = stopped.await;
        }));
        let mut half = UnixStream::connect(state.path().join(SOCKET)).await.unwrap();
        half.write_all(b"GET /v1/status HTT").await.unwrap();
        // An answer on another connection: the first has been accepted by then.
        get(state.path(), "/v1/status").await;
        stop.send(()).unwrap();
        tokio::time::timeout(DRAIN * 10, serving).await.expect("it stops").unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let state = tempfile::tempdir().unwrap();
        let lock = StateLock::acquire(state.path()).unwrap();
        let path = state.path().join(SOCKET);
        fs::write(&path, "precious").unwrap();
        let error = ControlSocket::bind(state.path(), &lock).unwrap_err();
        assert!(error.to_string().contains("not a socket"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
