//! CDBs as typed commands. Off-by-ones and reserved bits die here.

use super::sense::Sense;

/// Longest CDB that is understood; longer ones come in an additional header segment.
pub const CDB_LENGTH: usize = 16;

/// A range of logical blocks as a CDB names it. Not yet checked against the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// First block.
    pub lba: u64,
    /// How many.
    pub count: u32,
}

/// What VERIFY compares (SBC-3 §5.29, BYTCHK).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// That the blocks can be read.
    Medium,
    /// The blocks with as much data.
    Data,
    /// Each block with one block of data.
    OneBlock,
}

/// Which mode page is asked for, and which of its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModeSense {
    /// Ten-byte form: an eight-byte header.
    pub ten: bool,
    /// No block descriptors.
    pub dbd: bool,
    /// Page control: 0 current, 1 changeable, 2 default, 3 saved.
    pub control: u8,
    /// Page code.
    pub page: u8,
    /// Subpage code.
    pub subpage: u8,
    /// Most bytes to return.
    pub allocation: u32,
}

/// A PERSISTENT RESERVE OUT (SPC-4 §6.16), without its parameter list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReserveOut {
    /// Service action.
    pub action: u8,
    /// Scope: the high half; type: the low half of a byte.
    pub scope_type: u8,
    /// Length of the parameter list.
    pub parameters: u32,
}

/// What REPORT SUPPORTED OPERATION CODES asks about (SPC-4 §6.35).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpcodeQuery {
    /// All commands.
    All,
    /// One operation code, which has no service actions.
    Opcode(u8),
    /// One operation code and service action.
    Action(u8, u16),
    /// One of either kind.
    Either(u8, u16),
}

