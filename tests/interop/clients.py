"""More DHCP clients that nobody here wrote, a flood, and packets that no client should send.

dhcpcd, systemd-networkd, nmap's scripts, perfdhcp and busybox's tftp ask as they always do; scapy makes what they never would.
"""

import contextlib
import ipaddress
import re
import subprocess
import time
from pathlib import Path

from netboot import LOADER, LOADERS, NOTE_SCRIPT, noted, plug_in, unplug
from relays import import_blank
from report import run, same
from server import ADDRESS, POOL, Roost, mapping_file, wait_for

HERE = Path(__file__).resolve().parent
# Debian's own: it has Debian's modules.
PYTHON = "/usr/bin/python3"
CLIENTS = {f"pc-0{number}": f'"52:54:00:77:04:0{number}"' for number in range(1, 6)}
DHCPCD, NETWORKD, NMAP, KNOWN, ODD = (value.strip('"') for value in CLIENTS.values())
STRANGER = "52:54:00:77:04:99"
# A relay's own subnet, with room for as many machines as perfdhcp makes up.
RELAY, FAR_POOL = "10.79.0.2", "10.79.1.0-10.79.15.254"
POOLS = f"""
[server.pools.far]
subnet = "10.79.0.0/20"
range  = "{FAR_POOL}"
lease  = "1h"

[defaults]
"""
# How fast the flood is meant to be, when it ends at the latest, and how long it goes on before a known machine asks.
FLOOD_A_SECOND, FLOOD_SECONDS, FLOOD_ALONE_SECONDS = 10_000, 20, 1.5
# How long an address is kept for a stranger that was offered one.
STRANGERS_OFFER_SECONDS = 15
# What a flood may cost in memory: the tables that have bounds, full.
FLOOD_MIB = 24


def in_range(address, text):
    first, last = (ipaddress.ip_address(end) for end in text.split("-"))
    assert first <= ipaddress.ip_address(address) <= last, f"{address} is not in {text}"


@contextlib.contextmanager
def card(options, mac):
    plug_in(options.switch, mac)
    try:
        yield
    finally:
        unplug(options.switch)


def note_script(scratch, out):
    script = scratch / f"note-{Path(out).name}.sh"
    script.write_text(NOTE_SCRIPT.format(out=out))
    script.chmod(0o755)
    return script


def udhcpc(options, scratch, *words, check=True):
    """The address that udhcpc gets, or nothing."""
    out = scratch / "udhcpc"
    bound = Path(f"{out}.bound")
    bound.unlink(missing_ok=True)
    run(options.switch, "udhcpc", "-i", "card", "-n", "-q", "-f", "-s", note_script(scratch, out), *words, check=check)
    return noted(bound)["ip"] if bound.exists() else None


def dhcpcd(options, scratch):
    """It asks with a DUID of its own, and wants an answer to each option that it asks for."""
    out = scratch / "dhcpcd"
    (scratch / "dhcpcd.conf").write_text("duid\nnohook resolv.conf\nnoarp\noption domain_name_servers, host_name, interface_mtu\n")
    with card(options, DHCPCD):
        command = ["dhcpcd", "-f", scratch / "dhcpcd.conf", "-c", note_script(scratch, out), "-4", "-1", "-B", "-t", "15"]
        # Its folders for leases and sockets are compiled in.
        alone = "mount -t tmpfs none /var/lib/dhcpcd && mount -t tmpfs none /run && exec \"$@\""
        run(options.switch, "unshare", "-m", "sh", "-c", f"mkdir -p /var/lib/dhcpcd; {alone}", "sh", *command, "card")
    bound = noted(Path(f"{out}.BOUND"))
    in_range(bound["new_ip_address"], POOL)
    same((bound["new_host_name"], bound["new_dhcp_server_identifier"]), ("pc-01", ADDRESS), "the name and the server")
    return bound["new_ip_address"]


NETWORK = """
[Match]
Name=card
[Network]
DHCP=ipv4
IPv6AcceptRA=no
LinkLocalAddressing=no
[DHCPv4]
ClientIdentifier=duid
"""
# Without udev, which is what a read-only /sys means to it, and with folders of its own.
ALONE_WITH_NETWORKD = """
set -e
mount -t tmpfs none /run
mkdir -p /run/systemd/network /run/systemd/netif/leases /run/systemd/netif/links /run/dbus
cp "$1" /run/systemd/network/10-card.network
chown -R systemd-network /run/systemd/netif
mount -o remount,ro /sys
exec /lib/systemd/systemd-networkd
"""


