"""UEFI machines that are told over IPv6 what to boot, while dnsmasq is the network's router and gives its IPv6 addresses.

The disk itself is opened over IPv4, which the loader configures for itself.
"""

from pathlib import Path

from ipv6 import SERVER, network
from report import no_panic
from server import POOL, Dnsmasq

# Firmware tries HTTP over IPv4 for a minute first.
IPV4_SECONDS = 240


def told_over_ipv6(fleet, router, machine, boots_to_its_marker, shown, heard):
    """A whole boot, of which the console shows an IPv6 address and Roost heard this."""
    figures = boots_to_its_marker(fleet, machine, 1)
    assert machine.matches(shown), f"its console shows nothing like {shown}:\n{machine.tail(60)}"
    details = [detail for stage, detail in fleet.stages_of_this_boot(machine) if stage == "offer"]
    assert any(detail == heard for detail in details), f"wanted the offer `{heard}`, Roost made {details}"
    assert router.gave(machine.mac), "dnsmasq gave it no IPv6 address"
    return f"{figures}, loader from {SERVER}"


def by_pxe(options, report, fleet_of, master, boots_to_its_marker):
    """PXE: an offer beside dnsmasq's, a question on port 4011, and TFTP."""
    folder = Path(options.fast) / "pxe-ipv6"
    folder.mkdir()
    with network(options.server, options.switch, "br0", folder) as router:
        fleet = fleet_of(options, folder, ["uefi-ipv6"], master, pool=POOL)
        try:
            fleet.start_all()
            for machine in fleet.machines:
                report.test(
                    "uefi-pxe-over-ipv6", told_over_ipv6, fleet, router, machine, boots_to_its_marker,
                    r"Station IP address is FD00:77:", "snponly.efi (UEFI x64), over IPv6, asked on port 4011",
                )  # fmt: skip
            report.test("no-panic-in-pxe-over-ipv6", no_panic, fleet.roost)
        finally:
            fleet.power_off_all()
            fleet.roost.kill()


def by_http(options, report, fleet_of, master, boots_to_its_marker):
    """HTTP boot: firmware tries IPv4 first, for which nobody gives addresses until it has given up."""
    folder = Path(options.fast) / "http-ipv6"
    folder.mkdir()
    with network(options.server, options.switch, "br0", folder, also=["10.77.0.2/24"]) as router:
        fleet, dnsmasq = fleet_of(options, folder, ["uefi-http-ipv6"], master, pool=None), None
        try:
            fleet.start_all()
            for machine in fleet.machines:
                machine.wait_matches(r"Start HTTP Boot over IPv6", 1, IPV4_SECONDS)
                # It listens to no DHCP server of IPv4 now. Its loader will.
                dnsmasq = Dnsmasq(options.switch, "br0", folder)
                report.test(
                    "uefi-http-boot-over-ipv6", told_over_ipv6, fleet, router, machine, boots_to_its_marker,
                    r"URI: http://\[fd00:77::1\]/snponly.efi", "snponly.efi by HTTP (UEFI x64 by HTTP), over IPv6",
                )  # fmt: skip
            report.test("no-panic-in-http-boot-over-ipv6", no_panic, fleet.roost)
        finally:
            fleet.power_off_all()
            fleet.roost.kill()
            if dnsmasq:
                dnsmasq.kill()