/// A command that is understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Is the unit ready?
    TestUnitReady,
    /// What happened last?
    RequestSense {
        /// Descriptor format.
        descriptor: bool,
        /// Most bytes to return.
        allocation: u32,
    },
    /// What are you?
    Inquiry {
        /// A vital product data page instead of the standard data.
        page: Option<u8>,
        /// Most bytes to return.
        allocation: u32,
    },
    /// Mode pages.
    ModeSense(ModeSense),
    /// MODE SELECT (6, 10).
    ModeSelect {
        /// Ten-byte form: an eight-byte header.
        ten: bool,
        /// Length of the parameter list.
        parameters: u16,
    },
    /// LOG SENSE.
    LogSense {
        /// Page code.
        page: u8,
        /// Subpage code.
        subpage: u8,
        /// The first parameter to return.
        parameter: u16,
        /// Most bytes to return.
        allocation: u32,
    },
    /// START STOP UNIT, which changes nothing here.
    StartStop {
        /// Eject or load the medium, which cannot be.
        load_eject: bool,
        /// It is only to be made ready.
        start: bool,
    },
    /// RESERVE (6, 10).
    Reserve,
    /// RELEASE (6, 10).
    Release,
    /// PERSISTENT RESERVE IN.
    ReserveIn {
        /// Service action.
        action: u8,
        /// Most bytes to return.
        allocation: u32,
    },
    /// PERSISTENT RESERVE OUT.
    ReserveOut(ReserveOut),
    /// READ DEFECT DATA (10, 12).
    ReadDefects {
        /// Twelve-byte form: an eight-byte header.
        twelve: bool,
        /// Which lists, and in which format.
        lists: u8,
        /// Most bytes to return.
        allocation: u32,
    },
    /// READ CAPACITY (10).
    ReadCapacity10,
    /// READ CAPACITY (16).
    ReadCapacity16 {
        /// Most bytes to return.
        allocation: u32,
    },
    /// REPORT LUNS.
    ReportLuns {
        /// Which kinds of unit.
        select: u8,
        /// Most bytes to return.
        allocation: u32,
    },
    /// REPORT SUPPORTED OPERATION CODES.
    ReportOpcodes {
        /// Which.
        query: OpcodeQuery,
        /// Return command timeouts descriptors (RCTD).
        timeouts: bool,
        /// Most bytes to return.
        allocation: u32,
    },
    /// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS.
    ReportFunctions {
        /// With sixteen bytes.
        extended: bool,
        /// Most bytes to return.
        allocation: u32,
    },
    /// GET LBA STATUS.
    GetLbaStatus {
        /// From here on.
        lba: u64,
        /// Most bytes to return.
        allocation: u32,
    },
    /// READ (6, 10, 12, 16).
    Read(Blocks),
    /// WRITE (6, 10, 12, 16).
    Write {
        /// Where.
        blocks: Blocks,
        /// Force unit access: on the medium before the answer.
        fua: bool,
    },
    /// VERIFY (10, 12, 16).
    Verify {
        /// Where.
        blocks: Blocks,
        /// With what.
        check: Check,
    },
    /// WRITE AND VERIFY (10, 12, 16).
    WriteVerify(Blocks),
    /// WRITE ATOMIC (16). It is on the medium before the answer, whether or not FUA asks for that.
    WriteAtomic(Blocks),
    /// COMPARE AND WRITE.
    CompareAndWrite {
        /// Where.
        blocks: Blocks,
        /// Force unit access.
        fua: bool,
    },
    /// ORWRITE (16).
    OrWrite {
        /// Where.
        blocks: Blocks,
        /// Force unit access.
        fua: bool,
    },
    /// PRE-FETCH (10, 16). IMMED allows an earlier answer, and is not made use of.
    Prefetch(Blocks),
    /// SYNCHRONIZE CACHE (10, 16). IMMED allows an earlier answer, and is not made use of: whoever asked for less than
    /// durability gets more.
    SynchronizeCache(Blocks),
    /// SANITIZE, BLOCK ERASE.
    BlockErase {
        /// Answer at once.
        immediate: bool,
    },
    /// SANITIZE, EXIT FAILURE MODE.
    ExitFailureMode,
    /// EXTENDED COPY (LID1).
    ExtendedCopy {
        /// Length of the parameter list.
        parameters: u32,
    },
    /// RECEIVE COPY STATUS (LID1).
    CopyStatus {
        /// Which copy.
        list: u8,
        /// Most bytes to return.
        allocation: u32,
    },
    /// RECEIVE COPY OPERATING PARAMETERS.
    CopyParameters {
        /// Most bytes to return.
        allocation: u32,
    },
    /// UNMAP.
    Unmap {
        /// Length of the parameter list.
        parameters: u16,
    },
    /// WRITE SAME (10, 16).
    WriteSame {
        /// Where.
        blocks: Blocks,
        /// Unmap the blocks, which then read as zeros.
        unmap: bool,
        /// No data-out buffer: zeros.
        no_data: bool,
    },
}

/// Bits of a CDB that must be zero, by byte.
fn reserved(cdb: &[u8; CDB_LENGTH], byte: usize, mask: u8) -> Result<(), Sense> {
    if cdb[byte] & mask == 0 { Ok(()) } else { Err(Sense::INVALID_FIELD_IN_CDB) }
}

fn be16(cdb: &[u8; CDB_LENGTH], at: usize) -> u16 {
    u16::from_be_bytes([cdb[at], cdb[at + 1]])
}

fn be32(cdb: &[u8; CDB_LENGTH], at: usize) -> u32 {
    u32::from_be_bytes([cdb[at], cdb[at + 1], cdb[at + 2], cdb[at + 3]])
}

fn be64(cdb: &[u8; CDB_LENGTH], at: usize) -> u64 {
    u64::from(be32(cdb, at)) << 32 | u64::from(be32(cdb, at + 4))
}

/// Range and length of a ten-byte CDB: LBA at 2, count at 7.
fn blocks10(cdb: &[u8; CDB_LENGTH]) -> Blocks {
    Blocks { lba: be32(cdb, 2).into(), count: be16(cdb, 7).into() }
}

/// Range and length of a twelve-byte CDB: LBA at 2, count at 6.
fn blocks12(cdb: &[u8; CDB_LENGTH]) -> Blocks {
    Blocks { lba: be32(cdb, 2).into(), count: be32(cdb, 6) }
}

