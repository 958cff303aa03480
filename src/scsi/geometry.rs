//! A disk in the blocks that its initiators count in.

use super::unmap::ByteRange;
use super::{BLOCK, MAX_TRANSFER};
use crate::disk::Sectors;

/// How many logical blocks a disk has, and how large they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    blocks: u64,
    sectors: Sectors,
}

impl Geometry {
    /// The geometry of a disk of `size` bytes with these sectors.
    #[must_use]
    pub fn new(size: u64, sectors: Sectors) -> Self {
        debug_assert!([512, 4096].contains(&sectors.logical) && sectors.physical >= sectors.logical);
        Self { blocks: size / u64::from(sectors.logical), sectors }
    }

    /// Size in blocks.
    #[must_use]
    pub fn blocks(self) -> u64 {
        self.blocks
    }

    /// Bytes of a logical block.
    #[must_use]
    pub fn block(self) -> u64 {
        self.sectors.logical.into()
    }

    /// The same, as a field of four bytes.
    #[must_use]
    pub fn block_field(self) -> [u8; 4] {
        self.sectors.logical.to_be_bytes()
    }

    /// Size in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.blocks * self.block()
    }

    /// The disk with another size.
    #[must_use]
    pub fn resized(self, size: u64) -> Self {
        Self::new(size, self.sectors)
    }

    /// The size of a physical block, as an exponent over that of a logical one.
    #[must_use]
    pub fn physical_exponent(self) -> u8 {
        u8::try_from((self.sectors.physical / self.sectors.logical).ilog2()).expect("at most 31")
    }

    /// A limit of so many bytes, in blocks.
    #[must_use]
    pub fn limit(self, bytes: u64) -> u32 {
        u32::try_from(bytes / self.block()).unwrap_or(u32::MAX)
    }

    /// Most blocks of one COMPARE AND WRITE: what its field of one byte can say. Twice as much data comes with it, which is no
    /// more than that of any other command.
    #[must_use]
    pub fn most_to_compare(self) -> u8 {
        u8::try_from(MAX_TRANSFER / 2 / self.block()).unwrap_or(u8::MAX)
    }

    /// The bytes of so many blocks from this one on, which lie within the disk.
    #[must_use]
    pub fn range(self, lba: u64, count: u64) -> ByteRange {
        ByteRange { offset: lba * self.block(), length: count * self.block() }
    }
}

const _: () = assert!(BLOCK == 512 && MAX_TRANSFER.is_multiple_of(4096));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_bytes_whatever_the_blocks_are() {
        let of = |logical, physical| Geometry::new(1 << 30, Sectors { logical, physical });
        let told = |geometry: Geometry| {
            let (most, compare) = (geometry.limit(MAX_TRANSFER), geometry.most_to_compare());
            (geometry.blocks(), most, compare, geometry.physical_exponent())
        };
        assert_eq!(told(of(512, 512)), (2 << 20, 2048, 255, 0));
        assert_eq!(told(of(512, 4096)), (2 << 20, 2048, 255, 3));
        assert_eq!(told(of(4096, 4096)), (256 << 10, 256, 128, 0));
        assert_eq!(of(4096, 4096).range(3, 2), ByteRange { offset: 12288, length: 8192 });
        assert_eq!(of(4096, 4096).resized(2 << 30).bytes(), 2 << 30);
    }
}
