"""Every firmware by every way that its DHCP can go: to Roost itself, beside another server, and through a relay.

Each ends at the operating system's marker. Boards that Debian 12 has no iPXE for end in a loader of our own (loader.py).
"""

import contextlib
import subprocess
from pathlib import Path

from report import no_panic, run, same
from room import ROOM_POOL, ROUTER, relaying, room
from server import INTERFACE, Dnsmasq, wait_for

from fleet import LAB, Fleet, boots_to_its_marker, master_path
from loader import LINE, arm64_program

EVERY = ["bios", "bios-chain", "uefi", "uefi-http", "uefi-rom"]
# The other three meet Roost's own addresses twice each (boots.py).
HTTP_AND_ROM = ["uefi-http", "uefi-rom"]
LOADER = "board.efi"
BOARD_SECONDS = 180


def to_itself(options, report):
    """Roost gives the addresses; the boards are with them."""
    folder = Path(options.fast) / "to-itself"
    folder.mkdir()
    (folder / LOADER).write_bytes(arm64_program())
    tables = f'[loaders]\narm64 = "{folder / LOADER}"\n'
    with Fleet(options, folder, [*HTTP_AND_ROM, "arm64", "u-boot"], master_path(), tables=tables) as fleet:

        def look(machine):
            if machine.mode in HTTP_AND_ROM:
                report.test(f"{machine.mode}-boot", boots_to_its_marker, fleet, machine, 1)
            else:
                report.test(f"{machine.mode}-runs-its-loader", runs_its_loader, fleet, machine)

        fleet.each_in_turn(look)
        report.test("no-panic-by-http-and-on-boards", no_panic, fleet.roost)


def runs_its_loader(fleet, machine):
    """A board is told its platform's loader, fetches it to its last byte, and runs it."""
    machine.wait_matches(LINE, 1, BOARD_SECONDS)
    took = machine.matches(r"NBP file downloaded|Bytes transferred = \d+")
    assert took, f"it does not say that it fetched anything:\n{machine.tail()}"
    size = f"{LOADER} by TFTP, {-(-len(arm64_program()) // 1000)} KB in "
    details = lambda stage: [detail for known, detail in fleet.stages_of_this_boot(machine) if known == stage]  # noqa: E731
    wait_for("the stage of the loader", lambda: details("loader"), 10, tail=fleet.roost.tail)
    assert all(detail.startswith(size) for detail in details("loader")), f"loaders: {details('loader')}"
    offers = details("offer")
    assert all(f"{LOADER} (UEFI ARM64" in offer for offer in offers), f"offers: {offers}"
    return details("loader")[-1]


def boots_beside(fleet, dnsmasq, machine):
    """A boot with another server's address, to which Roost's word alone was added."""
    figures = boots_to_its_marker(fleet, machine, 1)
    address = dnsmasq.gave(machine.mac)
    assert address, f"dnsmasq gave {machine.name} no address"
    details = [detail for stage, detail in fleet.stages_of_this_boot(machine) if stage == "offer"]
    assert any(detail.startswith(f"it takes {address} from ") for detail in details), f"offers: {details}"
    if machine.mode == "uefi":
        assert any("asked on port 4011" in detail for detail in details), f"port 4011 was not asked: {details}"
    same(fleet.roost.client(machine.name)["address"], address, "the address that Roost saw it use")
    return f"{figures}, address {address}"


def beside(options, report, where, namespace, interface, modes):
    """These machines, while dnsmasq gives the addresses on this interface."""
    folder = Path(options.fast) / where
    folder.mkdir()
    with contextlib.ExitStack() as ends:
        dnsmasq = Dnsmasq(namespace, interface, folder)
        ends.callback(dnsmasq.kill)
        fleet = ends.enter_context(Fleet(options, folder, modes, master_path(), pool=None))
        fleet.each_in_turn(
            lambda machine: report.test(f"{machine.mode}-beside-dnsmasq-on-{where}", boots_beside, fleet, dnsmasq, machine)
        )
        report.test(f"no-panic-beside-dnsmasq-on-{where}", no_panic, fleet.roost)


def beside_another_host(options, report):
    """Every firmware, with dnsmasq on another host."""
    address = ["ip", "-n", options.switch, "address"]
    subprocess.run([*address, "add", "10.77.0.2/24", "dev", "br0"], check=True)
    try:
        beside(options, report, "another-host", options.switch, "br0", EVERY)
    finally:
        subprocess.run([*address, "del", "10.77.0.2/24", "dev", "br0"], check=True)


def beside_on_this_host(options, report):
    """The two kinds of firmware, with dnsmasq on Roost's own host, where it has port 67."""
    beside(options, report, "this-host", options.server, INTERFACE, ["bios", "uefi"])


def boots_behind(fleet, machine):
    """A boot with an address of the room, of which Roost heard from the relay alone."""
    figures = boots_to_its_marker(fleet, machine, 1)
    address = fleet.roost.client(machine.name)["address"]
    offers = [detail for stage, detail in fleet.stages_of_this_boot(machine) if stage == "offer"]
    assert all(offer.startswith(f"{address}, ") and offer.endswith(f", at port {ROUTER}/room0") for offer in offers), offers
    assert address.startswith(ROUTER.removesuffix("1")), f"{address} is not the room's"
    return f"{figures}, address {address}"


@contextlib.contextmanager
def advertising(relay):
    """The room's router says that it has IPv6, as routers do: else an iPXE of 2019 waits 16 s for it, and Roost is too far away
    to answer."""
    run(relay, "ip", "address", "add", "fd00:78::1/64", "dev", "room0", "nodad")
    command = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root", "--pid-file=",
               "--interface=room0", "--enable-ra", "--dhcp-range=fd00:78::,ra-only"]  # fmt: skip
    with subprocess.Popen(["ip", "netns", "exec", relay, *command], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


def behind_a_relay(options, report):
    """Every firmware, in a room behind a router on which ISC dhcrelay runs: DHCP goes by it, all else is routed."""
    folder = Path(options.fast) / "behind"
    folder.mkdir()
    with room(options) as (relay, machines), relaying(relay, "dhcrelay", folder), advertising(relay):
        # Where the interop suite has one card, these machines need a switch.
        subprocess.run(["bash", "-c", '. "$0" && lab_bridge "$@"', LAB / "net.sh", machines, "card", str(len(EVERY))], check=True)
        with Fleet(options, folder, EVERY, master_path(), tables=ROOM_POOL, namespace=machines) as fleet:
            fleet.each_in_turn(lambda machine: report.test(f"{machine.mode}-behind-a-relay", boots_behind, fleet, machine))
            report.test("no-panic-behind-a-relay", no_panic, fleet.roost)


PARTS = (to_itself, beside_another_host, beside_on_this_host, behind_a_relay)
