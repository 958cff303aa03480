//! Which loader a machine is told, in which way, and what is learned from what it does then.

use super::*;
use crate::dhcp::boot::{Features, Missing};
use crate::fleet::{Fact, Habit, Loader, Loaders, Platform, Pxe, Start};

/// A lab with a loader for every platform, called by its word, and a spare for x64.
fn every_loader() -> Guide {
    let mut loaders = Loaders::default();
    for platform in Platform::ALL {
        let spare = (platform == Platform::X64).then_some("spare");
        loaders.set(platform, Loader { name: platform.word(), spare });
    }
    loaders.add("special", Platform::X64);
    Guide::new(loaders)
}

fn lab() -> Lab {
    Lab { scope: scope_of(100, 103).with_guide(every_loader()), ..Lab::new() }
}

fn site(role: Role) -> Site {
    Site { role, ..lab().scope.site().clone() }
}

/// The same packet in another exchange.
fn again(packet: &Packet, exchange: u8) -> Packet {
    packet.clone().with(at::XID, &[9, 9, 9, exchange])
}

/// Beside another server: what is offered, as the client hears it, and what is learned.
fn offered(site: &Site, fleet: &Fleet, packet: &Packet) -> (Outcome, Option<String>) {
    let outcome = proxy::overheard(fleet, site, &packet.bytes());
    let note = site.guide.learn(&outcome).notes.pop().map(|note| note.detail);
    (outcome, note)
}

fn ipxe_without(feature: u8) -> Packet {
    let packet = Packet::ipxe(1, 2, 0);
    let features = packet.options.iter().find(|option| option.0 == 175).unwrap().1.clone();
    let at = features.windows(3).position(|part| part == [feature, 1, 1]).unwrap();
    packet.without(175).option(175, &[&features[..at], &features[at + 3..]].concat())
}

#[test]
fn every_architecture_of_the_table_has_its_platform() {
    let table: [(u16, bool, Option<Platform>); 38] = [
        (0, false, Some(Platform::Bios)),
        (1, false, None),
        (2, false, None),
        (6, false, Some(Platform::Ia32)),
        (7, false, Some(Platform::X64)),
        (8, false, None),
        (9, false, Some(Platform::X64)),
        (10, false, Some(Platform::Arm32)),
        (11, false, Some(Platform::Arm64)),
        (12, false, None),
        (15, true, Some(Platform::Ia32)),
        (16, true, Some(Platform::X64)),
        (17, true, Some(Platform::X64)),
        (18, true, Some(Platform::Arm32)),
        (19, true, Some(Platform::Arm64)),
        (20, true, Some(Platform::Bios)),
        (21, false, Some(Platform::Arm32)),
        (22, false, Some(Platform::Arm64)),
        (23, true, Some(Platform::Arm32)),
        (24, true, Some(Platform::Arm64)),
        (25, false, Some(Platform::RiscV32)),
        (26, true, Some(Platform::RiscV32)),
        (27, false, Some(Platform::RiscV64)),
        (28, true, Some(Platform::RiscV64)),
        (29, false, Some(Platform::RiscV128)),
        (30, true, Some(Platform::RiscV128)),
        (31, false, None),
        (32, false, None),
        (33, false, None),
        (34, false, None),
        (35, false, None),
        (36, false, None),
        (37, false, Some(Platform::LoongArch32)),
        (38, true, Some(Platform::LoongArch32)),
        (39, false, Some(Platform::LoongArch64)),
        (40, true, Some(Platform::LoongArch64)),
        (41, false, Some(Platform::RaspberryPi)),
        (42, false, None),
    ];
    for (architecture, by_http, platform) in table {
        let class: &[u8] = if by_http { b"HTTPClient" } else { b"PXEClient" };
        let packet = Packet::new(1, 2).option(60, class).option(93, &architecture.to_be_bytes());
        let outcome = lab().hear(&packet);
        let name = platform.map(Platform::word);
        let handout = match name {
            None => Handout::NoLoader(architecture),
            Some(name) if by_http => Handout::LoaderUrl(name),
            Some(name) => Handout::Loader(name),
        };
        assert_eq!(outcome.reason, Reason::Offered(ip(100), handout), "{architecture}");
        let named = architecture_name(architecture);
        assert_eq!(named.starts_with("architecture "), platform.is_none(), "{named}");
    }
}

