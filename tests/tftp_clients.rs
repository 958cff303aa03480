//! TFTP with clients that nobody here wrote, and with a bare socket for what none of them does.

#![expect(clippy::unwrap_used, reason = "in a test an unwrap is an assertion, in its helpers too")]

mod bootserver;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use bootserver::{LOCALHOST, Lab, MAC, client, have};
use roost::fleet::{Fact, Mac, Platform, Stage};
use roost::net::tftp::MAX_PER_CLIENT;

const SIZE: usize = 300_001;

/// A client's fetch of `undionly.kpxe` into the file `got`.
fn fetched(lab: &Lab) {
    assert!(fs::read(lab.file("got")).unwrap() == lab.undionly, "the file is not what was served");
    fs::remove_file(lab.file("got")).unwrap();
}

#[test]
fn atftp_fetches_with_windows_and_every_block_size() {
    if !have("atftp_fetches_with_windows_and_every_block_size", "atftp", "atftp") {
        return;
    }
    let lab = Lab::new(SIZE, Some(MAC));
    let port = lab.tftp.to_string();
    for options in [
        &[][..],
        &["--option", "blksize 1468"],
        &["--option", "blksize 1468", "--option", "windowsize 4"],
        &["--option", "blksize 65464", "--option", "windowsize 64", "--option", "tsize 0", "--option", "timeout 2"],
        &["--option", "blksize 600", "--option", "windowsize 7"],
    ] {
        let get = ["--get", "-r", "/pxe/UNDIONLY.kpxe", "-l", "got", "127.0.0.1", &port];
        client("atftp", &[options, &get].concat(), lab.out.path());
        fetched(&lab);
    }
    let events = lab.events(Stage::Loader, 1);
    assert_eq!(events[0].client.as_ref().map(ToString::to_string).as_deref(), Some("pc-01"));
    assert!(events[0].detail.starts_with("undionly.kpxe by TFTP, 301 KB in "), "{}", events[0].detail);
}

#[test]
fn more_than_65535_blocks_arrive_whole() {
    if !have("more_than_65535_blocks_arrive_whole", "atftp", "atftp") {
        return;
    }
    let lab = Lab::new(32 * 70_000 + 5, None);
    let options = ["--option", "blksize 32", "--option", "windowsize 32"];
    let get = ["--get", "-r", "undionly.kpxe", "-l", "got", "127.0.0.1", &lab.tftp.to_string()];
    client("atftp", &[&options[..], &get].concat(), lab.out.path());
    fetched(&lab);
}

#[test]
fn tftp_hpa_fetches_in_binary_and_in_ascii() {
    if !have("tftp_hpa_fetches_in_binary_and_in_ascii", "tftp", "tftp-hpa") {
        return;
    }
    let lab = Lab::new(SIZE, None);
    let port = lab.tftp.to_string();
    client("tftp", &["-m", "binary", "127.0.0.1", &port, "-c", "get", "undionly.kpxe", "got"], lab.out.path());
    fetched(&lab);
    // It turns the line ends back into its own, so that the file is the same: every CR and LF of it was translated twice.
    client("tftp", &["-m", "ascii", "127.0.0.1", &port, "-c", "get", "undionly.kpxe", "got"], lab.out.path());
    fetched(&lab);
}

#[test]
fn netascii_is_translated_and_its_size_unsaid_no_more_than_it_is() {
    let lab = Lab::new(100, None);
    let (first, _) = Bare::new(&lab).ask(b"\0\x01undionly.kpxe\0NetAscii\0");
    let text: Vec<u8> = lab
        .undionly
        .iter()
        .flat_map(|byte| match byte {
            b'\n' => vec![b'\r', b'\n'],
            b'\r' => vec![b'\r', 0],
            other => vec![*other],
        })
        .collect();
    assert!(text.len() > 100, "there is something to translate");
    assert_eq!(first[4..], text);
    let (oack, _) = Bare::new(&lab).ask(b"\0\x01undionly.kpxe\0netascii\0tsize\x000\0");
    assert_eq!(oack, format!("\0\x06tsize\0{}\0", text.len()).into_bytes());
}

