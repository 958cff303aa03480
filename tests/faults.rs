//! Every fault that a lab meets sooner or later: what a person is told of it, word for word, and that the others go on.
//!
//! Each message stands in `docs/troubleshooting.md` too, with what to do, and the tests see to that. The server is the
//! real one, on its real ports, in a network of its own (see [`alone`]).
//!
//! | fault | test |
//! |---|---|
//! | DHCP: `hlen` of 17 to 255, no cookie, cut short, truncated options | [`packets_that_are_no_dhcp_are_told_and_machines_get_their_addresses`] |
//! | DHCP: one bad option before good ones | [`a_bad_option_hides_no_good_one`] |
//! | DHCP: a machine that claims another's address | [`an_address_that_a_packet_merely_claims_opens_no_disk`] |
//! | DHCP: a request through a relay, another server's, an unknown machine's | `src/dhcp/tests.rs` |
//! | TFTP: names with `..`, absolute ones, Windows' | [`names_that_lead_out_of_the_boot_files_lead_nowhere`] |
//! | TFTP: a write, a wrong mode, too many transfers, silence | `tests/tftp_clients.rs` |
//! | HTTP: slow, oversized and wrong requests | `tests/http_boot.rs`, `src/http` |
//! | iSCSI: an oversized PDU, before and after the login; a data segment longer than was agreed on | [`a_pdu_longer_than_was_agreed_on_ends_its_own_session_only`] |
//! | iSCSI: more unsolicited data than was agreed on | [`more_data_than_a_first_burst_fails_its_command_only`] |
//! | iSCSI: a truncated PDU | [`a_pdu_that_is_cut_short_changes_nothing`] |
//! | iSCSI: an LBA past the end | [`a_block_past_the_end_is_a_sense_code`] |
//! | login: no such target, wrong initiator, wrong address, no name, switched off | [`a_login_that_is_refused_tells_the_operator_why`] |
//! | login: authentication, dead sessions, second connections | `tests/iscsi_target.rs` |
//! | `roost.toml` with ten mistakes | [`ten_mistakes_are_told_at_once`]; each kind of mistake: `tests/config/mistakes.txt` |
//! | an image that is not a disk, a VHD with a wrong checksum | [`what_is_no_sound_disk_does_not_become_an_image`] |
//! | a child whose parent is missing, or has another id | [`a_child_without_its_parent_is_told_and_the_other_clients_boot`] |
//! | a state folder that another `roost` has open | [`a_state_folder_that_is_taken_names_the_process`] |
//! | port 67, 69, 80, 3260 or 4011 taken | [`a_port_that_is_taken_names_the_process`] |
//! | an interface without an address, switched off, missing | [`an_interface_that_cannot_be_served_is_said_so`] |
//! | an interface without carrier | [`a_cable_that_is_not_plugged_in_is_a_warning`] |
//! | a state folder that is read-only, or full when the server starts | [`a_state_folder_that_takes_nothing_is_said_so`] |
//! | a state folder that fills up while clients write | [`a_host_that_is_full_loses_nothing_and_recovers`] |
//! | loaders that are missing or are none | [`a_loader_that_is_missing_is_said_so`], `src/app/bootfiles.rs` |

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod alone;
#[expect(dead_code, reason = "other tests ask more of it")]
mod initiator;

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use alone::{Lab, MASTER, alone, documented, failure, here, master_block, text};
use initiator::{Initiator, Isid, READ, WRITE, cdb_read, status_of};
use socket2::{Domain, Socket, Type};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const PC_01: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
const PC_02: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 12);
const PC_03: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 13);
/// An address that is no client's.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 66);
const PREFIX: &str = "iqn.2026-11.internal.roost";

fn initiator_of(client: &str) -> String {
    format!("{PREFIX}:client.{client}")
}

fn target_of(client: &str) -> String {
    format!("{PREFIX}:{client}")
}

fn connect(from: Ipv4Addr) -> Initiator {
    Initiator::connect(from, SocketAddr::from((SERVER, 3260)))
}

/// The session of this client's operating system.
fn log_in(from: Ipv4Addr, client: &str) -> Initiator {
    let mut session = connect(from);
    assert_eq!(session.log_in(&initiator_of(client), &target_of(client), Isid::system(1)), 0);
    session.settle();
    session
}

/// The status BUSY.
const BUSY: u8 = 0x08;

/// The exit codes of `roost --help`.
const FAILED: i32 = 1;
const CONFIGURATION: i32 = 3;
const REFUSED: i32 = 5;

/// A DHCP client's socket on `nic`.
fn dhcp_client() -> UdpSocket {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    socket.bind_device(Some(b"nic")).unwrap();
    socket.set_broadcast(true).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 68)).into()).unwrap();
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    socket
}

/// A message of the machine 52:54:00:aa:00:0`last` with these options, that wants its answer by broadcast.
fn dhcp(last: u8, xid: u8, options: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 240];
    packet[..3].copy_from_slice(&[1, 1, 6]); // BOOTREQUEST, Ethernet
    packet[4..8].copy_from_slice(&[0xab, 0xcd, last, xid]);
    packet[10] = 0x80;
    packet[28..34].copy_from_slice(&[0x52, 0x54, 0x00, 0xaa, 0x00, last]);
    packet[236..240].copy_from_slice(&[99, 130, 83, 99]);
    packet.extend_from_slice(options);
    packet
}

const DISCOVER: [u8; 3] = [53, 1, 1];
const END: [u8; 1] = [255];