#[test]
fn a_raspberry_pi_is_known_by_its_address_or_its_identifier_and_told_what_it_wants_to_hear() {
    let class = b"PXEClient:Arch:00000:UNDI:002001";
    let pi = |mac: [u8; 6], id: [u8; 16]| {
        let id = [&[0], &id[..]].concat();
        Packet::new(1, 2).with(at::CHADDR, &mac).option(60, class).option(93, &[0, 0]).option(97, &id)
    };
    let newer = [0x80, 0x01, 0x75, 0x90, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
    let older: [u8; 16] = [0x12, 0x34, 0x56, 0x78].repeat(4).try_into().unwrap();
    for (mac, id, known) in [
        ([0xdc, 0xa6, 0x32, 1, 2, 3], UUID, true),
        ([0x52, 0x54, 0, 1, 2, 3], newer, true),
        ([0x52, 0x54, 0, 1, 2, 3], older, true),
        ([0x52, 0x54, 0, 1, 2, 3], UUID, false),
        ([0x52, 0x54, 0, 1, 2, 3], [0xff; 16], false),
    ] {
        let outcome = lab().hear(&pi(mac, id));
        let vendor = raw(&outcome, 43).unwrap();
        assert_eq!(outcome.asker.unwrap().machine.raspberry_pi, known, "{mac:02x?} {id:02x?}");
        assert_eq!(vendor.windows(17).any(|part| part == b"Raspberry Pi Boot"), known);
    }
    // What it sends second says less of it; what its operating system sends says nothing.
    let request = Packet::new(3, 2).with(at::CHADDR, &[0xdc, 0xa6, 0x32, 1, 2, 3]).selecting(ip(100));
    let id = [&[0], &newer[..]].concat();
    for (packet, told) in [(request.clone().option(97, &id), Some(b"rpi\0".to_vec())), (request, None)] {
        let mut lab = lab();
        lab.hear(&pi([0xdc, 0xa6, 0x32, 1, 2, 3], newer));
        let outcome = lab.hear(&packet);
        assert!(matches!(outcome.reason, Reason::Acked(..)), "{}", outcome.reason);
        assert_eq!((raw(&outcome, 67), raw(&outcome, 43).is_some()), (told.clone(), told.is_some()));
    }
    // A Pi 3 looks for a name that ends in blanks, in a menu that is as much longer.
    let vendor = raw(&lab().hear(&pi([0xb8, 0x27, 0xeb, 1, 2, 3], older)), 43).unwrap();
    assert_eq!(&vendor[9..], b"\x09\x17\x00\x00\x14Raspberry Pi Boot   \xff");
    assert_eq!(usize::from(vendor[10]), vendor.len() - 12);
    // It never asks as iPXE, and that is no loop.
    let site = site(Role::Proxy);
    let fleet = Fleet::new([client("pi-01", &[2], None)]).unwrap();
    for exchange in 0..6 {
        let packet = pi([0x52, 0x54, 0, 0xaa, 0, 2], newer);
        let (outcome, note) = offered(&site, &fleet, &again(&packet, exchange));
        assert_eq!((outcome.reason, note), (Reason::OfferedBoot(Handout::Loader("rpi")), None));
    }
    let without = Lab::new().hear(&pi([0xdc, 0xa6, 0x32, 1, 2, 3], UUID)).note.unwrap().detail;
    assert!(without.contains("there is no loader for Raspberry Pi"), "{without}");
}

#[test]
fn the_disk_itself_is_told_where_nothing_could_fetch_a_script_and_never_beside_one() {
    let path = b"iscsi:10.9.0.1:::0:iqn.2026-11.test:pc-02".to_vec();
    let initiator = b"iqn.2026-11.test:client.pc-02".to_vec();
    // UEFI's initiator asks for a netmask, a router and a root path, and says nothing of itself.
    let firmware = Packet::new(1, 2).option(55, &[1, 3, 17]);
    let told = |root_path, packet: &Packet| {
        let start = Start { root_path, ..Start::default() };
        let mut lab = lab();
        lab.fleet = Fleet::new([Client { start, ..client("pc-02", &[2], None) }]).unwrap();
        let outcome = lab.hear(packet);
        let Reason::Offered(_, handout) = outcome.reason else { panic!("{}", outcome.reason) };
        (handout, raw(&outcome, 17), raw(&outcome, 203), raw(&outcome, 67).is_some())
    };
    let disk = (Some(path), Some(initiator.clone()));
    for (packet, handout) in [(&firmware, Handout::AddressOnly), (&ipxe_without(0x13), Handout::RootPath)] {
        let (told_handout, root, name, file) = told(true, packet);
        assert_eq!((told_handout, (root, name), file), (handout, disk.clone(), false));
    }
    // Not without the operator's word, not to who did not ask, and not to an iPXE that has all.
    assert_eq!(told(false, &firmware), (Handout::AddressOnly, None, None, false));
    assert_eq!(told(false, &ipxe_without(0x13)), (Handout::Chain("bios"), None, None, true));
    assert_eq!(told(true, &Packet::new(1, 2).option(55, &[1, 3])), (Handout::AddressOnly, None, None, false));
    assert_eq!(told(true, &Packet::ipxe(1, 2, 0)), (Handout::Script, None, Some(initiator), true));
    assert_eq!(told(true, &ipxe_without(0x11)), (Handout::Chain("bios"), None, None, true));
    assert_eq!(told(true, &Packet::ovmf(1, 2)), (Handout::Loader("x64"), None, None, true));
}

#[test]
fn a_clients_own_loader_is_told_where_it_is_for_its_platform() {
    let start = Start { loader: Some("special".to_owned()), ..Start::default() };
    let mut lab = lab();
    lab.fleet = Fleet::new([Client { start, ..client("pc-02", &[2], None) }]).unwrap();
    assert_eq!(lab.hear(&Packet::ovmf(1, 2)).reason, Reason::Offered(ip(100), Handout::Loader("special")));
    let bios = Packet::new(1, 2).option(60, b"PXEClient").option(93, &[0, 0]);
    assert_eq!(lab.hear(&bios).reason, Reason::Offered(ip(100), Handout::Loader("bios")));
}

#[test]
fn features_are_read_and_rubbish_in_them_is_not() {
    let features = |bytes: &[u8]| {
        let packet = Packet::ipxe(1, 2, 0).without(175).option(175, bytes);
        lab().hear(&packet).asker.unwrap().machine
    };
    let good = features(&[0xeb, 3, 1, 21, 1, 0x11, 1, 1, 0x13, 1, 1, 0x14, 1, 0]);
    assert_eq!(good.features.unwrap().to_string(), "1.21.1 with iSCSI, HTTP");
    assert_eq!(good.missing(), None);
    for bad in [&[][..], &[0xeb], &[0x11, 200, 1], &[0x11], &[0xeb, 3, 1, 0, 0]] {
        let machine = features(bad);
        assert_eq!((machine.ipxe, machine.features, machine.missing()), (true, None::<Features>, None), "{bad:02x?}");
    }
    let detail = lab().hear(&ipxe_without(0x11)).note.unwrap().detail;
    assert!(detail.contains("iPXE 1.0.0 with HTTP") && detail.ends_with(", and without iSCSI"), "{detail}");
}

#[test]
fn an_ipxe_that_lacks_something_is_told_our_own_twice_and_then_its_script() {
    for (feature, missing) in [(0x11, Missing::Iscsi), (0x13, Missing::Http)] {
        for role in [Role::Server, Role::Proxy] {
            let mut lab = lab();
            let site = Site { role, ..lab.scope.site().clone() };
            let mut said = Vec::new();
            let handouts: Vec<Handout> = (0..4)
                .map(|exchange| {
                    let packet = again(&ipxe_without(feature), exchange);
                    let outcome = match role {
                        Role::Server => lab.hear(&packet),
                        Role::Proxy => proxy::overheard(&fleet(), &site, &packet.bytes()),
                    };
                    let told = raw(&outcome, 67).unwrap();
                    said.extend(site.guide.learn(&outcome).notes.into_iter().map(|note| note.detail));
                    // What is acknowledged is what was offered.
                    if role == Role::Server {
                        let request = again(&ipxe_without(feature), exchange).without(code::KIND);
                        let request = request.option(code::KIND, &[3]).selecting(ip(100));
                        assert_eq!(raw(&lab.hear(&request), 67).unwrap(), told);
                    }
                    match outcome.reason {
                        Reason::Offered(_, handout) | Reason::OfferedBoot(handout) => handout,
                        other => panic!("{other}"),
                    }
                })
                .collect();
            let chain = Handout::Chain("bios");
            assert_eq!(handouts, [chain, chain, Handout::Script, Handout::Script]);
            assert_eq!(said.len(), 1, "{said:?}");
            assert!(said[0].contains(&format!("no {missing}")), "{said:?}");
        }
    }
    // Our own loader, that has all, asks next: the next boot begins as the first did.
    let mut lab = lab();
    let guide = lab.scope.site().guide.clone();
    for exchange in [0, 2, 4, 6] {
        let poor = lab.hear(&again(&ipxe_without(0x11), exchange));
        assert_eq!(poor.reason, Reason::Offered(ip(100), Handout::Chain("bios")));
        assert_eq!(raw(&poor, 67), Some(b"bios\0".to_vec()));
        assert_eq!(guide.learn(&poor), Lesson::default());
        let good = lab.hear(&again(&Packet::ipxe(1, 2, 0), exchange + 1));
        assert_eq!(good.reason, Reason::Offered(ip(100), Handout::Script));
        assert_eq!(guide.learn(&good), Lesson::default());
    }
}

#[test]
fn a_loader_that_never_asks_as_ipxe_is_told_of_and_another_is_tried() {
    let mut lab = lab();
    let guide = lab.scope.site().guide.clone();
    let mut told = Vec::new();
    let mut said = Vec::new();
    for exchange in 0..6 {
        for _again in 0..3 {
            let outcome = lab.hear(&again(&Packet::ovmf(1, 2), exchange));
            let Reason::Offered(_, Handout::Loader(name)) = outcome.reason else { panic!("{}", outcome.reason) };
            told.push(name);
            said.extend(guide.learn(&outcome).notes.into_iter().map(|note| note.detail));
        }
    }
    let each: Vec<&str> = told.chunks(3).map(|same| same[0]).collect();
    assert!(told.chunks(3).all(|same| same[0] == same[1] && same[1] == same[2]), "{told:?}");
    assert_eq!(each, ["x64", "x64", "spare", "x64", "spare", "x64"]);
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].contains("three times in one exchange"), "{said:?}");
    assert!(said[1].contains("for the third time, and iPXE never asked"), "{said:?}");
    guide.learn(&lab.hear(&again(&Packet::ipxe(1, 2, 7), 7)));
    let outcome = lab.hear(&again(&Packet::ovmf(1, 2), 8));
    assert_eq!(outcome.reason, Reason::Offered(ip(100), Handout::Loader("x64")), "what ran is forgotten");
}

