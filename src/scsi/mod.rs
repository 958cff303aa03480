//! SCSI as a disk needs it: SPC-4 (T10/1731-D rev 37) and SBC-3 (T10/BSR INCITS 514 rev 36).
//!
//! Pure: a CDB is parsed into a [`Command`], a [`LogicalUnit`] plans it, and the plan says what data moves where. Moving
//! it is the adapter's work. Not here: iSCSI (`iscsi`), bytes on disks (`disk`).

pub mod command;
pub mod copy;
mod geometry;
pub mod inquiry;
pub mod mode;
pub mod opcodes;
pub mod provisioning;
pub mod registration;
pub mod reservation;
pub mod sense;
pub mod unit;
pub mod unmap;

pub use command::Command;
pub use geometry::Geometry;
pub use reservation::InitiatorPort;
pub use sense::Sense;
pub use unit::{LogicalUnit, Nexus, Plan};

/// Bytes of the smallest logical block. BIOS INT 13h reads 512-byte blocks and nothing else boots everywhere; a VHDX may
/// have larger ones, see [`Geometry`].
pub const BLOCK: u64 = 512;

/// Most bytes that one READ, WRITE or VERIFY moves. A command's payload lies in memory as a whole, so this bounds
/// what a stranger's number can make us allocate; initiators learn it from VPD page B0h.
pub const MAX_TRANSFER: u64 = 1 << 20;

/// Most bytes that one UNMAP frees. Punching holes takes 0.1 to 0.6 ms for 2 MiB, and an initiator waits 30 s for an answer.
pub const MAX_UNMAP: u64 = 512 << 20;

/// Most bytes of one WRITE SAME. Anything but zeros is really written, and no other write to this disk goes ahead of it.
pub const MAX_WRITE_SAME: u64 = 16 << 20;

/// Most bytes of one WRITE ATOMIC.
pub const MAX_ATOMIC: u64 = 128 << 10;

/// WRITE ATOMIC begins and ends at multiples of this. It is also what holes are made of, whatever the physical blocks are.
pub const GRANULARITY: u64 = 4096;

/// Most ranges in one UNMAP command: what fits the 4 KiB of parameter data that it may carry.
pub const MAX_UNMAP_RANGES: u32 = 255;
