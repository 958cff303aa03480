"""Beside other servers: another DHCP server's clients keep it, and what keeps Roost from starting is said with who and what."""

import contextlib
import subprocess
from pathlib import Path

from netboot import CLIENT_MAC, NOTE_SCRIPT, noted, plug_in, unplug
from report import run, same
from server import ADDRESS, INTERFACE, POOL, Dnsmasq, Roost, mapping_file, wait_for

STRANGER = "52:54:00:77:02:98"
START_SECONDS = 20

# Takes a port and says so. Its name, by which Roost must call it, is written by itself.
TAKE_PORT = """
import socket, sys, time
open("/proc/self/comm", "w").write("port-taker")
kind = socket.SOCK_DGRAM if sys.argv[1] == "udp" else socket.SOCK_STREAM
taken = socket.socket(socket.AF_INET, kind)
taken.bind((sys.argv[2], int(sys.argv[3])))
if sys.argv[1] == "tcp":
    taken.listen()
print("taken", flush=True)
time.sleep(600)
"""


IMAGE = "blank"


def configured(options, folder, pool=None):
    """A Roost with one client of a small image, without a pool beside another server. Not started."""
    roost = Roost(options.roost, folder, options.server)
    roost.configure({"pc-01": f'"{CLIENT_MAC}"'}, IMAGE, pool=pool)
    blank = roost.config.parent / "blank.raw"
    blank.write_bytes(bytes(1 << 20))
    roost.cli("image", "import", str(blank), "--name", IMAGE)
    return roost


class Failing:
    """A Roost that is configured, and not expected to start."""

    def __init__(self, options, folder):
        self.options = options
        self.roost = configured(options, folder)

    def words(self, text):
        """What `roost run` says with this mapping file, when it ends by itself."""
        self.roost.config.write_text(text)
        done = self.roost.cli("run", check=False, seconds=START_SECONDS)
        assert done.returncode != 0, f"`roost run` ended well: {done.stderr}"
        assert "panicked" not in done.stderr, done.stderr
        return done.stderr

    def mapping(self, pool=None):
        return mapping_file(self.roost.state, {"pc-01": f'"{CLIENT_MAC}"'}, IMAGE, pool)


@contextlib.contextmanager
def taken(namespace, transport, port, address=ADDRESS):
    """A process that has this port; its id is that of the process in the namespace."""
    command = ["ip", "netns", "exec", namespace, "python3", "-c", TAKE_PORT, transport, address, str(port)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        try:
            same(process.stdout.readline(), "taken\n", f"taking port {port}")
            yield process.pid
        finally:
            process.kill()


def contains(words, *parts):
    for part in parts:
        assert part in words, f"`{part}` is not said in: {words}"


def taken_ports(failing):
    """Each port that somebody else has is named, with who has it and what to do."""
    server = failing.options.server
    for transport, port, pool, what in [
        ("udp", 67, POOL, 'cannot serve DHCP: port 67/udp is taken by port-taker (pid {}): stop it, or write dhcp = "proxy"'),
        ("udp", 4011, POOL, "cannot answer boot requests: port 4011/udp on 10.77.0.1 is taken by port-taker (pid {}): stop it, or"),
        ("udp", 4011, None, "cannot answer boot requests: port 4011/udp on 10.77.0.1 is taken by port-taker (pid {}): stop it, or"),
        ("udp", 69, POOL, "cannot serve TFTP: port 69/udp on 10.77.0.1 is taken by port-taker (pid {}): stop it, or"),
        ("tcp", 80, POOL, "cannot serve HTTP: port 80/tcp on 10.77.0.1 is taken by port-taker (pid {}): stop it, or"),
        ("tcp", 3260, POOL, "cannot serve iSCSI: port 3260/tcp on 10.77.0.1 is taken by port-taker (pid {}): stop it, or"),
    ]:
        for address in (ADDRESS, "0.0.0.0"):
            with taken(server, transport, port, address) as pid:
                contains(failing.words(failing.mapping(pool)), what.format(pid))


def interfaces(failing):
    """An interface that does not exist, has no address, or is down; and loaders that are not there."""
    server = failing.options.server
    text = failing.mapping()
    on = lambda name: text.replace(f'"{INTERFACE}"', f'"{name}"')  # noqa: E731
    contains(failing.words(on("eth9")), "there is no interface `eth9`; this host has", f"{INTERFACE} ({ADDRESS}/24)")
    run(server, "ip", "link", "add", "spare", "type", "veth", "peer", "name", "spare-end")
    try:
        contains(failing.words(on("spare")), "interface `spare` is down", "ip link set spare up")
        run(server, "ip", "link", "set", "spare", "up")
        contains(failing.words(on("spare")), "interface `spare` has no IPv4 address; give it a fixed one")
        # Without carrier it is served, with a warning: what it stops at here is another mistake.
        run(server, "ip", "address", "add", "10.78.0.1/24", "dev", "spare")
        empty = failing.roost.config.parent / "empty"
        empty.mkdir(exist_ok=True)
        words = failing.words(on("spare").replace("[server]\n", f'[server]\nloader_dir = "{empty}"\n'))
        contains(words, "interface spare has no carrier", f"there is no undionly.kpxe in {empty}: install it (apt install ipxe)")
    finally:
        run(server, "ip", "link", "del", "spare")


def beside_dnsmasq(options):
    """With dnsmasq on this host: it has port 67, its clients get their addresses, and firmware gets Roost's word as well."""
    scratch = Path(options.fast) / "beside"
    scratch.mkdir()
    roost = configured(options, scratch / "roost")
    script, out = scratch / "note.sh", scratch / "dhcp"
    script.write_text(NOTE_SCRIPT.format(out=out))
    script.chmod(0o755)
    dnsmasq = None
    try:
        # Roost is there first: it must not keep dnsmasq from its port. Then it comes second.
        for first in ("roost", "dnsmasq"):
            if first == "roost":
                roost.start()
                dnsmasq = Dnsmasq(options.server, INTERFACE, scratch)
            else:
                roost.start()
                contains(roost.log.read_text(), "port 67/udp on 10.77.0.1 is taken by dnsmasq (pid ", "which gives the addresses")
            for mac, words in ((STRANGER, []), (CLIENT_MAC, ["-V", "PXEClient:Arch:00007:UNDI:003000", "-x", "93:0007"])):
                plug_in(options.switch, mac)
                try:
                    run(options.switch, "udhcpc", "-i", "card", "-n", "-q", "-f", "-t", "8", "-T", "1", "-s", script, *words)
                finally:
                    unplug(options.switch)
                same(noted(Path(f"{out}.bound"))["ip"], dnsmasq.gave(mac), "the address is dnsmasq's")
            details = lambda: [stage["detail"] for stage in roost.stages("pc-01")]  # noqa: E731
            wait_for("the offer", lambda: "snponly.efi (UEFI x64)" in details(), 10, tail=roost.tail)
            assert STRANGER not in roost.log.read_text(), roost.tail()
            roost.stop()
    finally:
        roost.kill()
        if dnsmasq:
            dnsmasq.kill()


def tests(options, report):
    """All of them, while no other Roost runs."""
    failing = Failing(options, Path(options.fast) / "failing")
    report.test("taken-ports-are-named-with-who-has-them", taken_ports, failing)
    report.test("interfaces-and-loaders-that-are-not-there", interfaces, failing)
    report.test("addresses-beside-dnsmasq-on-this-host", beside_dnsmasq, options)