#[test]
fn u_boot_that_asks_again_and_again_before_it_asks_as_uefi_is_in_no_loop() {
    let mut lab = lab();
    let guide = lab.scope.site().guide.clone();
    let mut exchange = 0;
    let mut tell = |architecture: u8| {
        exchange += 1;
        let mut packet = Packet::new(1, 2).option(60, b"PXEClient").option(93, &[0, architecture]);
        // As itself it says how long it has been up.
        packet.header[8..10].copy_from_slice(&[0, if architecture == 22 { 30 } else { 0 }]);
        let outcome = lab.hear(&again(&packet, exchange));
        (outcome.reason.clone(), guide.learn(&outcome))
    };
    let arm64 = Reason::Offered(ip(100), Handout::Loader("arm64"));
    for _boot in 0..2 {
        for architecture in [22, 22, 22, 22, 11] {
            assert_eq!(tell(architecture), (arm64.clone(), Lesson::default()));
        }
    }
    let said = &tell(11).1.notes[0].detail;
    assert!(said.contains("for the third time"), "what it asks as UEFI counts: {said}");
    assert_eq!(tell(22), (arm64, Lesson::default()));
}

#[test]
fn beside_another_server_firmware_that_does_not_ask_port_4011_is_told_in_the_offer_alone() {
    let site = site(Role::Proxy);
    let vendor = |exchange| {
        let (outcome, _) = offered(&site, &fleet(), &again(&Packet::ovmf(1, 2), exchange));
        raw(&outcome, 43)
    };
    let in_the_offer = Some(vec![6, 1, 8, 255]);
    assert_eq!((vendor(0), vendor(0), vendor(1)), (None, None, None));
    assert_eq!((vendor(2), vendor(2)), (in_the_offer.clone(), in_the_offer.clone()));
    // That way iPXE came up: it is remembered.
    offered(&site, &fleet(), &again(&Packet::ipxe(1, 2, 7), 3));
    assert_eq!(vendor(4), in_the_offer);
    // It asks by itself after all.
    let request = again(&Packet::ovmf(3, 2), 4).using(ip(7));
    site.guide.learn(&asked(&site, &request, ip(7)));
    assert_eq!(vendor(5), None);
}

