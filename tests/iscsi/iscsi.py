#!/usr/bin/env python3
"""The iSCSI target against other people's conformance suites (run by tests/iscsi/run)."""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from report import TESTER, Report, arguments, no_panic  # noqa: E402

import conformance  # noqa: E402
from server import Roost  # noqa: E402

IMAGE = "noise"
DISK_MIB = 512
# One MiB of noise in so many: a child's blocks then have their master's content, holes, and both.
NOISE_EVERY_MIB = 8


def client(mac, *keys):
    """A client's value in roost.toml: its MAC, the suite's initiator names, which may come from anywhere, and more keys."""
    names = ", ".join(f'"{name}"' for name in (TESTER, *conformance.INITIATORS))
    return "{ " + ", ".join([f'mac = "{mac}"', f"initiators = [{names}]", *keys]) + " }"


CLIENTS = {
    "pc-writable": client("52:54:00:77:04:01"),
    "pc-readonly": client("52:54:00:77:04:02", 'mode = "read-only"'),
}


def noise(path):
    """A raw disk with something on it, the same each time."""
    source = random.Random(20261124)
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
        conformance.tests(options, roost, report, writable="pc-writable", readonly="pc-readonly")
        report.test("no-panic", no_panic, roost)
    finally:
        roost.kill()


def main():
    options = arguments()
    report = Report()
    report.part("iscsi", everything, options, report)
    return report.exit_code()


if __name__ == "__main__":
    sys.exit(main())
