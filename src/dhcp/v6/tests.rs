//! Packets as real firmware sends them, hostile packets, and random ones against a model.

use dhcproto::v6::{DhcpOption, Message, MessageType, OptionCode, Status};
use dhcproto::{Decodable, Decoder};
use proptest::prelude::*;

use super::fuzz::{self, MACHINE, SERVER, arrival, firmware, fleet, options, relayed, site};
use super::wire::Options;
use super::*;
use crate::fleet::{Fact, Platform};

const STRANGER: [u8; 6] = [0x52, 0x54, 0, 0x77, 9, 9];

fn hear(role: Role, port: Port, bytes: &[u8]) -> Outcome {
    handle(&fleet(), &site(role), &arrival(port), bytes)
}

fn decoded(outcome: &Outcome) -> Message {
    let reply = outcome.reply.as_ref().unwrap_or_else(|| panic!("no answer: {outcome:?}"));
    Message::decode(&mut Decoder::new(&reply.bytes)).unwrap()
}

fn url(message: &Message) -> String {
    match message.opts().get(OptionCode::OptBootfileUrl) {
        Some(DhcpOption::Unknown(option)) => String::from_utf8(option.data().to_vec()).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// A message of this type with the machine's DUID-LL, its architecture, and more.
fn message(kind: u8, more: &[(u16, &[u8])]) -> Vec<u8> {
    let identifier = [&[0, 3, 0, 1][..], &MACHINE].concat();
    let mut bytes = vec![kind, 1, 2, 3];
    bytes.extend(options([(1, &identifier[..]), (61, &[0, 7])].into_iter().chain(more.iter().copied())));
    bytes
}

/// The same from a machine whose identifier tells no hardware address, as firmware's does on boards with an SMBIOS UUID.
fn by_uuid(kind: u8) -> Vec<u8> {
    let identifier = [&[0, 4][..], &[7; 16]].concat();
    let mut bytes = vec![kind, 1, 2, 3];
    bytes.extend(options([(1, &identifier[..]), (61, &[0, 7])]));
    bytes
}

#[test]
fn pxe_firmware_is_told_in_an_offer_without_an_address_and_once_more_on_port_4011() {
    let outcome = hear(Role::Proxy, Port::Servers, &firmware(1, false));
    assert_eq!(outcome.reason, Reason::Offered(Handout::Loader("snponly.efi")));
    let answer = decoded(&outcome);
    assert_eq!((answer.msg_type(), answer.xid()), (MessageType::Advertise, fuzz::TRANSACTION));
    assert_eq!(url(&answer), "tftp://[fd00:77::1]/snponly.efi");
    assert!(answer.opts().get(OptionCode::IANA).is_none() && answer.opts().get(OptionCode::StatusCode).is_none());
    let bytes = &outcome.reply.as_ref().unwrap().bytes;
    // The enterprise number at 0, the word at 6: where firmware looks for them.
    assert!(bytes.ends_with(b"\0\x10\0\x0f\0\0\x01\x57\0\x09PXEClient"), "{bytes:02x?}");
    assert_eq!(outcome.reply.as_ref().unwrap().to, arrival(Port::Servers).from);

    let outcome = hear(Role::Proxy, Port::BootServer, &firmware(3, false));
    assert_eq!(outcome.reason, Reason::Told(Handout::Loader("snponly.efi")));
    let answer = decoded(&outcome);
    assert_eq!((answer.msg_type(), url(&answer).as_str()), (MessageType::Reply, "tftp://[fd00:77::1]/snponly.efi"));
    assert_eq!(outcome.reply.as_ref().unwrap().to, arrival(Port::BootServer).from, "from port 4011 to port 4011");
    assert_eq!(outcome.note.unwrap().detail, "snponly.efi (UEFI x64), over IPv6, asked on port 4011");
}

#[test]
fn http_firmware_is_told_a_url_under_its_own_name() {
    let outcome = hear(Role::Proxy, Port::Servers, &firmware(1, true));
    assert_eq!(outcome.reason, Reason::Offered(Handout::LoaderUrl("snponly.efi")));
    assert_eq!(url(&decoded(&outcome)), "http://[fd00:77::1]/snponly.efi");
    assert!(outcome.reply.unwrap().bytes.ends_with(b"\0\0\x01\x57\0\x0aHTTPClient"));
}

#[test]
fn ipxe_is_told_its_script_when_it_asks_for_that_alone() {
    let class: (u16, &[u8]) = (15, b"\0\x04iPXE");
    assert_eq!(hear(Role::Proxy, Port::Servers, &message(1, &[class])).reason, Reason::Elsewhere);
    let outcome = hear(Role::Proxy, Port::Servers, &message(11, &[class]));
    assert_eq!(outcome.reason, Reason::Told(Handout::Script));
    assert_eq!(url(&decoded(&outcome)), "http://[fd00:77::1]/boot.ipxe?mac=${mac:hexhyp}");
}

#[test]
fn a_client_that_took_our_offer_for_an_address_is_told_that_there_is_none() {
    let association: (u16, &[u8]) = (3, &[9, 9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0]);
    let many = [&[(2, &SERVER[..])][..], &[association; 20]].concat();
    let outcome = hear(Role::Proxy, Port::Servers, &message(3, &many));
    let answer = decoded(&outcome);
    let given: Vec<_> = answer.opts().get_all(OptionCode::IANA).unwrap().iter().collect();
    assert_eq!(given.len(), MAX_ASSOCIATIONS);
    for one in given {
        let DhcpOption::IANA(one) = one else { panic!("{one:?}") };
        assert_eq!(one.id, 0x0909_0909);
        let status = one.opts.get(OptionCode::StatusCode);
        assert!(
            matches!(status, Some(DhcpOption::StatusCode(code)) if code.status == Status::NoAddrsAvail),
            "{status:?}"
        );
    }
}

#[test]
fn what_is_for_the_server_that_gives_the_addresses_is_left_to_it() {
    let theirs: (u16, &[u8]) = (2, b"another server");
    for kind in [3, 11] {
        assert_eq!(hear(Role::Server, Port::Servers, &message(kind, &[theirs])).reason, Reason::Elsewhere);
    }
    assert_eq!(hear(Role::Server, Port::Servers, &message(3, &[])).reason, Reason::Elsewhere, "it names no server");
    for kind in [4, 5, 6, 8, 9] {
        assert_eq!(hear(Role::Server, Port::Servers, &message(kind, &[])).reason, Reason::Elsewhere);
    }
    for (kind, what) in [(1, Kind::Solicit), (5, Kind::Address)] {
        let outcome = hear(Role::Server, Port::BootServer, &message(kind, &[]));
        assert_eq!(outcome.reason, Reason::NotForBootServer(what));
    }
}

#[test]
fn a_system_is_not_answered_nor_a_machine_without_a_loader() {
    let identifier = [&[0, 3, 0, 1][..], &MACHINE].concat();
    for kind in [1, 11] {
        let bytes = [&[kind, 1, 2, 3][..], &options([(1, &identifier[..])])].concat();
        assert_eq!(hear(Role::Server, Port::Servers, &bytes).reason, Reason::NoNetboot);
    }
    let bytes = [&[1, 1, 2, 3][..], &options([(1, &identifier[..]), (61, &[0, 11])])].concat();
    let outcome = hear(Role::Server, Port::Servers, &bytes);
    assert_eq!((&outcome.reason, &outcome.reply), (&Reason::NoLoader(11), &None));
    assert!(outcome.reason.is_alarming() && outcome.note.unwrap().detail.contains("there is no loader"));
}

#[test]
fn strangers_are_told_where_they_are_told_over_ipv4_and_a_client_that_is_off_never() {
    let mut bytes = firmware(1, false);
    let at = bytes.windows(6).position(|part| part == MACHINE).unwrap();
    let mut from = arrival(Port::Servers);
    from.from.set_ip("fe80::1234".parse().unwrap());
    bytes[at..at + 6].copy_from_slice(&STRANGER);
    let heard = |role, bytes: &[u8]| handle(&fleet(), &site(role), &from, bytes).reason;
    assert_eq!(heard(Role::Proxy, &bytes), Reason::Stranger);
    assert_eq!(heard(Role::Server, &bytes), Reason::Offered(Handout::Loader("snponly.efi")));
    bytes[at..at + 6].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
    assert_eq!(heard(Role::Server, &bytes), Reason::OutOfService("pc-02".parse().unwrap()));
}

#[test]
fn a_machine_is_known_by_what_its_relay_saw_its_identifier_its_frame_or_its_link_local_address() {
    let mac = |octets| Mac::from_octets(octets).unwrap();
    let silent = Arrival { from: "[fe80::1%4]:546".parse().unwrap(), port: Port::Servers, neighbour: None };
    let who = |arrival: Arrival, bytes: &[u8]| {
        handle(&fleet(), &site(Role::Server), &arrival, bytes).asker.map(|asker| asker.mac)
    };
    assert_eq!(who(silent, &message(1, &[])), Some(mac(MACHINE)), "DUID-LL");
    assert_eq!(who(silent, &firmware(1, false)), Some(mac(MACHINE)), "DUID-LLT");
    assert_eq!(who(silent, &by_uuid(1)), None);
    assert_eq!(who(Arrival { neighbour: Some(mac(MACHINE)), ..silent }, &by_uuid(1)), Some(mac(MACHINE)));
    assert_eq!(who(arrival(Port::Servers), &by_uuid(1)), Some(mac(MACHINE)), "its address");
    assert_eq!(who(silent, &relayed(&by_uuid(1), MACHINE)), Some(mac(MACHINE)), "RFC 6939");
    let behind = Arrival { neighbour: Some(mac(STRANGER)), ..arrival(Port::Servers) };
    assert_eq!(who(behind, &relayed(&by_uuid(1), [1; 6])), None, "the relay's own frame and address say nothing");
    // A word that names a client counts before one that names nobody.
    let seen = Arrival { neighbour: Some(mac(STRANGER)), ..silent };
    assert_eq!(who(seen, &message(1, &[])), Some(mac(MACHINE)));
    assert_eq!(who(silent, &relayed(&message(1, &[]), STRANGER)), Some(mac(MACHINE)));
    assert_eq!(who(seen, &by_uuid(1)), Some(mac(STRANGER)));
}

#[test]
fn an_answer_goes_back_through_every_relay() {
    let bytes = relayed(&relayed(&firmware(1, false), MACHINE), [2; 6]);
    let from = "[fd00:78::1]:547".parse().unwrap();
    let arrival = Arrival { from, port: Port::Servers, neighbour: None };
    let outcome = handle(&fleet(), &site(Role::Proxy), &arrival, &bytes);
    let reply = outcome.reply.unwrap();
    assert_eq!(reply.to, from);
    assert_eq!(reply.bytes[0], message::RELAY_REPLY);
    assert_eq!(reply.bytes[1..34], bytes[1..34]);
    // How deep is seen by the interface that each relay named.
    assert_eq!(reply.bytes.windows(8).filter(|part| part == b"ge-0/0/4").count(), 2);
    let too_many = (0..9).fold(firmware(1, false), |inner, _| relayed(&inner, MACHINE));
    assert_eq!(hear(Role::Proxy, Port::Servers, &too_many).reason, Reason::Malformed(Malformed::Hops));
}

#[test]
fn what_is_no_request_is_refused_with_the_reason() {
    let identifier = |len| [&[1, 1, 2, 3][..], &options([(1, &vec![0; len][..])])].concat();
    for (bytes, why) in [
        (vec![], Malformed::Short(0)),
        (vec![1, 2, 3], Malformed::Short(3)),
        (vec![2, 1, 2, 3], Malformed::Kind(2)),
        (vec![7, 1, 2, 3], Malformed::Kind(7)),
        (vec![255, 1, 2, 3], Malformed::Kind(255)),
        (vec![12; 33], Malformed::Short(33)),
        ([&[12][..], &[0; 33]].concat(), Malformed::NothingRelayed),
        (vec![1, 1, 2, 3], Malformed::NoClientId),
        (identifier(131), Malformed::ClientId(131)),
        (message(1, &[(2, &SERVER)]), Malformed::NamesServer),
    ] {
        assert_eq!(hear(Role::Server, Port::Servers, &bytes).reason, Reason::Malformed(why), "{bytes:02x?}");
    }
    let mut from = arrival(Port::Servers);
    from.from.set_ip("fe80::1".parse().unwrap());
    let outcome = handle(&fleet(), &site(Role::Server), &from, &identifier(130));
    assert_eq!(outcome.reason, Reason::Nobody);
}

#[test]
fn an_answer_that_would_be_too_long_is_not_made() {
    let mut bytes = relayed(&firmware(1, false), MACHINE);
    bytes.splice(34..34, options([(18, &[7; 1_150][..])]));
    assert!(matches!(hear(Role::Proxy, Port::Servers, &bytes).reason, Reason::TooLong(1_233..)));
    // Nor is one begun that no length in a packet could say.
    let vast = (0..2).fold(firmware(1, false), |inner, _| {
        let mut bytes = relayed(&inner, MACHINE);
        bytes.splice(34..34, options([(18, &[7; 40_000][..])]));
        bytes
    });
    assert!(matches!(hear(Role::Proxy, Port::Servers, &vast).reason, Reason::TooLong(40_000..)));
}

#[test]
fn the_guide_learns_from_ipv6_as_it_does_from_ipv4() {
    let site = site(Role::Proxy);
    let mut loaders = crate::fleet::Loaders::default();
    loaders.set(Platform::X64, crate::fleet::Loader { name: "snponly.efi", spare: Some("ipxe.efi") });
    let guide = Guide::new(loaders);
    let site = Site { wired: Wired { guide: guide.clone(), ..site.wired.clone() }, ..site };
    let (mut told, mut lessons) = (Vec::new(), Vec::new());
    for exchange in 0..4 {
        let mut bytes = firmware(1, true);
        bytes[3] = exchange;
        // What is asked again within an exchange is answered alike.
        for _ in 0..3 {
            let outcome = handle(&fleet(), &site, &arrival(Port::Servers), &bytes);
            let Reason::Offered(Handout::LoaderUrl(name)) = outcome.reason else { panic!("{outcome:?}") };
            told.push(name);
            lessons.push(outcome.teach(&guide));
        }
    }
    let [first, other] = ["snponly.efi", "ipxe.efi"];
    assert_eq!(told.chunks(3).map(|same| same[0]).collect::<Vec<_>>(), [first, first, other, first]);
    assert!(told.chunks(3).all(|same| same[0] == same[1] && same[1] == same[2]), "{told:?}");
    // That it repeats its question says nothing: it may be that nobody gives it an address. Nor is that its way over IPv4.
    let said: Vec<_> = lessons.iter().flat_map(|lesson| &lesson.notes).collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(said[0].fact, Some(Fact::Unheeded { times: 3, proxy: true, asked_4011: false }));
    assert!(lessons.iter().all(|lesson| lesson.habit.is_none()));
}

fn any_options() -> impl Strategy<Value = Vec<(u16, Vec<u8>)>> {
    let code = prop_oneof![1_u16..80, any::<u16>()];
    prop::collection::vec((code, prop::collection::vec(any::<u8>(), 0..40)), 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_option_before_a_cut_is_found_and_none_behind_it(list in any_options(), cut in 0_usize..600) {
        let bytes = options(list.iter().map(|(code, value)| (*code, &value[..])));
        let cut = cut.min(bytes.len());
        let mut end = 0;
        let whole: Vec<_> = list.iter().take_while(|(_, value)| { end += 4 + value.len(); end <= cut }).collect();
        for code in 0..=80 {
            let wanted = whole.iter().find(|(other, _)| *other == code).map(|(_, value)| &value[..]);
            prop_assert_eq!(Options::of(&bytes[..cut]).first(code), wanted);
        }
    }

    // Whatever stands before and between them, of whatever shape, what firmware says is understood.
    #[test]
    fn no_bad_option_hides_a_later_one(bad in any_options()) {
        let of_ours = [1, 2, 15, 16, 61];
        let odd: Vec<_> = bad.iter().filter(|(code, _)| !of_ours.contains(code)).collect();
        let mut bytes = vec![1, 0, 0, 1];
        bytes.extend(options(odd.iter().map(|(code, value)| (*code, &value[..]))));
        // A class that is cut within itself, before the one that counts.
        bytes.extend(options([(16, &b"\0\0\x01\x57\0\xffPXE"[..]), (15, &b"\0"[..])]));
        bytes.extend(&firmware(1, true)[4..]);
        let outcome = hear(Role::Proxy, Port::Servers, &bytes);
        prop_assert_eq!(outcome.reason, Reason::Offered(Handout::LoaderUrl("snponly.efi")));
    }

    #[test]
    fn any_packet_is_answered_soundly_or_not_at_all(data in prop::collection::vec(any::<u8>(), 0..1_300)) {
        fuzz::fuzz(&data);
    }

    #[test]
    fn any_damage_is_answered_soundly_or_not_at_all(choice: u8, damage in prop::collection::vec(any::<u8>(), 0..12)) {
        fuzz::fuzz(&[&[choice][..], &damage].concat());
    }
}
