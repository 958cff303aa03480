"""A wire and a VLAN on it, each with its own addresses; and a VLAN on the same cable that is none of ours."""

import contextlib
import subprocess
from pathlib import Path

from netboot import LOADER, LOADERS, NOTE_SCRIPT, noted, plug_in, unplug
from relays import import_blank
from report import run, same
from server import ADDRESS, INTERFACE, Dnsmasq, Roost, mapping_file, wait_for

VLAN, VLAN_ADDRESS = f"{INTERFACE}.100", "10.79.0.1"
VLAN_POOL = """\
[server.pools.vlan]
subnet = "10.79.0.0/24"
range  = "10.79.0.100-10.79.0.109"
"""
CLIENT, MAC = "pc-vlan", "52:54:00:77:04:01"
FIRMWARE = ["-V", "PXEClient:Arch:00000:UNDI:002001", "-x", "93:0000"]

# In place of a VLAN's interface, where the kernel was built without VLANs: what leaves the tap goes out by the link with the
# tag 100 (IEEE 802.1Q), and what comes in with that tag arrives at the tap without it.
TAGGER = """
import contextlib, fcntl, os, select, socket, struct, sys
link, name = sys.argv[1:]
tap = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1002))  # TUNSETIFF: a tap, frames alone
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.setsockopt(263, 8, 1)  # PACKET_AUXDATA: the kernel has taken the tag out of the frame
wire.bind((link, 3))
print("tags", flush=True)
while True:
    ready, _, _ = select.select([tap, wire], [], [])
    if tap in ready:
        frame = os.read(tap, 2048)
        wire.send(frame[:12] + bytes.fromhex("81000064") + frame[12:])
    if wire in ready:
        frame, extra, _, (_, _, kind, _, _) = wire.recvmsg(2048, 256)
        status, _, _, _, _, tag, _ = struct.unpack("IIIHHHH", extra[0][2])
        if kind != socket.PACKET_OUTGOING and status & 16 and tag & 0xFFF == 100:
            with contextlib.suppress(OSError):  # the tap is not up yet: a card that is down loses its frames too
                os.write(tap, frame)
"""


@contextlib.contextmanager
def vlan(namespace, link, *addresses):
    """VLAN 100 on this link, as the interface `LINK.100`. Tells who makes the tags."""
    name, tagger = f"{link}.100", None
    made = run(namespace, "ip", "link", "add", "link", link, "name", name, "type", "vlan", "id", "100", check=False)
    try:
        if made.returncode != 0:
            command = ["ip", "netns", "exec", namespace, "python3", "-c", TAGGER, link, name]
            tagger = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
            same(tagger.stdout.readline(), "tags\n", f"{name}, made by a program since the kernel says `{made.stderr.strip()}`")
            mac = run(namespace, "cat", f"/sys/class/net/{link}/address").stdout.strip()
            run(namespace, "ip", "link", "set", name, "address", mac)
        for address in addresses:
            run(namespace, "ip", "address", "add", address, "dev", name)
        run(namespace, "ip", "link", "set", name, "up")
        yield "tags by a program, for this kernel has none" if tagger else "tags by the kernel"
    finally:
        if tagger:
            tagger.kill()
            tagger.wait()
            tagger.stdout.close()
        else:
            run(namespace, "ip", "link", "del", name, check=False)


@contextlib.contextmanager
def card(options):
    """A machine's card, of which VLAN 100 is `card.100`."""
    plug_in(options.switch, MAC)
    try:
        with vlan(options.switch, "card"):
            yield
    finally:
        unplug(options.switch)


def roost_on(options, scratch, interfaces, **more):
    """A Roost on these interfaces, with one client. Not started."""
    roost = Roost(options.roost, scratch, options.server)
    text = mapping_file(roost.state, {CLIENT: f'"{MAC}"'}, "blank", **more)
    roost.config.write_text(text.replace(f'"{INTERFACE}"', interfaces))
    import_blank(roost, scratch)
    (scratch / "note.sh").write_text(NOTE_SCRIPT.format(out=scratch / "dhcp"))
    (scratch / "note.sh").chmod(0o755)
    return roost


def ask(options, scratch, interface, *words):
    """What udhcpc is told there."""
    run(options.switch, "udhcpc", "-i", interface, "-n", "-q", "-f", "-t", "5", "-s", scratch / "note.sh", *FIRMWARE, *words)
    return noted(scratch / "dhcp.bound")


def a_wire_and_a_vlan(options, scratch):
    """The same machine has an address of the wire where it asks, and its loader and its disk from there."""
    roost = roost_on(options, scratch, f'["{INTERFACE}", "{VLAN}"]', tables=VLAN_POOL)
    try:
        with vlan(options.server, INTERFACE, f"{VLAN_ADDRESS}/24") as how, card(options):
            roost.start()
            for interface, address, server in (("card", "10.77.0.100", ADDRESS), ("card.100", "10.79.0.100", VLAN_ADDRESS)):
                bound = ask(options, scratch, interface)
                told = tuple(bound.get(key) for key in ("ip", "serverid", "siaddr", "boot_file", "hostname"))
                same(told, (address, server, server, LOADER, CLIENT), f"what {interface} is told")
                run(options.switch, "ip", "address", "add", f"{address}/24", "dev", interface)
                fetched = scratch / interface
                run(options.switch, "tftp", "-m", "binary", server, "-c", "get", LOADER, fetched)
                same(fetched.read_bytes(), (LOADERS / LOADER).read_bytes(), f"the loader by {interface}")
                script = run(options.switch, "curl", "-sSf", f"http://{server}/boot.ipxe?mac={MAC}").stdout
                assert f"iscsi:{server}:" in script, f"the script by {interface} boots from elsewhere:\n{script}"
            roost.stop()
    finally:
        roost.kill()
    return how


def a_vlan_that_is_not_ours(options, scratch):
    """Beside another server requests are overheard; not those with the tag of a VLAN that this host has no interface of."""
    roost = roost_on(options, scratch, f'"{INTERFACE}"', pool=None)
    offers = lambda: [stage for stage in roost.stages(CLIENT) if stage["stage"] == "offer"]  # noqa: E731
    dnsmasq = Dnsmasq(options.server, INTERFACE, scratch)
    try:
        with card(options):
            roost.start()
            command = ["udhcpc", "-i", "card.100", "-n", "-q", "-f", "-t", "2", "-T", "1", "-s", scratch / "note.sh", *FIRMWARE]
            assert run(options.switch, *command, check=False).returncode != 0, "somebody gave an address by the VLAN"
            log = roost.log.read_text()
            assert MAC not in log and CLIENT not in log, f"what was for the VLAN was taken for the wire's\n{roost.tail()}"
            ask(options, scratch, "card")
            wait_for("an offer by the wire", offers, 10, tail=roost.tail)
            roost.stop()
    finally:
        roost.kill()
        dnsmasq.kill()


def tests(options, report):
    """All of them, while no other Roost runs."""
    for name, test in (("a-wire-and-a-vlan-on-it", a_wire_and_a_vlan), ("a-vlan-that-is-not-ours", a_vlan_that_is_not_ours)):
        scratch = Path(options.fast) / name
        scratch.mkdir()
        report.test(name, test, options, scratch)
