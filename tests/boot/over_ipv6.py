"""UEFI machines that are told over IPv6 what to boot, while dnsmasq is the network's router and gives its IPv6 addresses.

The disk itself is opened over IPv4, which the loader configures for itself.
"""

import contextlib
from pathlib import Path

from fleet import Fleet, boots_to_its_marker, master_path
from ipv6 import SERVER, network
from report import no_panic
from server import Dnsmasq

# Firmware tries HTTP over IPv4 for a minute first.
IPV4_SECONDS = 240


def told_over_ipv6(fleet, router, machine, shown, heard):
    """A whole boot, of which the console shows an IPv6 address and Roost heard this."""
    figures = boots_to_its_marker(fleet, machine, 1)
    assert machine.matches(shown), f"its console shows nothing like {shown}:\n{machine.tail(60)}"
    details = [detail for stage, detail in fleet.stages_of_this_boot(machine) if stage == "offer"]
    assert any(detail == heard for detail in details), f"wanted the offer `{heard}`, Roost made {details}"
    assert router.gave(machine.mac), "dnsmasq gave it no IPv6 address"
    return f"{figures}, loader from {SERVER}"


def pxe_over_ipv6(options, report):
    """An offer beside dnsmasq's, a question on port 4011, and TFTP. Addresses of IPv4 are Roost's own."""
    folder = Path(options.fast) / "pxe-ipv6"
    folder.mkdir()
    with (
        network(options.server, options.switch, "br0", folder) as router,
        Fleet(options, folder, ["uefi-ipv6"], master_path()) as fleet,
    ):
        fleet.start_all()
        for machine in fleet.machines:
            report.test(
                "uefi-pxe-over-ipv6", told_over_ipv6, fleet, router, machine,
                r"Station IP address is FD00:77:", "snponly.efi (UEFI x64), over IPv6, asked on port 4011",
            )  # fmt: skip
        report.test("no-panic-in-pxe-over-ipv6", no_panic, fleet.roost)


def http_over_ipv6(options, report):
    """HTTP boot beside another server for both kinds of addresses. Firmware tries IPv4 first, for which nobody gives addresses
    until it has given up."""
    folder = Path(options.fast) / "http-ipv6"
    folder.mkdir()
    with contextlib.ExitStack() as ends:
        router = ends.enter_context(network(options.server, options.switch, "br0", folder, also=["10.77.0.2/24"]))
        fleet = ends.enter_context(Fleet(options, folder, ["uefi-http-ipv6"], master_path(), pool=None))
        fleet.start_all()
        for machine in fleet.machines:
            machine.wait_matches(r"Start HTTP Boot over IPv6", 1, IPV4_SECONDS)
            # It listens to no DHCP server of IPv4 now. Its loader will.
            dnsmasq = Dnsmasq(options.switch, "br0", folder)
            ends.callback(dnsmasq.kill)
            report.test(
                "uefi-http-boot-over-ipv6", told_over_ipv6, fleet, router, machine,
                r"URI: http://\[fd00:77::1\]/snponly.efi", "snponly.efi by HTTP (UEFI x64 by HTTP), over IPv6",
            )  # fmt: skip
        report.test("no-panic-in-http-boot-over-ipv6", no_panic, fleet.roost)


PARTS = [pxe_over_ipv6, http_over_ipv6]
