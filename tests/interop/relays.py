"""A room behind a relay, and an address that somebody took: ISC dhcrelay and dnsmasq bring what dhclient and udhcpc ask."""

import signal
import subprocess
import time
from pathlib import Path

from netboot import NOTE_SCRIPT, noted, plug_in, unplug
from report import run, same
from room import RELAY, ROOM, ROOM_POOL, ROUTER, relaying, room
from server import ADDRESS, Dnsmasq, Roost, wait_for

FIRST, SECOND, KNOWN = "52:54:00:77:03:01", "52:54:00:77:03:02", "52:54:00:77:03:03"
# What dhcrelay says of its interface `room0`: no remote ID, so the port begins with the relay's address.
CLIENTS = {"desk": f'{{ port = "{ROUTER}/room0", options = {{ ntp-servers = "10.77.0.9" }} }}', "pc-03": f'"{KNOWN}"'}
# The address of another DHCP server on the lab's wire.
OTHER = "10.77.0.30"
# A machine on the wire that has an address of the pool, of which Roost knows nothing.
SQUATTER, SQUATTED = "52:54:00:77:03:99", "10.77.0.100"


def become(machines, mac):
    """Another machine is plugged in: without an address, and with none remembered."""
    run(machines, "ip", "address", "flush", "dev", "card")
    run(machines, "ip", "link", "set", "card", "down")
    run(machines, "ip", "link", "set", "card", "address", mac, "up")


def udhcpc(machines, script, out, *words):
    run(machines, "udhcpc", "-i", "card", "-n", "-q", "-f", "-t", "6", "-T", "2", "-s", script, *words)
    return noted(Path(f"{out}.bound"))


def behind_a_relay(options, roost, scratch):
    """Whatever is plugged in at the port is `desk`, with an address of the room; it renews past the relay."""
    script, out = scratch / "note.sh", scratch / "dhcp"
    script.write_text(NOTE_SCRIPT.format(out=out))
    script.chmod(0o755)
    with room(options) as (relay, machines):
        with relaying(relay, "dhcrelay", scratch):
            firmware = ["-V", "PXEClient:Arch:00007:UNDI:003000", "-x", "93:0007"]
            become(machines, FIRST)
            bound = udhcpc(machines, script, out, *firmware, "-O", "ntpsrv")
            same((bound["ip"], bound["subnet"], bound["router"]), ("10.78.5.100", "255.255.255.0", ROUTER), "the room's")
            same((bound["hostname"], bound["boot_file"], bound["siaddr"]), ("desk", "snponly.efi", ADDRESS), "desk's")
            same(bound["ntpsrv"], "10.77.0.9", "an option of the operator's")
            become(machines, SECOND)
            same(udhcpc(machines, script, out, *firmware)["ip"], "10.78.5.100", "the address of what is plugged in next")
            details = lambda: [stage["detail"] for stage in roost.stages("desk")]  # noqa: E731
            said = f"10.78.5.100, snponly.efi (UEFI x64), at port {ROUTER}/room0"
            wait_for("the offer", lambda: said in details(), 10, tail=roost.tail)
            renews_past_the_relay(machines, script, out)
        with relaying(relay, "dnsmasq", scratch):
            become(machines, KNOWN)
            same(udhcpc(machines, script, out)["hostname"], "pc-03", "by its MAC, where the relay tells no port")


def renews_past_the_relay(machines, script, out):
    """By unicast, from the address that it has, by way of the router."""
    run(machines, "ip", "address", "add", "10.78.5.100/24", "dev", "card")
    run(machines, "ip", "route", "add", "default", "via", ROUTER)
    renewed = Path(f"{out}.renew")
    renewed.unlink(missing_ok=True)
    command = ["ip", "netns", "exec", machines, "udhcpc", "-i", "card", "-f", "-s", str(script), "-r", "10.78.5.100"]
    Path(f"{out}.bound").unlink()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as resident:
        try:
            wait_for("a lease", Path(f"{out}.bound").exists, 20)
            resident.send_signal(signal.SIGUSR1)
            wait_for("a renewal", renewed.exists, 20)
        finally:
            resident.kill()
    same(noted(renewed)["ip"], "10.78.5.100", "the address after the renewal")
    run(machines, "ip", "route", "del", "default")