#[test]
fn every_client_fetches_over_a_single_port_too() {
    let lab = Lab::with(SIZE, None, true);
    let port = lab.tftp.to_string();
    let url = format!("tftp://127.0.0.1:{port}/undionly.kpxe");
    let get: [(&str, &str, &[&str]); 5] = [
        (
            "atftp",
            "atftp",
            &[
                "--option",
                "blksize 1468",
                "--option",
                "windowsize 8",
                "--get",
                "-r",
                "undionly.kpxe",
                "-l",
                "got",
                "127.0.0.1",
                &port,
            ],
        ),
        ("atftp", "atftp", &["--get", "-r", "undionly.kpxe", "-l", "got", "127.0.0.1", &port]),
        ("tftp", "tftp-hpa", &["-m", "binary", "127.0.0.1", &port, "-c", "get", "undionly.kpxe", "got"]),
        ("curl", "curl", &["-sS", "-o", "got", &url]),
        ("busybox", "busybox", &["tftp", "-b", "1468", "-g", "-r", "undionly.kpxe", "-l", "got", "127.0.0.1", &port]),
    ];
    for (program, package, arguments) in get {
        if have("every_client_fetches_over_a_single_port_too", program, package) {
            client(program, arguments, lab.out.path());
            fetched(&lab);
        }
    }
    // Two at once, and an ERROR ends the one alone.
    let request = b"\0\x01undionly.kpxe\0octet\0tsize\x000\0";
    let (one, other) = (Bare::new(&lab), Bare::new(&lab));
    for bare in [&one, &other] {
        let (oack, from) = bare.ask(request);
        assert_eq!((&oack[..], from.port()), (&b"\0\x06tsize\x00300001\0"[..], lab.tftp));
    }
    one.socket.send_to(b"\0\x05\0\x08no more\0", one.server).unwrap();
    other.socket.send_to(b"\0\x04\0\0", other.server).unwrap();
    assert_eq!(other.hear().0[4..], lab.undionly[..512]);
    one.socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(one.socket.recv(&mut [0; 600]).is_err(), "an ERROR is never answered");
}

#[test]
fn a_machine_that_gets_no_large_block_is_given_small_ones_and_that_is_told() {
    let lab = Lab::new(SIZE, Some(MAC));
    let request = b"\0\x01undionly.kpxe\0octet\0blksize\x001468\0";
    let deaf = Bare::new(&lab);
    let (oack, tid) = deaf.ask(request);
    assert_eq!(oack, b"\0\x06blksize\x001468\0");
    deaf.socket.send_to(b"\0\x04\0\0", tid).unwrap();
    for _ in 0..3 {
        assert_eq!(deaf.hear().0.len(), 1472);
    }
    let events = lab.events(Stage::Loader, 1);
    assert!(events[0].detail.contains("blocks of 512 bytes from now on"), "{}", events[0].detail);
    assert_eq!(events[0].fact, Some(Fact::SmallBlocks { blksize: 1468, sent: 3 }));
    let again = Bare::new(&lab);
    assert_eq!(again.ask(request).0, b"\0\x06blksize\x00512\0");
    let elsewhere = Bare::at(Ipv4Addr::new(127, 0, 0, 9), &lab);
    assert_eq!(elsewhere.ask(request).0, b"\0\x06blksize\x001468\0", "another machine");
}

#[test]
fn curl_fetches_with_and_without_a_block_size() {
    if !have("curl_fetches_with_and_without_a_block_size", "curl", "curl") {
        return;
    }
    let lab = Lab::new(SIZE, None);
    let url = format!("tftp://127.0.0.1:{}/undionly.kpxe", lab.tftp);
    for options in [&[][..], &["--tftp-blksize", "1468"], &["--tftp-no-options"]] {
        client("curl", &[&["-sS", "-o", "got"], options, &[&url]].concat(), lab.out.path());
        fetched(&lab);
    }
}

#[test]
fn busybox_fetches_with_and_without_a_block_size() {
    if !have("busybox_fetches_with_and_without_a_block_size", "busybox", "busybox") {
        return;
    }
    let lab = Lab::new(SIZE, None);
    let port = lab.tftp.to_string();
    for options in [&[][..], &["-b", "1468"]] {
        let get = ["-g", "-r", "undionly.kpxe", "-l", "got", "127.0.0.1", &port];
        client("busybox", &[&["tftp"], options, &get].concat(), lab.out.path());
        fetched(&lab);
    }
}

