//! The VHD format: fixed, dynamic and differencing.
//!
//! [`wire`] holds the structures as they lie in a file, [`sparse`] the running state of a dynamic or differencing disk
//! (which block lies where, which of its sectors are here), [`create`] makes new files.
//!
//! Standard: *Virtual Hard Disk Image Format Specification* 1.0 (2006). All integers are big-endian, the texts of parent
//! locators little-endian.

mod bits;
pub mod create;
pub mod sparse;
pub mod wire;

pub use create::{
    Builder, Layout, NewChild, create_child, create_child_as, create_dynamic, create_dynamic_as, create_fixed,
};
pub use wire::{Footer, Header, Kind, MAX_SIZE};
