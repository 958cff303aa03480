//! INQUIRY: the standard data and the vital product data pages (SPC-4 §6.6, §7.8; SBC-3 §6.5).

use super::sense::Sense;
use super::{
    GRANULARITY, Geometry, MAX_ATOMIC, MAX_TRANSFER, MAX_UNMAP, MAX_UNMAP_RANGES, MAX_WRITE_SAME, copy, provisioning,
};

const VENDOR: &[u8; 8] = b"ROOST   ";
const PRODUCT: &[u8; 16] = b"DIFFERENCING VHD";
/// What the units beside the first are: disks of their own.
const DATA_PRODUCT: &[u8; 16] = b"DATA DISK       ";
const REVISION: &[u8; 4] = b"0001";

/// Transfers are best at one burst.
const OPTIMAL_TRANSFER: u64 = 256 << 10;

/// Peripheral qualifier and device type where there is no such logical unit (SPC-4 §6.6.2).
const NO_UNIT: u8 = 0x7F;

/// Who a logical unit is. Derived from its target's name and its number there, so that it stays when the disk is made anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    target: String,
    number: u64,
}

impl Identity {
    /// The identity of the first unit behind this target name.
    #[must_use]
    pub fn of_target(target: impl Into<String>) -> Self {
        Self::of_unit(target, 0)
    }

    /// The identity of the unit of this number.
    #[must_use]
    pub fn of_unit(target: impl Into<String>, lun: u8) -> Self {
        let target = target.into();
        // The first one's is its target's, as it was when there were no others.
        let unit = if lun == 0 { String::new() } else { format!(",lun,{lun}") };
        // FNV-1a: stable for ever, which the standard library's hasher is not.
        let number = target
            .bytes()
            .chain(unit.bytes())
            .fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3));
        Self { target, number }
    }

    /// The unit serial number: sixteen hexadecimal digits.
    #[must_use]
    pub fn serial(&self) -> String {
        format!("{:016x}", self.number)
    }

    /// A locally assigned NAA identifier: type 3 and sixty bits (SPC-4 §7.8.6.6.4).
    pub(super) fn naa(&self) -> [u8; 8] {
        (0x3 << 60 | self.number & 0x0FFF_FFFF_FFFF_FFFF).to_be_bytes()
    }
}

/// The standard INQUIRY data of the unit of this number; `None`: the addressed logical unit does not exist.
#[must_use]
pub fn standard(lun: Option<u8>) -> Vec<u8> {
    let mut data = vec![0; 74];
    data[0] = if lun.is_some() { 0x00 } else { NO_UNIT };
    data[2] = 0x06; // SPC-4
    data[3] = 0x12; // HISUP, response data format 2
    data[4] = 69; // additional length
    data[5] = 0x08; // 3PC: it copies
    data[7] = 0x02; // CMDQUE
    data[8..16].copy_from_slice(VENDOR);
    data[16..32].copy_from_slice(if lun.is_none_or(|lun| lun == 0) { PRODUCT } else { DATA_PRODUCT });
    data[32..36].copy_from_slice(REVISION);
    // Version descriptors: SAM-5, iSCSI, SPC-4, SBC-3 (no version claimed).
    for (at, descriptor) in [0x00A0_u16, 0x0960, 0x0460, 0x04C0].into_iter().enumerate() {
        data[58 + 2 * at..60 + 2 * at].copy_from_slice(&descriptor.to_be_bytes());
    }
    data
}

/// A vital product data page of a disk of this geometry.
///
/// # Errors
/// INVALID FIELD IN CDB for a page that is not supported.
pub fn page(code: u8, identity: &Identity, disk: Geometry) -> Result<Vec<u8>, Sense> {
    let body = match code {
        0x00 => vec![0x00, 0x80, 0x83, 0x86, 0x87, 0x8F, 0xB0, 0xB1, 0xB2],
        0x80 => identity.serial().into_bytes(),
        0x83 => identification(identity),
        0x86 => {
            let mut body = vec![0; 60];
            body[1] = 0x07; // head of queue, ordered and simple tasks
            body[2] = 0x01; // V_SUP: there is a volatile cache
            body
        }
        0x87 => vec![0x3F, 0xFF, 0x00, 0x00], // all pages and subpages: shared by all initiators
        0x8F => copy::third_party(),
        0xB0 => block_limits(disk),
        0xB1 => {
            let mut body = vec![0; 60];
            body[0..2].copy_from_slice(&1_u16.to_be_bytes()); // not rotating
            body[3] = 0x40; // WABEREQ 01b: after a SANITIZE with BLOCK ERASE reads are allowed, and give zeros
            body
        }
        // UNMAP, WRITE SAME (16) and (10) unmap; unmapped blocks read as zeros; thin.
        0xB2 => vec![provisioning::threshold_exponent(disk), 0xE4, 0x02, 0],
        _ => return Err(Sense::INVALID_FIELD_IN_CDB),
    };
    let length = u16::try_from(body.len()).expect("pages are small");
    let mut data = vec![0x00, code];
    data.extend_from_slice(&length.to_be_bytes());
    data.extend(body);
    Ok(data)
}

