//! The command line: one file for each verb.
//!
//! Not here: what the verbs do. `run` hands over to `serve`; `client`, `packets` and `replace` ask the running process over its socket; `image`,
//! `inspect`, `cat`, `verify` and `check` work on files. Exit codes are the kinds of [`error::Error`]; `--json` makes every verb speak to
//! programs.

mod ask;
mod at_rest;
mod cat;
pub mod check;
mod client_disk;
mod client_list;
mod client_secret;
mod client_show;
mod error;
mod export;
mod image_import;
mod image_list;
mod import_leases;
mod inspect;
mod lab;
mod logs;
mod output;
mod packets;
mod progress;
mod replace;
mod reset;
mod run;
mod status;
mod verify;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::Settings;
use crate::disk::Format;
use crate::fleet::{ClientName, ImageName, Mac};
use error::Error;

/// Boots diskless machines: DHCP, iPXE, and one disk for each machine over iSCSI, all from one file.
#[derive(Debug, Parser)]
#[command(name = "roost", version, after_help = EXIT_CODES, max_term_width = 120)]
struct Arguments {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    verb: Verb,
}

/// The exit code of a verb that did what it was told.
const DONE: u8 = 0;
/// The exit code of `roost verify` where it found damage.
const DAMAGED: u8 = 6;

const EXIT_CODES: &str =
    "Exit codes: 0 done, 1 failed, 2 usage, 3 configuration, 4 nothing runs, 5 refused, 6 damaged (verify)";

/// What every verb takes.
#[derive(Debug, Args)]
struct Globals {
    /// The mapping file
    #[arg(long, global = true, value_name = "FILE", default_value = "/etc/roost/roost.toml")]
    config: PathBuf,
    /// The state folder; beats `state` in the mapping file
    #[arg(long, global = true, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Answer in JSON, and log in JSON
    #[arg(long, global = true)]
    json: bool,
    /// How much to log [default: info for `run`, else warn]
    #[arg(long, global = true, value_name = "LEVEL", value_enum)]
    log: Option<logs::Level>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve the lab
    Run,
    /// Show the running process: since when, how many are logged in, what went wrong at its iSCSI port, and other DHCP servers
    Status,
    /// Show the last packets of a machine, and what was decided about each: DHCP, TFTP, boot files by HTTP, logins
    Packets {
        /// A client's name, or a MAC address
        #[arg(value_name = "NAME|MAC")]
        who: String,
        /// Write those of DHCP and TFTP as a capture file instead, for tshark, Wireshark or tcpdump; -: to standard output
        #[arg(long, value_name = "FILE|-")]
        pcap: Option<PathBuf>,
        /// Go on with what comes, until interrupted; with --json one packet a line
        #[arg(long)]
        follow: bool,
    },
    /// Say everything that is wrong with a mapping file
    Check {
        /// The file; else that of --config
        file: Option<PathBuf>,
    },
    /// Golden masters
    #[command(subcommand)]
    Image(ImageVerb),
    /// Say what a disk file is, and what it is a child of
    Inspect {
        /// The disk file
        file: PathBuf,
    },
    /// Write a disk's content, through its chain, to standard output
    Cat {
        /// The disk file; it is only read
        file: PathBuf,
        #[command(flatten)]
        part: cat::Part,
    },
    /// Say whether disk files are sound: structure, chain, checksums of masters. Exit code 6 if not
    Verify {
        #[command(flatten)]
        which: verify::Which,
        /// Put right what can be put right without a guess, and say what was done
        #[arg(long)]
        repair: bool,
    },
    /// Give a client a new machine: its disk, name and address stay
    Replace {
        /// The client's name
        name: ClientName,
        /// The new machine's MAC address; it takes the place of all that the client has
        #[arg(long)]
        mac: Mac,
        /// Take the disk away from the old machine although it is running
        #[arg(long)]
        force: bool,
    },
    /// Take over leases and reservations from dnsmasq, ISC dhcpd, Kea or a table of mac,ip,name
    ImportLeases {
        /// The other server's lease file or configuration, or the table; it is only read
        file: PathBuf,
        /// Say what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
        /// Write reservations into the mapping file, as clients with an `ip`; else they are only shown
        #[arg(long)]
        add_clients: bool,
    },
    /// The lab's clients
    #[command(subcommand)]
    Client(ClientVerb),
    /// Make a client's disk anew: a clean child of its image
    Reset {
        /// The client's name
        name: ClientName,
        /// Do not ask before the changes on a disk that is kept are thrown away
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
enum ImageVerb {
    /// Make a golden master of a disk file: raw, VHD or VHDX; with qemu-img also qcow2, VMDK and VDI
    Import {
        /// The disk file; it is only read
        file: PathBuf,
        /// What the image is to be called
        #[arg(long)]
        name: ImageName,
        /// vhd or vhdx, for the image and all of its clients' disks [default: vhd; vhdx where the disk is larger than 2040 GiB or
        /// has sectors of 4096 bytes]
        #[arg(long, value_name = "FORMAT")]
        format: Option<Format>,
    },
    /// Write an image as a file for elsewhere
    Export {
        /// The image, with a version or not: NAME or NAME@VERSION
        #[arg(value_name = "NAME[@VERSION]")]
        name: export::Version,
        /// The file; it appears when it is complete
        file: PathBuf,
        #[command(flatten)]
        options: export::Options,
    },
    /// List the images
    List,
}

#[derive(Debug, Subcommand)]
enum ClientVerb {
    /// Write a client's disk as a file for elsewhere, while nobody is logged in on it; or a checkpoint of it, at any time
    Export {
        /// The client's name
        name: ClientName,
        /// The file; it appears when it is complete
        file: PathBuf,
        /// Its second disk, not its first
        #[arg(long)]
        data: bool,
        /// The checkpoint with this number, not the disk as it is
        #[arg(long, value_name = "NUMBER", conflicts_with = "data")]
        checkpoint: Option<u32>,
        #[command(flatten)]
        options: export::Options,
    },
    /// List the clients
    List,
    /// Show one client: its address, disk, sessions and last boot
    Show {
        /// The client's name
        name: ClientName,
    },
    /// Show what an initiator needs to pass CHAP on a client's disk, where `chap` asks for it
    Secret {
        /// The client's name
        name: ClientName,
    },
    /// Freeze a client's disk as it is, to go back to; the client runs on
    Checkpoint {
        /// The client's name
        name: ClientName,
        /// What it is, for those who read the list
        #[arg(long, value_name = "TEXT")]
        note: Option<String>,
        /// Delete this checkpoint instead; what stands on it stays as it is
        #[arg(long, value_name = "NUMBER", conflicts_with = "note")]
        delete: Option<u32>,
    },
    /// List a client's checkpoints
    Checkpoints {
        /// The client's name
        name: ClientName,
    },
    /// Take a client's disk back to a checkpoint; its machine must be off
    Rollback {
        /// The client's name
        name: ClientName,
        /// The checkpoint's number [default: the one that the disk stands on]
        checkpoint: Option<u32>,
        /// Do not ask before what was written since then is thrown away
        #[arg(long)]
        yes: bool,
    },
    /// Grow a client's disk; the client may run
    Resize {
        /// The client's name
        name: ClientName,
        /// The new size: 50G, 1.5T, or bytes
        #[arg(value_parser = client_disk::size)]
        size: u64,
    },
    /// Give the space back to the host that a client's disk takes up and does not need; the client may run
    Compact {
        /// The client's name
        name: ClientName,
    },
}

/// Does what the process's arguments say. The code is the process's exit code.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Where even this cannot be printed, the exit code still says it.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(u8::MAX));
        }
    };
    let Arguments { globals, verb } = arguments;
    let default = if matches!(verb, Verb::Run) { logs::Level::Info } else { logs::Level::Warn };
    logs::start(globals.log.unwrap_or(default), globals.json);
    match perform(&globals, verb) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            error.print(globals.json);
            ExitCode::from(error.kind.code())
        }
    }
}