#[test]
fn an_independent_windowed_client_fetches_over_a_wire_that_loses_packets() {
    let lab = Lab::new(40_001, None);
    let relay = lossy_relay(lab.tftp);
    for (blksize, windowsize) in [("512", "1"), ("1468", "4"), ("1024", "16")] {
        let directory = lab.out.path().to_str().unwrap();
        let arguments = ["undionly.kpxe", "-i", "127.0.0.1", "-p", &relay.to_string(), "-b", blksize, "-w", windowsize];
        let arguments = [&arguments[..], &["-t", "1", "-rd", directory, "-q", "-q"]].concat();
        let config = tftpd::ClientConfig::new(arguments.into_iter().map(str::to_owned)).unwrap();
        assert!(tftpd::Client::new(&config).unwrap().run().unwrap(), "blksize {blksize}, windowsize {windowsize}");
        assert!(fs::read(lab.file("undionly.kpxe")).unwrap() == lab.undionly, "the file is not what was served");
    }
}

/// A port that leads to the server, where one packet of 31 towards the client and one ACK of 29 are lost.
fn lossy_relay(server: u16) -> u16 {
    let near = UdpSocket::bind((LOCALHOST, 0)).unwrap();
    let port = near.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut far = UdpSocket::bind((LOCALHOST, 0)).unwrap();
        let (mut client, mut transfer) = (None, None);
        let mut buffer = [0; 65_536];
        let (mut up, mut down) = (0_u32, 0_u32);
        near.set_nonblocking(true).unwrap();
        loop {
            far.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            if let Ok((length, from)) = far.recv_from(&mut buffer) {
                transfer = Some(from);
                down += 1;
                if let (Some(client), true) = (client, down % 31 != 20) {
                    near.send_to(&buffer[..length], client).unwrap();
                }
            }
            while let Ok((length, from)) = near.recv_from(&mut buffer) {
                if buffer[1] == 1 {
                    client = Some(from);
                    transfer = None;
                    far = UdpSocket::bind((LOCALHOST, 0)).unwrap();
                }
                up += 1;
                if buffer[1] == 1 || up % 29 != 10 {
                    let to = transfer.unwrap_or(SocketAddr::from((LOCALHOST, server)));
                    far.send_to(&buffer[..length], to).unwrap();
                }
            }
        }
    });
    port
}

/// A bare socket that speaks to the server.
struct Bare {
    socket: UdpSocket,
    server: SocketAddr,
}

impl Bare {
    fn new(lab: &Lab) -> Self {
        Self::at(LOCALHOST, lab)
    }

