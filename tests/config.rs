//! The mapping file as an operator meets it: what is said about each mistake, and that nothing makes the check stumble.
//!
//! `tests/config/mistakes.txt` holds one case after the other: the text of a file and, after `---`, the whole report.
//! `ROOST_UPDATE=1 cargo test --test config` writes what is said now into it; read the difference before you keep it.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use roost::cli::check::{self, Style, check};
use roost::config::{self, DhcpMode, Loaded, MAX_CLIENTS, MAX_FILE, Report, Severity};
use roost::fleet::{ImageName, Initiators, Mac};

const EXAMPLE: &str = include_str!("../config/roost.toml");
const MISTAKES: &str = "tests/config/mistakes.txt";

fn parse(text: &str) -> Result<Loaded, Report> {
    config::parse(text, "roost.toml")
}

/// All that is said about a text, taken or not.
fn report(text: &str) -> Report {
    match parse(text) {
        Ok(loaded) => loaded.warnings,
        Err(report) => report,
    }
}

/// A case's text with the sections that it leaves out added at its end, so that it is wrong in one way only.
fn completed(case: &str) -> String {
    let mut text = case.to_owned();
    for (section, rest) in [
        ("server", "[server]\ndhcp = \"off\"\n"),
        ("[defaults]", "[defaults]\nimage = \"debian-12\"\n"),
        ("clients", "[clients]\nspare = \"52:54:00:ff:00:01\"\n"),
    ] {
        if !case.contains(section) {
            text.push_str(rest);
        }
    }
    text
}

#[test]
fn every_mistake_is_told_in_its_words() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(MISTAKES);
    let file = std::fs::read_to_string(&path).unwrap();
    let (head, cases) = file.split_once("=== ").expect("a case begins with ===");
    let mut now = head.to_owned();
    for case in cases.split("\n=== ") {
        let (title, rest) = case.split_once('\n').expect("a case has a title");
        // A new case is only a text; what is said about it is written by the update.
        let text =
            rest.split_once("---\n").map_or_else(|| format!("{}\n", rest.trim_end()), |(text, _)| text.to_owned());
        let said = report(&completed(&text));
        write!(now, "=== {title}\n{text}---\n{said}\n").unwrap();
    }
    let now = format!("{}\n", now.trim_end());
    if std::env::var_os("ROOST_UPDATE").is_some() {
        std::fs::write(&path, now).unwrap();
        return;
    }
    for (was, is) in file.split("\n=== ").zip(now.split("\n=== ")) {
        assert_eq!(was, is);
    }
    assert_eq!(file, now);
}

#[test]
fn the_explained_example_is_fine() {
    let loaded = parse(EXAMPLE).unwrap_or_else(|report| panic!("{report}"));
    assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
    let there = [loaded.config.fleet.clients().next().unwrap().image.clone()];
    assert!(loaded.check_images(&there).is_empty());
    assert!(loaded.check_against(&["10.20.0.2/24".parse().unwrap()]).is_empty());
}

#[test]
fn each_commented_key_of_the_example_works_or_is_refused_by_name() {
    let lines: Vec<&str> = EXAMPLE.lines().collect();
    let mut tried = 0;
    for (index, line) in lines.iter().enumerate() {
        let Some(setting) = line.strip_prefix('#').filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()))
        else {
            continue;
        };
        tried += 1;
        let mut lines = lines.clone();
        lines[index] = setting;
        let said = report(&lines.join("\n"));
        for problem in &said.problems {
            assert!(problem.message.ends_with("is not supported yet"), "{setting}\n{said}");
        }
        // The comment above says "later" where the key is refused, and only there.
        let above: Vec<&str> = EXAMPLE.lines().take(index).collect();
        let about = above.rsplit(|line| line.is_empty()).next().unwrap();
        let later = about.iter().any(|line| line.contains("later)") && !line.starts_with("#   "));
        assert_eq!(said.has_errors(), later, "{setting}\n{said}");
    }
    assert!(tried >= 25, "only {tried} commented keys were found");
}

#[test]
fn a_disk_grows_as_far_as_the_nearest_level_says() {
    let text = r#"
        [server]
        dhcp = "off"
        [defaults]
        image = "debian-12"
        limit = "20G"
        [clients]
        a = "52:54:00:aa:00:01"
        b = { mac = "52:54:00:aa:00:02", limit = "1.5T" }
        [group.small]
        limit = "512M"
        [group.small.clients]
        c = "52:54:00:aa:00:03"
        d = { mac = "52:54:00:aa:00:04", limit = "16M" }
    "#;
    let loaded = parse(text).unwrap_or_else(|report| panic!("{report}"));
    let limits: Vec<u64> = loaded.config.fleet.clients().map(|client| client.limit.unwrap()).collect();
    assert_eq!(limits, [20 << 30, 3 << 39, 512 << 20, 16 << 20]);
}