#[test]
fn firmware_that_asked_port_4011_is_not_moved_from_it_by_a_loader_that_fails() {
    let site = site(Role::Proxy);
    for exchange in 0..6 {
        let (outcome, _) = offered(&site, &fleet(), &again(&Packet::ovmf(1, 2), exchange));
        assert_eq!(raw(&outcome, 43), None, "{exchange}");
        let outcome = asked(&site, &again(&Packet::ovmf(3, 2), exchange).using(ip(7)), ip(7));
        site.guide.learn(&outcome);
        assert!(matches!(outcome.reason, Reason::ToldBoot(Handout::Loader(_))));
    }
}

#[test]
fn the_mapping_file_can_say_which_way() {
    for (pxe, role, vendor) in [
        (Pxe::File, Role::Proxy, true),
        (Pxe::Binl, Role::Proxy, false),
        (Pxe::Auto, Role::Proxy, false),
        (Pxe::File, Role::Server, true),
        (Pxe::Binl, Role::Server, false),
        (Pxe::Auto, Role::Server, true),
    ] {
        let start = Start { pxe, ..Start::default() };
        let fleet = Fleet::new([Client { start, ..client("pc-02", &[2], None) }]).unwrap();
        let outcome = match role {
            Role::Proxy => offered(&site(role), &fleet, &Packet::ovmf(1, 2)).0,
            Role::Server => {
                let mut lab = lab();
                lab.fleet = fleet;
                lab.hear(&Packet::ovmf(1, 2))
            }
        };
        assert_eq!(raw(&outcome, 43).is_some(), vendor, "{pxe:?} {role:?}");
        assert_eq!(raw(&outcome, 60), Some(b"PXEClient".to_vec()));
    }
}

