"""The packets that Roost keeps, read by tshark; and other DHCP servers that Roost finds on its wire."""

import contextlib
import json
import struct
import subprocess
from pathlib import Path

from beside import configured, contains
from netboot import CLIENT_MAC, LOADER, NOTE_SCRIPT, plug_in, unplug
from report import run, same
from server import ADDRESS, INTERFACE, POOL, Dnsmasq, wait_for

# The address of another DHCP server on the lab's wire, and what it gives.
OTHER, OTHER_POOL = "10.77.0.30", "10.77.0.210-10.77.0.219"
# The question comes twice, four seconds apart, and dnsmasq answers at once.
FOUND_SECONDS = 15


def as_firmware(options, scratch, out):
    """udhcpc asks as x64 UEFI's firmware does; the loader is fetched, and a file that is not there."""
    script = scratch / "note.sh"
    script.write_text(NOTE_SCRIPT.format(out=out))
    script.chmod(0o755)
    plug_in(options.switch, CLIENT_MAC)
    try:
        firmware = ["-V", "PXEClient:Arch:00007:UNDI:003000", "-x", "93:0007"]
        run(options.switch, "udhcpc", "-i", "card", "-n", "-q", "-f", "-t", "8", "-T", "1", "-s", script, *firmware)
        address = dict(line.split("=", 1) for line in Path(f"{out}.bound").read_text().splitlines() if "=" in line)["ip"]
        run(options.switch, "ip", "address", "add", f"{address}/24", "dev", "card")
        fetched = scratch / "fetched"
        wanted = ["--option", "blksize 1468", "--option", "tsize 0"]
        run(options.switch, "atftp", *wanted, "--get", "-r", "snponly.efi", "-l", fetched, ADDRESS)
        # One that this firmware cannot run, and one that does not exist.
        run(options.switch, "atftp", "--get", "-r", LOADER, "-l", fetched, ADDRESS)
        run(options.switch, "atftp", "--get", "-r", "pxelinux.0", "-l", fetched, ADDRESS, check=False)
        run(options.switch, "curl", "-sSf", "-o", "/dev/null", f"http://{ADDRESS}/boot.ipxe?mac={CLIENT_MAC}")
    finally:
        unplug(options.switch)


def packets_of_a_boot(options, roost, scratch):
    """Each packet of a boot with its decision; a capture that tshark reads, with right checksums and nothing malformed."""
    as_firmware(options, scratch, scratch / "dhcp")
    told = json.loads(roost.cli("packets", "pc-01", "--json").stdout)
    same(told["client"], "pc-01", "the client")
    seen = [(packet["direction"], packet["protocol"], packet["code"]) for packet in told["packets"]]
    for wanted in [
        ("in", "dhcp", "offered"), ("out", "dhcp", "sent"), ("in", "dhcp", "leased"), ("in", "tftp", "served"),
        ("in", "tftp", "complete"), ("in", "tftp", "no-such-file"), ("in", "http", "served"),
    ]:  # fmt: skip
        assert wanted in seen, f"{wanted} is not among {seen}"
    table = roost.cli("packets", CLIENT_MAC).stdout
    contains(table, "TIME", "DECISION", "DISCOVER, UEFI x64", "offered 10.77.0.100, snponly.efi", "ACK of 10.77.0.100", "read snponly.efi, blksize 1468, tsize")
    capture = scratch / "boot.pcap"
    roost.cli("packets", "pc-01", "--pcap", str(capture))
    kept = [packet for packet in told["packets"] if packet["frame"]]
    same(struct.unpack("<IHH", capture.read_bytes()[:8]), (0xA1B23C4D, 2, 4), "the capture's first words")
    checks = ["-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE"]
    read = ["tshark", "-n", "-r", str(capture), *checks]
    fields = ["-T", "fields", "-e", "frame.time_epoch", "-e", "ip.checksum.status", "-e", "udp.checksum.status", "-e", "_ws.col.Protocol"]
    lines = [line.split("\t") for line in run(options.server, *read, *fields).stdout.splitlines()]
    same(len(lines), len(kept), "packets in the capture")
    same({(ip, udp) for _, ip, udp, _ in lines}, {("1", "1")}, "checksums, where 1 is good")
    same({protocol for *_, protocol in lines}, {"DHCP", "TFTP"}, "the protocols")
    malformed = run(options.server, *read, "-Y", "_ws.malformed || _ws.expert.severity == 0x800000").stdout
    same(malformed, "", "malformed frames and errors")
    nanoseconds = [int(second) * 10**9 + int(part) for second, part in (line[0].split(".") for line in lines)]
    same(nanoseconds, [packet["at_ns"] for packet in kept], "times to the nanosecond")
    # To standard output, as tcpdump takes it.
    piped = ["ip", "netns", "exec", roost.namespace, roost.binary, "--config", str(roost.config), "packets", "pc-01", "--pcap", "-"]
    written = subprocess.run(piped, stdin=subprocess.DEVNULL, capture_output=True, check=True).stdout
    same(written, capture.read_bytes(), "the capture on standard output")
    heard = subprocess.run(["tcpdump", "-nr", "-"], input=written, capture_output=True, check=True).stdout
    same(len(heard.splitlines()) >= len(kept), True, "tcpdump reads each")
    return f"{len(lines)} frames"


