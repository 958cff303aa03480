"""IPv6 on the lab's network: addresses for Roost and for dnsmasq, which is the router there and gives the addresses."""

import contextlib
import subprocess
from pathlib import Path

from server import INTERFACE, RoostError, wait_for

# Roost's address, and dnsmasq's where it is on another host.
SERVER = "fd00:77::1"
ROUTER = "fd00:77::2"


def ip(namespace, *words, check=True):
    """Runs ip(8) in a namespace; returns what it prints."""
    return subprocess.run(["ip", "-n", namespace, *words], check=check, capture_output=True, text=True).stdout


class Router:
    """dnsmasq, which advertises itself as a router on this interface and gives IPv6 addresses, and knows nothing of booting."""

    def __init__(self, namespace, interface, folder):
        self.log = Path(folder) / "dnsmasq-ipv6.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    "ip", "netns", "exec", namespace, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0",
                    f"--interface={interface}", "--enable-ra", "--dhcp-range=fd00:77::100,fd00:77::1ff,64,1h",
                    f"--dhcp-leasefile={Path(folder) / 'dnsmasq-ipv6.leases'}", "--log-dhcp", "--log-facility=-", "--user=root",
                    "--pid-file=",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        wait_for("dnsmasq for IPv6", self._started, 10, tail=self.text)

    def _started(self):
        if self.process.poll() is not None:
            raise RoostError(f"dnsmasq ended with {self.process.returncode}: {self.text()}")
        return "router advertisement" in self.text()

    def text(self):
        """Its log."""
        return self.log.read_text(errors="replace")

    def gave(self, mac):
        """Whether a machine, by the MAC in its identifier, has an address of it."""
        return any("DHCPREPLY" in line and mac in line for line in self.text().splitlines())

    def kill(self):
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def addresses(*wanted):
    """These addresses, each of a namespace and an interface, settled: link-local ones are made by the interfaces themselves, and
    tried out for a second."""
    given = []
    try:
        for namespace, interface, address in wanted:
            ip(namespace, "address", "add", address, "dev", interface, *(["nodad"] if ":" in address else []))
            given.append((namespace, interface, address))
        for namespace, interface in {(namespace, interface) for namespace, interface, _ in wanted}:
            shown = ["-6", "address", "show", "dev", interface]
            wait_for(f"the addresses of {interface}", lambda n=namespace, s=shown: "tentative" not in ip(n, *s), 10)
        yield
    finally:
        for namespace, interface, address in given:
            ip(namespace, "address", "del", address, "dev", interface, check=False)


@contextlib.contextmanager
def network(server, namespace, interface, folder, also=()):
    """Roost's interface has an IPv6 address, and dnsmasq serves this interface of another host. `also` are more addresses of
    that one."""
    wanted = [(server, INTERFACE, f"{SERVER}/64"), (namespace, interface, f"{ROUTER}/64")]
    with addresses(*wanted, *((namespace, interface, address) for address in also)):
        router = Router(namespace, interface, folder)
        try:
            yield router
        finally:
            router.kill()