fn shout(socket: &UdpSocket, packet: &[u8]) {
    socket.send_to(packet, (Ipv4Addr::BROADCAST, 67)).unwrap();
}

/// Kind and address of the answer to this message; `None` if there is none for a while.
fn answer(socket: &UdpSocket, to: &[u8]) -> Option<(u8, Ipv4Addr)> {
    let mut buffer = [0; 1500];
    loop {
        let length = socket.recv(&mut buffer).ok()?;
        let packet = &buffer[..length];
        if packet[4..8] == to[4..8] {
            let kind = packet[240..].windows(3).find(|option| option[..2] == [53, 1]).unwrap()[2];
            return Some((kind, <[u8; 4]>::try_from(&packet[16..20]).unwrap().into()));
        }
    }
}

/// The offer that a machine gets.
fn offered(socket: &UdpSocket, last: u8, xid: u8) -> Option<Ipv4Addr> {
    const OFFER: u8 = 2;
    const TRIES: usize = 10;
    let discover = dhcp(last, xid, &[&DISCOVER[..], &END].concat());
    // Machines say it again, too: a link that came up this moment may lose the first.
    let mut answers = (0..TRIES).map(|_| {
        shout(socket, &discover);
        answer(socket, &discover)
    });
    let (kind, address) = answers.find_map(|answer| answer)?;
    assert_eq!(kind, OFFER);
    Some(address)
}

#[test]
fn packets_that_are_no_dhcp_are_told_and_machines_get_their_addresses() {
    if !alone("packets_that_are_no_dhcp_are_told_and_machines_get_their_addresses") {
        return;
    }
    let lab = Lab::wired();
    lab.import();
    let server = lab.serve();
    let socket = dhcp_client();
    let discover = || dhcp(1, 0, &[&DISCOVER[..], &END].concat());
    let with = |at: usize, value: u8| {
        let mut packet = discover();
        packet[at] = value;
        packet
    };
    let mut wrong: Vec<(Vec<u8>, String)> = (17..=255_u8)
        .map(|hlen| {
            let what = "hardware type 1 with addresses of LEN bytes is not Ethernet";
            (with(2, hlen), documented(what, &[("LEN", &hlen.to_string())]))
        })
        .collect();
    let told = |what: &str| documented(what, &[]);
    wrong.extend([
        (discover()[..100].to_vec(), told("100 bytes are too few for a DHCP packet")),
        (with(236, 0), told("it has no DHCP options")),
        // Option 53 says that it is longer than the packet.
        (dhcp(1, 0, &[53, 40, 1]), told("it does not say what kind of message it is")),
        (dhcp(1, 0, &[53]), told("it does not say what kind of message it is")),
        (dhcp(1, 0, &END), told("it does not say what kind of message it is")),
        (dhcp(1, 0, &[53, 1, 99, 255]), told("message type 99 is not for a server")),
        (with(0, 2), told("op 2 is not a request")),
        (with(28, 0xff), told("no machine has the hardware address [ff, 54, 00, aa, 00, 01]")),
    ]);
    for (number, (packet, why)) in (0..).zip(&wrong) {
        shout(&socket, packet);
        let form = "DEBUG DHCP: a packet from SENDER was ignored: WHY";
        server.says(&documented(form, &[("SENDER", "10.77.0.11:68"), ("WHY", why)]));
        if number % 40 == 0 {
            assert_eq!(offered(&socket, 2, number), Some(PC_02), "after {why}");
        }
    }
    assert_eq!(offered(&socket, 1, 255), Some(PC_01));
}

#[test]
fn a_bad_option_hides_no_good_one() {
    if !alone("a_bad_option_hides_no_good_one") {
        return;
    }
    let lab = Lab::wired();
    lab.import();
    let _server = lab.serve();
    let socket = dhcp_client();
    let bad: [&[u8]; 8] = [
        &[93, 1, 7],                 // half an architecture
        &[57, 0],                    // no largest size at all
        &[57, 2, 0, 1],              // a size that no packet has
        &[50, 3, 10, 77, 0],         // three quarters of an address
        &[97, 2, 0, 1],              // a machine id cut short
        &[60, 0],                    // an empty class
        &[61, 1, 9],                 // an id of a type and nothing else
        &[175, 4, 0xb1, 0xff, 1, 0], // iPXE's own, with one inside that is longer than it
    ];
    for (xid, option) in (0..).zip(bad) {
        let discover = dhcp(1, xid, &[option, &DISCOVER, &END].concat());
        shout(&socket, &discover);
        assert_eq!(answer(&socket, &discover), Some((2, PC_01)), "after option {option:?}");
        // And one that is longer than the packet, behind the good ones.
        let discover = dhcp(1, 100 + xid, &[&DISCOVER, option, &[12, 200, b'x']].concat());
        shout(&socket, &discover);
        assert_eq!(answer(&socket, &discover), Some((2, PC_01)), "before option {option:?}");
    }
}

#[test]
fn an_address_that_a_packet_merely_claims_opens_no_disk() {
    if !alone("an_address_that_a_packet_merely_claims_opens_no_disk") {
        return;
    }
    const INFORM: [u8; 3] = [53, 1, 8];
    const ACK: u8 = 5;
    let lab = Lab::wired();
    lab.import();
    let _server = lab.serve();
    let socket = dhcp_client();
    // pc-01 is said to be at this address, where another machine answers.
    let mut inform = dhcp(1, 1, &[&INFORM[..], &END].concat());
    inform[12..16].copy_from_slice(&ELSEWHERE.octets());
    shout(&socket, &inform);
    assert_eq!(answer(&socket, &inform), Some((ACK, Ipv4Addr::UNSPECIFIED)));
    let refused = connect(ELSEWHERE).log_in(&initiator_of("pc-01"), &target_of("pc-01"), Isid::system(1));
    assert_eq!(refused, 0x0202);
    assert_eq!(log_in(PC_01, "pc-01").read(1, 1), master_block(1));
}