#[test]
fn a_disk_is_read_only_where_the_nearest_level_says_so() {
    let text = r#"
        [server]
        dhcp = "off"
        [defaults]
        image = "debian-12"
        [clients]
        a = "52:54:00:aa:00:01"
        b = { mac = "52:54:00:aa:00:02", mode = "read-only" }
        [group.kiosk]
        mode = "read-only"
        [group.kiosk.clients]
        c = "52:54:00:aa:00:03"
        d = { mac = "52:54:00:aa:00:04", mode = "read-write" }
    "#;
    let loaded = parse(text).unwrap_or_else(|report| panic!("{report}"));
    let read_only: Vec<bool> = loaded.config.fleet.clients().map(|client| client.read_only).collect();
    assert_eq!(read_only, [false, true, true, false]);
}

#[test]
fn what_happens_to_a_disk_is_said_at_three_levels_and_the_nearest_wins() {
    use roost::fleet::DiskPolicy::{Keep, Reset};
    let text = r#"
        [server]
        dhcp = "off"
        [defaults]
        image = "debian-12"
        disk = "reset"
        [clients]
        a = "52:54:00:aa:00:01"
        b = { mac = "52:54:00:aa:00:02", disk = "keep" }
        [group.staff]
        disk = "keep"
        [group.staff.clients]
        c = "52:54:00:aa:00:03"
        d = { mac = "52:54:00:aa:00:04", disk = "reset" }
    "#;
    let fleet = config::parse(text, "roost.toml").unwrap_or_else(|report| panic!("{report}")).config.fleet;
    let policies: Vec<_> = fleet.clients().map(|client| (client.name.as_str(), client.disk)).collect();
    assert_eq!(policies, [("a", Reset), ("b", Keep), ("c", Keep), ("d", Reset)]);
}

#[test]
fn a_whole_lab_is_read_as_it_is_written() {
    let text = r#"
        [server]
        interface = "enp3s0"
        dhcp = "full"
        state = "state"
        loader_dir = "/opt/ipxe"
        [server.pool]
        range = "10.20.0.100 - 10.20.0.199"
        router = "10.20.0.1"
        dns = ["10.20.0.1", "10.20.0.2"]
        [defaults]
        image = "debian-12"
        off = true
        chap = true
        [clients]
        pc-01 = "5254.00AA.0001"
        pc-02.mac = "525400AA0002"
        pc-02.off = false
        [group.staff]
        title = "Staff"
        image = "win11"
        off = false
        chap = false
        [group.staff.clients.desk]
        mac = ["52:54:00:bb:00:01", "52:54:00:bb:00:01", "52:54:00:bb:00:02"]
        ip = "10.20.0.50"
        initiators = ["IQN.2026-11.internal.backup:Reader"]
        [group.staff.clients.own]
        mac = "52:54:00:bb:00:03"
        image = "own"
        chap = true
        note = "a note"
    "#;
    let loaded = config::parse(text, "/etc/roost/roost.toml").unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(loaded.warnings.warnings, 1, "{}", loaded.warnings);
    let config = &loaded.config;
    let settings = &config.settings;
    assert_eq!(settings.interfaces, ["enp3s0"]);
    assert_eq!(settings.dhcp, DhcpMode::Full);
    assert_eq!(settings.state, PathBuf::from("/etc/roost/state"));
    assert_eq!(settings.loader_dir, Some(PathBuf::from("/opt/ipxe")));
    assert_eq!(settings.iqn, "iqn.2026-11.internal.roost");
    let pool = settings.pool.as_ref().unwrap();
    assert_eq!((pool.first, pool.last), (Ipv4Addr::new(10, 20, 0, 100), Ipv4Addr::new(10, 20, 0, 199)));
    assert_eq!(pool.router, Some(Ipv4Addr::new(10, 20, 0, 1)));
    assert_eq!(pool.dns, [Ipv4Addr::new(10, 20, 0, 1), Ipv4Addr::new(10, 20, 0, 2)]);
    assert_eq!(pool.lease, Duration::from_secs(8 * 3_600));

    let client = |name: &str| config.fleet.client(&name.parse().unwrap()).unwrap();
    assert_eq!(
        (client("pc-01").image.as_str(), client("pc-01").off, &client("pc-01").group),
        ("debian-12", true, &None)
    );
    assert!(!client("pc-02").off);
    let chap = ["pc-01", "desk", "own"].map(|name| client(name).chap);
    assert_eq!(chap, [true, false, true], "from the defaults, the group, the client");
    let desk = client("desk");
    assert_eq!((desk.image.as_str(), desk.off, desk.group.as_deref()), ("win11", false, Some("staff")));
    assert_eq!(desk.ip, Some(Ipv4Addr::new(10, 20, 0, 50)));
    let macs: Vec<Mac> = ["52:54:00:bb:00:01", "52:54:00:bb:00:02"].map(|mac| mac.parse().unwrap()).to_vec();
    assert_eq!(desk.macs, macs);
    assert_eq!(desk.initiators, Initiators::Also(vec!["iqn.2026-11.internal.backup:reader".to_owned()]));
    assert_eq!(desk.title, None, "a group's title is the group's own");
    assert_eq!(client("own").image.as_str(), "own");
    assert_eq!(client("own").note.as_deref(), Some("a note"));
    assert_eq!(config.groups.len(), 1);
    assert_eq!(config.groups[0].title.as_deref(), Some("Staff"));
}

