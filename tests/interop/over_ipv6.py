"""IPv6: dhclient, curl and tftp-hpa, with dnsmasq as the router that gives the addresses, on another host and on Roost's own."""

import json
import subprocess
from pathlib import Path

from beside import configured, contains
from ipv6 import SERVER, Router, addresses, network
from netboot import CLIENT_MAC, LOADERS, NOTE_SCRIPT, noted, plug_in, unplug
from report import no_panic, run, same
from room import room
from server import INTERFACE, wait_for

# dhclient as UEFI firmware, by what it says of itself.
FIRMWARE = "send dhcp6.client-arch-type 7;\nalso request dhcp6.bootfile-url;\n"
PATIENCE = "15"
URL = f"tftp://[{SERVER}]/snponly.efi"


def dhclient(namespace, scratch, words, configuration, reason):
    """What dhclient -6 on the card was told."""
    script, out = scratch / "note.sh", scratch / "dhcp6"
    script.write_text(NOTE_SCRIPT.format(out=out))
    script.chmod(0o755)
    file = scratch / "dhclient6.conf"
    file.write_text(configuration)
    for left in [*scratch.glob("dhcp6.*"), *scratch.glob("dhclient6.leases")]:
        left.unlink()
    files = ["-cf", file, "-lf", scratch / "dhclient6.leases", "-pf", scratch / "dhclient6.pid"]
    # Where nobody answers, it would ask for ever.
    run(namespace, "timeout", "-s", "KILL", PATIENCE, "dhclient", "-6", "-1", *words, "-sf", script, *files, "card", seconds=60, check=False)
    run(namespace, "dhclient", "-6", "-x", "-sf", script, *files, "card", seconds=20, check=False)
    path = Path(f"{out}.{reason}")
    return noted(path) if path.exists() else None


def settled(namespace):
    """The card has its link-local address."""
    shown = lambda: run(namespace, "ip", "-6", "address", "show", "dev", "card", "scope", "link").stdout  # noqa: E731
    wait_for("the card's link-local address", lambda: "fe80" in shown() and "tentative" not in shown(), 10)


def without_router(options, roost, scratch):
    """Nobody else is there: who has an address and asks for the rest is told; a system is not, nor who wants an address."""
    told = dhclient(options.switch, scratch, ["-S"], FIRMWARE, "RENEW6")
    assert told, roost.tail()
    same(told["new_dhcp6_bootfile_url"], URL, "the boot file by dhclient -6 -S")
    same(dhclient(options.switch, scratch, ["-S"], "", "RENEW6"), None, "what a system is told")


def address_beside(options, scratch):
    """Our offer, which has no address, keeps nobody from taking dnsmasq's."""
    told = dhclient(options.switch, scratch, [], FIRMWARE, "BOUND6")
    assert told and told["new_ip6_address"].startswith("fd00:77::1"), f"dhclient was told {told}"
    return told["new_ip6_address"]


def files(options, roost, scratch, address):
    """Loader and script by TFTP and HTTP, from an address at which the kernel alone knows the machine."""
    wanted = (LOADERS / "snponly.efi").read_bytes()
    run(options.switch, "ip", "address", "add", f"{address}/64", "dev", "card", "nodad")
    fetched = scratch / "by-ipv6"
    for command in (
        ["curl", "-g", "-sSf", "-o", fetched, URL],
        ["tftp", "-6", "-m", "binary", SERVER, "-c", "get", "snponly.efi", fetched],
        ["curl", "-g", "-sSf", "-o", fetched, f"http://[{SERVER}]/snponly.efi"],
    ):
        run(options.switch, *command)
        assert fetched.read_bytes() == wanted, f"the loader by {command[0]} differs"
        fetched.unlink()
    script = run(options.switch, "curl", "-g", "-sSf", f"http://[{SERVER}]/boot.ipxe?mac={CLIENT_MAC}").stdout
    assert "sanboot" in script, script
    heard = lambda: {(s["stage"], s["detail"].split(",")[0]) for s in roost.stages("pc-01")}  # noqa: E731
    fetches = {("loader", "snponly.efi by TFTP"), ("loader", "snponly.efi by HTTP"), ("script", "boot.ipxe by HTTP")}
    wait_for("the fetches, as its own", lambda: fetches <= heard(), 10, tail=roost.tail)