def networkd(options, scratch):
    """systemd-networkd gets a lease and configures the interface by it."""
    network, log = scratch / "card.network", scratch / "networkd.log"
    network.write_text(NETWORK)
    address = lambda: re.findall(r"inet (\S+)/24", run(options.switch, "ip", "address", "show", "dev", "card").stdout)  # noqa: E731
    with card(options, NETWORKD), log.open("w") as words:
        command = ["unshare", "-m", "sh", "-c", ALONE_WITH_NETWORKD, "sh", network]
        process = subprocess.Popen(["ip", "netns", "exec", options.switch, *command], stdin=subprocess.DEVNULL, stdout=words, stderr=words)
        try:
            [given] = wait_for("systemd-networkd's address", address, 20, tail=log.read_text)
        finally:
            process.kill()
            process.wait()
    in_range(given, POOL)
    return given


def nmap(options):
    """Both of its scripts find the server, and read the same of it: by broadcast, as a machine that it makes up, and by unicast."""
    with card(options, NMAP):
        # It takes no interface without an address.
        run(options.switch, "ip", "address", "add", "10.77.0.41/24", "dev", "card")
        heard = run(options.switch, "nmap", "-n", "--script", "broadcast-dhcp-discover", "--script-args", "broadcast-dhcp-discover.timeout=3s", "-e", "card").stdout
    for words in ("Response 1 of 1", "DHCP Message Type: DHCPOFFER", f"Server Identifier: {ADDRESS}", "Subnet Mask: 255.255.255.0"):
        assert words in heard, f"`{words}` is not in what broadcast-dhcp-discover found:\n{heard}"
    # An INFORM, which must come from an address of the wire.
    run(options.switch, "ip", "address", "add", "10.77.0.40/24", "dev", "br0")
    try:
        heard = run(options.switch, "nmap", "-n", "-Pn", "-sU", "-p", "67", "--script", "dhcp-discover", ADDRESS).stdout
    finally:
        run(options.switch, "ip", "address", "del", "10.77.0.40/24", "dev", "br0")
    for words in ("67/udp open", f"Server Identifier: {ADDRESS}", "Subnet Mask: 255.255.255.0"):
        assert words in heard, f"`{words}` is not in what dhcp-discover found:\n{heard}"


@contextlib.contextmanager
def relay(options):
    """An address from which to play a relay, of a subnet that is reached over the lab's wire."""
    run(options.switch, "ip", "address", "add", f"{RELAY}/20", "dev", "br0")
    run(options.server, "ip", "route", "add", "10.79.0.0/20", "dev", "lan0")
    run(options.switch, "ip", "route", "add", f"{ADDRESS}/32", "dev", "br0", "src", RELAY)
    try:
        yield
    finally:
        run(options.switch, "ip", "address", "del", f"{RELAY}/20", "dev", "br0", check=False)
        run(options.server, "ip", "route", "del", "10.79.0.0/20", check=False)
        run(options.switch, "ip", "route", "del", f"{ADDRESS}/32", check=False)


def perfdhcp(options):
    """Some hundred machines a second: everybody gets an address, and nobody another one's."""
    rate, seconds = 300, 3
    with relay(options):
        # So many machines to choose from that none asks twice.
        command = ["perfdhcp", "-4", "-r", rate, "-R", 1 << 31, "-b", "mac=52:54:00:00:00:00", "-p", seconds, "-g", "single", "-u"]
        command += ["-d", 20, "-W", 2_000_000, "-l", RELAY, ADDRESS]
        text = run(options.switch, *command, check=False).stdout
    offers, acks = text.split("***Statistics for: REQUEST-ACK***", 1)
    number = lambda half, what: int(re.search(rf"{what}: (\d+)", half)[1])  # noqa: E731
    for half in (offers, acks):
        same((number(half, "drops"), number(half, "rejected leases"), number(half, "non unique addresses")), (0, 0, 0), f"lost and wrong\n{text}")
    got = number(acks, "received packets")
    assert got > rate * seconds * 3 // 4, f"{got} exchanges in {seconds} s\n{text}"
    return f"{got} leases"


