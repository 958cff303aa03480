//! Hashing of task tags and numbers, several times for each command.

use std::hash::{BuildHasherDefault, Hasher};

/// One multiplication. An initiator that chooses tags which collide slows down its own session alone, and that little: no more
/// commands are at work than the window has.
pub(super) type Tags = BuildHasherDefault<Multiply>;

#[derive(Debug, Default)]
pub(super) struct Multiply(u64);

impl Hasher for Multiply {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u32(&mut self, tag: u32) {
        self.write_u64(u64::from(tag));
    }

    fn write_u64(&mut self, number: u64) {
        // 2^64 divided by the golden ratio, as Fibonacci hashing takes it.
        self.0 = (self.0 ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn finish(&self) -> u64 {
        // The best bits are the highest ones; a table looks at the lowest first.
        self.0 ^ (self.0 >> 32)
    }
}
