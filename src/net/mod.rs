//! Adapters: the sockets of DHCP, TFTP and iSCSI. They carry bytes; what the bytes mean is decided by the pure rooms.

pub mod dhcp;
pub mod iscsi;
pub mod tftp;
pub mod udp;