/// Performs the verb; the exit code where it worked.
fn perform(globals: &Globals, verb: Verb) -> Result<u8, Error> {
    match verb {
        Verb::Run => run::run(globals),
        Verb::Status => status::run(globals),
        Verb::Packets { who, pcap, follow } => packets::run(globals, &who, pcap.as_deref(), follow),
        Verb::Check { file } => return check(globals, file.as_deref().unwrap_or(&globals.config)),
        Verb::Image(ImageVerb::Import { file, name, format }) => image_import::run(globals, &file, &name, format),
        Verb::Image(ImageVerb::List) => image_list::run(globals),
        Verb::Image(ImageVerb::Export { name, file, options }) => export::image(globals, &name, &file, &options),
        Verb::Cat { file, part } => cat::run(&file, &part),
        Verb::Verify { which, repair } => return verify::run(globals, &which, repair),
        Verb::Client(ClientVerb::Export { name, file, data, checkpoint, options }) => match checkpoint {
            None => export::client(globals, &name, &file, data, &options),
            Some(number) => export::checkpoint(globals, &name, number, &file, &options),
        },
        Verb::Inspect { file } => inspect::run(globals, &file),
        Verb::Replace { name, mac, force } => replace::run(globals, &name, mac, force),
        Verb::ImportLeases { file, dry_run, add_clients } => import_leases::run(globals, &file, dry_run, add_clients),
        Verb::Client(ClientVerb::List) => client_list::run(globals),
        Verb::Client(ClientVerb::Show { name }) => client_show::run(globals, &name),
        Verb::Client(ClientVerb::Secret { name }) => client_secret::run(globals, &name),
        Verb::Client(ClientVerb::Checkpoint { name, delete: Some(number), .. }) => {
            client_disk::delete(globals, &name, number)
        }
        Verb::Client(ClientVerb::Checkpoint { name, note, .. }) => client_disk::checkpoint(globals, &name, note),
        Verb::Client(ClientVerb::Checkpoints { name }) => client_disk::list(globals, &name),
        Verb::Client(ClientVerb::Rollback { name, checkpoint, yes }) => {
            client_disk::rollback(globals, &name, checkpoint, yes)
        }
        Verb::Client(ClientVerb::Resize { name, size }) => client_disk::resize(globals, &name, size),
        Verb::Client(ClientVerb::Compact { name }) => client_disk::compact(globals, &name),
        Verb::Reset { name, yes } => reset::run(globals, &name, yes),
    }?;
    Ok(DONE)
}

/// Prints what `roost check` finds. That the file is wrong is its answer, not its failure, and goes to standard output.
fn check(globals: &Globals, file: &Path) -> Result<u8, Error> {
    let style = match (globals.json, output::colours(&std::io::stdout())) {
        (true, _) => check::Style::Json,
        (false, true) => check::Style::Coloured,
        (false, false) => check::Style::Plain,
    };
    let images = |settings: &Settings| {
        let state = globals.state.as_ref().unwrap_or(&settings.state);
        let there = lab::images(state)?;
        Some(check::Images { changed: lab::changed_images(state, &there), there, data: lab::data_disks(state) })
    };
    let answer = check::check(file, style, images);
    output::print(&answer.text)?;
    Ok(answer.exit)
}
