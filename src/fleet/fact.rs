//! What an event says besides its stage: the one thing about it that a program may have to go by, as a value.
//!
//! A [`Stage`](super::Stage) says how far a boot got, and its detail is for a person. A [`Fact`] is what explains why it got no
//! further: how long a machine had been asking before it was heard, at which block a transfer stopped, who was refused. What
//! can be told from the stages and their times alone (a script without a login after it, 30 s between two stages) is no fact.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::finding::Finding;

/// A machine whose first DISCOVER says that it has been asking for so many seconds was on a wire that did not carry them:
/// a switch port begins to forward some 30 s after its link comes up. Firmware's second try comes after 4 s.
pub const LATE_SECS: u16 = 8;

/// What is known of an event, for programs. Numbers are whole, sizes in bytes, times in milliseconds unless they say so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fact", rename_all = "kebab-case")]
pub enum Fact {
    /// The first DISCOVER of an exchange that was heard, and its `secs`: [`LATE_SECS`] or more.
    HeardLate {
        /// How long it has been asking, as it says, in seconds.
        secs: u16,
    },
    /// Firmware was told what to boot so often in a row and did nothing with it: neither the loader's own DISCOVER came, nor,
    /// in the same exchange, anything but the same DISCOVER again.
    Unheeded {
        /// How often it was told.
        times: u8,
        /// Whether it was told beside another server, in an offer without an address.
        proxy: bool,
        /// Whether it asked on port 4011 in between.
        asked_4011: bool,
    },
    /// The machine takes the address of another server.
    TookOther {
        /// That server.
        server: Ipv4Addr,
    },
    /// Another DHCP server does what keeps machines from booting. Of a machine: in an offer to it.
    OtherServer(Finding),
    /// There is no loader for what its firmware says that it is.
    NoLoader {
        /// The client architecture (option 93).
        architecture: u16,
    },
    /// It asks for a loader that its firmware cannot run.
    WrongLoader {
        /// The platform that its firmware said to be: `bios`.
        firmware: String,
        /// The loader's name.
        loader: String,
        /// The platform that the loader is for: `x64`.
        of: String,
    },
    /// A boot file was fetched.
    Fetched {
        /// How long it is.
        bytes: u64,
        /// How long that took, where it is known.
        ms: Option<u64>,
    },
    /// A TFTP transfer stands still at its first large block; from now on the machine gets blocks of 512 bytes.
    SmallBlocks {
        /// The size of the block that did not get through.
        blksize: u16,
        /// How often it was sent.
        sent: u8,
    },
    /// A TFTP transfer whose client fell silent.
    Stalled {
        /// Blocks that it had acknowledged.
        acked: u64,
        /// Blocks that there are.
        blocks: u64,
        /// Their size.
        blksize: u16,
        /// How often something was sent again.
        retries: u32,
    },
    /// A TFTP transfer that the client broke off with an ERROR: the file is too big for it, say.
    GaveUp {
        /// The ERROR's code (RFC 1350 §5).
        code: u16,
        /// Blocks that it had acknowledged.
        acked: u64,
        /// Blocks that there are.
        blocks: u64,
    },
    /// A TFTP transfer that was given up, since the client made us send its file again and again.
    Endless {
        /// Bytes that were sent.
        sent: u64,
        /// Bytes that the file has.
        bytes: u64,
    },
    /// The same loader was fetched again and again, and no script after it.
    LoaderLoop {
        /// The loader's name.
        loader: String,
        /// How often in a row.
        times: u32,
    },
    /// A login was refused.
    LoginRefused {
        /// The initiator's name, where it said one.
        initiator: Option<String>,
        /// Where it came from.
        address: IpAddr,
        /// The machine at that address, where the kernel knows it.
        mac: Option<String>,
        /// The status that it was told (RFC 7143 §11.13.5), class and detail; 0 where it was told none.
        status: u16,
        /// Why, in one word: `address`, `machine`, `replaced`, `name`, `off`, `no-target`, `chap`, `slow`, `protocol`, `disk`, …
        why: String,
    },
    /// The loader's session gives no commands any more, and the operating system has none.
    ReadsStopped {
        /// Read commands since its login.
        reads: u64,
        /// Bytes that they read.
        bytes: u64,
    },
    /// The operating system's session ended, and it had not logged out: it lost its disk.
    SessionLost {
        /// How long after its login.
        ms: u64,
        /// How many sessions were lost in the last minute, this one among them.
        in_a_minute: u32,
    },
    /// The operating system has settled.
    Settled {
        /// How long after its login it gave its last command.
        ms: u64,
        /// What it read until then.
        bytes: u64,
    },
    /// A write was refused, since the client's disk may not take up more.
    LimitReached {
        /// The limit, where it is known.
        limit: Option<u64>,
    },
}