/// Range and length of a sixteen-byte CDB: LBA at 2, count at 10.
fn blocks16(cdb: &[u8; CDB_LENGTH]) -> Blocks {
    Blocks { lba: be64(cdb, 2), count: be32(cdb, 10) }
}

/// Range of a six-byte READ or WRITE: 21 bits of LBA; a count of 0 means 256 (SBC-3 §5.9).
fn blocks6(cdb: &[u8; CDB_LENGTH]) -> Blocks {
    let lba = u64::from(be32(cdb, 0) & 0x1F_FFFF);
    Blocks { lba, count: if cdb[4] == 0 { 256 } else { cdb[4].into() } }
}

/// Range of a PRE-FETCH or SYNCHRONIZE CACHE, whose option is IMMED.
fn cached(cdb: &[u8; CDB_LENGTH], blocks: Blocks) -> Result<Blocks, Sense> {
    const IMMED: u8 = 0x02;
    reserved(cdb, 1, !IMMED)?;
    Ok(blocks)
}

/// RDPROTECT, WRPROTECT or VRPROTECT: the disk has no protection information.
const PROTECT: u8 = 0xE0;
/// FUA in byte 1.
const FUA: u8 = 0x08;

impl Command {
    /// Reads a CDB, zero-padded to sixteen bytes.
    ///
    /// # Errors
    /// INVALID COMMAND OPERATION CODE for what is not supported, INVALID FIELD IN CDB for a field that holds what it must not.
    pub fn parse(cdb: &[u8; CDB_LENGTH]) -> Result<Self, Sense> {
        Ok(match cdb[0] {
            0x00 => Self::TestUnitReady,
            0x03 => {
                reserved(cdb, 1, 0xFE)?;
                Self::RequestSense { descriptor: cdb[1] & 1 != 0, allocation: cdb[4].into() }
            }
            0x08 => Self::Read(blocks6(cdb)),
            0x0A => Self::Write { blocks: blocks6(cdb), fua: false },
            0x12 => {
                reserved(cdb, 1, 0xFE)?; // among them CMDDT, obsolete
                let page = (cdb[1] & 1 != 0).then_some(cdb[2]);
                if page.is_none() && cdb[2] != 0 {
                    return Err(Sense::INVALID_FIELD_IN_CDB);
                }
                Self::Inquiry { page, allocation: be16(cdb, 3).into() }
            }
            0x15 => Self::mode_select(cdb, false, cdb[4].into())?,
            0x55 => Self::mode_select(cdb, true, be16(cdb, 7))?,
            0x16 | 0x56 => Self::own_reservation(cdb, Self::Reserve)?,
            0x17 | 0x57 => Self::own_reservation(cdb, Self::Release)?,
            0x1A => Self::mode_sense(cdb, false, cdb[4].into()),
            0x5A => Self::mode_sense(cdb, true, be16(cdb, 7).into()),
            0x1B => {
                let (power_condition, start) = (cdb[4] >> 4, cdb[4] & 0x01 != 0);
                Self::StartStop { load_eject: cdb[4] & 0x02 != 0, start: start && power_condition == 0 }
            }
            0x4D => {
                reserved(cdb, 1, 0xFF)?; // SP: parameters are not saved
                let (page, subpage, allocation) = (cdb[2] & 0x3F, cdb[3], be16(cdb, 7).into());
                Self::LogSense { page, subpage, parameter: be16(cdb, 5), allocation }
            }
            0x5E if cdb[1] & 0x1F > 0x03 => return Err(Sense::INVALID_FIELD_IN_CDB),
            0x5F if cdb[1] & 0x1F > 0x07 => return Err(Sense::INVALID_FIELD_IN_CDB),
            0x5E => Self::ReserveIn { action: cdb[1] & 0x1F, allocation: be16(cdb, 7).into() },
            0x5F => {
                Self::ReserveOut(ReserveOut { action: cdb[1] & 0x1F, scope_type: cdb[2], parameters: be32(cdb, 5) })
            }
            0x37 => Self::ReadDefects { twelve: false, lists: cdb[2] & 0x1F, allocation: be16(cdb, 7).into() },
            0xB7 => Self::ReadDefects { twelve: true, lists: cdb[1] & 0x1F, allocation: be32(cdb, 6) },
            0x48 => Self::sanitize(cdb)?,
            0x83 if cdb[1] & 0x1F == 0x00 => Self::ExtendedCopy { parameters: be32(cdb, 10) },
            0x84 if cdb[1] & 0x1F == 0x00 => Self::CopyStatus { list: cdb[2], allocation: be32(cdb, 10) },
            0x84 if cdb[1] & 0x1F == 0x03 => Self::CopyParameters { allocation: be32(cdb, 10) },
            0x25 => {
                // PMI is obsolete: without it an LBA means nothing.
                if cdb[8] & 1 == 0 && be32(cdb, 2) != 0 {
                    return Err(Sense::INVALID_FIELD_IN_CDB);
                }
                Self::ReadCapacity10
            }
            0x28 => Self::read(cdb, blocks10(cdb))?,
            0xA8 => Self::read(cdb, blocks12(cdb))?,
            0x88 => Self::read(cdb, blocks16(cdb))?,
            0x2A => Self::write(cdb, blocks10(cdb))?,
            0xAA => Self::write(cdb, blocks12(cdb))?,
            0x8A => Self::write(cdb, blocks16(cdb))?,
            0x2F => Self::verify(cdb, blocks10(cdb))?,
            0xAF => Self::verify(cdb, blocks12(cdb))?,
            0x8F => Self::verify(cdb, blocks16(cdb))?,
            0x2E => Self::write_verify(cdb, blocks10(cdb))?,
            0xAE => Self::write_verify(cdb, blocks12(cdb))?,
            0x8E => Self::write_verify(cdb, blocks16(cdb))?,
            0x89 => {
                reserved(cdb, 1, PROTECT)?;
                let blocks = Blocks { lba: be64(cdb, 2), count: cdb[13].into() };
                Self::CompareAndWrite { blocks, fua: cdb[1] & FUA != 0 }
            }
            0x8B => {
                reserved(cdb, 1, PROTECT)?;
                Self::OrWrite { blocks: blocks16(cdb), fua: cdb[1] & FUA != 0 }
            }
            0x9C => {
                reserved(cdb, 1, PROTECT)?;
                reserved(cdb, 10, 0xFF)?; // ATOMIC BOUNDARY: none are supported, as VPD page B0h says
                reserved(cdb, 11, 0xFF)?;
                Self::WriteAtomic(Blocks { lba: be64(cdb, 2), count: be16(cdb, 12).into() })
            }
            0x34 => Self::Prefetch(cached(cdb, blocks10(cdb))?),
            0x90 => Self::Prefetch(cached(cdb, blocks16(cdb))?),
            0x35 => Self::SynchronizeCache(cached(cdb, blocks10(cdb))?),
            0x91 => Self::SynchronizeCache(cached(cdb, blocks16(cdb))?),
            0x41 => Self::write_same(cdb, blocks10(cdb), false)?,
            0x93 => Self::write_same(cdb, blocks16(cdb), cdb[1] & 1 != 0)?,
            0x42 => {
                reserved(cdb, 1, 0x01)?; // ANCHOR
                Self::Unmap { parameters: be16(cdb, 7) }
            }
            0x9E if cdb[1] & 0x1F == 0x10 => Self::ReadCapacity16 { allocation: be32(cdb, 10) },
            0x9E if cdb[1] & 0x1F == 0x12 => Self::GetLbaStatus { lba: be64(cdb, 2), allocation: be32(cdb, 10) },
            0xA3 if cdb[1] & 0x1F == 0x0D => {
                Self::ReportFunctions { extended: cdb[2] & 0x80 != 0, allocation: be32(cdb, 6) }
            }
            0xA0 => Self::ReportLuns { select: cdb[2], allocation: be32(cdb, 6) },
            0xA3 if cdb[1] & 0x1F == 0x0C => {
                let (opcode, action) = (cdb[3], be16(cdb, 4));
                let query = match cdb[2] & 0x07 {
                    0 => OpcodeQuery::All,
                    1 => OpcodeQuery::Opcode(opcode),
                    2 => OpcodeQuery::Action(opcode, action),
                    3 => OpcodeQuery::Either(opcode, action),
                    _ => return Err(Sense::INVALID_FIELD_IN_CDB),
                };
                Self::ReportOpcodes { query, timeouts: cdb[2] & 0x80 != 0, allocation: be32(cdb, 6) }
            }
            _ => return Err(Sense::INVALID_OPCODE),
        })
    }

