#!/usr/bin/env python3
"""The iSCSI target against other people's conformance suites (run by tests/iscsi/run)."""

import random
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from report import TESTER, Report, arguments, no_panic, run  # noqa: E402

import conformance  # noqa: E402
from server import INTERFACE, Roost  # noqa: E402

# The formats of a client's disk, which are those of its master; by each `roost image import`s one.
FORMATS = ["vhd", "vhdx"]
DISK_MIB = 512
# One MiB of noise in so many: a child's blocks then have their master's content, holes, and both.
NOISE_EVERY_MIB = 8


def client(mac, *keys):
    """A client's value in roost.toml: its MAC, the suite's initiator names, which may come from anywhere, and more keys."""
    names = ", ".join(f'"{name}"' for name in (TESTER, *conformance.INITIATORS))
    return "{ " + ", ".join([f'mac = "{mac}"', f"initiators = [{names}]", *keys]) + " }"


def clients_of(kind, number):
    """Two clients of an image of this format: name -> value."""
    image = f'image = "{kind}"'
    return {
        f"pc-{kind}": client(f"52:54:00:77:04:{number}1", image),
        f"pc-{kind}-readonly": client(f"52:54:00:77:04:{number}2", image, 'mode = "read-only"'),
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
    clients = {}
    for number, kind in enumerate(FORMATS):
        clients |= clients_of(kind, number)
    clients["pc-vhdx-large"] = client("52:54:00:77:04:ff", 'image = "vhdx-large"')
    roost.configure(clients, FORMATS[0])
    raw = folder / "master.raw"
    noise(raw)
    roost.cli("image", "import", str(raw), "--name", "vhd")
    # qemu-img's VHDX has physical sectors of 512 bytes, as a VHD has; Roost's own has 4,096.
    vhdx = folder / "master.vhdx"
    run(options.server, "qemu-img", "convert", "-O", "vhdx", raw, vhdx)
    roost.cli("image", "import", str(vhdx), "--name", "vhdx", "--format", "vhdx")
    roost.cli("image", "import", str(raw), "--name", "vhdx-large", "--format", "vhdx")
    address = ["ip", "-n", options.server, "address", "add", f"{conformance.SECOND_ADDRESS}/24", "dev", INTERFACE]
    subprocess.run(address, check=True)
    roost.start()
    try:
        report.test("discovery-lists-both-portals", conformance.portals_are_listed, options)
        for kind in FORMATS:
            large = {"vhdx": "pc-vhdx-large"}.get(kind)
            conformance.tests(options, roost, report, kind, f"pc-{kind}", f"pc-{kind}-readonly", large)
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
