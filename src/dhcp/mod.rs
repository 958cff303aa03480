//! DHCP, as pure functions.