    fn mode_sense(cdb: &[u8; CDB_LENGTH], ten: bool, allocation: u32) -> Self {
        Self::ModeSense(ModeSense {
            ten,
            dbd: cdb[1] & 0x08 != 0,
            control: cdb[2] >> 6,
            page: cdb[2] & 0x3F,
            subpage: cdb[3],
            allocation,
        })
    }

    fn mode_select(cdb: &[u8; CDB_LENGTH], ten: bool, parameters: u16) -> Result<Self, Sense> {
        const PF: u8 = 0x10;
        reserved(cdb, 1, !PF)?; // among them SP: pages are not saved
        if cdb[1] & PF == 0 && parameters > 0 {
            return Err(Sense::INVALID_FIELD_IN_CDB); // pages in a vendor's own format
        }
        Ok(Self::ModeSelect { ten, parameters })
    }

    /// A reservation for the one who asks, and of the whole unit (SPC-2 §7.21): the others are obsolete.
    fn own_reservation(cdb: &[u8; CDB_LENGTH], command: Self) -> Result<Self, Sense> {
        reserved(cdb, 1, 0x1F)?;
        Ok(command)
    }

    fn sanitize(cdb: &[u8; CDB_LENGTH]) -> Result<Self, Sense> {
        reserved(cdb, 1, 0x40)?;
        for byte in 2..=8 {
            reserved(cdb, byte, 0xFF)?; // the last two: a parameter list, which neither service action has
        }
        match cdb[1] & 0x1F {
            0x02 => Ok(Self::BlockErase { immediate: cdb[1] & 0x80 != 0 }),
            0x1F => Ok(Self::ExitFailureMode),
            _ => Err(Sense::INVALID_FIELD_IN_CDB),
        }
    }