#[test]
fn a_flood_of_machines_does_not_fill_the_memory() {
    let site = site(Role::Server);
    for number in 0..10_000_u16 {
        let [high, low] = number.to_be_bytes();
        let mac = [0x52, 0x54, 1, 0, high, low];
        let outcome = asked(&site, &Packet::ovmf(3, 2).with(at::CHADDR, &mac).using(ip(7)), ip(7));
        site.guide.learn(&outcome);
    }
    assert!(site.guide.remembered() <= 4_096);
}

/// The facts of what is learned from these packets, beside another server.
fn facts(packets: impl IntoIterator<Item = Packet>) -> Vec<Fact> {
    let site = site(Role::Proxy);
    let learn = |packet: Packet| {
        let outcome = match packet.options.iter().any(|(code, value)| (*code, value.as_slice()) == (53, &[3])) {
            true if packet.header[at::CIADDR] != 0 => asked(&site, &packet, ip(7)),
            _ => proxy::overheard(&fleet(), &site, &packet.bytes()),
        };
        let Lesson { notes, .. } = site.guide.learn(&outcome);
        outcome.note.into_iter().chain(notes).filter_map(|note| note.fact).collect::<Vec<_>>()
    };
    packets.into_iter().flat_map(learn).collect()
}

#[test]
fn a_machine_that_was_heard_late_is_told_of_once_for_each_exchange() {
    let discover = |secs: u8, exchange| again(&Packet::ovmf(1, 2), exchange).with(at::SECS, &[0, secs]);
    assert_eq!(facts([discover(28, 1), discover(44, 1)]), [Fact::HeardLate { secs: 28 }]);
    assert_eq!(facts([discover(0, 1), discover(12, 1)]), [], "its first one was heard");
    assert_eq!(facts([discover(4, 1)]), [], "its second try");
}