def packets_of_it(options, roost, scratch):
    """What was kept of all that, read by tshark: with right checksums, and nothing malformed."""
    kept = json.loads(roost.cli("packets", "pc-01", "--json").stdout)["packets"]
    seen = {(packet["direction"], packet["protocol"], packet["code"]) for packet in kept}
    wanted = {("in", "dhcpv6", "told-boot"), ("out", "dhcpv6", "sent"), ("in", "tftp", "served"), ("in", "tftp", "complete"), ("in", "http", "served")}
    assert wanted <= seen, f"{wanted - seen} is not among {seen}"
    capture = scratch / "boot.pcap"
    roost.cli("packets", "pc-01", "--pcap", str(capture))
    read = ["tshark", "-n", "-r", str(capture), "-o", "udp.check_checksum:TRUE"]
    fields = ["-T", "fields", "-e", "udp.checksum.status", "-e", "_ws.col.Protocol"]
    lines = [line.split("\t") for line in run(options.server, *read, *fields).stdout.splitlines()]
    same(len(lines), sum(1 for packet in kept if packet["frame"]), "packets in the capture")
    same({status for status, _ in lines}, {"1"}, "checksums, where 1 is good")
    same({protocol for _, protocol in lines}, {"DHCPv6", "TFTP"}, "the protocols")
    malformed = run(options.server, *read, "-Y", "_ws.malformed || _ws.expert.severity == 0x800000").stdout
    same(malformed, "", "malformed frames and errors")
    return f"{len(lines)} frames"


def behind_a_relay(options, scratch):
    """ISC dhcrelay brings what a machine of another wire asks, and gets it its answer."""
    with room(options) as (relay, machines):
        run(relay, "ip", "address", "add", "fd00:78::1/64", "dev", "room0", "nodad")
        run(machines, "ip", "link", "set", "card", "address", CLIENT_MAC, "up")
        settled(machines)
        with (scratch / "dhcrelay6.log").open("w") as log:
            command = ["ip", "netns", "exec", relay, "dhcrelay", "-6", "-d", "-l", "room0", "-u", "up0", "-pf", scratch / "dhcrelay6.pid"]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_for("dhcrelay", lambda: ":547 " in run(relay, "ss", "-lnuH").stdout, 10, tail=(scratch / "dhcrelay6.log").read_text)
            told = dhclient(machines, scratch, ["-S"], FIRMWARE, "RENEW6")
            assert told, (scratch / "dhcrelay6.log").read_text()
            same(told["new_dhcp6_bootfile_url"], URL, "the boot file behind a relay")
        finally:
            process.kill()
            process.wait()


def over_ipv6(options, report):
    """One Roost, at first alone, then with dnsmasq on another host, then with dnsmasq on its own, started after and before it."""
    scratch = Path(options.fast) / "ipv6"
    scratch.mkdir()
    roost = configured(options, scratch / "roost")
    plug_in(options.switch, CLIENT_MAC)
    try:
        settled(options.switch)
        with addresses((options.server, INTERFACE, f"{SERVER}/64")):
            roost.start()
            contains(roost.log.read_text(), f"machines on {INTERFACE} may boot from {SERVER} too")
            report.test("boot-file-by-dhclient-6-S", without_router, options, roost, scratch)
            report.test("boot-file-behind-dhcrelay-6", behind_a_relay, options, scratch)
            report.test("loader-and-script-over-ipv6", files, options, roost, scratch, "fd00:77::77")
            report.test("packets-over-ipv6-by-tshark", packets_of_it, options, roost, scratch)
            router = Router(options.server, INTERFACE, scratch)
            try:
                report.test("address-of-dnsmasq-on-this-host", address_beside, options, scratch)
                roost.stop()
                roost.start()
                said = roost.log.read_text().count(f"may boot from {SERVER} too")
                same(said, 2, "how often it said that it serves IPv6")
                report.test("address-of-dnsmasq-that-was-there-first", address_beside, options, scratch)
            finally:
                router.kill()
                roost.stop()
        with network(options.server, options.switch, "br0", scratch):
            roost.start()
            report.test("address-of-dnsmasq-on-another-host", address_beside, options, scratch)
        report.test("no-panic-over-ipv6", no_panic, roost)
    finally:
        roost.kill()
        unplug(options.switch)


def tests(options, report):
    """All of them, while no other Roost runs."""
    report.part("over-ipv6", over_ipv6, options, report)
