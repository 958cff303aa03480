//! The session against an initiator, over encoded bytes: its rules one by one, its conversations with known initiators,
//! and any sequence of commands against a model of the disk.
#![expect(clippy::cast_possible_truncation, reason = "test patterns are the low bits of positions")]

mod conversations;
mod hostile;
mod model;
mod pair;
mod rules;
