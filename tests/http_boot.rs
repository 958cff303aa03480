//! Boot files by HTTP, with curl and with a bare connection.

#![expect(clippy::unwrap_used, reason = "in a test an unwrap is an assertion, in its helpers too")]

mod bootserver;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bootserver::{LOCALHOST, Lab, MAC, bytes, client, have};
use roost::fleet::{Mac, Stage};
use roost::http::boot::MAX_PER_CLIENT;

const SIZE: usize = 300_001;

/// The answer to one request on a connection of its own: its head, and its body.
fn ask(lab: &Lab, request: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect((LOCALHOST, lab.http)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(format!("{request}\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
    (String::from_utf8(answer[..end].to_vec()).unwrap().to_ascii_lowercase(), answer[end..].to_vec())
}

fn script(lab: &Lab, path: &str) -> String {
    let (head, body) = ask(lab, &format!("GET {path} HTTP/1.1"));
    assert!(head.starts_with("http/1.1 200 ") && head.contains("content-type: text/plain"), "{head}");
    assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
    String::from_utf8(body).unwrap()
}

#[test]
fn a_client_gets_its_script_in_every_spelling_of_its_mac() {
    let lab = Lab::new(100, None);
    for mac in ["52-54-00-aa-00-01", "52:54:00:AA:00:01", "52%3a54%3A00:aa:00:01", "5254.00aa.0001", "525400aa0001"] {
        let script = script(&lab, &format!("/boot.ipxe?uuid=&mac={mac}&x=1"));
        assert!(script.contains("sanboot iscsi:127.0.0.1:::0:iqn.2026-11.internal.roost:pc-01 "), "{script}");
    }
    let stranger = script(&lab, "/a/b/boot.ipxe?mac=52-54-00-aa-00-77");
    assert!(stranger.contains("echo new-name = \"52:54:00:aa:00:77\"\n"), "{stranger}");
}

#[test]
fn who_names_no_machine_sees_that_on_its_screen() {
    let lab = Lab::new(100, Some(MAC));
    for query in ["", "?", "?mac=", "?mac=ff-ff-ff-ff-ff-ff", "?mac=%ff%00", "?mac=shell%0a"] {
        let script = script(&lab, &format!("/boot.ipxe{query}"));
        assert!(script.contains("without a usable MAC address"), "{query}: {script}");
    }
    assert_eq!(lab.recorder.events(), []);
}

#[test]
fn a_fetched_script_is_an_event_and_only_the_right_address_a_sighting() {
    let mac: Mac = MAC.parse().unwrap();
    for (neighbour, seen) in [(Some(MAC), Some(LOCALHOST)), (Some("52:54:00:aa:00:99"), None), (None, None)] {
        let lab = Lab::new(100, neighbour);
        ask(&lab, &format!("HEAD /boot.ipxe?mac={MAC} HTTP/1.1"));
        assert_eq!(lab.recorder.events(), [], "HEAD fetches nothing");
        script(&lab, &format!("/boot.ipxe?mac={MAC}"));
        let events = lab.events(Stage::Script, 1);
        assert_eq!((events.len(), events[0].mac), (1, Some(mac)));
        assert!(events[0].detail.starts_with("boot.ipxe by HTTP, "), "{}", events[0].detail);
        assert_eq!(lab.recorder.address_seen(mac), seen, "{neighbour:?}");
    }
}

#[test]
fn loaders_are_served_at_any_depth_with_their_exact_length() {
    let lab = Lab::new(70_001, Some(MAC));
    for (path, kind, bytes) in [
        ("/snponly.efi", "application/efi", &lab.snponly),
        ("/EFI/BOOT/SNPONLY.EFI", "application/efi", &lab.snponly),
        ("/x%5Cundionly.kpxe", "application/octet-stream", &lab.undionly),
        ("//../undionly.kpxe", "application/octet-stream", &lab.undionly),
    ] {
        let (head, body) = ask(&lab, &format!("HEAD {path} HTTP/1.1"));
        assert!(head.starts_with("http/1.1 200 ") && body.is_empty(), "{head}");
        assert!(head.contains(&format!("content-length: {}\r\n", bytes.len())), "{head}");
        assert!(head.contains(&format!("content-type: {kind}\r\n")), "{head}");
        let (head, body) = ask(&lab, &format!("GET {path} HTTP/1.1"));
        assert!(head.contains("accept-ranges: bytes\r\n"), "{head}");
        assert!(body == *bytes, "{path}: the file is not what was served");
    }
    let events = lab.events(Stage::Loader, 2);
    assert_eq!(events[0].detail, "snponly.efi by HTTP, 100 KB");
    assert!(script(&lab, "/x/autoexec.ipxe").contains("chain --replace http://127.0.0.1:"));
}

#[test]
fn single_ranges_are_served_and_impossible_ones_refused() {
    let lab = Lab::new(1000, Some(MAC));
    for (range, status, part) in [
        ("bytes=0-0", 206, 0..1),
        ("bytes=10-19", 206, 10..20),
        ("bytes=990-", 206, 990..1000),
        ("bytes=990-99999999999999999999999", 206, 990..1000),
        ("bytes=-7", 206, 993..1000),
        ("bytes=-5000", 206, 0..1000),
        ("bytes=0-1,5-6", 200, 0..1000),
        ("bytes=9-3", 200, 0..1000),
        ("bytes=a-b", 200, 0..1000),
        ("bytes=-", 200, 0..1000),
        ("lines=1-2", 200, 0..1000),
    ] {
        let (head, body) = ask(&lab, &format!("GET /undionly.kpxe HTTP/1.1\r\nRange: {range}"));
        assert!(head.starts_with(&format!("http/1.1 {status} ")), "{range}: {head}");
        assert_eq!(body, lab.undionly[part.clone()], "{range}");
        let said = format!("content-range: bytes {}-{}/1000\r\n", part.start, part.end - 1);
        assert_eq!(head.contains(&said), status == 206, "{range}: {head}");
    }
    for range in ["bytes=1000-", "bytes=1000-2000", "bytes=-0", "bytes=99999999999999999999999-"] {
        let (head, _) = ask(&lab, &format!("GET /undionly.kpxe HTTP/1.1\r\nRange: {range}"));
        assert!(head.starts_with("http/1.1 416 ") && head.contains("content-range: bytes */1000\r\n"), "{head}");
    }
}

#[test]
fn what_cannot_be_had_is_refused_in_words() {
    let lab = Lab::new(100, None);
    for path in ["/", "/etc/passwd", "/../../etc/passwd", "/ipxe.efi", "/boot.ipxe/", "/%"] {
        let (head, body) = ask(&lab, &format!("GET {path} HTTP/1.1"));
        assert!(head.starts_with("http/1.1 404 "), "{path}: {head}");
        assert_eq!(body, b"no such boot file\n");
    }
    let (head, body) = ask(&lab, "POST /boot.ipxe HTTP/1.1\r\nContent-Length: 0");
    assert!(head.starts_with("http/1.1 405 ") && head.contains("allow: get, head\r\n"), "{head}");
    assert_eq!(body, b"boot files can only be read: GET or HEAD\n");
}

#[test]
fn a_head_without_end_is_cut_off() {
    let lab = Lab::new(100, None);
    let mut stream = TcpStream::connect((LOCALHOST, lab.http)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"GET /boot.ipxe HTTP/1.1\r\nX: ").unwrap();
    // The server may close while we still write: that is what is wanted.
    let _ = stream.write_all(&vec![b'x'; 1 << 20]);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431 "), "{}", answer.escape_ascii());
}

#[test]
fn one_address_cannot_take_every_connection() {
    let lab = Lab::new(100, None);
    let connect = || {
        let stream = TcpStream::connect((LOCALHOST, lab.http)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    };
    let held: Vec<TcpStream> = (0..MAX_PER_CLIENT).map(|_| connect()).collect();
    let refused = connect().read(&mut [0; 1]);
    assert!(matches!(refused, Ok(0)) || refused.is_err(), "one more was not closed");
    let mut answered = &held[0];
    answered.write_all(b"HEAD /snponly.efi HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(answered.read(&mut [0; 1]).unwrap(), 1, "those that are there are served");
}

#[test]
fn curl_keeps_its_connection_and_both_protocols_serve_one_file() {
    if !have("curl_keeps_its_connection_and_both_protocols_serve_one_file", "curl", "curl") {
        return;
    }
    let lab = Lab::new(SIZE, Some(MAC));
    let base = format!("http://127.0.0.1:{}", lab.http);
    let tftp = format!("tftp://127.0.0.1:{}/undionly.kpxe", lab.tftp);
    let loader = format!("{base}/undionly.kpxe");
    let script = format!("{base}/boot.ipxe?mac={MAC}");
    let out = lab.out.path();
    let get = ["-sS", "-w", "%{num_connects} ", "-o", "one", &loader, "-o", "two", &script, "-o", "three", &loader];
    assert_eq!(client("curl", &get, out).stdout, b"1 0 0 ", "one connection for three requests");
    client("curl", &["-sS", "-o", "four", &tftp], out);
    for name in ["one", "three", "four"] {
        assert!(fs::read(lab.file(name)).unwrap() == lab.undionly, "{name}: the file is not what was served");
    }
    assert!(fs::read(lab.file("two")).unwrap().starts_with(b"#!ipxe\n"));
    let head = client("curl", &["-sSI", &loader], out).stdout;
    assert!(String::from_utf8(head).unwrap().contains(&format!("content-length: {SIZE}\r\n")));
    client("curl", &["-sS", "-r", "100-", "-o", "tail", &loader], out);
    assert!(fs::read(lab.file("tail")).unwrap() == lab.undionly[100..], "the range is not what was asked for");
}

#[test]
fn stopping_closes_kept_connections() {
    let lab = Lab::new(100, None);
    let mut kept = TcpStream::connect((LOCALHOST, lab.http)).unwrap();
    kept.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    kept.write_all(b"HEAD /snponly.efi HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    kept.read_exact(&mut [0; 12]).unwrap();
    lab.stop();
    kept.read_to_end(&mut Vec::new()).unwrap();
    lab.stopped();
}

#[test]
fn an_operators_files_are_served_from_their_folder_and_from_nowhere_else() {
    let lab = Lab::new(100, None);
    let kernel = bytes(1_300_001);
    fs::create_dir(lab.file("files/debian")).unwrap();
    fs::write(lab.file("files/debian/vm linuz"), &kernel).unwrap();
    fs::write(lab.file("files/empty.iso"), b"").unwrap();
    fs::write(lab.file("secret"), b"secret").unwrap();
    std::os::unix::fs::symlink("../secret", lab.file("files/link")).unwrap();
    let path = "/files/debian/vm%20linuz";
    let (head, body) = ask(&lab, &format!("HEAD {path} HTTP/1.1"));
    assert!(head.starts_with("http/1.1 200 ") && body.is_empty(), "{head}");
    for line in
        ["content-length: 1300001\r\n", "accept-ranges: bytes\r\n", "content-type: application/octet-stream\r\n"]
    {
        assert!(head.contains(line), "{head}");
    }
    let (head, body) = ask(&lab, &format!("GET {path} HTTP/1.1"));
    assert!(head.contains("content-length: 1300001\r\n") && body == kernel, "the file is not what was served");
    for (range, part) in [
        ("0-0", 0..1),
        ("262143-262144", 262_143..262_145),
        ("-5", 1_299_996..1_300_001),
        ("300000-", 300_000..1_300_001),
    ] {
        let (head, body) = ask(&lab, &format!("GET {path} HTTP/1.1\r\nRange: bytes={range}"));
        assert!(head.starts_with("http/1.1 206 "), "{range}: {head}");
        assert!(head.contains(&format!("content-range: bytes {}-{}/1300001\r\n", part.start, part.end - 1)), "{head}");
        assert!(body == kernel[part], "{range}");
    }
    let (head, _) = ask(&lab, &format!("GET {path} HTTP/1.1\r\nRange: bytes=1300001-"));
    assert!(head.starts_with("http/1.1 416 ") && head.contains("content-range: bytes */1300001\r\n"), "{head}");
    let (head, body) = ask(&lab, "GET /files/empty.iso HTTP/1.1");
    assert!(head.contains("content-length: 0\r\n") && head.contains("vnd.efi-iso") && body.is_empty(), "{head}");
    for path in [
        "/files/",
        "/files",
        "/files/debian",
        "/files/link",
        "/files/../secret",
        "/files/%2e%2e/secret",
        "/files/..%2fsecret",
        "/files//etc/passwd",
        "/files/debian/vm%20linuz%00",
    ] {
        let (head, body) = ask(&lab, &format!("GET {path} HTTP/1.1"));
        assert!(head.starts_with("http/1.1 404 ") && !body.windows(6).any(|part| part == b"secret"), "{path}: {head}");
    }
    let (head, _) = ask(&lab, &format!("DELETE {path} HTTP/1.1"));
    assert!(head.starts_with("http/1.1 405 "), "{head}");
    assert_eq!(lab.recorder.events(), [], "such a fetch is no stage of a boot");
}

#[test]
fn files_and_scripts_are_served_in_turns_over_one_connection() {
    let lab = Lab::new(700, Some(MAC));
    let kernel = bytes(900_001);
    fs::write(lab.file("files/kernel"), &kernel).unwrap();
    let mut stream = TcpStream::connect((LOCALHOST, lab.http)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let hear = |stream: &mut TcpStream, body: bool| {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        assert!(!head.contains("connection: close"), "{head}");
        assert_eq!((head.matches("content-length: ").count(), head.matches("date: ").count()), (1, 1), "{head}");
        let length = head.split("content-length: ").nth(1).unwrap().split('\r').next().unwrap().parse().unwrap();
        let mut bytes = vec![0; if body { length } else { 0 }];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    };
    let script = format!("/boot.ipxe?mac={MAC}");
    for _ in 0..3 {
        for (method, path) in [
            ("GET", "/files/kernel"),
            ("GET", &script),
            ("HEAD", "/files/kernel"),
            ("HEAD", "/undionly.kpxe"),
            ("GET", "/files/absent"),
            ("GET", "/undionly.kpxe"),
        ] {
            stream.write_all(format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
            let body = hear(&mut stream, method == "GET");
            let right = match (method, path) {
                ("HEAD", _) => body.is_empty(),
                (_, "/files/kernel") => body == kernel,
                (_, "/files/absent") => body == b"no such file\n",
                (_, "/undionly.kpxe") => body == lab.undionly,
                _ => body.starts_with(b"#!ipxe\n"),
            };
            assert!(right, "{method} {path}");
        }
    }
    // All at once, in pieces that do not end where requests do: each is answered in its turn.
    let all = format!(
        "GET /files/kernel HTTP/1.1\r\nRange: bytes=5-9\r\n\r\nGET {script} HTTP/1.1\r\n\r\n\
         HEAD /files/kernel HTTP/1.1\r\n\r\nGET /undionly.kpxe HTTP/1.1\r\n\r\nGET /files/kernel HTTP/1.1\r\n\r\n"
    );
    for piece in all.as_bytes().chunks(37) {
        stream.write_all(piece).unwrap();
    }
    assert_eq!(hear(&mut stream, true), kernel[5..10]);
    assert!(hear(&mut stream, true).starts_with(b"#!ipxe\n"));
    assert!(hear(&mut stream, false).is_empty());
    assert_eq!(hear(&mut stream, true), lab.undionly);
    assert!(hear(&mut stream, true) == kernel);
    // What has a body, and who wants to close, end it with the answer.
    for last in ["POST /files/kernel HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "GET /files/absent HTTP/1.0\r\n\r\n"] {
        let mut stream = TcpStream::connect((LOCALHOST, lab.http)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(last.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("connection: close\r\n"), "{answer}");
    }
}

#[test]
fn a_range_of_a_certain_state_of_a_file_is_the_whole_file() {
    let lab = Lab::new(1000, Some(MAC));
    fs::write(lab.file("files/kernel"), &lab.undionly).unwrap();
    for path in ["/undionly.kpxe", "/files/kernel"] {
        let (head, body) = ask(&lab, &format!("GET {path} HTTP/1.1\r\nRange: bytes=0-9\r\nIf-Range: \"x\""));
        assert!(head.starts_with("http/1.1 200 ") && body == lab.undionly, "{head}");
    }
}

#[test]
fn curl_fetches_files_over_one_connection_and_goes_on_where_it_was() {
    if !have("curl_fetches_files_over_one_connection_and_goes_on_where_it_was", "curl", "curl") {
        return;
    }
    let lab = Lab::new(100, None);
    let image = bytes(5_000_003);
    fs::write(lab.file("files/image"), &image).unwrap();
    let url = format!("http://127.0.0.1:{}/files/image", lab.http);
    let out = lab.out.path();
    let get = ["-sS", "-w", "%{num_connects} ", "-o", "one", &url, "-o", "two", &url];
    assert_eq!(client("curl", &get, out).stdout, b"1 0 ", "one connection for two requests");
    fs::write(lab.file("two"), &image[..3_000_000]).unwrap();
    client("curl", &["-sS", "-C", "-", "-o", "two", &url], out);
    for name in ["one", "two"] {
        assert!(fs::read(lab.file(name)).unwrap() == image, "{name}: the file is not what was served");
    }
}
