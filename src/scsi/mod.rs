//! SCSI as a disk needs it: SPC-4 (T10/1731-D rev 37) and SBC-3 (T10/BSR INCITS 514 rev 36).
//!
//! Pure: a CDB is parsed into a [`Command`], a [`LogicalUnit`] plans it, and the plan says what data moves where. Moving
//! it is the adapter's work. Not here: iSCSI (`iscsi`), bytes on disks (`disk`).

pub mod command;
pub mod copy;
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
pub use reservation::InitiatorPort;
pub use sense::Sense;
pub use unit::{LogicalUnit, Nexus, Plan};

/// Bytes in a logical block. BIOS INT 13h reads 512-byte blocks and nothing else boots everywhere.
pub const BLOCK: u64 = 512;

/// Most blocks that one READ, WRITE or VERIFY moves: 1 MiB. A command's payload lies in memory as a whole, so this bounds
/// what a stranger's number can make us allocate; initiators learn it from VPD page B0h.
pub const MAX_TRANSFER_BLOCKS: u32 = 2048;

/// Most blocks that one UNMAP frees: 512 MiB. Punching holes takes 0.1 to 0.6 ms for 2 MiB, and an initiator waits 30 s
/// for an answer.
pub const MAX_UNMAP_BLOCKS: u32 = 1_048_576;

/// Most blocks of one WRITE SAME: 16 MiB. Anything but zeros is really written, and no other write to this disk goes ahead
/// of it.
pub const MAX_WRITE_SAME_BLOCKS: u32 = 32_768;

/// Most blocks of one COMPARE AND WRITE: what its field of one byte can say. Twice as much data comes with it.
pub const MAX_COMPARE_BLOCKS: u8 = 255;

/// Most blocks of one WRITE ATOMIC: 128 KiB.
pub const MAX_ATOMIC_BLOCKS: u32 = 256;

/// WRITE ATOMIC begins and ends at multiples of this: 4 KiB.
pub const ATOMIC_BLOCKS: u32 = 8;

/// Most ranges in one UNMAP command: what fits the 4 KiB of parameter data that it may carry.
pub const MAX_UNMAP_RANGES: u32 = 255;