/// Designation descriptors: who the unit is and which target port it was reached through (SPC-4 §7.8.6).
fn identification(identity: &Identity) -> Vec<u8> {
    const BINARY: u8 = 1;
    const ASCII: u8 = 2;
    const UTF8: u8 = 3;
    /// The descriptor is about the target port, and its protocol identifier (5: iSCSI) is valid.
    const PORT: u8 = 0x80 | 0x10;
    const ISCSI: u8 = 0x50;

    let mut vendor_specific = VENDOR.to_vec();
    vendor_specific.extend(identity.serial().into_bytes());
    // An iSCSI name designator is NUL-terminated and padded to four bytes.
    let mut port = format!("{},t,0x0001", identity.target).into_bytes();
    port.push(0);
    port.resize(port.len().next_multiple_of(4), 0);

    let mut body = Vec::new();
    for (head, kind, designator) in [
        (BINARY, 0x03, identity.naa().to_vec()),
        (ASCII, 0x01, vendor_specific),
        (ISCSI | BINARY, PORT | 0x04, vec![0, 0, 0, 1]),
        (ISCSI | UTF8, PORT | 0x08, port),
    ] {
        let length = u8::try_from(designator.len()).expect("an iSCSI name has at most 223 bytes");
        body.extend_from_slice(&[head, kind, 0, length]);
        body.extend(designator);
    }
    body
}

/// Page B0h (SBC-3 §6.5.3).
fn block_limits(disk: Geometry) -> Vec<u8> {
    let mut body = vec![0; 60];
    // WSNZ is 0: WRITE SAME with a count of zero goes to the end of the disk.
    body[1] = disk.most_to_compare();
    // What holes are made of, also where physical blocks are smaller.
    let granularity = disk.limit(GRANULARITY);
    let mut put32 = |at: usize, value: u32| body[at..at + 4].copy_from_slice(&value.to_be_bytes());
    put32(4, disk.limit(MAX_TRANSFER));
    put32(8, disk.limit(OPTIMAL_TRANSFER));
    put32(12, disk.limit(MAX_TRANSFER)); // of a PRE-FETCH; more is asked for in vain, and no error
    put32(16, disk.limit(MAX_UNMAP));
    put32(20, MAX_UNMAP_RANGES);
    put32(24, granularity); // optimal unmap granularity
    put32(28, 0x8000_0000); // its alignment is valid: 0
    put32(40, disk.limit(MAX_ATOMIC));
    put32(44, granularity); // alignment and granularity; no atomic boundaries within a write
    put32(48, granularity);
    body[32..40].copy_from_slice(&u64::from(disk.limit(MAX_WRITE_SAME)).to_be_bytes());
    // Optimal transfer granularity.
    body[2..4].copy_from_slice(&u16::try_from(granularity).expect("at most 8").to_be_bytes());
    body
}

/// READ CAPACITY (10) data: the last block's address, at most `FFFFFFFFh`, and the block's size (SBC-3 §5.15).
#[must_use]
pub fn capacity10(disk: Geometry) -> Vec<u8> {
    let last = u32::try_from(disk.blocks().saturating_sub(1)).unwrap_or(u32::MAX);
    [last.to_be_bytes(), disk.block_field()].concat()
}

/// READ CAPACITY (16) data (SBC-3 §5.16).
#[must_use]
pub fn capacity16(disk: Geometry) -> Vec<u8> {
    let mut data = vec![0; 32];
    data[0..8].copy_from_slice(&disk.blocks().saturating_sub(1).to_be_bytes());
    data[8..12].copy_from_slice(&disk.block_field());
    data[13] = disk.physical_exponent();
    data[14] = 0xC0; // LBPME, LBPRZ: thin, and unmapped blocks read as zeros
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Sectors;

    fn disk(logical: u32, physical: u32) -> Geometry {
        Geometry::new(1 << 30, Sectors { logical, physical })
    }

    #[test]
    fn the_identity_of_a_target_never_changes() {
        let identity = Identity::of_target("iqn.2026-11.internal.roost:pc-01");
        assert_eq!(identity.serial(), "8cfd7cd18110a78d");
        assert_eq!(identity.naa()[0] >> 4, 3);
        let second = Identity::of_unit("iqn.2026-11.internal.roost:pc-01", 1);
        assert_eq!(second.serial(), "71935e06d7fb0bb1");
        assert_ne!(page(0x83, &second, disk(512, 512)), page(0x83, &identity, disk(512, 512)));
    }

    #[test]
    fn every_page_in_page_00_can_be_had_and_says_its_length() {
        let identity = Identity::of_target("iqn.2026-11.internal.roost:pc-01");
        let list = page(0x00, &identity, disk(512, 512)).unwrap();
        for code in &list[4..] {
            let data = page(*code, &identity, disk(512, 512)).unwrap();
            assert_eq!(data[1], *code);
            assert_eq!(usize::from(u16::from_be_bytes([data[2], data[3]])), data.len() - 4, "page {code:02x}");
        }
        assert_eq!(page(0x42, &identity, disk(512, 512)), Err(Sense::INVALID_FIELD_IN_CDB));
    }

    #[test]
    fn sectors_are_told_as_the_disk_has_them_and_granularities_are_4_kib() {
        let identity = Identity::of_target("iqn.2026-11.internal.roost:pc-01");
        for (logical, physical, exponent, granularity) in [(512, 512, 0, 8), (512, 4096, 3, 8), (4096, 4096, 0, 1)] {
            let disk = disk(logical, physical);
            let (ten, sixteen) = (capacity10(disk), capacity16(disk));
            let last = (1 << 30) / logical - 1;
            assert_eq!(ten, [last.to_be_bytes(), logical.to_be_bytes()].concat());
            assert_eq!((&sixteen[4..12], sixteen[13]), (&ten[..], exponent));
            let limits = page(0xB0, &identity, disk).unwrap();
            let field = |at: usize| u32::from_be_bytes(limits[at..at + 4].try_into().unwrap());
            assert_eq!((limits[7], field(28)), (granularity, granularity.into()), "transfers and unmaps");
            assert_eq!(u64::from(field(8)) * u64::from(logical), MAX_TRANSFER);
        }
    }
}
