#!/usr/bin/env python3
"""DHCP packets that no client should send, made and read by scapy (run by clients.py, with Debian's python3).

    odd.py SERVER RELAY MAC

MAC is that of the interface `card`, and a client's. RELAY is an address of ours from which a relay is played. Each packet has
its own transaction, so that answers are told apart; those to which there must be none are waited for together.
"""

import socket
import sys
import time

from scapy.all import BOOTP, DHCP, IP, UDP, AsyncSniffer, Ether, Raw, conf, sendp

SERVER, RELAY, MAC = sys.argv[1:]
CARD, HARDWARE = "card", bytes.fromhex(MAC.replace(":", ""))
COOKIE = b"c\x82Sc"
DISCOVER, REQUEST, ACK = b"\x35\x01\x01", b"\x35\x01\x03", 5
IDENTITY = b"\xff an identity of any kind"
WAIT_SECONDS = 5
# Who gets no answer has none after this.
SILENCE_SECONDS = 1.5


def option(code, value=b""):
    return bytes([code, len(value)]) + value


ID, END = option(61, IDENTITY), b"\xff"


def bootp(number, options, cookie=COOKIE, **fields):
    """A request whose transaction is this number; any field of the header may be another."""
    return BOOTP(**{"op": 1, "chaddr": HARDWARE, "xid": number, "options": b""} | fields) / Raw(cookie + options)


def broadcast(packet):
    return Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff") / IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67) / packet


def options_of(reply):
    """The options as scapy reads them; those that it does not know by name under their number."""
    assert reply[BOOTP].options == COOKIE, "the reply has DHCP's options"
    pairs = [entry for entry in reply[DHCP].options if isinstance(entry, tuple)]
    return {name: value for name, *values in pairs for value in values[:1]}


def echoes(reply):
    assert bytes(options_of(reply)["client_id"]) == IDENTITY, f"option 61 did not come back: {reply!r}"


def chains_to_the_script(reply):
    assert b"boot.ipxe" in bytes(reply[BOOTP].file), f"it is not taken for iPXE: {reply!r}"


def at_most(most):
    def check(reply):
        assert 300 <= len(bytes(reply[BOOTP])) <= most, f"{len(bytes(reply[BOOTP]))} bytes"

    return check


def by_broadcast(reply):
    assert reply[Ether].dst == "ff:ff:ff:ff:ff:ff" and reply[IP].dst == "255.255.255.255", f"{reply!r}"


def any_answer(reply):
    assert options_of(reply)["server_id"] == SERVER


# What is answered, each with a check of the answer.
half = len(IDENTITY) // 2
overloaded = {
    "file": (option(61, IDENTITY[:half]) + option(60, b"PXEClient:Arch:00007") + END).ljust(128, b"\0"),
    "sname": (option(61, IDENTITY[half:]) + option(12, b"odd") + END).ljust(64, b"\0"),
}
ANSWERED = {
    "options in file and sname": (bootp(0, DISCOVER + option(52, b"\x03") + END, **overloaded), echoes),
    "an option in two parts": (bootp(0, DISCOVER + option(77, b"iP") + ID + option(77, b"XE") + END), chains_to_the_script),
    "a long option": (bootp(0, DISCOVER + option(43, b"\xaa" * 255) + option(43, b"\xbb" * 255) + ID + END), echoes),
    "options of wrong lengths": (
        bootp(0, DISCOVER + b"".join(option(code, b"\x07") for code in (50, 51, 54, 57, 93, 97, 118, 175)) + ID + END), echoes
    ),
    "options without a value": (
        bootp(0, DISCOVER + b"".join(option(code) for code in range(1, 255) if code not in (53, 61)) + ID + END), echoes
    ),
    "options that nobody knows": (bootp(0, DISCOVER + b"".join(option(code, b"?" * 9) for code in range(224, 255)) + ID + END), echoes),
    "an option that is cut short": (bootp(0, DISCOVER + ID + b"\x0c\xc8odd"), echoes),
    "options without an end": (bootp(0, DISCOVER + ID), echoes),
    "300 pads before the options": (bootp(0, bytes(300) + DISCOVER + ID + END), echoes),
    "700 bytes behind the end": (bootp(0, DISCOVER + ID + END + b"\x35\x01\x07" * 233), echoes),
    "a size of 0": (bootp(0, DISCOVER + option(57, bytes(2)) + ID + END), at_most(548)),
    "a size of 65,535": (bootp(0, DISCOVER + option(57, b"\xff\xff") + ID + END), at_most(1472)),
    "all flags": (bootp(0, DISCOVER + ID + END, flags=0xFFFF), by_broadcast),
    "no option but the first": (bootp(0, DISCOVER + END), any_answer),
}  # fmt: skip

