"""A room behind a router that relays DHCP: machines there reach Roost by way of it, and by no broadcast."""

import contextlib
import os
import signal
import subprocess

from report import run
from server import ADDRESS, wait_for

# The relay stands on the lab's wire, and is the router of the room behind it.
RELAY, ROUTER, ROOM = "10.77.0.20", "10.78.5.1", "10.78.5.0/24"
ROOM_POOL = f"""\
[server.pools.room-b]
subnet = "{ROOM}"
range  = "10.78.5.100-10.78.5.109"
router = "{ROUTER}"
lease  = "1h"
"""
RELAYS = {
    "dhcrelay": ["dhcrelay", "-4", "-d", "-a", "-iu", "up0", "-id", "room0", ADDRESS],
    "dnsmasq": ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", f"--dhcp-relay={ROUTER},{ADDRESS}",
                "--user=root", "--pid-file="],
}  # fmt: skip


@contextlib.contextmanager
def room(options):
    """A namespace for the relay and one for the room's machines; `card` in the latter is plugged in at the relay's `room0`."""
    relay, machines = f"{options.switch}-relay", f"{options.switch}-room"
    try:
        for namespace in (relay, machines):
            subprocess.run(["ip", "netns", "add", namespace], check=True)
            run(namespace, "ip", "link", "set", "lo", "up")
        run(options.switch, "ip", "link", "add", "to-relay", "type", "veth", "peer", "name", "up0", "netns", relay)
        run(options.switch, "ip", "link", "set", "to-relay", "master", "br0", "up")
        run(relay, "ip", "link", "add", "room0", "type", "veth", "peer", "name", "card", "netns", machines)
        for interface, address in (("up0", f"{RELAY}/24"), ("room0", f"{ROUTER}/24")):
            run(relay, "ip", "address", "add", address, "dev", interface)
            run(relay, "ip", "link", "set", interface, "up")
        run(relay, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        run(options.server, "ip", "route", "add", ROOM, "via", RELAY)
        yield relay, machines
    finally:
        for namespace in (relay, machines):
            pids = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
            for pid in pids.stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", namespace], check=False)
        run(options.server, "ip", "route", "del", ROOM, check=False)


@contextlib.contextmanager
def relaying(namespace, program, scratch, *servers):
    with open(scratch / f"{program}.log", "w") as log:
        process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, *RELAYS[program], *servers], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        listens = lambda: ":67 " in run(namespace, "ss", "-lnuH").stdout  # noqa: E731
        wait_for(f"{program} on port 67", listens, 10, tail=(scratch / f"{program}.log").read_text)
        yield
    finally:
        process.kill()
        process.wait()