#[test]
fn ten_mistakes_are_told_at_once_in_the_order_of_the_lines() {
    let text = r#"[server]
dhcp = "ful"
stat = "/srv"
iqn = "roost"
boots_at_once = 3
[server.pool]
range = "10.0.0.9-10.0.0.1"
[defaults]
image = "Debian"
off = yes
[clients]
a-01 = 52:54:00:aa:00:01
this is no line
[group.x.clients]
a-01 = "52:54:00:aa:00:02"
a-02 = "52:54:00:aa:00:01"
"#;
    let report = parse(text).unwrap_err();
    let places: Vec<(usize, usize)> =
        report.problems.iter().map(|problem| problem.place.as_ref().map(|p| (p.line, p.column)).unwrap()).collect();
    let expected = [(2, 8), (3, 1), (4, 7), (5, 1), (7, 9), (9, 9), (10, 7), (12, 8), (13, 6), (15, 1), (16, 8)];
    assert_eq!(places, expected, "{report}");
    assert!(report.problems.iter().all(|problem| problem.severity == Severity::Error));
}

#[test]
fn images_are_checked_against_those_that_are_there() {
    let text =
        completed("[clients]\na = \"52:54:00:aa:00:01\"\nb = { mac = \"52:54:00:aa:00:02\", image = \"win\" }\n");
    let loaded = parse(&text).unwrap();
    let names = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<Vec<ImageName>>();
    assert!(loaded.check_images(&names(&["debian-12", "win"])).is_empty());
    let said = loaded.check_images(&names(&["debian-13", "win"])).to_string();
    assert_eq!(
        said,
        "roost.toml:7:9: error: there is no image `debian-12`\n   7 | image = \"debian-12\"\n     |         ^\n  \
         help: did you mean `debian-13`?\n"
    );
    let said = loaded.check_images(&names(&["arch", "debian-12", "mint"])).to_string();
    assert!(
        said.contains(":3:42: error: there is no image `win`") && said.contains("`arch`, `debian-12` or `mint`"),
        "{said}"
    );
    let said = loaded.check_images(&[]).to_string();
    assert!(said.contains("there is none yet: roost image import FILE --name win"), "{said}");
}

#[test]
fn addresses_are_checked_against_the_wire() {
    let text = r#"[server]
dhcp = "full"
[server.pool]
range = "10.20.0.100-10.20.0.199"
router = "10.20.0.1"
[defaults]
image = "debian-12"
[clients]
a = { mac = "52:54:00:aa:00:01", ip = "10.20.0.255" }
"#;
    let loaded = parse(text).unwrap();
    let said = |interface: &str| {
        let report = loaded.check_against(&[interface.parse().unwrap()]);
        report.problems.into_iter().map(|problem| problem.message).collect::<Vec<_>>()
    };
    assert_eq!(said("10.20.0.2/16"), [""; 0]);
    assert_eq!(said("10.20.0.1/16"), [""; 0], "this server may be the router");
    assert_eq!(said("10.20.0.2/24"), ["the `ip` of `a`, 10.20.0.255, is an end of the network 10.20.0.0/24"]);
    assert_eq!(said("10.20.0.150/16"), ["the pool holds this server's own address, 10.20.0.150"]);
    assert_eq!(said("10.20.0.199/16"), ["the pool's last address, 10.20.0.199, is this server's own"]);
    assert_eq!(
        said("10.20.0.2/25"),
        [
            "the pool's last address, 10.20.0.199, is not in 10.20.0.0/25",
            "the `ip` of `a`, 10.20.0.255, is not in 10.20.0.0/25"
        ]
    );
    assert_eq!(said("192.168.1.2/24").len(), 4);
}

