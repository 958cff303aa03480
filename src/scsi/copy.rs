//! EXTENDED COPY with a list identifier of one byte, and what it tells of itself (SPC-4 §6.4, §6.21, §6.23; VPD page 8Fh).
//!
//! Only within one logical unit, from block to block: what VMware moves and clones with. A target of another name is
//! answered as unreachable, which it is: no unit here can speak to another.

use super::Geometry;
use super::inquiry::Identity;
use super::sense::Sense;

/// Copy target descriptors in one command: the same unit as source and as destination.
pub const MAX_TARGETS: u16 = 2;

/// Segments in one command. With [`MAX_SEGMENT`] this bounds what one command does while other writes wait.
pub const MAX_SEGMENTS: u16 = 4;

/// Most bytes of one segment.
pub const MAX_SEGMENT: u64 = 16 << 20;

const HEADER: usize = 16;
const TARGET: usize = 32;
const SEGMENT: usize = 28;

/// Longest list of descriptors, of both kinds together.
const MAX_DESCRIPTORS: usize = MAX_TARGETS as usize * TARGET + MAX_SEGMENTS as usize * SEGMENT;

/// Longest parameter list that is taken in. What is longer than a right one by little is told what is wrong with it.
pub const MAX_PARAMETERS: u32 = 4096;

/// Descriptor types: the only ones that are known.
const BLOCK_TO_BLOCK: u8 = 0x02;
const IDENTIFICATION: u8 = 0xE4;

/// Bytes to be moved within the disk, one after another and from low to high: where the two ranges overlap, later bytes
/// see earlier ones moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyRange {
    /// First byte to read.
    pub from: u64,
    /// First byte to write.
    pub to: u64,
    /// How many.
    pub length: u64,
}

/// A copy as a parameter list asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// The list identifier, by which its initiator asks for its result.
    pub list: u8,
    /// What to move.
    pub ranges: Vec<CopyRange>,
}

