//! Where machines reach this server: its ports, and the URLs that they are told.
//!
//! Not here: what stands behind them.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV4};

/// The port of loaders by TFTP (RFC 1350 §4).
pub const TFTP_PORT: u16 = 69;
/// The port of boot scripts and loaders by HTTP, which a URL leaves out (RFC 9110 §4.2.1).
pub const HTTP_PORT: u16 = 80;
/// The port of iSCSI (RFC 7143 §4.2.1), which a root path leaves out.
pub const ISCSI_PORT: u16 = 3260;

/// This HTTP server as a URL names it: `10.20.0.2`, `10.20.0.2:8080`, `[2001:db8::2]`. The address is a literal, so that it
/// needs no name server.
#[must_use]
pub fn authority(http: impl Into<SocketAddr>) -> String {
    match http.into() {
        SocketAddr::V4(http) if http.port() == HTTP_PORT => http.ip().to_string(),
        SocketAddr::V6(http) if http.port() == HTTP_PORT => format!("[{}]", http.ip()),
        http => http.to_string(),
    }
}

/// The URL of a file on this HTTP server.
#[must_use]
pub fn url(http: impl Into<SocketAddr>, file: &str) -> String {
    format!("http://{}/{file}", authority(http))
}

/// The URL of a machine's own script, in which iPXE itself expands `${mac:hexhyp}`. It serves as DHCP's boot file name too.
#[must_use]
pub fn script_url(http: impl Into<SocketAddr>) -> String {
    url(http, "boot.ipxe?mac=${mac:hexhyp}")
}

/// The URL of a file on our TFTP server at an IPv6 address (RFC 3617). Over IPv4 DHCP names server and file apart.
#[must_use]
pub fn tftp_url(server: Ipv6Addr, file: &str) -> String {
    format!("tftp://[{server}]/{file}")
}

/// A disk as DHCP's root path and iPXE's `sanboot` name it (RFC 4173 §5): LUN 0 over TCP, which are what empty fields mean;
/// the LUN is written out for the reader.
#[must_use]
pub fn root_path(iscsi: SocketAddrV4, target: &str) -> String {
    let port = match iscsi.port() {
        ISCSI_PORT => String::new(),
        other => other.to_string(),
    };
    format!("iscsi:{}::{port}:0:{target}", iscsi.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_port_only_where_it_must() {
        let at = |port| SocketAddrV4::new([10, 20, 0, 2].into(), port);
        assert_eq!(script_url(at(80)), "http://10.20.0.2/boot.ipxe?mac=${mac:hexhyp}");
        assert_eq!(script_url(at(8080)), "http://10.20.0.2:8080/boot.ipxe?mac=${mac:hexhyp}");
        assert_eq!(root_path(at(3260), "iqn.x:pc"), "iscsi:10.20.0.2:::0:iqn.x:pc");
        assert_eq!(root_path(at(3261), "iqn.x:pc"), "iscsi:10.20.0.2::3261:0:iqn.x:pc");
        assert_eq!(url(at(80), "snponly.efi"), "http://10.20.0.2/snponly.efi");
        let server = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
        assert_eq!(url((server, 80), "snponly.efi"), "http://[2001:db8::2]/snponly.efi");
        assert_eq!(authority((server, 8080)), "[2001:db8::2]:8080");
        assert_eq!(tftp_url(server, "snponly.efi"), "tftp://[2001:db8::2]/snponly.efi");
    }
}
