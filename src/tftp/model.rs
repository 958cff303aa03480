//! A transfer against a model of the other side: a receiver written from RFC 1350 and RFC 7440 alone, behind a network
//! that loses, doubles and reorders packets on a virtual clock. What the receiver ends up with is the oracle.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;

use super::packet::{DEFAULT_BLKSIZE, Options};
use super::transfer::{Effect, End, GIVE_UP, Limits, NUDGE, Transfer};

const LATENCY: Duration = Duration::from_millis(1);
const RECEIVER_TIMEOUT: Duration = Duration::from_millis(1_500);
/// A network that may lose every packet proves nothing: one packet is lost at most this often.
const LOSSES_OF_ONE: u32 = 2;

fn limits() -> Limits {
    Limits::for_mtu(1500)
}

fn windowed(blksize: u16, windowsize: u16) -> Options {
    Options { blksize: Some(blksize), windowsize: Some(windowsize), ..Options::default() }
}

/// Bytes that differ from block to block.
fn file(length: usize) -> Bytes {
    (0..length).map(|at| u8::try_from((at * 31 + at / 251) % 251).unwrap()).collect()
}

/// What may happen to packets, in percent.
#[derive(Debug, Clone, Copy, Default)]
struct Weather {
    loss: u64,
    doubles: u64,
    reorder: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum To {
    Sender,
    Receiver,
}

struct Network {
    weather: Weather,
    seed: u64,
    sequence: u64,
    in_flight: BTreeMap<(Instant, u64), (To, Vec<u8>)>,
    lost: HashMap<(To, Vec<u8>), u32>,
}

impl Network {
    fn new(weather: Weather, seed: u64) -> Self {
        Self { weather, seed: seed | 1, sequence: 0, in_flight: BTreeMap::new(), lost: HashMap::new() }
    }

    fn percent(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed % 100
    }

    fn send(&mut self, now: Instant, to: To, packet: &[u8]) {
        if self.percent() < self.weather.loss {
            let losses = self.lost.entry((to, packet[..packet.len().min(4)].to_vec())).or_default();
            if *losses < LOSSES_OF_ONE {
                *losses += 1;
                return;
            }
        }
        let copies = if self.percent() < self.weather.doubles { 2 } else { 1 };
        for _ in 0..copies {
            let late = if self.percent() < self.weather.reorder { self.percent() } else { 0 };
            self.sequence += 1;
            let at = now + LATENCY + Duration::from_micros(late * 100);
            self.in_flight.insert((at, self.sequence), (to, packet.to_vec()));
        }
    }
}

/// The client: takes blocks in order, acknowledges each window, and says what it has when it sees a gap.
struct Receiver {
    asked: Options,
    blksize: usize,
    window: u64,
    got: Vec<u8>,
    /// Blocks that arrived in order.
    blocks: u64,
    since_ack: u64,
    /// Whether it complains at every unexpected block, as some clients do, or once for each gap.
    eager: bool,
    complained: bool,
    started: bool,
    done: bool,
    deadline: Instant,
}

impl Receiver {
    fn new(asked: Options, eager: bool, now: Instant) -> Self {
        Self {
            asked,
            blksize: DEFAULT_BLKSIZE.into(),
            window: 1,
            got: Vec::new(),
            blocks: 0,
            since_ack: 0,
            eager,
            complained: false,
            started: false,
            done: false,
            deadline: now + RECEIVER_TIMEOUT,
        }
    }

    fn ack(&mut self) -> Option<Vec<u8>> {
        self.since_ack = 0;
        let [.., high, low] = self.blocks.to_be_bytes();
        Some(vec![0, 4, high, low])
    }

    fn on_packet(&mut self, now: Instant, packet: &[u8]) -> Option<Vec<u8>> {
        self.deadline = now + RECEIVER_TIMEOUT;
        match packet {
            [0, 6, options @ ..] => {
                if self.blocks > 0 {
                    return None;
                }
                self.started = true;
                self.agree(options);
                self.ack()
            }
            [0, 3, high, low, payload @ ..] => {
                self.started = true;
                let [.., next_high, next_low] = (self.blocks + 1).to_be_bytes();
                if self.done || [*high, *low] != [next_high, next_low] {
                    if self.eager || self.done || !self.complained {
                        self.complained = true;
                        return self.ack();
                    }
                    return None;
                }
                assert!(payload.len() <= self.blksize, "a block longer than agreed");
                self.complained = false;
                self.got.extend_from_slice(payload);
                self.blocks += 1;
                self.since_ack += 1;
                self.done = payload.len() < self.blksize;
                if self.done || self.since_ack == self.window { self.ack() } else { None }
            }
            other => panic!("the sender sent {other:?}"),
        }
    }

