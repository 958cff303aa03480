//! iSCSI (RFC 7143), error recovery level 0, one connection per session.
//!
//! Pure: bytes are cut into PDUs ([`frame`]), a [`login`] negotiates ([`text`]), a [`session`] turns PDUs into effects and
//! results into PDUs. There is no socket, no clock and no disk here; `net::iscsi` brings those.

pub mod chap;
pub mod frame;
pub mod login;
pub mod pdu;
pub mod session;
pub mod text;

/// The one target portal group there is.
pub const PORTAL_GROUP: u16 = 1;

/// The largest data segment that we take in one PDU once a session runs: 256 KiB, a whole burst of open-iscsi.
pub const MAX_DATA_SEGMENT: u32 = 262_144;

/// The largest data segment while logging in, both ways (RFC 7143 §13.12).
pub const LOGIN_DATA_SEGMENT: u32 = 8192;

/// Most text of one request that is put together out of continued PDUs.
pub const MAX_TEXT: usize = 32_768;
