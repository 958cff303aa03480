//! Roost: a boot appliance for a lab. One process answers DHCP, serves the iPXE loader and a boot script for each
//! machine, and serves each its own differencing VHD of one golden master over iSCSI.
//!
//! ```text
//!               main -> cli
//!                        |
//!                      serve                 start, drain
//!                     /     \
//!                  net      http             adapters   (tokio, axum, sockets)
//!                     \     /
//!                       app                  the shared state
//!     /      |      |      |        \
//!  config  store  script  dhcp,tftp  iscsi   (protocols: pure)
//!     \      |      |      |          |
//!             fleet                scsi -> disk        (meaning | bytes)
//! ```
//!
//! Arrows only point down (`tests/architecture.rs` reads every path and says so), and `sys`, the only unsafe code, may be
//! used by the rooms that touch the system. Start reading at [`fleet`], whose words the rest uses; then
//! [`dhcp`] for how a packet becomes an answer, and [`disk`] for where the bytes of a client's disk come from.

pub mod app;
pub mod cli;
pub mod config;
pub mod dhcp;
pub mod disk;
pub mod fleet;
pub mod http;
pub mod iscsi;
pub mod net;
pub mod script;
pub mod scsi;
pub mod serve;
pub mod store;
pub mod sys;
pub mod tftp;