    fn agree(&mut self, options: &[u8]) {
        let text = std::str::from_utf8(options).unwrap();
        let fields: Vec<&str> = text.strip_suffix('\0').unwrap().split('\0').collect();
        for pair in fields.chunks(2) {
            let value: u16 = pair[1].parse().unwrap_or(u16::MAX);
            match pair[0] {
                "blksize" => {
                    assert!(value <= self.asked.blksize.expect("not asked for"));
                    self.blksize = value.into();
                }
                "windowsize" => {
                    assert!(value <= self.asked.windowsize.expect("not asked for"));
                    self.window = value.into();
                }
                "tsize" => assert!(self.asked.tsize),
                "timeout" => assert_eq!(u16::from(self.asked.timeout.expect("not asked for")), value),
                other => panic!("an option nobody knows: {other}"),
            }
        }
    }
}

/// What came of one transfer.
struct Outcome {
    end: Option<End>,
    got: Vec<u8>,
    data_sent: u64,
    took: Duration,
}

fn run(asked: Options, file: &Bytes, weather: Weather, seed: u64, eager: bool) -> Outcome {
    let start = Instant::now();
    let mut now = start;
    let mut network = Network::new(weather, seed);
    let mut receiver = Receiver::new(asked, eager, now);
    let (mut transfer, mut effects) = Transfer::new(asked, file.clone(), limits(), now);
    let mut data_sent = 0;
    for _ in 0..2_000_000 {
        for effect in effects.drain(..) {
            match effect {
                Effect::Send(packet) => {
                    data_sent += u64::from(packet[1] == 3);
                    network.send(now, To::Receiver, &packet);
                }
                Effect::End(end) => {
                    return Outcome { end: Some(end), got: receiver.got, data_sent, took: now - start };
                }
            }
        }
        let timer = transfer.deadline().min(receiver.deadline);
        match network.in_flight.first_key_value() {
            Some((&(at, _), _)) if at <= timer => {
                now = at;
                let (_, (to, packet)) = network.in_flight.pop_first().unwrap();
                match to {
                    To::Sender => effects = transfer.on_packet(now, &packet),
                    To::Receiver => {
                        if let Some(ack) = receiver.on_packet(now, &packet) {
                            network.send(now, To::Sender, &ack);
                        }
                    }
                }
            }
            _ if transfer.deadline() <= receiver.deadline => {
                now = now.max(transfer.deadline());
                effects = transfer.on_timeout(now);
            }
            _ => {
                now = now.max(receiver.deadline);
                receiver.deadline = now + RECEIVER_TIMEOUT;
                if receiver.started {
                    let ack = receiver.ack().unwrap();
                    network.send(now, To::Sender, &ack);
                } else {
                    effects = transfer.on_request_again(now);
                }
            }
        }
    }
    Outcome { end: None, got: receiver.got, data_sent, took: now - start }
}

fn blocks(length: usize, blksize: u16) -> u64 {
    (length / usize::from(blksize)) as u64 + 1
}

#[test]
fn on_a_calm_network_each_block_is_sent_once_whatever_the_window() {
    for windowsize in 1..=64 {
        for length in [0, 1, 511, 512, 513, 512 * 40, 20_000] {
            let file = file(length);
            let outcome = run(windowed(512, windowsize), &file, Weather::default(), 1, false);
            assert_eq!(outcome.end, Some(End::Complete), "window {windowsize}, {length} bytes");
            assert_eq!(outcome.got, file, "window {windowsize}, {length} bytes");
            assert_eq!(outcome.data_sent, blocks(length, 512), "window {windowsize}, {length} bytes");
            assert!(outcome.took < Duration::from_secs(1), "window {windowsize}, {length} bytes: {:?}", outcome.took);
        }
    }
}

#[test]
fn doubled_packets_do_not_make_a_sorcerers_apprentice() {
    for windowsize in 1..=32 {
        let file = file(60_000);
        let weather = Weather { doubles: 100, ..Weather::default() };
        let outcome = run(windowed(512, windowsize), &file, weather, 7, true);
        assert_eq!((outcome.end, outcome.got), (Some(End::Complete), file.to_vec()), "window {windowsize}");
        // A client that answers each copy of a block with where it is makes a sender with a window go back once for it
        // (RFC 7440 §4); the copies of what is sent then must not do so again.
        let most = blocks(60_000, 512) * if windowsize == 1 { 1 } else { 2 };
        assert!(outcome.data_sent <= most, "window {windowsize}: {} blocks sent", outcome.data_sent);
    }
}

#[test]
fn block_numbers_go_on_at_0_after_65535() {
    let file = file(8 * 70_000 + 3);
    for windowsize in [1, 31] {
        let outcome = run(windowed(8, windowsize), &file, Weather::default(), 1, false);
        assert_eq!(outcome.end, Some(End::Complete));
        assert!(outcome.got == file, "window {windowsize}: the file is not what was sent");
    }
}

#[test]
fn without_options_there_is_no_oack() {
    let file = file(2_000);
    let (_, effects) = Transfer::new(Options::default(), file.clone(), limits(), Instant::now());
    let [Effect::Send(first)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((&first[..4], &first[4..]), (&[0, 3, 0, 1][..], &file[..512]));
}

#[test]
fn the_loss_of_a_windows_first_block_costs_milliseconds() {
    let start = Instant::now();
    let (mut transfer, _) = Transfer::new(windowed(512, 4), file(512 * 8), limits(), start);
    let window = transfer.on_packet(start, &[0, 4, 0, 0]);
    assert_eq!(window.len(), 4);
    // Blocks 2 to 4 arrive, 1 does not: the client says three times that it has nothing.
    for after in 1..=3 {
        assert_eq!(transfer.on_packet(start + Duration::from_millis(after), &[0, 4, 0, 0]), []);
    }
    assert_eq!(transfer.deadline(), start + NUDGE);
    assert_eq!(transfer.on_timeout(start + NUDGE), window);
    assert!(transfer.deadline() >= start + NUDGE + Duration::from_secs(1), "an early retransmission is no backoff");
}

#[test]
fn an_ack_inside_the_window_is_answered_at_once_from_there() {
    let now = Instant::now();
    let (mut transfer, _) = Transfer::new(windowed(512, 4), file(512 * 20), limits(), now);
    transfer.on_packet(now, &[0, 4, 0, 0]);
    let numbers: Vec<u8> = transfer
        .on_packet(now, &[0, 4, 0, 2])
        .into_iter()
        .map(|effect| match effect {
            Effect::Send(packet) => packet[3],
            Effect::End(end) => panic!("{end:?}"),
        })
        .collect();
    assert_eq!(numbers, [3, 4, 5, 6]);
}

#[test]
fn a_silent_client_is_tried_with_growing_pauses_and_given_up() {
    let start = Instant::now();
    let (mut transfer, first) = Transfer::new(Options::default(), file(100), limits(), start);
    let mut tries = Vec::new();
    loop {
        let now = transfer.deadline();
        let effects = transfer.on_timeout(now);
        if let [Effect::End(end)] = &effects[..] {
            assert_eq!(*end, End::Silent { acked: 0, blocks: 1 });
            assert_eq!(now, start + GIVE_UP);
            break;
        }
        assert_eq!(effects, first);
        tries.push((now - start).as_secs());
    }
    assert_eq!(tries, [1, 3, 7, 15, 23]);
    assert_eq!(transfer.on_packet(start + GIVE_UP, &[0, 4, 0, 1]), [], "what is over is over");
}

#[test]
fn a_block_that_a_fast_client_does_not_get_is_sent_again_soon_and_then_ever_later() {
    let mut now = Instant::now();
    let (mut transfer, _) = Transfer::new(Options::default(), file(512 * 30), limits(), now);
    for block in 1..=10 {
        now += Duration::from_millis(3);
        transfer.on_packet(now, &[0, 4, 0, block]);
    }
    let (sent, mut tries) = (now, Vec::new());
    for _ in 0..7 {
        now = transfer.deadline();
        assert_eq!(transfer.on_timeout(now).len(), 1);
        tries.push((now - sent).as_millis());
    }
    assert_eq!(tries, [200, 600, 1_400, 3_000, 6_200, 12_600, 20_600]);
    // An ACK of what was sent twice tells nothing of how long the client takes; the next one does.
    transfer.on_packet(now, &[0, 4, 0, 11]);
    assert_eq!(transfer.deadline(), now + Duration::from_millis(200));
}

#[test]
fn a_client_that_asked_for_a_time_gets_that_one() {
    let mut now = Instant::now();
    let asked = Options { timeout: Some(3), ..Options::default() };
    let (mut transfer, _) = Transfer::new(asked, file(512 * 30), limits(), now);
    for block in 0..=10 {
        now += Duration::from_millis(3);
        transfer.on_packet(now, &[0, 4, 0, block]);
        assert_eq!(transfer.deadline(), now + Duration::from_secs(3));
    }
}

#[test]
fn a_client_that_takes_its_time_is_not_sent_everything_twice() {
    let mut now = Instant::now();
    let (mut transfer, _) = Transfer::new(Options::default(), file(512 * 100), limits(), now);
    for block in 1..=100_u8 {
        now += Duration::from_millis(if block % 10 == 0 { 600 } else { 90 });
        assert_eq!(transfer.on_timeout(now), [], "block {block}");
        transfer.on_packet(now, &[0, 4, 0, block]);
    }
}

#[test]
fn who_begins_again_for_ever_is_left_in_the_end() {
    let mut now = Instant::now();
    let file = file(512 * 4_000);
    let (mut transfer, mut effects) = Transfer::new(windowed(512, 32), file.clone(), limits(), now);
    let mut sent = 0;
    for round in 0.. {
        let block = u8::try_from(round % 4 * 32).unwrap();
        now += Duration::from_millis(1_100);
        effects = match round % 4 {
            0 => [transfer.on_request_again(now), transfer.on_packet(now, &[0, 4, 0, 0])].concat(),
            _ => [effects, transfer.on_packet(now, &[0, 4, 0, block])].concat(),
        };
        for effect in effects.drain(..) {
            match effect {
                Effect::Send(packet) if packet[1] == 3 => sent += packet.len() as u64 - 4,
                Effect::Send(_) => {}
                Effect::End(end) => {
                    let End::Endless { sent: told } = end else { panic!("{end:?}") };
                    let most = file.len() as u64 * 16 + (1 << 20);
                    assert!(sent <= most && told > most, "{sent} bytes sent, {told} told, at most {most}");
                    return;
                }
            }
        }
        assert!(round < 100_000, "it goes on for ever");
    }
}

#[test]
fn a_slow_client_that_goes_on_is_never_given_up() {
    let mut now = Instant::now();
    let (mut transfer, _) = Transfer::new(Options::default(), file(512 * 100), limits(), now);
    for block in 1..=101_u8 {
        now += Duration::from_millis(1_300);
        transfer.on_timeout(now);
        let effects = transfer.on_packet(now, &[0, 4, 0, block]);
        assert_eq!(effects.contains(&Effect::End(End::Complete)), block == 101, "block {block}");
    }
}

#[test]
fn a_client_that_never_gets_a_large_block_is_known_before_it_gives_up() {
    for (blksize, lost) in [(1468, true), (512, false)] {
        let mut now = Instant::now();
        let (mut transfer, _) = Transfer::new(windowed(blksize, 1), file(20_000), limits(), now);
        transfer.on_packet(now, &[0, 4, 0, 0]);
        let mut known = None;
        for second in 0..10 {
            now += Duration::from_secs(1);
            transfer.on_timeout(now);
            known = known.or(transfer.loses_large_blocks().then_some(second));
        }
        // EDK2 begins anew after 4 s.
        assert_eq!(known, lost.then_some(2), "{blksize}");
        transfer.on_packet(now, &[0, 4, 0, 1]);
        assert!(!transfer.loses_large_blocks(), "it got one after all");
    }
    assert_eq!(limits().cautious().blksize, 512);
}

#[test]
fn the_size_probe_ends_without_an_answer() {
    let now = Instant::now();
    let asked = Options { tsize: true, ..windowed(1468, 4) };
    let (mut transfer, effects) = Transfer::new(asked, file(74_213), limits(), now);
    assert_eq!(effects, [Effect::Send(b"\0\x06blksize\x001468\0tsize\x0074213\0windowsize\x004\0".to_vec())]);
    assert_eq!(transfer.on_packet(now, b"\0\x05\0\x08User aborted\0"), [Effect::End(End::SizeProbe)]);
    let (mut transfer, _) = Transfer::new(windowed(1468, 4), file(74_213), limits(), now);
    let end = End::Refused { code: 3, text: "disk full".into() };
    assert_eq!(transfer.on_packet(now, b"\0\x05\0\x03disk full\0"), [Effect::End(end)]);
}

#[test]
fn a_request_that_comes_again_restarts_only_what_stands_still() {
    let start = Instant::now();
    let (mut transfer, first) = Transfer::new(windowed(512, 2), file(4_000), limits(), start);
    assert_eq!(transfer.on_request_again(start + Duration::from_millis(1)), [], "an echo");
    assert_eq!(transfer.on_request_again(start + Duration::from_millis(900)), first, "our OACK was lost");
    let running = start + Duration::from_secs(1);
    transfer.on_packet(running, &[0, 4, 0, 0]);
    transfer.on_packet(running, &[0, 4, 0, 2]);
    assert_eq!(transfer.on_request_again(running + Duration::from_millis(300)), [], "an old packet");
    assert_eq!(transfer.on_request_again(running + Duration::from_secs(2)), first, "the machine started again");
}

#[test]
fn wishes_are_cut_to_what_the_wire_and_the_server_bear() {
    let now = Instant::now();
    let oack = |asked| match &Transfer::new(asked, file(10), limits(), now).1[..] {
        [Effect::Send(packet)] => String::from_utf8_lossy(&packet[2..]).replace('\0', " "),
        other => panic!("{other:?}"),
    };
    assert_eq!(oack(windowed(65_464, 65_535)), "blksize 1468 windowsize 32 ");
    assert_eq!(oack(Options { timeout: Some(5), ..Options::default() }), "timeout 5 ");
    assert_eq!(oack(Options { timeout: Some(200), tsize: true, ..Options::default() }), "tsize 10 ");
    let jumbo = Limits { blksize: 65_464, ..limits() };
    let (transfer, _) = Transfer::new(windowed(65_464, 16), file(10), jumbo, now);
    assert!(format!("{transfer:?}").contains("windowsize: Some(1)"), "64 KiB in flight and no more");
}

proptest! {
    #[test]
    fn a_file_arrives_whole_through_any_weather(
        length in 0..40_000_usize,
        blksize in prop::option::of(8..2_000_u16),
        windowsize in prop::option::of(1..=64_u16),
        tsize: bool,
        timeout in prop::option::of(1..20_u8),
        loss in 0..40_u64,
        doubles in 0..40_u64,
        reorder in 0..40_u64,
        eager: bool,
        seed: u64,
    ) {
        // Tiny blocks of a large file only take long.
        let length = length.min(usize::from(blksize.unwrap_or(DEFAULT_BLKSIZE)) * 200 + 5);
        let file = file(length);
        let asked = Options { blksize, timeout, tsize, windowsize };
        let outcome = run(asked, &file, Weather { loss, doubles, reorder }, seed, eager);
        prop_assert_eq!(outcome.end, Some(End::Complete));
        prop_assert!(outcome.got == file, "the file is not what was sent");
    }

    #[test]
    fn hostile_packets_get_no_more_than_a_window_each(
        packets in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..12), 0..6_u8, 0..3_000_u64), 0..60),
        windowsize in 1..=64_u16,
    ) {
        let mut now = Instant::now();
        let (mut transfer, _) = Transfer::new(windowed(512, windowsize), file(30_000), limits(), now);
        let mut over = false;
        for (mut packet, opcode, wait) in packets {
            now += Duration::from_millis(wait);
            if let [high, low, ..] = &mut packet[..] {
                (*high, *low) = (0, opcode);
            }
            if let [_, _, high, low, ..] = &mut packet[..] {
                (*high, *low) = (0, *low % 80);
            }
            let mut effects = transfer.on_packet(now, &packet);
            prop_assert!(effects.len() <= usize::from(windowsize.min(32)));
            effects.extend(transfer.on_timeout(now));
            effects.extend(transfer.on_request_again(now));
            prop_assert!(!over || effects.is_empty(), "it spoke after its end");
            over |= effects.iter().any(|effect| matches!(effect, Effect::End(_)));
        }
    }
}