/// Reads the parameter list of EXTENDED COPY for this unit. `None`: an empty list, which is no error.
///
/// # Errors
/// What is wrong with it, or COPY ABORTED for what cannot be reached.
pub fn parse(list: &[u8], identity: &Identity, disk: Geometry) -> Result<Option<Copy>, Sense> {
    if list.is_empty() {
        return Ok(None);
    }
    let (head, rest) = list.split_first_chunk::<HEADER>().ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    let targets = usize::from(u16::from_be_bytes([head[2], head[3]]));
    let segments = u32::from_be_bytes([head[8], head[9], head[10], head[11]]);
    let segments = usize::try_from(segments).map_err(|_| Sense::PARAMETER_LIST_LENGTH)?;
    let descriptors = targets.checked_add(segments).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    if descriptors > MAX_DESCRIPTORS || descriptors > rest.len() {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    if head[12..16] != [0; 4] {
        return Err(Sense::INLINE_DATA);
    }
    let (targets, rest) = rest.split_at(targets);
    let targets = parse_targets(targets, identity, disk)?;
    let ranges = parse_segments(&rest[..segments], targets, disk)?;
    Ok(Some(Copy { list: head[0], ranges }))
}

/// Checks the copy target descriptors, each of which must be this unit; how many there are.
fn parse_targets(targets: &[u8], identity: &Identity, disk: Geometry) -> Result<u16, Sense> {
    let count = targets.len() / TARGET;
    if count > usize::from(MAX_TARGETS) {
        return Err(Sense::TOO_MANY_TARGETS);
    }
    if !targets.len().is_multiple_of(TARGET) {
        return Err(Sense::INVALID_FIELD_IN_PARAMETERS);
    }
    for target in targets.chunks_exact(TARGET) {
        if target[0] != IDENTIFICATION {
            return Err(Sense::UNSUPPORTED_TARGET_TYPE);
        }
        /// Peripheral device type: 0 is a disk. (LU ID TYPE and NUL are obsolete.)
        const PERIPHERAL: u8 = 0x1F;
        // Code set binary; association: logical unit; designator type NAA.
        let naa = target[4] & 0x0F == 1 && target[5] & 0x3F == 3 && target[7] == 8;
        let block = u32::from_be_bytes([0, target[29], target[30], target[31]]);
        let this = target[1] & PERIPHERAL == 0 && naa && target[8..16] == identity.naa();
        if !this || u64::from(block) != disk.block() {
            return Err(Sense::UNREACHABLE_COPY_TARGET);
        }
    }
    Ok(u16::try_from(count).unwrap_or(MAX_TARGETS))
}

fn parse_segments(mut segments: &[u8], targets: u16, disk: Geometry) -> Result<Vec<CopyRange>, Sense> {
    let mut ranges = Vec::new();
    while let Some(kind) = segments.first() {
        if ranges.len() == usize::from(MAX_SEGMENTS) {
            return Err(Sense::TOO_MANY_SEGMENTS);
        }
        if *kind != BLOCK_TO_BLOCK {
            return Err(Sense::UNSUPPORTED_SEGMENT_TYPE);
        }
        let Some((segment, rest)) = segments.split_first_chunk::<SEGMENT>() else {
            return Err(Sense::INVALID_FIELD_IN_PARAMETERS);
        };
        segments = rest;
        ranges.push(parse_segment(segment, targets, disk)?);
    }
    Ok(ranges)
}

fn parse_segment(segment: &[u8; SEGMENT], targets: u16, disk: Geometry) -> Result<CopyRange, Sense> {
    let be16 = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
    let be64 = |at: usize| {
        u64::from(be16(at)) << 48
            | u64::from(be16(at + 2)) << 32
            | u64::from(be16(at + 4)) << 16
            | u64::from(be16(at + 6))
    };
    if usize::from(be16(2)) != SEGMENT - 4 {
        return Err(Sense::INVALID_FIELD_IN_PARAMETERS);
    }
    if be16(4) >= targets || be16(6) >= targets {
        return Err(Sense::UNREACHABLE_COPY_TARGET);
    }
    let (count, from, to) = (u64::from(be16(10)), be64(12), be64(20));
    if count > disk.limit(MAX_SEGMENT).into() {
        return Err(Sense::INVALID_FIELD_IN_PARAMETERS);
    }
    let within = |lba: u64| lba.checked_add(count).is_some_and(|end| end <= disk.blocks());
    if !within(from) || !within(to) {
        return Err(Sense::COPY_ABORTED);
    }
    Ok(CopyRange { from: from * disk.block(), to: to * disk.block(), length: count * disk.block() })
}

/// How far a copy came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It is at work.
    Running,
    /// It was done.
    Done,
    /// It failed.
    Failed,
}

/// RECEIVE COPY STATUS data of a copy of so many segments and bytes.
#[must_use]
pub fn status(progress: Progress, segments: u16, bytes: u64) -> Vec<u8> {
    let mut data = vec![0; 12];
    data[3] = 8; // what follows
    data[4] = match progress {
        Progress::Running => 0,
        Progress::Done => 1,
        Progress::Failed => 2,
    };
    if progress == Progress::Done {
        data[5..7].copy_from_slice(&segments.to_be_bytes());
        data[7] = 1; // the unit of what follows: KiB
        data[8..12].copy_from_slice(&u32::try_from(bytes / 1024).unwrap_or(u32::MAX).to_be_bytes());
    }
    data
}

/// RECEIVE COPY OPERATING PARAMETERS data.
#[must_use]
pub fn parameters(disk: Geometry) -> Vec<u8> {
    let mut data = vec![0; 46];
    data[3] = 42; // what follows
    data[8..10].copy_from_slice(&MAX_TARGETS.to_be_bytes());
    data[10..12].copy_from_slice(&MAX_SEGMENTS.to_be_bytes());
    data[12..16].copy_from_slice(&u32::try_from(MAX_DESCRIPTORS).expect("a few hundred").to_be_bytes());
    data[16..20].copy_from_slice(&u32::try_from(MAX_SEGMENT).expect("16 MiB").to_be_bytes());
    data[35] = 1; // copies at once, of all initiators and of one: others wait in the queue of writes
    data[36] = 1;
    data[37] = u8::try_from(disk.block().ilog2()).expect("at most 63"); // granularity, as a power of two
    data[43] = 2; // descriptor types that are known
    data[44] = BLOCK_TO_BLOCK;
    data[45] = IDENTIFICATION;
    data
}