#[test]
fn too_many_clients_and_too_large_files_are_refused() {
    let fleet = |count: usize| {
        let mut text = String::from("[clients]\n");
        for index in 0..count {
            writeln!(text, "c{index} = \"5254.00aa.{index:04x}\"").unwrap();
        }
        report(&completed(&text))
    };
    assert!(fleet(MAX_CLIENTS).is_empty());
    let said = fleet(MAX_CLIENTS + 1).to_string();
    assert!(said.starts_with("roost.toml:4098:1: error: 4097 clients are too many"), "{said}");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("roost.toml");
    let size = usize::try_from(MAX_FILE).unwrap();
    std::fs::write(&path, EXAMPLE.to_owned() + &"\n".repeat(size - EXAMPLE.len())).unwrap();
    assert!(config::load(&path).is_ok());
    std::fs::write(&path, EXAMPLE.to_owned() + &"\n".repeat(size + 1 - EXAMPLE.len())).unwrap();
    assert!(
        config::load(&path)
            .unwrap_err()
            .to_string()
            .ends_with("error: is larger than 1024 KiB, which no mapping file is\n")
    );
}

#[test]
fn the_command_prints_a_summary_and_sets_the_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("roost.toml");
    let shown = path.display();
    let images = |_: &config::Settings| None;

    let missing = check(&path, Style::Plain, images);
    assert_eq!(missing.exit, check::CONFIGURATION);
    assert!(missing.text.starts_with(&format!("{shown}: error: there is no such file\n")), "{}", missing.text);

    std::fs::write(&path, EXAMPLE).unwrap();
    let fine = check(&path, Style::Plain, images);
    assert_eq!(fine.text, format!("{shown}: 3 clients in 1 group, 1 image; no problems\n"));
    assert_eq!(fine.exit, check::FINE);
    let absent = check(&path, Style::Plain, |settings| {
        assert_eq!(settings.state, PathBuf::from("/var/lib/roost"));
        Some(check::Images { there: Vec::new(), changed: Vec::new(), data: Vec::new() })
    });
    assert_eq!(absent.exit, check::CONFIGURATION);
    assert!(absent.text.ends_with(&format!("{shown}: 1 error\n")), "{}", absent.text);

    let changed = check(&path, Style::Plain, |_| {
        let image: roost::fleet::ImageName = "debian-12".parse().unwrap();
        Some(check::Images {
            there: vec![image.clone()],
            changed: vec![(image, "it is another file".to_owned())],
            data: Vec::new(),
        })
    });
    assert_eq!(changed.exit, check::CONFIGURATION);
    assert!(changed.text.contains("error: image `debian-12`: it is another file"), "{}", changed.text);
    assert!(changed.text.contains("help: put back the file"), "{}", changed.text);

    let long = EXAMPLE.replace("pc-01", "a-rather-long-name");
    std::fs::write(&path, &long).unwrap();
    let odd = check(&path, Style::Plain, images);
    assert_eq!(odd.exit, check::FINE);
    assert!(odd.text.ends_with(": 3 clients in 1 group, 1 image; 1 warning\n"), "{}", odd.text);
    assert!(check(&path, Style::Coloured, images).text.contains("\x1b[1;33mwarning\x1b[0m"));

    let json: serde_json::Value = serde_json::from_str(&check(&path, Style::Json, images).text).unwrap();
    assert_eq!(json["ok"], true);
    assert_eq!(json["contents"]["clients"], 3);
    assert_eq!(json["problems"][0]["severity"], "warning");
    assert_eq!(json["problems"][0]["place"]["column"], 1);

    std::fs::write(&path, b"[server]\n# caf\xe9\n").unwrap();
    let latin = check(&path, Style::Plain, images);
    assert!(latin.text.contains("error: line 2 is not UTF-8 text"), "{}", latin.text);
}

#[test]
fn relative_paths_start_at_the_files_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("roost.toml");
    std::fs::write(&path, EXAMPLE.replace("#state = \"/var/lib/roost\"", "state = \"state\"")).unwrap();
    assert_eq!(config::load(&path).unwrap().config.settings.state, folder.path().join("state"));
}