def beside_another_server(options, scratch):
    """The relay asks both: dnsmasq gives the address, and Roost's offer, without one, reaches the machine through the relay."""
    roost = Roost(options.roost, scratch / "roost-beside", options.server)
    at_port = f'{{ port = "{ROUTER}/room0" }}'
    roost.configure({"pc-03": f'"{KNOWN}"'}, "blank", pool=None)
    import_blank(roost, scratch)
    script, out, dnsmasq = scratch / "note.sh", scratch / "beside", None
    script.write_text(NOTE_SCRIPT.format(out=out))
    run(options.switch, "ip", "address", "add", f"{OTHER}/24", "dev", "br0")
    run(options.switch, "ip", "route", "add", ROOM, "via", RELAY)
    try:
        dnsmasq = Dnsmasq(options.switch, "br0", scratch, "10.78.5.100-10.78.5.109")
        roost.start()
        with room(options) as (relay, machines), relaying(relay, "dhcrelay", scratch, OTHER):
            become(machines, KNOWN)
            capture = ["ip", "netns", "exec", machines, "tcpdump", "-lnvi", "card", "udp", "dst", "port", "68"]
            with (scratch / "heard").open("w") as heard:
                listener = subprocess.Popen(capture, stdin=subprocess.DEVNULL, stdout=heard, stderr=subprocess.STDOUT)
            try:
                wait_for("tcpdump", lambda: "listening on" in (scratch / "heard").read_text(), 10)
                # As a system; as firmware, which udhcpc can only ask as: it takes an offer without an address for one.
                same(udhcpc(machines, script, out)["ip"], dnsmasq.gave(KNOWN), "the address is dnsmasq's")
                firmware = ["-V", "PXEClient:Arch:00007:UNDI:003000", "-x", "93:0007"]
                ask = ["udhcpc", "-i", "card", "-n", "-q", "-f", "-t", "1", "-T", "2", "-s", script, *firmware]
                run(machines, *ask, check=False)
                said = lambda: (scratch / "heard").read_text()  # noqa: E731
                ours = lambda: "snponly.efi" in said() and f"length 4: {ADDRESS}" in said()  # noqa: E731
                wait_for("Roost's offer", ours, 10, tail=said)
            finally:
                listener.kill()
                listener.wait()
        offer = f"snponly.efi (UEFI x64), at port {ROUTER}/room0"
        wait_for("the offer", lambda: any(offer in stage["detail"] for stage in roost.stages("pc-03")), 10, tail=roost.tail)
        roost.stop()
        # The same place by its port: what was plugged in there last is known after a restart, though no lease is kept here.
        roost.configure({"desk": at_port}, "blank", pool=None)
        roost.start()
        with room(options) as (relay, machines), relaying(relay, "dhcrelay", scratch, OTHER):
            become(machines, FIRST)
            run(machines, *ask, check=False)
            wait_for("the offer to desk", lambda: roost.stages("desk"), 10, tail=roost.tail)
        roost.stop()
        roost.start()
        script = run(options.server, "curl", "-sSf", f"http://{ADDRESS}/boot.ipxe?mac={FIRST}").stdout
        assert ":desk" in script, f"who is at the port is forgotten:\n{script}"
        roost.stop()
    finally:
        roost.kill()
        if dnsmasq:
            dnsmasq.kill()
        run(options.switch, "ip", "route", "del", ROOM, check=False)
        run(options.switch, "ip", "address", "del", f"{OTHER}/24", "dev", "br0", check=False)


def import_blank(roost, scratch):
    """An image of zeros."""
    blank = scratch / "blank.raw"
    blank.write_bytes(bytes(1 << 20))
    roost.cli("image", "import", str(blank), "--name", "blank")


def in_use(options, roost, scratch):
    """An address that somebody uses is not given: the next one is, at once, and the event says whose it is."""
    script, out = scratch / "note.sh", scratch / "conflict"
    script.write_text(NOTE_SCRIPT.format(out=out))
    # Linux answers for an address at every one of its interfaces, unless it is told not to.
    run(options.switch, "sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1")
    run(options.switch, "ip", "link", "add", "squatter", "address", SQUATTER, "type", "veth", "peer", "name", "squatted")
    try:
        run(options.switch, "ip", "link", "set", "squatted", "master", "br0", "up")
        run(options.switch, "ip", "link", "set", "squatter", "up")
        run(options.switch, "ip", "address", "add", f"{SQUATTED}/24", "dev", "squatter")
        plug_in(options.switch, KNOWN)
        began = time.monotonic()
        run(options.switch, "udhcpc", "-i", "card", "-n", "-q", "-f", "-t", "1", "-T", "3", "-s", script)
        took = time.monotonic() - began
        same(noted(Path(f"{out}.bound"))["ip"], "10.77.0.101", "the address")
        log = roost.log.read_text()
        said = f"{SQUATTED} is in use by {SQUATTER}, to which we did not give it"
        assert said in log, f"`{said}` is not said\n{roost.tail()}"
        assert took < 3, f"one DISCOVER and one REQUEST took {took:.1f} s"
        return f"{took:.2f} s"
    finally:
        unplug(options.switch)
        run(options.switch, "ip", "link", "del", "squatter", check=False)
        run(options.switch, "sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=0")


def tests(options, report):
    """All of them, while no other Roost runs."""
    scratch = Path(options.fast) / "relays"
    scratch.mkdir()
    roost = Roost(options.roost, scratch / "roost", options.server)
    roost.configure(CLIENTS, "blank", tables=ROOM_POOL)
    import_blank(roost, scratch)
    roost.start()
    try:
        report.test("rooms-behind-dhcrelay-and-dnsmasq", behind_a_relay, options, roost, scratch)
        report.test("an-address-that-is-in-use", in_use, options, roost, scratch)
        roost.stop()
    finally:
        roost.kill()
    report.test("a-relay-beside-another-server", beside_another_server, options, scratch)