def packets_that_are_not_there(roost):
    """Exit codes: nothing seen is an answer, no such client is refused."""
    nothing = roost.cli("packets", "52:54:00:77:09:09")
    contains(nothing.stdout, "no packet of 52:54:00:77:09:09 was seen")
    unknown = roost.cli("packets", "pc-99", check=False)
    same((unknown.returncode, "there is no client `pc-99`" in unknown.stderr), (5, True), unknown.stderr)


def facts_of_a_boot(roost):
    """What explains a boot that goes wrong is in its stages: a loader of the wrong platform."""
    facts = [stage["fact"] for stage in roost.stages("pc-01") if "fact" in stage]
    wrong = {"fact": "wrong-loader", "firmware": "x64", "loader": LOADER, "of": "bios"}
    assert wrong in facts, f"{wrong} is not among {facts}"
    assert any(fact["fact"] == "fetched" and fact["bytes"] > 100_000 for fact in facts), facts


@contextlib.contextmanager
def other_server(options, scratch, *words):
    """dnsmasq on another host of the wire."""
    run(options.switch, "ip", "address", "add", f"{OTHER}/24", "dev", "br0")
    dnsmasq = None
    try:
        dnsmasq = Dnsmasq(options.switch, "br0", scratch, OTHER_POOL, *words)
        yield dnsmasq
    finally:
        if dnsmasq:
            dnsmasq.kill()
        run(options.switch, "ip", "address", "del", f"{OTHER}/24", "dev", "br0", check=False)


def found(roost):
    """What `roost status --json` says of other servers: (finding, server)."""
    others = json.loads(roost.cli("status", "--json").stdout)["other_servers"]
    return {(other["finding"], other["server"]) for other in others}


def begin(options, folder, pool):
    roost = configured(options, folder, pool)
    roost.start()
    return roost


def a_second_full_server(options, scratch):
    """Where Roost gives addresses and dnsmasq does too: said at the start, in the status, and what to change where."""
    with other_server(options, scratch):
        roost = begin(options, scratch / "second", POOL)
        try:
            wait_for("the finding", lambda: found(roost) == {("second-server", OTHER)}, FOUND_SECONDS, tail=roost.tail)
            contains(roost.log.read_text(), f"{INTERFACE}: {OTHER} gives addresses on this wire too", 'write dhcp = "proxy"')
            contains(roost.cli("status").stdout, f"{OTHER} gives addresses on this wire too", f"stop DHCP for this wire on {OTHER}")
            # Our own question got no lease, and no offer, from ourselves.
            assert "02:" not in roost.cli("client", "list").stdout
            roost.stop()
        finally:
            roost.kill()