#[test]
fn names_that_lead_out_of_the_boot_files_lead_nowhere() {
    if !alone("names_that_lead_out_of_the_boot_files_lead_nowhere") {
        return;
    }
    let lab = Lab::wired();
    lab.import();
    let server = lab.serve();
    let ask = |name: &str| {
        let socket = UdpSocket::bind((PC_01, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let request = [b"\0\x01", name.as_bytes(), b"\0octet\0"].concat();
        socket.send_to(&request, (SERVER, 69)).unwrap();
        let mut buffer = [0; 600];
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        if buffer[1] == 3 {
            socket.send_to(b"\0\x04\0\x01", from).unwrap();
        }
        (buffer[..length].to_vec(), socket.local_addr().unwrap())
    };
    let config = lab.name("roost.toml");
    for name in [
        "../../../../etc/passwd",
        "..",
        ".",
        "/",
        "/etc/passwd",
        "undionly.kpxe/../../../../etc/shadow",
        "undionly.kpxe/..",
        &config,
        r"..\..\..\Windows\win.ini",
        r"C:\Windows\System32\config\SAM",
        r"\\server\share\boot.ini",
        r"C:undionly.kpxe\..",
    ] {
        let (refusal, client) = ask(name);
        let words = documented("no such boot file", &[]);
        assert_eq!(refusal, [b"\0\x05\0\x01", words.as_bytes(), b"\0"].concat(), "{name}");
        let form = "TFTP: MACHINE asked for `FILE`: there is no such boot file; there are snponly.efi, undionly.kpxe, \
                    autoexec.ipxe, boot.ipxe";
        server.says(&documented(form, &[("MACHINE", &client.to_string()), ("FILE", name)]));
        // The last part alone is a name, whatever stands before it: firmware writes all kinds of paths.
        for name in ["undionly.kpxe", r"..\..\boot\undionly.kpxe", "/../undionly.kpxe"] {
            assert_eq!(ask(name).0, b"\0\x03\0\x01a loader for BIOS", "{name}");
        }
    }
}

/// The header of a SCSI command that writes, with a data segment of this many bytes.
fn write_header(segment: u32) -> [u8; 48] {
    let mut header = [0; 48];
    (header[0], header[1]) = (0x01, 0x80 | WRITE);
    header[5..8].copy_from_slice(&segment.to_be_bytes()[1..]);
    header[16..20].copy_from_slice(&[0x77; 4]);
    header
}

#[test]
fn a_pdu_longer_than_was_agreed_on_ends_its_own_session_only() {
    if !alone("a_pdu_longer_than_was_agreed_on_ends_its_own_session_only") {
        return;
    }
    const LONGEST: u32 = 0x00ff_ffff;
    let lab = Lab::wired();
    lab.import();
    let server = lab.serve();
    let mut other = log_in(PC_02, "pc-02");

    for segment in [262_144 + 1, 1 << 20, LONGEST] {
        let mut session = log_in(PC_01, "pc-01");
        session.write(7, &[0xaa; 512]);
        session.send_bytes(&write_header(segment));
        assert!(session.is_closed());
        let form = "pc-01  refused     INITIATOR: its session was ended: a data segment of LEN bytes, where at most \
                    262144 were agreed on; it may log in again";
        let length = segment.to_string();
        server.says(&documented(form, &[("INITIATOR", &initiator_of("pc-01")), ("LEN", &length)]));
        assert_eq!(other.read(3, 1), master_block(3));
    }
    // It is in the client's timeline too, and what was written before is there.
    let mut again = log_in(PC_01, "pc-01");
    assert_eq!(again.read(7, 1), [0xaa; 512]);
    lab.shows("pc-01", "a data segment of 16777215 bytes, where at most 262144 were agreed on");

    // Before the login less is taken.
    for (segment, first) in [(8193, 0x43), (LONGEST, 0x43)] {
        let mut stranger = connect(ELSEWHERE);
        let mut header = write_header(segment);
        (header[0], header[1]) = (first, 0x87);
        stranger.send_bytes(&header);
        assert!(stranger.is_closed());
        let form = "MAC refused     a connection from ADDRESS was closed before it had logged in: a data segment of \
                    LEN bytes, where at most 8192 were agreed on";
        let (mac, length) = (mac_of_nic(), segment.to_string());
        server.says(&documented(form, &[("MAC", &mac), ("ADDRESS", "10.77.0.66"), ("LEN", &length)]));
    }
    let mut stranger = connect(ELSEWHERE);
    stranger.send_bytes(&write_header(0));
    assert!(stranger.is_closed());
    let form = "MAC refused     a connection from ADDRESS was closed before it had logged in: PDU 01h before the login";
    server.says(&documented(form, &[("MAC", &mac_of_nic()), ("ADDRESS", "10.77.0.66")]));
    assert_eq!(other.read(4, 1), master_block(4));
}

fn mac_of_nic() -> String {
    let output = Command::new("cat").arg("/sys/class/net/nic/address").output().unwrap();
    text(&output.stdout).trim().to_owned()
}

#[test]
fn more_data_than_a_first_burst_fails_its_command_only() {
    if !alone("more_data_than_a_first_burst_fails_its_command_only") {
        return;
    }
    let lab = Lab::wired();
    lab.import();
    let _server = lab.serve();
    let mut session = connect(PC_01);
    let text = format!(
        "InitiatorName={}\0TargetName={}\0SessionType=Normal\0InitialR2T=No\0ImmediateData=Yes\0\
         FirstBurstLength=4096\0MaxBurstLength=8192\0",
        initiator_of("pc-01"),
        target_of("pc-01")
    );
    assert_eq!(session.first_login(Isid::system(1), 0, &text).0, 0);
    session.settle();
    session.start_write(16, &[0xbb; 8192]);
    assert_eq!(status_of(&session.take_answer(0x21)), Some((0x0b, 0x0c, 0x0d)), "incorrect amount of data");
    documented("Bh/0Ch/0Dh", &[]);
    assert_eq!(session.read(16, 1), master_block(16), "none of it was written");
    session.write(16, &[0xbb; 4096]);
    assert_eq!(session.read(16, 8), [0xbb; 4096]);
}

#[test]
fn a_pdu_that_is_cut_short_changes_nothing() {
    if !alone("a_pdu_that_is_cut_short_changes_nothing") {
        return;
    }
    let lab = Lab::wired();
    lab.import();
    let server = lab.serve();
    let mut other = log_in(PC_02, "pc-02");
    // WRITE (10) of one block at 5.
    let mut header = write_header(512);
    header[20..24].copy_from_slice(&512_u32.to_be_bytes());
    header[32..42].copy_from_slice(&[0x2a, 0, 0, 0, 0, 5, 0, 0, 1, 0]);
    header[24..28].copy_from_slice(&3_u32.to_be_bytes()); // after the two commands of `settle`
    let whole = [&header[..], &[0xcc; 512]].concat();
    for cut in [1, 47, 48, 49, 48 + 511] {
        let mut session = log_in(PC_01, "pc-01");
        session.send_bytes(&whole[..cut]);
        session.hang_up();
        assert!(session.is_closed());
        let form = "DEBUG pc-01: the session of INITIATOR ended: the initiator closed the connection in the middle of a \
                    PDU, which does not count";
        server.says(&documented(form, &[("INITIATOR", &initiator_of("pc-01"))]));
        assert_eq!(log_in(PC_01, "pc-01").read(5, 1), master_block(5), "{cut} bytes of it came");
        assert_eq!(other.read(5, 1), master_block(5));
    }
    let mut session = log_in(PC_01, "pc-01");
    session.send_bytes(&whole);
    assert_eq!(status_of(&session.take_answer(0x21)), None);
    // The same before a login.
    for cut in [1, 48, 100] {
        let mut stranger = connect(ELSEWHERE);
        let mut header = write_header(512);
        (header[0], header[1]) = (0x43, 0x87);
        stranger.send_bytes(&[&header[..], &[0; 512]].concat()[..cut]);
        stranger.hang_up();
        assert!(stranger.is_closed());
    }
    assert_eq!(log_in(PC_01, "pc-01").read(5, 1), [0xcc; 512]);
}

#[test]
fn a_block_past_the_end_is_a_sense_code() {
    if !alone("a_block_past_the_end_is_a_sense_code") {
        return;
    }
    let lab = Lab::wired();
    lab.import();
    let _server = lab.serve();
    let mut session = log_in(PC_01, "pc-01");
    let blocks = u32::try_from(MASTER / 512).unwrap();
    let past_the_end = Some((0x05, 0x21, 0x00));
    documented("5h/21h/00h", &[]);
    for (lba, count) in [(blocks, 1), (blocks - 1, 2), (u32::MAX, 1), (0, 0)] {
        let expected = if count == 0 { None } else { past_the_end };
        session.start(&cdb_read(lba, count), READ, u32::from(count) * 512, &[]);
        assert_eq!(status_of(&session.take_answer(0x21)), expected, "read of {count} at {lba}");
        let mut write = cdb_read(lba, count);
        write[0] = 0x2a;
        session.start(&write, WRITE, u32::from(count) * 512, &vec![1; usize::from(count) * 512]);
        assert_eq!(status_of(&session.take_answer(0x21)), expected, "write of {count} at {lba}");
    }
    // READ (16) and WRITE (16) at the last number there is.
    for (opcode, flags, data) in [(0x88, READ, &[][..]), (0x8a, WRITE, &[1; 512][..])] {
        let mut cdb = [0; 16];
        cdb[0] = opcode;
        cdb[2..10].fill(0xff);
        cdb[13] = 1;
        session.start(&cdb, flags, 512, data);
        assert_eq!(status_of(&session.take_answer(0x21)), past_the_end);
    }
    assert_eq!(session.read(blocks - 1, 1), [0; 512], "the last block is one");
}

#[test]
fn a_login_that_is_refused_tells_the_operator_why() {
    if !alone("a_login_that_is_refused_tells_the_operator_why") {
        return;
    }
    let lab = Lab::wired();
    lab.import();
    let server = lab.serve();
    let mut other = log_in(PC_02, "pc-02");
    let own = initiator_of("pc-01");
    let stranger = "iqn.2026-11.internal.roost:client.pc-77";
    let mac = mac_of_nic();
    let refused = |from, initiator: &str, target: &str, status: u16| {
        assert_eq!(connect(from).log_in(initiator, target, Isid::system(1)), status);
    };

    refused(PC_01, &own, &target_of("pc-99"), 0x0203);
    let form = "MAC refused     INITIATOR: there is no target TARGET";
    server.says(&documented(form, &[("MAC", &mac), ("INITIATOR", &own), ("TARGET", &target_of("pc-99"))]));

    refused(PC_01, stranger, &target_of("pc-01"), 0x0202);
    let form =
        "pc-01  refused     WHO: this disk is for WANTED; add the name to the client's `initiators` to let it in";
    server.says(&documented(form, &[("WHO", stranger), ("WANTED", &own)]));

    refused(ELSEWHERE, &own, &target_of("pc-01"), 0x0202);
    let form = "pc-01  refused     INITIATOR: it came from 10.77.0.66, but the client's address is 10.77.0.11";
    server.says(&documented(form, &[("INITIATOR", &own)]));

    refused(PC_03, &initiator_of("pc-03"), &target_of("pc-03"), 0x0202);
    let form = "pc-03  refused     INITIATOR: the client is switched off (`off = true`)";
    server.says(&documented(form, &[("INITIATOR", &initiator_of("pc-03"))]));

    for text in [format!("TargetName={}\0", target_of("pc-01")), format!("InitiatorName={own}\0"), String::new()] {
        assert_eq!(connect(ELSEWHERE).first_login(Isid::system(1), 0, &text).0, 0x0207);
    }
    let form = "MAC refused     a login from ADDRESS without the initiator's or the target's name";
    server.says(&documented(form, &[("MAC", &mac), ("ADDRESS", "10.77.0.66")]));

    // What concerns a client is in its timeline, and nobody else was disturbed.
    lab.shows("pc-01", &format!("{own}: it came from 10.77.0.66, but the client's address is 10.77.0.11"));
    assert_eq!(other.read(1, 1), master_block(1));
    assert_eq!(log_in(PC_01, "pc-01").read(1, 1), master_block(1));
}

/// A verb of roost that needs no network, in this folder.
fn roost(folder: &Path, arguments: &[&str]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roost"));
    command.args(arguments).current_dir(folder).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn ten_mistakes_are_told_at_once() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config");
    let output = roost(&folder, &["check", "ten-mistakes.toml"]);
    assert_eq!(text(&output.stdout), include_str!("config/ten-mistakes.txt"));
    assert_eq!(output.status.code(), Some(CONFIGURATION));
    documented("ten-mistakes.toml: 10 errors", &[]);
    // Whoever wants to serve it is told the same, and nothing is made.
    let output = roost(&folder, &["--config", "ten-mistakes.toml", "run"]);
    let (code, said) = failure(&output);
    assert_eq!(code, CONFIGURATION);
    for line in include_str!("config/ten-mistakes.txt").lines().filter(|line| !line.ends_with(": 10 errors")) {
        assert!(said.contains(line), "{line} is not in\n{said}");
    }
}

/// A VHD's footer at the end, and its copy at the beginning.
fn damage_footers(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let end = bytes.len() - 512;
    bytes[50] ^= 1;
    bytes[end + 50] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_is_no_sound_disk_does_not_become_an_image() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let import = |file: &str| failure(&roost(folder, &["--state", "state", "image", "import", file, "--name", "x"]));
    fs::write(folder.join("letter.txt"), "Dear operator").unwrap();
    fs::write(folder.join("empty.raw"), "").unwrap();
    fs::write(folder.join("disk.raw.gz"), b"\x1f\x8b\x08 and so on").unwrap();
    fs::write(folder.join("disk.qcow2"), b"QFI\xfb and so on").unwrap();
    fs::write(folder.join("good.raw"), vec![7; 1 << 20]).unwrap();
    for (file, message) in [
        (
            "letter.txt",
            "error: letter.txt: 13 bytes are no disk: a raw disk is a whole number of 512-byte sectors (was the \
             download or copy cut short?)\n",
        ),
        ("empty.raw", "error: empty.raw: 0 bytes are no disk: a raw disk is a whole number of 512-byte sectors\n"),
        ("disk.raw.gz", "error: disk.raw.gz: compressed with gzip: unpack it first: gunzip -k disk.raw.gz\n"),
        ("disk.qcow2", "error: disk.qcow2: damaged at byte 4: qcow2 version 543256164; 2 and 3 are known\n"),
    ] {
        assert_eq!(import(file), (FAILED, documented(message, &[])));
    }
    let good = ["--state", "state", "image", "import", "good.raw", "--name", "good"];
    assert!(roost(folder, &good).status.success());
    let vhd = folder.join("wrong.vhd");
    fs::write(&vhd, fs::read(folder.join("state/images/good/1.vhd")).unwrap()).unwrap();
    damage_footers(&vhd);
    let (code, said) = import("wrong.vhd");
    let number = |after: &str| said.split_once(after).unwrap().1[..10].to_owned();
    let (stored, counted) = (number("checksum is "), number("bytes give "));
    assert!(stored.starts_with("0x") && stored != counted, "{said}");
    let at = (fs::metadata(&vhd).unwrap().len() - 512).to_string();
    let form = "error: wrong.vhd: damaged at byte AT: the footer's checksum is STORED, its bytes give COUNTED\n  \
                help: copy it again from where it came from; roost verify tells what is wrong, and its \
                --repair mends what is certain\n";
    let told = documented(form, &[("AT", &at), ("STORED", &stored), ("COUNTED", &counted)]);
    assert_eq!((code, said), (FAILED, told.clone()));
    assert_eq!(failure(&roost(folder, &["inspect", "wrong.vhd"])), (FAILED, told));
    let images = text(&roost(folder, &["--state", "state", "image", "list"]).stdout);
    assert!(images.contains("good ") && !images.contains("x "), "{images}");
}

/// The identity in a VHD's footer, as messages write it.
fn vhd_id(path: &Path) -> String {
    let mut file = fs::File::open(path).unwrap();
    let mut id = [0; 16];
    file.seek(SeekFrom::End(-512 + 68)).unwrap();
    file.read_exact(&mut id).unwrap();
    uuid::Uuid::from_bytes(id).to_string()
}

/// Moves a master with its checksum.
fn move_master(from: &Path, to: &Path) {
    use roost::disk::checksum::record_path as record;
    for (from, to) in [(from.to_owned(), to.to_owned()), (record(from), record(to))] {
        fs::rename(from, to).unwrap();
    }
}

#[test]
fn a_child_without_its_parent_is_told_and_the_other_clients_boot() {
    if !alone("a_child_without_its_parent_is_told_and_the_other_clients_boot") {
        return;
    }
    let lab = Lab::wired();
    lab.import();
    let server = lab.serve();
    log_in(PC_01, "pc-01").write(1, &[0xdd; 512]);
    server.kill();
    // Another disk lies where the parent was.
    let (master, kept) = (lab.path("state/images/linux/1.vhd"), lab.path("kept.vhd"));
    let child = lab.path("state/disks/pc-01.vhd");
    let wanted = vhd_id(&master);
    move_master(&master, &kept);
    fs::remove_dir(master.parent().unwrap()).unwrap();
    lab.import();
    let found = vhd_id(&master);
    let server = lab.serve();
    let refused = || connect(PC_01).log_in(&initiator_of("pc-01"), &target_of("pc-01"), Isid::system(1));
    assert_eq!(refused(), 0x0300);
    let form = "pc-01  refused     CHILD: wants the parent with id WANTED, but PARENT has id FOUND; bring that parent \
                back, or give up what the disk holds: roost reset pc-01";
    let (child_name, master_name) = (child.to_str().unwrap(), master.to_str().unwrap());
    let values = [("CHILD", child_name), ("WANTED", &wanted), ("PARENT", master_name), ("FOUND", &found)];
    server.says(&documented(form, &values));
    assert_eq!(log_in(PC_02, "pc-02").read(1, 1), master_block(1), "the other's disk is made of the new one");

    // No disk lies there.
    let fresh = lab.path("fresh.vhd");
    let kept_of_02 = lab.path("state/disks/pc-02.vhd");
    server.kill();
    let server = lab.serve();
    move_master(&master, &fresh);
    assert_eq!(refused(), 0x0300);
    let form = "pc-01  refused     there is no image `linux`: import it with `roost image import FILE --name linux`";
    server.says(&documented(form, &[]));
    let page = text(&lab.roost(&["inspect", child_name]).stdout);
    let form = "warning: CHILD: its parent (id WANTED) is missing; looked for PARENT\n  \
                help: bring its parent back: a differencing disk is of use only over the very file that it was made of\n";
    let tried = page.split_once("looked for ").unwrap().1.lines().next().unwrap();
    assert!(tried.split(", ").any(|path| path.ends_with("images/linux/1.vhd")), "{page}");
    let told = documented(form, &[("CHILD", child_name), ("WANTED", &wanted), ("PARENT", tried)]);
    assert!(page.ends_with(&told), "{told}\nis not the end of\n{page}");

    // The parent is back, and with it what the disk held; the other's disk waits for its own.
    server.kill();
    move_master(&kept, &master);
    let _server = lab.serve();
    assert_eq!(log_in(PC_01, "pc-01").read(1, 1), [0xdd; 512]);
    assert_eq!(connect(PC_02).log_in(&initiator_of("pc-02"), &target_of("pc-02"), Isid::system(1)), 0x0300);
    assert!(kept_of_02.exists());
    assert!(lab.roost(&["reset", "pc-02", "--yes"]).status.success());
    assert_eq!(log_in(PC_02, "pc-02").read(1, 1), master_block(1));
}

#[test]
fn a_state_folder_that_is_taken_names_the_process() {
    if !alone("a_state_folder_that_is_taken_names_the_process") {
        return;
    }
    let lab = Lab::local();
    lab.import();
    let first = lab.serve();
    let form = "error: the state folder STATE is in use by process PID (roost)\n  \
                help: wait until it is done, or stop it with `kill PID`; --state DIR names another folder\n";
    let (state, pid) = (lab.name("state"), first.pid().to_string());
    let told = documented(form, &[("STATE", &state), ("PID", &pid)]);
    assert_eq!(failure(&lab.roost(&["--log", "error", "run"])), (REFUSED, told));
    // The first one serves on, and once it is gone the folder is free.
    assert!(lab.roost(&["client", "show", "pc-01"]).status.success());
    first.kill();
    lab.serve();
}

#[test]
fn a_port_that_is_taken_names_the_process() {
    if !alone("a_port_that_is_taken_names_the_process") {
        return;
    }
    let lab = Lab::local();
    lab.import();
    let who = fs::read_to_string("/proc/self/comm").unwrap().trim().to_owned();
    let pid = std::process::id().to_string();
    let refused = |form: &str| {
        let told = documented(form, &[("WHO", &who), ("PID", &pid)]);
        assert_eq!(failure(&lab.roost(&["--log", "error", "run"])), (FAILED, told));
    };
    let udp = |port| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    let tcp = |port| TcpListener::bind((SERVER, port)).unwrap();
    {
        let _taken = udp(67);
        refused(
            "error: cannot serve DHCP: port 67/udp is taken by WHO (pid PID): stop it, or write dhcp = \"proxy\" to \
             work beside it\n",
        );
    }
    {
        let _taken = udp(69);
        refused(
            "error: cannot serve TFTP: port 69/udp on 10.77.0.1 is taken by WHO (pid PID): stop it, or switch off its \
             TFTP service\n",
        );
    }
    {
        let _taken = tcp(80);
        refused(
            "error: cannot serve HTTP: port 80/tcp on 10.77.0.1 is taken by WHO (pid PID): stop it, or have it listen \
             on another port or address\n",
        );
    }
    {
        let _taken = tcp(3260);
        refused(
            "error: cannot serve iSCSI: port 3260/tcp on 10.77.0.1 is taken by WHO (pid PID): stop it, or have it \
             listen on another address\n",
        );
    }
    {
        let _taken = udp(4011);
        refused(
            "error: cannot answer boot requests: port 4011/udp on 10.77.0.1 is taken by WHO (pid PID): stop it, or \
             switch off its PXE service\n",
        );
    }
    // Those of other addresses are in nobody's way.
    let _others = (TcpListener::bind("127.0.0.1:80").unwrap(), TcpListener::bind("127.0.0.1:3260").unwrap());
    lab.serve();
}

#[test]
fn an_interface_that_cannot_be_served_is_said_so() {
    if !alone("an_interface_that_cannot_be_served_is_said_so") {
        return;
    }
    let lab = Lab::local();
    lab.import();
    let refused = |message: &str| {
        assert_eq!(failure(&lab.roost(&["--log", "error", "run"])), (FAILED, documented(message, &[])));
    };
    here("ip address flush dev lan");
    refused(
        "error: interface `lan` has no IPv4 address; give it a fixed one, for example: ip address add 10.20.0.1/16 dev \
         lan\n",
    );
    here("ip address add 10.77.0.1/24 dev lan && ip link set lan down");
    refused("error: interface `lan` is down; switch it on: ip link set lan up\n");
    here("ip link set lan name wan");
    refused(
        "error: there is no interface `lan`; this host has lo (127.0.0.1/8, not wired), plug (no address, no carrier), \
         wan (10.77.0.1/24, down)\n",
    );
    here("ip link set wan name lan && ip link set lan up");
    lab.serve();
}

#[test]
fn a_cable_that_is_not_plugged_in_is_a_warning() {
    if !alone("a_cable_that_is_not_plugged_in_is_a_warning") {
        return;
    }
    let lab = Lab::wired();
    lab.import();
    here("ip link set nic down");
    let form = "WARN interface lan has no carrier: nothing answers at the other end of its cable; serving all the same";
    let server = lab.serve_after(Some(&documented(form, &[])));
    // It is plugged in.
    here("ip link set nic up");
    here("for n in 11 12 13 66; do ip address replace 10.77.0.$n/24 dev nic; done");
    assert_eq!(offered(&dhcp_client(), 1, 1), Some(PC_01));
    assert_eq!(log_in(PC_01, "pc-01").read(1, 1), master_block(1));
    // And a link that came up this moment is no reason to warn.
    server.kill();
    here("ip link set nic down && ip link set nic up");
    lab.serve();
}

#[test]
fn a_loader_that_is_missing_is_said_so() {
    if !alone("a_loader_that_is_missing_is_said_so") {
        return;
    }
    let lab = Lab::local();
    lab.import();
    fs::rename(lab.path("loaders/snponly.efi"), lab.path("loaders/put-away")).unwrap();
    let form = "error: there is no snponly.efi in LOADERS: install it (apt install ipxe), or say in roost.toml where it \
                is: [server] loader_dir\n";
    let told = documented(form, &[("LOADERS", &lab.name("loaders"))]);
    assert_eq!(failure(&lab.roost(&["--log", "error", "run"])), (FAILED, told));
    fs::rename(lab.path("loaders/put-away"), lab.path("loaders/snponly.efi")).unwrap();
    lab.serve();
}

#[test]
fn a_state_folder_that_takes_nothing_is_said_so() {
    if !alone("a_state_folder_that_takes_nothing_is_said_so") {
        return;
    }
    let lab = Lab::local();
    here(&format!("mount -t tmpfs -o size=16m tmpfs {}", lab.name("state")));
    lab.import();
    let state = lab.name("state");
    let refused = |form: &str| {
        let told = documented(form, &[("STATE", &state)]);
        assert_eq!(failure(&lab.roost(&["--log", "error", "run"])), (FAILED, told));
    };
    here(&format!("mount -o remount,bind,ro {state}"));
    refused(
        "error: the state folder STATE cannot be used: STATE/lock: Read-only file system (os error 30)\n  \
         help: mount it writable, or name another folder: --state DIR, or `state` under [server]\n",
    );
    here(&format!("mount -o remount,bind,rw {state}"));
    fill(&lab);
    refused(
        "error: cannot open the store STATE/roost.redb.new: I/O error: No space left on device (os error 28)\n  \
         help: free some space there; what was stored before is safe\n",
    );
    fs::remove_file(lab.path("state/lock")).unwrap();
    fill(&lab);
    refused(
        "error: the state folder STATE cannot be used: STATE/lock: No space left on device (os error 28)\n  \
         help: free some space there, or name another folder: --state DIR, or `state` under [server]\n",
    );
    fs::remove_file(lab.path("state/ballast")).unwrap();
    lab.serve();
}

/// Takes all the space that is left under the state folder.
fn fill(lab: &Lab) {
    let ballast = lab.path("state/ballast");
    lab.sh(&format!("cat /dev/zero >> {} 2>/dev/null; true", ballast.display()));
}

#[test]
fn a_host_that_is_full_loses_nothing_and_recovers() {
    if !alone("a_host_that_is_full_loses_nothing_and_recovers") {
        return;
    }
    const REQUEST: [u8; 3] = [53, 1, 3];
    let lab = Lab::wired();
    lab.sh(&format!("mount -t tmpfs -o size=16m tmpfs {}", lab.name("state")));
    lab.import();
    let server = lab.serve();
    let mut session = log_in(PC_01, "pc-01");
    session.write(1, &[1; 512]);
    fill(&lab);

    // The operator is told, and each session once.
    let form = "WARN STATE: FREE left of 16 MiB, which is little: free some, or give clients a limit; once no more than \
                256 KiB are left, what grows a disk waits, and is told that the disk is busy";
    let told = documented(form, &[("STATE", &lab.name("state")), ("FREE", "0 KiB")]);
    server.says(&told);
    assert_eq!(session.test_unit_ready(), Some((0x06, 0x38, 0x07)));
    assert_eq!(session.test_unit_ready(), None, "once");

    // What grows the disk waits, a part of a session's commands at most; more is told at once that the disk is busy.
    let (waiting, busy) = (16, 2);
    let lba_of = |n: u32| (n + 1) * 3000;
    let begun = Instant::now();
    let tasks: Vec<u32> = (0..waiting + busy).map(|n| session.start_write(lba_of(n), &[0x80; 2048])).collect();
    for task in &tasks[tasks.len() - 2..] {
        let answer = session.take_answer(0x21);
        assert_eq!((answer.itt(), answer.header[3]), (*task, BUSY));
    }
    // Meanwhile the rest goes on: reads, pings, task management, and writes to where something is.
    session.abort(tasks[3]);
    let mut rounds = 0_u8;
    while begun.elapsed() < Duration::from_secs(15) {
        session.nop();
        assert_eq!(session.read(9, 1), master_block(9));
        session.write(1, &[rounds; 512]);
        assert_eq!(session.read(1, 1), [rounds; 512]);
        session.flush();
        rounds = rounds.wrapping_add(1);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(rounds > 30, "{rounds}");
    session.write(1, &[1; 512]);
    for task in tasks.iter().take(16).filter(|task| **task != tasks[3]) {
        let answer = session.take_answer(0x21);
        assert_eq!((answer.itt(), answer.header[3]), (*task, BUSY));
    }
    let waited = begun.elapsed();
    assert!((Duration::from_secs(18)..Duration::from_secs(22)).contains(&waited), "{waited:?}");
    for n in 0..waiting + busy {
        assert_eq!(session.read(lba_of(n), 4), [0; 2048], "nothing of what was not done is there");
    }
    let mut acknowledged = vec![1];
    // A disk that is to be made cannot be, and says so.
    assert_eq!(connect(PC_02).log_in(&initiator_of("pc-02"), &target_of("pc-02"), Isid::system(1)), 0x0300);
    let form = "pc-02  refused     CHILD: no space left on the host: free some; what was acknowledged is safe";
    server.says(&documented(form, &[("CHILD", &lab.name("state/disks/pc-02.vhd.next"))]));
    // A lease that cannot be stored is not given.
    let socket = dhcp_client();
    assert_eq!(offered(&socket, 2, 1), Some(PC_02), "an offer needs no space");
    let request = |xid| dhcp(2, xid, &[&REQUEST[..], &[54, 4, 10, 77, 0, 1, 50, 4, 10, 77, 0, 12], &END].concat());
    socket.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
    shout(&socket, &request(2));
    assert_eq!(answer(&socket, &request(2)), None);
    let form = "WARN DHCP: leases could not be stored, so their clients get no answer error=WHY";
    let why = "the store failed: I/O error: No space left on device (os error 28)";
    server.says(&documented(form, &[("WHY", why)]));

    // Space is made: what waits goes on, and everything else, without a restart.
    for lba in [3000, 6000] {
        session.start_write(lba, &[u8::try_from(lba / 3000).unwrap() | 0x80; 512]);
        acknowledged.push(lba);
    }
    session.nop();
    fs_remove_ballast(&lab);
    for _ in 0..2 {
        assert_eq!(session.take_answer(0x21).header[3], 0, "GOOD");
    }
    let begun = Instant::now();
    while server.said_so_far("are free again, which is enough").is_none() {
        assert!(begun.elapsed() < Duration::from_secs(10), "it never said that there is space again");
        std::thread::sleep(Duration::from_millis(50));
    }
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    shout(&socket, &request(3));
    assert_eq!(answer(&socket, &request(3)), Some((5, PC_02)));
    for n in 40..60_u32 {
        session.write(n * 3 + 2000, &[7; 512]);
        acknowledged.push(n * 3 + 2000);
    }
    session.flush();
    assert_eq!(log_in(PC_02, "pc-02").read(2, 1), master_block(2));
    server.kill();
    let _server = lab.serve();
    let mut session = log_in(PC_01, "pc-01");
    for lba in acknowledged {
        let byte = match lba {
            1 => 1,
            lba if lba % 3000 == 0 => u8::try_from(lba / 3000).unwrap() | 0x80,
            _ => 7,
        };
        assert_eq!(session.read(lba, 1), [byte; 512], "block {lba}");
    }
}

fn fs_remove_ballast(lab: &Lab) {
    lab.sh(&format!("rm {}", lab.name("state/ballast")));
}
