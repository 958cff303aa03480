//! SCSI as a disk needs it: SPC-4 (T10/1731-D rev 37) and SBC-3 (T10/BSR INCITS 514 rev 36).
//!
//! Pure: a CDB is parsed into a [`Command`], a [`LogicalUnit`] plans it, and the plan says what data moves where. Moving
//! it is the adapter's work. Not here: iSCSI (`iscsi`), bytes on disks (`disk`).

pub mod command;
pub mod inquiry;
pub mod mode;
pub mod opcodes;
pub mod sense;
pub mod unit;
pub mod unmap;

pub use command::Command;
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

/// Most blocks of one WRITE SAME of zeros, which is done as an UNMAP is: 4 GiB.
pub const MAX_ZERO_BLOCKS: u32 = 8_388_608;

/// Most blocks of one WRITE SAME of anything else: 128 MiB. They are really written, and no other write to this disk goes
/// ahead of them.
pub const MAX_FILL_BLOCKS: u32 = 262_144;

/// Most ranges in one UNMAP command: what fits the 4 KiB of parameter data that it may carry.
pub const MAX_UNMAP_RANGES: u32 = 255;