/// One slip at a place of the text: bytes dropped, repeated, or written over.
#[derive(Debug, Clone)]
enum Slip {
    Drop(usize, usize),
    Repeat(usize, usize),
    Write(usize, String),
}

fn slips() -> impl Strategy<Value = Vec<Slip>> {
    let bits = prop::sample::select(vec![
        "\"",
        "'",
        "[",
        "]",
        "[[",
        "{",
        "}",
        "=",
        ",",
        ".",
        "#",
        "\n",
        "\r",
        "\t",
        "\0",
        "\\",
        "ä",
        "\u{202e}",
        "52:54",
        "[clients]\n",
        "[server]\n",
        "mac = ",
        "\"\"\"",
        "0x",
        "1e9",
        "\u{feff}",
        "a.b.c = 1\n",
        "[group.a.clients]\n",
    ]);
    let slip = prop_oneof![
        (any::<usize>(), 1_usize..40).prop_map(|(at, length)| Slip::Drop(at, length)),
        (any::<usize>(), 1_usize..200).prop_map(|(at, length)| Slip::Repeat(at, length)),
        (any::<usize>(), bits).prop_map(|(at, text)| Slip::Write(at, text.to_owned())),
        (any::<usize>(), any::<char>()).prop_map(|(at, c)| Slip::Write(at, c.to_string())),
    ];
    prop::collection::vec(slip, 1..6)
}

fn apply(text: &str, slips: &[Slip]) -> String {
    let mut text: Vec<char> = text.chars().collect();
    for slip in slips {
        let length = text.len();
        match slip {
            Slip::Drop(at, count) if length > 0 => {
                let at = at % length;
                text.drain(at..(at + count).min(length));
            }
            Slip::Repeat(at, count) if length > 0 => {
                let at = at % length;
                let piece: Vec<char> = text[at..(at + count).min(length)].to_vec();
                text.splice(at..at, piece);
            }
            Slip::Write(at, piece) => {
                let at = at % (length + 1);
                text.splice(at..at, piece.chars());
            }
            _ => {}
        }
    }
    text.into_iter().collect()
}

/// Places are in the text, lines are those of the text, and the order is theirs.
fn check_places(text: &str, report: &Report) -> Result<(), TestCaseError> {
    let lines: Vec<&str> = text.split('\n').collect();
    let mut last = (0, 0);
    for problem in &report.problems {
        for place in problem.place.iter().chain(problem.notes.iter().map(|note| &note.place)) {
            prop_assert!((1..=lines.len()).contains(&place.line), "{place:?}");
            prop_assert!((1..=lines[place.line - 1].chars().count() + 1).contains(&place.column), "{place:?}");
        }
        let here = problem.place.as_ref().map_or((0, 0), |place| (place.line, place.column));
        prop_assert!(last <= here, "{report}");
        last = here;
    }
    prop_assert_eq!(report.has_errors(), report.problems.iter().any(|problem| problem.severity == Severity::Error));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever becomes of a good file, every place that is named lies in it; and `toml`'s own strict parser is the
    /// oracle for what is no TOML at all.
    #[test]
    fn a_spoilt_file_is_told_about_and_nothing_else_happens(slips in slips()) {
        let text = apply(EXAMPLE, &slips);
        let said = report(&text);
        check_places(&text, &said)?;
        let toml_takes_it = toml::de::DeTable::parse(&text).is_ok();
        prop_assert!(toml_takes_it || said.has_errors(), "{slips:?}");
    }

    /// A MAC without quotes is found in whatever guise TOML reads it.
    #[test]
    fn every_unquoted_mac_is_told_to_stand_in_quotes(octets in any::<[u8; 6]>(), shape in 0_usize..8) {
        let Some(mac) = Mac::from_octets(octets) else { return Ok(()) };
        let bare = mac.to_string().replace(':', "");
        let dotted = format!("{}.{}.{}", &bare[..4], &bare[4..8], &bare[8..]);
        let written = [mac.to_string(), mac.to_string().replace(':', "-"), dotted, bare][shape % 4].clone();
        let written = if shape < 4 { written } else { written.to_uppercase() };
        let said = report(&completed(&format!("[clients]\na-01 = {written}\n")));
        let message = format!("a MAC address stands in quotes: a-01 = \"{written}\"");
        prop_assert_eq!(said.problems.len(), 1, "{}", said);
        prop_assert_eq!(&said.problems[0].message, &message);
        let place = said.problems[0].place.as_ref().unwrap();
        prop_assert_eq!((place.line, place.column), (2, 8));
    }
}