def odd_packets(options, scratch):
    """scapy's, and a program's that knows what becomes of each: see odd.py."""
    with card(options, ODD), relay(options):
        words = [ADDRESS, RELAY, ODD]
        done = run(options.switch, PYTHON, HERE / "odd.py", *words, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout.strip().splitlines()[-1]


# Sends DISCOVERs of machines that do not exist, so many a second; prints how many.
FLOOD = """
import random, socket, struct, sys, time
interface, seconds, rate = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
out.bind((interface, 0))
options = bytes([53, 1, 1, 93, 2, 0, 7, 60, 9]) + b"PXEClient" + bytes([97, 17]) + bytes(17) + bytes([57, 2, 5, 192, 255])
payload_tail = bytes(10 + 64 + 128) + bytes([99, 130, 83, 99]) + options
def frame(mac, xid):
    bootp = bytes([1, 1, 6, 0]) + xid + bytes(4) + bytes(16) + mac + payload_tail
    udp = struct.pack("!HHHH", 68, 67, 8 + len(bootp), 0) + bootp
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, bytes(4), b"\\xff" * 4)
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xffff) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xffff) + head[12:]
    return b"\\xff" * 6 + mac + b"\\x08\\x00" + head + udp
began, sent = time.monotonic(), 0
while (passed := time.monotonic() - began) < seconds:
    if sent >= passed * rate:
        time.sleep(0.001)
        continue
    chance = random.randbytes(8)
    out.send(frame(b"\\x52\\x54" + chance[:4], chance[4:]))
    sent += 1
    if sent % 1000 == 0:
        print(sent, passed, flush=True)
"""


def flood(options, roost, scratch):
    """Made-up machines ask as fast as they can. A known machine gets its address all the same, and memory has its bound."""
    before, _ = roost.memory_kib()
    command = ["ip", "netns", "exec", options.switch, PYTHON, "-c", FLOOD, "faker", str(FLOOD_SECONDS), str(FLOOD_A_SECOND)]
    run(options.switch, "ip", "link", "add", "faker", "type", "veth", "peer", "name", "fake")
    try:
        for end in ("faker", "fake"):
            run(options.switch, "ip", "link", "set", end, "up")
        run(options.switch, "ip", "link", "set", "fake", "master", "br0")
        with card(options, KNOWN), subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as flooding:
            time.sleep(FLOOD_ALONE_SECONDS)
            began = time.monotonic()
            # Where machines share their cores with others, a packet may be lost; firmware asks three or four times.
            known = udhcpc(options, scratch, "-t", "4", "-T", "2")
            took = time.monotonic() - began
            assert flooding.poll() is None, f"the flood was over before the known machine had its address, after {took:.1f} s"
            flooding.kill()
            sent, seconds = flooding.stdout.read().splitlines()[-1].split()
    finally:
        run(options.switch, "ip", "link", "del", "faker", check=False)
    in_range(known, POOL)
    after, _ = roost.memory_kib()
    grown = (after - before) / 1024
    assert grown < FLOOD_MIB, f"the flood cost {grown:.1f} MiB"
    same(roost.client("pc-04")["address"], known, "the known machine's address")
    return f"{int(sent) / float(seconds):.0f} a second, a known machine's lease after {took:.2f} s, {grown:.1f} MiB"


def after_the_flood(options, scratch, over):
    """Nobody took up what the flood was offered, so it is for others again."""
    with card(options, STRANGER):
        time.sleep(max(0, over + STRANGERS_OFFER_SECONDS + 1 - time.monotonic()))
        in_range(udhcpc(options, scratch, "-t", "3", "-T", "2"), POOL)


def busybox_tftp(options):
    for words in ([], ["-b", "1468"]):
        fetched = Path(options.fast) / "by-busybox"
        run(options.server, "busybox", "tftp", "-g", "-r", LOADER, "-l", fetched, *words, ADDRESS)
        assert fetched.read_bytes() == (LOADERS / LOADER).read_bytes(), f"the loader by busybox's tftp {words} differs"


def tests(options, report):
    """All of them, while no other Roost runs."""
    scratch = Path(options.disk) / "clients"
    scratch.mkdir()
    roost = Roost(options.roost, scratch / "roost", options.server)
    roost.config.write_text(mapping_file(roost.state, CLIENTS, "blank").replace("\n[defaults]\n", POOLS))
    import_blank(roost, scratch)
    roost.start()
    try:
        report.test("a-flood-of-made-up-machines", flood, options, roost, scratch)
        over = time.monotonic()
        report.test("an-address-by-dhcpcd", dhcpcd, options, scratch)
        report.test("an-address-by-systemd-networkd", networkd, options, scratch)
        report.test("packets-that-no-client-should-send", odd_packets, options, scratch)
        report.test("loader-by-busybox-tftp", busybox_tftp, options)
        report.test("leases-by-perfdhcp", perfdhcp, options)
        report.test("the-pool-after-a-flood", after_the_flood, options, scratch, over)
        report.test("nmaps-scripts", nmap, options)
        roost.stop()
    finally:
        roost.kill()