    fn at(address: Ipv4Addr, lab: &Lab) -> Self {
        let socket = UdpSocket::bind((address, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Self { socket, server: SocketAddr::from((LOCALHOST, lab.tftp)) }
    }

    fn ask(&self, request: &[u8]) -> (Vec<u8>, SocketAddr) {
        self.socket.send_to(request, self.server).unwrap();
        self.hear()
    }

    fn hear(&self) -> (Vec<u8>, SocketAddr) {
        let mut buffer = [0; 2048];
        let (length, from) = self.socket.recv_from(&mut buffer).unwrap();
        (buffer[..length].to_vec(), from)
    }
}

#[test]
fn each_transfer_has_its_own_port_and_a_request_again_keeps_it() {
    let lab = Lab::new(SIZE, None);
    let request = b"\0\x01undionly.kpxe\0octet\0tsize\x000\0";
    let bare = Bare::new(&lab);
    let (oack, tid) = bare.ask(request);
    assert_eq!(oack, b"\0\x06tsize\x00300001\0");
    assert_ne!(tid.port(), lab.tftp);
    thread::sleep(Duration::from_millis(50));
    assert_eq!(bare.ask(request), (oack, tid));
    let (_, other) = Bare::new(&lab).ask(request);
    assert_ne!(other, tid);
}

#[test]
fn a_packet_from_somebody_else_is_answered_and_leaves_the_transfer_alone() {
    let lab = Lab::new(100, None);
    let bare = Bare::new(&lab);
    let (oack, tid) = bare.ask(b"\0\x01undionly.kpxe\0octet\0tsize\x000\0");
    assert_eq!(oack[1], 6);
    let stranger = Bare::new(&lab);
    stranger.socket.send_to(b"\0\x04\0\0", tid).unwrap();
    let (error, from) = stranger.hear();
    assert_eq!((&error[..4], from), (&b"\0\x05\0\x05"[..], tid));
    bare.socket.send_to(b"\0\x04\0\0", tid).unwrap();
    assert_eq!(bare.hear().0[4..], lab.undionly[..]);
}

#[test]
fn uefi_firmwares_size_probe_is_no_event_and_its_second_request_is_served() {
    let lab = Lab::new(100, Some(MAC));
    let probe = Bare::new(&lab);
    let (oack, tid) = probe.ask(b"\0\x01snponly.efi\0octet\0tsize\x000\0blksize\x001468\0windowsize\x004\0");
    assert_eq!(oack, b"\0\x06blksize\x001468\0tsize\x00100000\0windowsize\x004\0");
    probe.socket.send_to(b"\0\x05\0\x08User aborted the transfer\0", tid).unwrap();
    let bare = Bare::new(&lab);
    let (oack, tid) = bare.ask(b"\0\x01snponly.efi\0octet\0blksize\x001468\0windowsize\x004\0");
    assert_eq!(oack, b"\0\x06blksize\x001468\0windowsize\x004\0");
    let mut got = Vec::new();
    let mut ack = 0_u16;
    while ack < 69 {
        bare.socket.send_to(&[&[0, 4][..], &ack.to_be_bytes()].concat(), tid).unwrap();
        let window = (69 - ack).min(4);
        for _ in 0..window {
            got.extend_from_slice(&bare.hear().0[4..]);
        }
        ack += window;
    }
    bare.socket.send_to(&[&[0, 4][..], &ack.to_be_bytes()].concat(), tid).unwrap();
    assert!(got == lab.snponly, "the file is not what was served");
    let events = lab.events(Stage::Loader, 1);
    assert_eq!(events.len(), 1, "{events:?}");
    assert!(events[0].detail.starts_with("snponly.efi by TFTP, 100 KB in "), "{}", events[0].detail);
}

#[test]
fn what_cannot_be_had_is_refused_in_words_without_a_path() {
    let lab = Lab::new(100, None);
    for (request, code, words) in [
        (&b"\0\x01/etc/passwd\0octet\0"[..], 1, "no such boot file"),
        (b"\0\x01../../undionly.kpxe/..\0octet\0", 1, "no such boot file"),
        (b"\0\x01ipxe.efi\0octet\0", 1, "no such boot file"),
        (b"\0\x01\0\0", 0, "boot files are sent in octet mode (try: binary)"),
        (b"\0\x02undionly.kpxe\0octet\0", 2, "this server sends boot files and takes none"),
        (b"\0\x04\0\x01", 4, "a read request was expected here"),
        (b"\0\x01undionly.kpxe\0mail\0", 0, "boot files are sent in octet mode (try: binary)"),
    ] {
        let (answer, _) = Bare::new(&lab).ask(request);
        let expected = [&[0, 5, 0, code][..], words.as_bytes(), b"\0"].concat();
        assert_eq!(answer, expected, "{}", request.escape_ascii());
    }
}

/// What is kept of the packets of `MAC`'s machine: (what, code, whether there is a frame of it).
fn kept(lab: &Lab) -> Vec<(String, String, bool)> {
    let packets = lab.recorder.packets().of(&[MAC.parse().unwrap()], 0);
    packets.into_iter().map(|packet| (packet.what, packet.code, packet.frame.is_some())).collect()
}

#[test]
fn of_a_transfer_all_is_kept_but_its_blocks() {
    let lab = Lab::new(1_000, Some(MAC));
    let bare = Bare::new(&lab);
    let (_, tid) = bare.ask(b"\0\x01undionly.kpxe\0octet\0blksize\x00600\0");
    for ack in 0..=2 {
        bare.socket.send_to(&[0, 4, 0, ack], tid).unwrap();
        if ack < 2 {
            bare.hear();
        }
    }
    let [event] = lab.events(Stage::Loader, 1).try_into().unwrap();
    assert!(matches!(event.fact, Some(Fact::Fetched { bytes: 1_000, ms: Some(_) })), "{:?}", event.fact);
    Bare::new(&lab).ask(b"\0\x01nothing\0octet\0");
    let row = |what: &str, code: &str| (what.to_owned(), code.to_owned(), true);
    let all = [
        row("read undionly.kpxe, blksize 600", "served"),
        row("OACK", "sent"),
        row("ACK 2", "complete"),
        row("read nothing", "no-such-file"),
        row("ERROR 1: no such boot file", "sent"),
    ];
    assert_eq!(kept(&lab), all);
}

#[test]
fn what_keeps_a_loader_from_its_work_is_an_event_with_its_fact() {
    let lab = Lab::new(100, Some(MAC));
    let mac: Mac = MAC.parse().unwrap();
    lab.recorder.saw(mac, None);
    lab.recorder.is_of(mac, true, Platform::Bios);
    let last = |count| lab.events(Stage::Loader, count).pop().unwrap().fact;

    // A loader for UEFI, and one that does not exist.
    let bare = Bare::new(&lab);
    let (_, tid) = bare.ask(b"\0\x01snponly.efi\0octet\0blksize\x001000\0");
    let wrong = |loader: &str, of: &str| {
        Some(Fact::WrongLoader { firmware: "bios".to_owned(), loader: loader.to_owned(), of: of.to_owned() })
    };
    assert_eq!(last(1), wrong("snponly.efi", "x64"));
    Bare::new(&lab).ask(b"\0\x01bootx64.efi\0octet\0");
    assert_eq!(last(2), wrong("bootx64.efi", "uefi"));

    // It is too big for it.
    bare.socket.send_to(b"\0\x04\0\0", tid).unwrap();
    bare.hear();
    bare.socket.send_to(b"\0\x05\0\x03NBP too big", tid).unwrap();
    assert_eq!(last(3), Some(Fact::GaveUp { code: 3, acked: 0, blocks: 101 }));

    // The same loader again and again.
    for _ in 0..3 {
        let bare = Bare::new(&lab);
        let (_, tid) = bare.ask(b"\0\x01undionly.kpxe\0octet\0");
        bare.socket.send_to(b"\0\x04\0\x01", tid).unwrap();
        // The server has seen the last ACK when it is kept.
        let complete = || kept(&lab).iter().filter(|(_, code, _)| code == "complete").count();
        let before = std::time::Instant::now();
        let count = complete();
        while complete() == count && count < 3 && before.elapsed() < Duration::from_secs(1) {
            thread::sleep(Duration::from_millis(5));
        }
    }
    let looping = Fact::LoaderLoop { loader: "undionly.kpxe".to_owned(), times: 3 };
    let begin = std::time::Instant::now();
    while !lab.recorder.events().iter().any(|event| event.fact == Some(looping.clone())) {
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", lab.recorder.events());
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn one_address_cannot_take_every_transfer() {
    let lab = Lab::new(SIZE, None);
    let request = b"\0\x01undionly.kpxe\0octet\0";
    let clients: Vec<Bare> = (0..=MAX_PER_CLIENT).map(|_| Bare::new(&lab)).collect();
    let answers: Vec<u8> = clients.iter().map(|bare| bare.ask(request).0[1]).collect();
    let mut expected = vec![3; MAX_PER_CLIENT];
    expected.push(5);
    assert_eq!(answers, expected);
}

#[test]
fn scripts_by_tftp_are_the_machines_own_or_lead_to_it() {
    let request = b"\0\x01\\x\\boot.ipxe\0octet\0blksize\x001468\0";
    for (neighbour, expected) in [
        (Some(MAC), "set hostname pc-01\n"),
        (Some("52:54:00:aa:00:99"), "new-name = \"52:54:00:aa:00:99\"\n"),
        (None, "http://127.0.0.1:HTTP/boot.ipxe?mac=${mac:hexhyp}"),
    ] {
        let lab = Lab::new(100, neighbour);
        let expected = expected.replace("HTTP", &lab.http.to_string());
        let bare = Bare::new(&lab);
        let (_, tid) = bare.ask(request);
        bare.socket.send_to(b"\0\x04\0\0", tid).unwrap();
        let script = String::from_utf8(bare.hear().0[4..].to_vec()).unwrap();
        assert!(script.starts_with("#!ipxe\n") && script.contains(&expected), "{script}");
        bare.socket.send_to(b"\0\x04\0\x01", tid).unwrap();
        if neighbour.is_some() {
            assert_eq!(lab.events(Stage::Script, 1).len(), 1);
        }
    }
}

#[test]
fn stopping_lets_a_running_transfer_end() {
    let lab = Lab::new(100, Some(MAC));
    let bare = Bare::new(&lab);
    let (_, tid) = bare.ask(b"\0\x01undionly.kpxe\0octet\0tsize\x000\0");
    lab.stop();
    bare.socket.send_to(b"\0\x04\0\0", tid).unwrap();
    assert_eq!(bare.hear().0[4..], lab.undionly[..]);
    bare.socket.send_to(b"\0\x04\0\x01", tid).unwrap();
    assert_eq!(lab.events(Stage::Loader, 1).len(), 1);
    lab.stopped();
}

#[test]
fn stopping_lets_a_transfer_over_the_one_port_end_and_begins_none() {
    let lab = Lab::with(100, Some(MAC), true);
    let bare = Bare::new(&lab);
    let (_, tid) = bare.ask(b"\0\x01undionly.kpxe\0octet\0tsize\x000\0");
    assert_eq!(tid.port(), lab.tftp);
    lab.stop();
    // Which is there before the ACK: who comes now is left to whoever serves next.
    let late = Bare::new(&lab);
    late.socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    thread::sleep(Duration::from_millis(50));
    late.socket.send_to(b"\0\x01undionly.kpxe\0octet\0", tid).unwrap();
    bare.socket.send_to(b"\0\x04\0\0", tid).unwrap();
    assert_eq!(bare.hear().0[4..], lab.undionly[..]);
    assert!(late.socket.recv(&mut [0; 4]).is_err(), "a transfer began after the stop");
    bare.socket.send_to(b"\0\x04\0\x01", tid).unwrap();
    assert_eq!(lab.events(Stage::Loader, 1).len(), 1);
    lab.stopped();
}

#[test]
fn a_raspberry_pi_fetches_its_files_and_hears_at_once_what_is_not_there() {
    let lab = Lab::new(100, Some(MAC));
    for (name, text) in [("start4.elf", "firmware"), ("config.txt", "of all"), ("1a2b3c4d/config.txt", "of one")] {
        let path = lab.file("files/rpi").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    fs::write(lab.file("files/secret"), "secret").unwrap();
    let ask = |name: &str| Bare::new(&lab).ask(format!("\0\x01{name}\0octet\0").as_bytes()).0;
    for (name, text) in [
        ("1a2b3c4d/start4.elf", "firmware"),
        ("start4.elf", "firmware"),
        ("1a2b3c4d/config.txt", "of one"),
        ("1a2b3c4e/config.txt", "of all"),
    ] {
        assert_eq!(ask(name), [b"\0\x03\0\x01", text.as_bytes()].concat(), "{name}");
    }
    for name in ["1a2b3c4d/recovery.elf", "../secret", "secret", "/etc/passwd", "1a2b3c4d/../../secret", ""] {
        let answer = ask(name);
        assert!(answer.starts_with(b"\0\x05\0\x01"), "{name}: {}", answer.escape_ascii());
    }
    assert_eq!(ask("undionly.kpxe")[4..], lab.undionly[..], "loaders are there as ever");
    let (size, _) = Bare::new(&lab).ask(b"\0\x01start4.elf\0octet\0tsize\x000\0");
    assert_eq!(size, b"\0\x06tsize\x008\0");
    assert_eq!(lab.events(Stage::Loader, 0), [], "a Pi's files are no stage of a boot");
    let kept = kept(&lab);
    let decided =
        |name: &str| kept.iter().find(|(what, ..)| *what == format!("read {name}")).map(|(_, code, _)| &**code);
    assert_eq!(decided("start4.elf"), Some("served"));
    assert_eq!(decided("1a2b3c4d/recovery.elf"), Some("no-such-file"));
}

#[test]
fn many_machines_fetch_at_once() {
    let lab = Lab::new(20_000, None);
    let machines: Vec<Bare> = (1..=100).map(|host| Bare::at(Ipv4Addr::new(127, 0, 1, host), &lab)).collect();
    let tids: Vec<SocketAddr> =
        machines.iter().map(|bare| bare.ask(b"\0\x01undionly.kpxe\0octet\0blksize\x001000\0").1).collect();
    let mut got = vec![Vec::new(); machines.len()];
    for ack in 0..=20 {
        for (bare, tid) in machines.iter().zip(&tids) {
            bare.socket.send_to(&[0, 4, 0, ack], tid).unwrap();
        }
        for (bare, got) in machines.iter().zip(&mut got) {
            got.extend_from_slice(&bare.hear().0[4..]);
        }
    }
    assert!(got.iter().all(|got| *got == lab.undionly), "a machine got something else");
}