/// The body of VPD page 8Fh: which commands and descriptors there are (SPC-4 §7.8.17).
#[must_use]
pub fn third_party() -> Vec<u8> {
    let descriptor = |kind: u16, body: &[u8]| {
        let padded = body.len().next_multiple_of(4);
        let mut bytes = kind.to_be_bytes().to_vec();
        bytes.extend_from_slice(&u16::try_from(padded).expect("a few bytes").to_be_bytes());
        bytes.extend_from_slice(body);
        bytes.resize(4 + padded, 0);
        bytes
    };
    // Supported commands: of each the operation code and its service actions.
    let mut page = descriptor(0x0001, &[7, 0x83, 1, 0x00, 0x84, 2, 0x00, 0x03]);
    let mut limits = vec![0; 28]; // parameter data
    limits[4..6].copy_from_slice(&MAX_TARGETS.to_be_bytes());
    limits[6..8].copy_from_slice(&MAX_SEGMENTS.to_be_bytes());
    limits[8..12].copy_from_slice(&u32::try_from(MAX_DESCRIPTORS).expect("a few hundred").to_be_bytes());
    page.extend(descriptor(0x0004, &limits));
    page.extend(descriptor(0x0008, &[2, BLOCK_TO_BLOCK, IDENTIFICATION])); // supported descriptors
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Sectors;
    use crate::scsi::BLOCK;
    use proptest::prelude::*;

    const BLOCKS: u64 = 10_000;

    fn disk() -> Geometry {
        Geometry::new(BLOCKS * BLOCK, Sectors::default())
    }

    fn identity() -> Identity {
        Identity::of_target("iqn.2026-11.internal.roost:pc-01")
    }

    fn target() -> Vec<u8> {
        let mut target = vec![0; TARGET];
        (target[0], target[4], target[5], target[7], target[30]) = (IDENTIFICATION, 1, 3, 8, 2);
        target[8..16].copy_from_slice(&identity().naa());
        target
    }

    fn segment(count: u16, from: u64, to: u64) -> Vec<u8> {
        let mut segment = vec![BLOCK_TO_BLOCK, 0, 0, 24, 0, 0, 0, 0, 0, 0];
        segment.extend_from_slice(&count.to_be_bytes());
        segment.extend_from_slice(&from.to_be_bytes());
        segment.extend_from_slice(&to.to_be_bytes());
        segment
    }

    fn list(targets: &[Vec<u8>], segments: &[Vec<u8>]) -> Vec<u8> {
        let (targets, segments) = (targets.concat(), segments.concat());
        let mut list = vec![0; HEADER];
        list[0] = 9;
        list[3] = u8::try_from(targets.len()).unwrap();
        list[11] = u8::try_from(segments.len()).unwrap();
        [list, targets, segments].concat()
    }

    fn refusal(list: &[u8]) -> Sense {
        parse(list, &identity(), disk()).unwrap_err()
    }

    #[test]
    fn a_copy_within_the_unit_is_read_in_its_order() {
        let list = list(&[target()], &[segment(8, 0, 9000), segment(1, 9000, 3)]);
        let copy = parse(&list, &identity(), disk()).unwrap().unwrap();
        let first = CopyRange { from: 0, to: 9000 * BLOCK, length: 8 * BLOCK };
        let second = CopyRange { from: 9000 * BLOCK, to: 3 * BLOCK, length: BLOCK };
        assert_eq!((copy.list, copy.ranges), (9, vec![first, second]));
        assert_eq!(parse(&[], &identity(), disk()), Ok(None));
    }

    #[test]
    fn a_list_that_is_cut_short_is_a_length_error() {
        let list = list(&[target()], &[segment(8, 0, 9000)]);
        for cut in 1..list.len() {
            assert_eq!(refusal(&list[..cut]), Sense::PARAMETER_LIST_LENGTH, "{cut}");
        }
    }

    #[test]
    fn each_limit_has_its_own_answer() {
        let (one, short) = (vec![target()], vec![segment(1, 0, 1)]);
        assert_eq!(refusal(&list(&vec![target(); 3], &short)), Sense::TOO_MANY_TARGETS);
        assert_eq!(refusal(&list(&one, &vec![segment(1, 0, 1); 5])), Sense::TOO_MANY_SEGMENTS);
        assert_eq!(refusal(&list(&vec![target(); 3], &vec![segment(1, 0, 1); 5])), Sense::PARAMETER_LIST_LENGTH);
        let mut inline = list(&one, &short);
        inline[15] = 1;
        assert_eq!(refusal(&inline), Sense::INLINE_DATA);
    }

    #[test]
    fn what_is_unknown_or_elsewhere_is_told_apart() {
        let short = vec![segment(1, 0, 1)];
        let with = |change: fn(&mut Vec<u8>)| {
            let mut target = target();
            change(&mut target);
            refusal(&list(&[target], &short))
        };
        assert_eq!(with(|target| target[0] = 0xE0), Sense::UNSUPPORTED_TARGET_TYPE);
        assert_eq!(with(|target| target[1] = 0x01), Sense::UNREACHABLE_COPY_TARGET);
        assert_eq!(with(|target| target[15] ^= 1), Sense::UNREACHABLE_COPY_TARGET);
        let segments = |segment: Vec<u8>| refusal(&list(&[target()], &[segment]));
        assert_eq!(segments(segment(2, 0, BLOCKS - 1)), Sense::COPY_ABORTED);
        assert_eq!(segments(segment(1, u64::MAX, 0)), Sense::COPY_ABORTED);
        let mut other = segment(1, 0, 1);
        other[7] = 1;
        assert_eq!(segments(other), Sense::UNREACHABLE_COPY_TARGET);
        let mut stream = segment(1, 0, 1);
        stream[0] = 0x03;
        assert_eq!(segments(stream), Sense::UNSUPPORTED_SEGMENT_TYPE);
    }

    #[test]
    fn the_answers_have_their_lengths() {
        assert_eq!(parameters(disk())[..12], [0, 0, 0, 42, 0, 0, 0, 0, 0, 2, 0, 4]);
        assert_eq!(parameters(disk())[43..], [2, 0x02, 0xE4]);
        assert_eq!(status(Progress::Done, 1, 1 << 20), [0, 0, 0, 8, 1, 0, 1, 1, 0, 0, 4, 0]);
        assert_eq!(status(Progress::Running, 1, 1 << 20)[4..], [0; 8]);
    }

    proptest! {
        #[test]
        fn any_list_moves_only_what_is_within_the_disk(
            mut bytes in prop::collection::vec(any::<u8>(), 0..300), segments in 0_u8..120, right in any::<bool>(),
        ) {
            if right && bytes.len() > 60 {
                bytes[2..16].fill(0);
                (bytes[3], bytes[11]) = (32, segments);
                bytes[16..48].copy_from_slice(&target());
                bytes[48..56].copy_from_slice(&[BLOCK_TO_BLOCK, 0, 0, 24, 0, 0, 0, 0]);
            }
            if let Ok(Some(copy)) = parse(&bytes, &identity(), disk()) {
                prop_assert!(copy.ranges.len() <= usize::from(MAX_SEGMENTS));
                for range in copy.ranges {
                    prop_assert!(range.from + range.length <= BLOCKS * BLOCK);
                    prop_assert!(range.to + range.length <= BLOCKS * BLOCK);
                }
            }
        }
    }
}