#[test]
fn offers_that_are_not_taken_up_are_told_of_unless_something_was() {
    let discover = || again(&Packet::ovmf(1, 2), 1);
    let unheeded = Fact::Unheeded { times: 3, proxy: true, asked_4011: false };
    assert_eq!(facts((0..5).map(|_| discover())), [unheeded]);
    let server = Ipv4Addr::new(10, 9, 0, 9);
    let takes = || again(&Packet::ovmf(3, 2), 1).option(50, &ip(7).octets()).option(54, &server.octets());
    let took = Fact::TookOther { server };
    let told = facts([discover(), discover(), takes(), discover(), discover()]);
    assert_eq!(told, std::slice::from_ref(&took));
    // It takes the other server's address each time, and never comes back to us.
    let rounds = (0..3).flat_map(|round| [again(&discover(), round), again(&takes(), round)]);
    let times = Fact::Unheeded { times: 3, proxy: true, asked_4011: false };
    assert_eq!(facts(rounds), [took.clone(), took.clone(), times, took]);
}

#[test]
fn an_architecture_without_a_loader_is_a_fact() {
    let packet = Packet::new(1, 2).option(60, b"PXEClient").option(93, &[0, 31]);
    assert_eq!(facts([packet.clone()]), [Fact::NoLoader { architecture: 31 }]);
    assert_eq!(lab().hear(&packet).note.unwrap().fact, Some(Fact::NoLoader { architecture: 31 }));
}

#[test]
fn a_client_that_takes_another_servers_offer_is_told_of() {
    let server = Ipv4Addr::new(10, 9, 0, 9);
    let outcome = lab().hear(&Packet::new(3, 2).option(50, &ip(7).octets()).option(54, &server.octets()));
    assert_eq!(outcome.reason, Reason::ChoseOther(server));
    assert_eq!(outcome.note.unwrap().fact, Some(Fact::TookOther { server }));
}

#[test]
fn the_way_that_a_clients_machine_took_is_kept_once_it_is_seen_to_work() {
    let site = site(Role::Proxy);
    let learn = |packet: &Packet| site.guide.learn(&proxy::overheard(&fleet(), &site, &packet.bytes())).habit;
    // Told twice and never asked on port 4011, then in the offer alone: nothing is known to work yet.
    for exchange in 0..3 {
        assert_eq!(learn(&again(&Packet::ovmf(1, 2), exchange)), None);
    }
    let ipxe = |exchange| again(&Packet::ipxe(1, 2, 7), exchange);
    assert_eq!(learn(&ipxe(3)), Some((mac(2), Habit { file: true })));
    assert_eq!((learn(&again(&Packet::ovmf(1, 2), 4)), learn(&ipxe(5))), (None, None), "no news");
    // After a restart it is told that way at once.
    let again_site = Site { guide: every_loader(), ..site.clone() };
    again_site.guide.remember([(mac(2), Habit { file: true })]);
    let outcome = proxy::overheard(&fleet(), &again_site, &again(&Packet::ovmf(1, 2), 6).bytes());
    assert_eq!(raw(&outcome, 43), Some(vec![6, 1, 8, 255]));
    // It asks on port 4011 after all.
    let request = again(&Packet::ovmf(3, 2), 7).using(ip(7));
    assert_eq!(site.guide.learn(&asked(&site, &request, ip(7))).habit, Some((mac(2), Habit { file: false })));
}

#[test]
fn a_flood_of_strangers_pushes_out_no_client() {
    let site = site(Role::Server);
    site.guide.remember([(mac(2), Habit { file: true })]);
    for number in 0..10_000_u16 {
        let [high, low] = number.to_be_bytes();
        let packet = Packet::ovmf(3, 2).with(at::CHADDR, &[0x52, 0x54, 1, 0, high, low]).using(ip(7));
        site.guide.learn(&asked(&site, &packet, ip(7)));
    }
    let proxy_site = Site { role: Role::Proxy, ..site };
    let outcome = proxy::overheard(&fleet(), &proxy_site, &Packet::ovmf(1, 2).bytes());
    assert_eq!(raw(&outcome, 43), Some(vec![6, 1, 8, 255]), "what is known of it is still known");
}