def another_boot_file(options, scratch):
    """A server that sends its own boot file, and one that sends option 60 without 43."""
    with other_server(options, scratch, "--dhcp-boot=pxelinux.0"):
        roost = begin(options, scratch / "file", None)
        try:
            wait_for("the finding", lambda: found(roost) == {("boot-file", OTHER)}, FOUND_SECONDS, tail=roost.tail)
            contains(roost.log.read_text(), f"{OTHER} sends a boot file of its own, `pxelinux.0`", "`dhcp-boot`")
            roost.stop()
        finally:
            roost.kill()
    with other_server(options, scratch, "--dhcp-option-force=60,PXEClient"):
        roost = begin(options, scratch / "class", None)
        try:
            wait_for("the finding", lambda: found(roost) == {("class-alone", OTHER)}, FOUND_SECONDS, tail=roost.tail)
            roost.stop()
        finally:
            roost.kill()


def a_fine_server(options, scratch):
    """A plain server beside us, on another host: nothing to tell of. The same on this host, with a boot file: found."""
    with other_server(options, scratch) as dnsmasq:
        roost = begin(options, scratch / "fine", None)
        try:
            asked = lambda: dnsmasq.log.read_text().count("DHCPOFFER(br0)") >= 2  # noqa: E731
            wait_for("both questions", asked, FOUND_SECONDS, tail=dnsmasq.log.read_text)
            same(found(roost), set(), "findings")
            roost.stop()
        finally:
            roost.kill()
    dnsmasq = Dnsmasq(options.server, INTERFACE, scratch, OTHER_POOL, "--dhcp-boot=own.efi")
    try:
        roost = begin(options, scratch / "host", None)
        try:
            wait_for("the finding", lambda: found(roost) == {("boot-file", ADDRESS)}, FOUND_SECONDS, tail=roost.tail)
            roost.stop()
        finally:
            roost.kill()
    finally:
        dnsmasq.kill()


def switched_off(options, scratch):
    """`dhcp_probe = false`: nobody is asked."""
    with other_server(options, scratch, "--dhcp-boot=pxelinux.0") as dnsmasq:
        roost = configured(options, scratch / "off", None)
        roost.config.write_text(roost.config.read_text().replace("[server]\n", "[server]\ndhcp_probe = false\n"))
        roost.start()
        try:
            as_system(options, scratch)
            assert "PXEClient" not in dnsmasq.log.read_text(), dnsmasq.log.read_text()
            roost.stop()
        finally:
            roost.kill()


def as_system(options, scratch):
    """A machine's system asks, and is answered by the other server."""
    script, out = scratch / "note.sh", scratch / "system"
    script.write_text(NOTE_SCRIPT.format(out=out))
    script.chmod(0o755)
    plug_in(options.switch, CLIENT_MAC)
    try:
        run(options.switch, "udhcpc", "-i", "card", "-n", "-q", "-f", "-t", "8", "-T", "1", "-s", script)
    finally:
        unplug(options.switch)


def tests(options, report):
    """All of them, while no other Roost runs."""
    scratch = Path(options.fast) / "packets"
    scratch.mkdir()
    roost = begin(options, scratch / "roost", POOL)
    try:
        report.test("packets-of-a-boot-by-tshark", packets_of_a_boot, options, roost, scratch)
        report.test("packets-that-are-not-there", packets_that_are_not_there, roost)
        report.test("facts-of-a-boot", facts_of_a_boot, roost)
        roost.stop()
    finally:
        roost.kill()
    report.test("a-second-full-server-is-found", a_second_full_server, options, scratch)
    report.test("another-boot-file-is-found", another_boot_file, options, scratch)
    report.test("a-fine-server-is-nothing-to-tell-of", a_fine_server, options, scratch)
    report.test("nobody-is-asked-where-that-is-switched-off", switched_off, options, scratch)
