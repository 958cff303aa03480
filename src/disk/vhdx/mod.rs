//! The VHDX format: fixed, dynamic and differencing.
//!
//! [`wire`] holds the structures as they lie in a file, [`log`] the ring of changes that a crash cannot tear, [`engine`] the
//! running state of a disk, [`create`] makes new files.
//!
//! Standard: \[MS-VHDX\] *Virtual Hard Disk v2 (VHDX) File Format*. All integers are little-endian, all texts UTF-16.

mod bits;
pub mod create;
pub mod engine;
pub mod log;
mod overlay;
#[cfg(test)]
mod tests;
pub mod wire;

pub use create::{Spec, create, create_child};
pub use engine::Vhdx;
pub use wire::Metadata;