# What is not.
SILENT = {
    "a reply": bootp(0, DISCOVER + END, op=2),
    "token ring": bootp(0, DISCOVER + END, htype=6),
    "an address of 16 bytes": bootp(0, DISCOVER + END, hlen=16),
    "no hardware address": bootp(0, DISCOVER + END, chaddr=bytes(16)),
    "a group's hardware address": bootp(0, DISCOVER + END, chaddr=b"\x01\0\x5e\0\0\1"),
    "another cookie": bootp(0, DISCOVER + END, cookie=b"c\x82Sd"),
    "BOOTP": bootp(0, b"", cookie=b""),
    "half a header": Raw(bytes(bootp(0, DISCOVER))[:120]),
    "nothing": Raw(b""),
    "a kind of two bytes": bootp(0, option(53, b"\x01\x01") + END),
    "a kind in sname that nobody announced": bootp(0, ID + END, sname=DISCOVER + END),
    "another server's offer taken": bootp(0, REQUEST + option(54, b"\x0a\x4d\x00\x63") + option(50, b"\x0a\x4d\x00\x64") + END),
} | {f"a message of type {kind}": bootp(0, option(53, bytes([kind])) + END) for kind in (0, 2, 5, 6, 9, 10, 13, 18, 200, 255)}


def exchange(packets, wanted, seconds):
    """Sends all of them; the answers by transaction, once there are so many or the time is over."""
    heard = {}

    def hear(reply):
        if BOOTP in reply and reply[BOOTP].op == 2:
            heard[reply[BOOTP].xid] = reply

    sniffer = AsyncSniffer(iface=CARD, prn=hear, store=False, lfilter=lambda reply: UDP in reply and reply[UDP].dport == 68)
    sniffer.start()
    time.sleep(0.3)
    for packet in packets:
        sendp(broadcast(packet), iface=CARD, verbose=False)
    until = time.monotonic() + seconds
    while len(heard) < wanted and time.monotonic() < until:
        time.sleep(0.02)
    sniffer.stop()
    return heard


def take_an_address():
    """So that nobody is asked about it by ARP later, and each answer comes at once."""
    [offer] = exchange([bootp(1, DISCOVER + ID + END)], 1, WAIT_SECONDS).values()
    wish = option(50, socket.inet_aton(offer[BOOTP].yiaddr)) + option(54, socket.inet_aton(SERVER))
    [ack] = exchange([bootp(2, REQUEST + wish + ID + END)], 1, WAIT_SECONDS).values()
    assert options_of(ack)["message-type"] == ACK, f"{ack!r}"


def numbered(packets, first):
    for number, packet in enumerate(packets, first):
        if BOOTP in packet:
            packet[BOOTP].xid = number
    return packets


def answered():
    packets = numbered([packet for packet, _ in ANSWERED.values()], 100)
    heard = exchange(packets, len(packets), WAIT_SECONDS)
    for number, (what, (_, check)) in enumerate(ANSWERED.items(), 100):
        assert number in heard, f"`{what}` got no answer"
        try:
            check(heard[number])
        except Exception as error:
            raise AssertionError(f"`{what}`: {error!r}") from error


def silent():
    names = dict(enumerate(SILENT, 200))
    packets = numbered(list(SILENT.values()), 200)
    # The last one is answered: whatever came before has been looked at.
    heard = exchange([*packets, bootp(999, DISCOVER + ID + END)], len(packets) + 1, SILENCE_SECONDS)
    assert 999 in heard, "after all of them, a sound packet gets no answer"
    wrong = [names.get(number, number) for number in heard if number != 999]
    assert not wrong, f"these got an answer: {wrong}"


def relayed():
    """What a relay adds comes back as it was, and last; of a subnet that nobody knows, nothing comes."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as relay:
        relay.bind((RELAY, 67))
        relay.settimeout(WAIT_SECONDS)
        agents = [option(1, b"port 7"), option(1, b"port 7") + b"\x02\xc8cut short", b"\x01", b"", option(5, b"\0\0\0\0") + option(200, b"?" * 100)]
        for number, agent in enumerate(agents, 300):
            machine = HARDWARE[:5] + bytes([number & 0xFF])
            said = option(82, agent)
            packet = bootp(number, DISCOVER + said + ID + END, giaddr=RELAY, chaddr=machine, hops=1)
            relay.sendto(bytes(packet), (SERVER, 67))
            reply = relay.recv(4096)
            assert int.from_bytes(reply[4:8], "big") == number and reply[24:28] == socket.inet_aton(RELAY), reply
            assert reply[240:].rstrip(b"\0").endswith(said + END), f"option 82 did not come back last: {reply[240:]!r}"
        # The first of another subnet's, the second sound again: only the second is answered.
        relay.sendto(bytes(bootp(400, DISCOVER + END, giaddr="192.0.2.1")), (SERVER, 67))
        relay.sendto(bytes(bootp(401, DISCOVER + END, giaddr=RELAY, chaddr=HARDWARE[:5] + b"\x70")), (SERVER, 67))
        assert int.from_bytes(relay.recv(4096)[4:8], "big") == 401, "a relay of nobody's subnet is answered"
    return len(agents) + 2


def main():
    conf.verb = 0
    take_an_address()
    answered()
    silent()
    count = relayed()
    print(f"{len(ANSWERED)} answered, {len(SILENT)} not, {count} relayed")


if __name__ == "__main__":
    main()