    fn write_verify(cdb: &[u8; CDB_LENGTH], blocks: Blocks) -> Result<Self, Sense> {
        reserved(cdb, 1, PROTECT | 0x04)?; // BYTCHK is 0 or 1: what is read back is compared in either case
        Ok(Self::WriteVerify(blocks))
    }

    fn read(cdb: &[u8; CDB_LENGTH], blocks: Blocks) -> Result<Self, Sense> {
        reserved(cdb, 1, PROTECT)?;
        Ok(Self::Read(blocks))
    }

    fn write(cdb: &[u8; CDB_LENGTH], blocks: Blocks) -> Result<Self, Sense> {
        reserved(cdb, 1, PROTECT)?;
        Ok(Self::Write { blocks, fua: cdb[1] & FUA != 0 })
    }

    fn verify(cdb: &[u8; CDB_LENGTH], blocks: Blocks) -> Result<Self, Sense> {
        reserved(cdb, 1, PROTECT)?;
        let check = match cdb[1] >> 1 & 0x03 {
            0 => Check::Medium,
            1 => Check::Data,
            3 => Check::OneBlock,
            _ => return Err(Sense::INVALID_FIELD_IN_CDB),
        };
        Ok(Self::Verify { blocks, check })
    }

    fn write_same(cdb: &[u8; CDB_LENGTH], blocks: Blocks, no_data: bool) -> Result<Self, Sense> {
        reserved(cdb, 1, PROTECT | 0x10 | 0x06)?; // protection, ANCHOR, obsolete PBDATA and LBDATA
        let unmap = cdb[1] & 0x08 != 0;
        Ok(Self::WriteSame { blocks, unmap, no_data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cdb(bytes: &[u8]) -> [u8; CDB_LENGTH] {
        let mut cdb = [0; CDB_LENGTH];
        cdb[..bytes.len()].copy_from_slice(bytes);
        cdb
    }

    #[test]
    fn the_four_reads_name_the_same_blocks() {
        let blocks = Blocks { lba: 0x1234, count: 8 };
        for bytes in [
            &[0x08, 0x00, 0x12, 0x34, 8, 0][..],
            &[0x28, 0, 0, 0, 0x12, 0x34, 0, 0, 8, 0],
            &[0xA8, 0, 0, 0, 0x12, 0x34, 0, 0, 0, 8, 0, 0],
            &[0x88, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34, 0, 0, 0, 8, 0, 0],
        ] {
            assert_eq!(Command::parse(&cdb(bytes)), Ok(Command::Read(blocks)), "{bytes:02x?}");
        }
    }

    #[test]
    fn writes_and_verifies_of_any_length_name_the_same_blocks_and_their_options() {
        let blocks = Blocks { lba: 0x1234_5678, count: 0x9A };
        let ten = |opcode, options| cdb(&[opcode, options, 0x12, 0x34, 0x56, 0x78, 0, 0, 0x9A, 0]);
        let twelve = |opcode, options| cdb(&[opcode, options, 0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0x9A, 0, 0]);
        let sixteen =
            |opcode, options| cdb(&[opcode, options, 0, 0, 0, 0, 0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0x9A, 0, 0]);
        for (options, fua) in [(0x00, false), (0x10, false), (0x08, true)] {
            for bytes in [ten(0x2A, options), twelve(0xAA, options), sixteen(0x8A, options)] {
                assert_eq!(Command::parse(&bytes), Ok(Command::Write { blocks, fua }));
            }
        }
        for (options, check) in [(0, Check::Medium), (2, Check::Data), (6, Check::OneBlock)] {
            for bytes in [ten(0x2F, options), twelve(0xAF, options), sixteen(0x8F, options)] {
                assert_eq!(Command::parse(&bytes), Ok(Command::Verify { blocks, check }));
            }
        }
        for (options, unmap, no_data) in [(0, false, false), (8, true, false), (9, true, true), (1, false, true)] {
            let must = Ok(Command::WriteSame { blocks, unmap, no_data });
            assert_eq!(Command::parse(&sixteen(0x93, options)), must);
            let must = Ok(Command::WriteSame { blocks, unmap, no_data: false });
            assert_eq!(Command::parse(&ten(0x41, options)), must, "WRITE SAME (10) has no NDOB");
        }
        for refused in [ten(0x2F, 4), ten(0x41, 0x10), sixteen(0x93, 0x02), ten(0x42, 1)] {
            assert_eq!(Command::parse(&refused), Err(Sense::INVALID_FIELD_IN_CDB));
        }
        for bytes in [ten(0x35, 0), sixteen(0x91, 0)] {
            assert_eq!(Command::parse(&bytes), Ok(Command::SynchronizeCache(blocks)));
        }
    }

    #[test]
    fn a_six_byte_count_of_zero_is_256_blocks() {
        assert_eq!(
            Command::parse(&cdb(&[0x08, 0x1F, 0xFF, 0xFF, 0, 0])),
            Ok(Command::Read(Blocks { lba: 0x1F_FFFF, count: 256 }))
        );
    }

    #[test]
    fn protection_information_is_refused() {
        for opcode in [0x28, 0x2A, 0x2F, 0x41, 0x88, 0x8A, 0x8F, 0x93, 0xA8, 0xAA, 0xAF] {
            assert_eq!(Command::parse(&cdb(&[opcode, 0x20])), Err(Sense::INVALID_FIELD_IN_CDB), "{opcode:02x}");
        }
    }

    proptest! {
        #[test]
        fn any_cdb_is_a_command_or_a_reason(bytes: [u8; CDB_LENGTH]) {
            if let Err(sense) = Command::parse(&bytes) {
                prop_assert!(sense == Sense::INVALID_OPCODE || sense == Sense::INVALID_FIELD_IN_CDB);
            }
        }
    }
}
