//! Adapters: the sockets of DHCP, TFTP and iSCSI, and of IPv6's search for a router. They carry bytes; what the bytes mean is decided by the pure rooms.

pub mod advert;
pub mod dhcp;
pub mod iscsi;
pub mod tftp;
pub mod udp;
