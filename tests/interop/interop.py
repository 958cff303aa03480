#!/usr/bin/env python3
"""Clients that nobody here wrote against one Roost (run by tests/interop/run).

The order is from the outside in: addresses, boot files, discovery and single commands, then writes
whose result other programs read, and last the kills.
"""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from report import TESTER, Report, arguments, no_panic  # noqa: E402

import beside  # noqa: E402
import chap  # noqa: E402
import clients  # noqa: E402
import netboot  # noqa: E402
import over_ipv6  # noqa: E402
import packets  # noqa: E402
import relays  # noqa: E402
import targets  # noqa: E402
import vlan  # noqa: E402
import writes  # noqa: E402
from server import Roost  # noqa: E402

IMAGE = "noise"
DISK_MIB = 512
# One MiB of noise in so many: a child's blocks then have their master's content, holes, and both.
NOISE_EVERY_MIB = 8


def client(mac, *initiators):
    """A client's value in roost.toml: its MAC, and the initiator names that may use its disk from anywhere."""
    names = ", ".join(f'"{name}"' for name in initiators)
    return f'{{ mac = "{mac}", initiators = [{names}] }}'


CLIENTS = {
    "pc-writes": client("52:54:00:77:02:02", TESTER),
    "pc-kills": client("52:54:00:77:02:03", TESTER),
    "pc-private": client("52:54:00:77:02:04"),
    "pc-dhcp": client(netboot.CLIENT_MAC),
    chap.CLIENT: chap.VALUE,
}


def noise(path):
    """A raw disk with something on it, the same each time."""
    source = random.Random(20261123)
    with open(path, "wb") as disk:
        for at in range(0, DISK_MIB, NOISE_EVERY_MIB):
            disk.seek(at << 20)
            disk.write(source.randbytes(1 << 20))
        disk.truncate(DISK_MIB << 20)


def everything(options, report):
    """One Roost for all of it, with its state on a disk: reads and writes may wait there, as in real life."""
    folder = Path(options.disk)
    roost = Roost(options.roost, folder / "roost", options.server)
    roost.configure(CLIENTS, IMAGE)
    master = folder / "master.raw"
    noise(master)
    roost.cli("image", "import", str(master), "--name", IMAGE)
    roost.start()
    try:
        netboot.tests(options, roost, report)
        targets.tests(options, roost, report, DISK_MIB << 20)
        chap.tests(options, roost, report)
        writes.tests(options, roost, report, IMAGE, master)
        report.test("no-panic", no_panic, roost)
    finally:
        roost.kill()


def main():
    options = arguments()
    report = Report()
    report.part("beside", beside.tests, options, report)
    report.part("relays", relays.tests, options, report)
    report.part("packets", packets.tests, options, report)
    report.part("vlan", vlan.tests, options, report)
    report.part("ipv6", over_ipv6.tests, options, report)
    report.part("clients", clients.tests, options, report)
    report.part("interop", everything, options, report)
    return report.exit_code()


if __name__ == "__main__":
    sys.exit(main())
