#!/usr/bin/env python3
"""DHCP beside Kea and dnsmasq, in one interleaved run (run by benches/dhcp/run).

Each server has a namespace of its own and the first core, perfdhcp the second one. perfdhcp plays a relay that brings what
iPXE asks, for 5,000 machines by turns, in exchanges of four packets at a rate that does not wait for the server. It never asks
again: what is not answered within a second and a half is a drop. 4,000 of the machines are clients of Roost's mapping file
(--strangers: none is); to the others they are all alike. At each rate the servers take turns, so that a disturbance meets all of
them. Leases are where --on says: Roost's are durable (fsync) before each ACK, Kea's memfile and dnsmasq's file are written.

Printed are the leases per second, the exchanges that were lost, the times to the OFFER and to the ACK (median and 99th
percentile), and the server's CPU (user and system, of all threads) in seconds per 1,000 exchanges, which is milliseconds for
one. It says where an aim is missed, and its exit code is 1 then: no drop up to 4,500 exchanges a second, and no more CPU than
Kea's at the same rate.
"""

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "appliance" / "lab"))

from server import Roost, wait_for  # noqa: E402

TICK = os.sysconf("SC_CLK_TCK")
SERVERS_CORE, CLIENTS_CORE = 0, 1
RATES = [500, 1000, 2000, 3000, 4500]
# Up to here no exchange may be lost.
MOST_WITHOUT_DROPS = 4500
MACHINES = 5000
# Of these so many are clients of the mapping file, which takes 4,096 at most.
KNOWN = 4000
FIRST_MAC = "52:54:00:10:00:00"
DROP_SECONDS = 1.5
PREFIX = 16
LEASE_SECONDS = 3600


def hexadecimal(text):
    return text.encode().hex()


# What an iPXE of 2019 for UEFI sends (options 60, 93, 94, 97, 77, 57, 175).
IPXE = {
    60: hexadecimal("PXEClient:Arch:00007:UNDI:003010"),
    93: "0007",
    94: "01030a",
    97: "00" + "42" * 16,
    77: hexadecimal("iPXE"),
    57: "05c0",
    175: "b105011af41000eb03010000170101220101130101140101110101190101210101100102260101240101",
}


def mac_of(number):
    """perfdhcp adds a number to the last bytes of the first address."""
    return f"{FIRST_MAC[:11]}:{number >> 8:02x}:{number & 255:02x}"


@contextlib.contextmanager
def on_core(core):
    """What is started within stays on this core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core} if core in before else before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def stat_of(pid):
    """Seconds of CPU of a process with all its threads, and its resident MiB."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK, int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


class Subject:
    """A server in a namespace of its own, on a wire of its own to the clients' namespace."""

    def __init__(self, name, number, options):
        self.name, self.options = name, options
        self.namespace = f"{options.switch}-{name}"
        self.address, self.relay = f"10.{80 + number}.0.1", f"10.{80 + number}.0.2"
        self.pool = f"10.{80 + number}.16.0", f"10.{80 + number}.63.255"
        self.folder = Path(options.fast if options.on == "memory" else options.disk) / name
        self.folder.mkdir()
        self.process = self.roost = None
        end = f"wire{number}"
        for words in (
            f"netns add {self.namespace}",
            f"-n {options.switch} link add {end} type veth peer name lan0 netns {self.namespace}",
            f"-n {options.switch} address add {self.relay}/{PREFIX} dev {end}",
            f"-n {options.switch} link set {end} up",
            f"-n {self.namespace} link set lo up",
            f"-n {self.namespace} address add {self.address}/{PREFIX} dev lan0",
            f"-n {self.namespace} link set lan0 up",
        ):
            subprocess.run(["ip", *words.split()], check=True)

    def start(self):
        with on_core(SERVERS_CORE):
            {"kea": self.start_kea, "dnsmasq": self.start_dnsmasq}.get(self.name, self.start_roost)()
        return self

    def spawn(self, *command, environment=None):
        command = ["ip", "netns", "exec", self.namespace, *map(str, command)]
        with (self.folder / "log").open("w") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        listens = lambda: ":67 " in subprocess.run(["ip", "netns", "exec", self.namespace, "ss", "-lnuH"], capture_output=True, text=True, check=True).stdout  # noqa: E731
        wait_for(f"{self.name} on port 67", listens, 20, tail=(self.folder / "log").read_text)

    def start_roost(self):
        """Another build of Roost is a subject like this one."""
        binary = self.options.beside if self.name == "beside" else self.options.roost
        self.roost = roost = Roost(binary, self.folder, self.namespace)
        (self.folder / "blank.raw").write_bytes(bytes(1 << 20))
        known = 0 if self.options.strangers else KNOWN
        clients = [f'pc-{number:04} = "{mac_of(number)}"' for number in range(known)]
        text = f"""
[server]
interface = "lan0"
dhcp = "full"
state = "{roost.state}"
[server.pool]
range = "{self.pool[0]}-{self.pool[1]}"
lease = "{LEASE_SECONDS}s"
[defaults]
image = "blank"
[clients]
"""
        roost.config.write_text(text + "\n".join(clients) + "\n")
        roost.cli("image", "import", str(self.folder / "blank.raw"), "--name", "blank")
        # `ip netns exec` becomes the server itself.
        self.process = roost.start().process

    def start_kea(self):
        kea = {
            "interfaces-config": {"interfaces": ["lan0"], "dhcp-socket-type": "udp"},
            "lease-database": {"type": "memfile", "persist": True, "name": str(self.folder / "leases.csv"), "lfc-interval": 0},
            "valid-lifetime": LEASE_SECONDS,
            "subnet4": [{"id": 1, "subnet": f"{self.address.rsplit('.', 2)[0]}.0.0/{PREFIX}", "pools": [{"pool": " - ".join(self.pool)}]}],
            "loggers": [{"name": "kea-dhcp4", "severity": "WARN", "output_options": [{"output": "stdout"}]}],
        }  # fmt: skip
        (self.folder / "kea.json").write_text(json.dumps({"Dhcp4": kea}))
        places = {"KEA_PIDFILE_DIR": str(self.folder), "KEA_LOCKFILE_DIR": str(self.folder)}
        self.spawn("kea-dhcp4", "-c", self.folder / "kea.json", environment=os.environ | places)

    def start_dnsmasq(self):
        self.spawn(
            "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--interface=lan0", "--user=root", "--pid-file=",
            f"--dhcp-range={self.pool[0]},{self.pool[1]},255.255.0.0,{LEASE_SECONDS}s", "--no-ping", "--dhcp-authoritative",
            f"--dhcp-lease-max={4 * MACHINES}", f"--dhcp-leasefile={self.folder / 'leases'}", "--quiet-dhcp",
        )  # fmt: skip

    def stop(self):
        if self.roost:
            self.roost.kill()
        elif self.process:
            self.process.kill()
            self.process.wait()
        subprocess.run(["ip", "netns", "del", self.namespace], check=False)

    def run(self, rate):
        """One measurement at this rate."""
        options = self.options
        command = ["perfdhcp", "-4", "-r", rate, "-R", MACHINES, "-b", f"mac={FIRST_MAC}", "-p", options.seconds, "-g", "single"]
        command += ["-d", DROP_SECONDS, "-W", int(DROP_SECONDS * 1e6), "-l", self.relay, "-x", "t"]
        for code, value in {} if options.plain else IPXE.items():
            command += ["-o", f"{code},{value}"]
        before, _ = stat_of(self.process.pid)
        with on_core(CLIENTS_CORE):
            done = subprocess.run(
                ["ip", "netns", "exec", options.switch, *map(str, command), self.address],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=options.seconds + 60, check=False,
            )  # fmt: skip
        # Its exit code is 3 where something was lost.
        if done.returncode not in (0, 3):
            raise SystemExit(f"perfdhcp ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr}")
        after, mib = stat_of(self.process.pid)
        figures = read(done.stdout)
        sent, acks = figures["offer"]["sent"], figures["ack"]["received"]
        return figures | {
            "offered_per_second": sent / options.seconds,
            "acks_per_second": acks / options.seconds,
            "drop_percent": 100 * (1 - acks / max(sent, 1)),
            "cpu_seconds": after - before,
            "cpu_per_1000": 1000 * (after - before) / max(acks, 1),
            "mib": mib,
        }


def read(text):
    """What perfdhcp says of both halves of the exchanges."""
    halves = {}
    for half, name in (("DISCOVER-OFFER", "offer"), ("REQUEST-ACK", "ack")):
        statistics_of = text.split(f"***Statistics for: {half}***", 1)[1].split("***Statistics", 1)[0]
        number = lambda what: int(re.search(rf"{what}: (\d+)", statistics_of)[1])  # noqa: B023, E731
        times = text.split(f"***Timestamps for packets: {half}***", 1)[1].split("***", 1)[0]
        halves[name] = {"sent": number("sent packets"), "received": number("received packets")} | percentiles(times)
    return halves


def percentiles(times):
    """Median and 99th percentile, in milliseconds."""
    pairs = re.findall(r"sent / received: (\S+) / (\S+)", times)
    took = sorted(1000 * (seconds(received) - seconds(sent)) for sent, received in pairs)
    at = lambda share: took[min(int(share * len(took)), len(took) - 1)] if took else None  # noqa: E731
    return {"p50_ms": at(0.5), "p99_ms": at(0.99)}


def seconds(stamp):
    """`hhmmss.ffffff` since the run began."""
    return int(stamp[:2]) * 3600 + int(stamp[2:4]) * 60 + float(stamp[4:])


HEAD = f"{'rate':>6}  {'server':<9}{'ACK/s':>8}{'drop %':>8}{'CPU ms/exchange':>17}{'OFFER p50':>11}{'p99 ms':>9}{'ACK p50':>9}{'p99 ms':>9}{'MiB':>6}"


def line(rate, name, rounds):
    def median(*keys):
        values = []
        for figures in rounds:
            for key in keys:
                figures = figures[key]
            values.append(figures)
        known = [value for value in values if value is not None]
        return statistics.median(known) if known else float("nan")

    return (
        f"{rate:>6}  {name:<9}{median('acks_per_second'):>8.0f}{median('drop_percent'):>8.2f}{median('cpu_per_1000'):>17.3f}"
        f"{median('offer', 'p50_ms'):>11.2f}{median('offer', 'p99_ms'):>9.2f}{median('ack', 'p50_ms'):>9.2f}{median('ack', 'p99_ms'):>9.2f}"
        f"{median('mib'):>6.0f}"
    )


def measure(subjects, options):
    """[{rate, rounds: [{server -> figures}]}], printed as it comes."""
    results = []
    print(HEAD, flush=True)
    for rate in options.rates:
        rounds = [{subject.name: subject.run(rate) for subject in subjects} for _ in range(options.rounds)]
        results.append({"rate": rate, "rounds": rounds})
        for subject in subjects:
            print(line(rate, subject.name, [figures[subject.name] for figures in rounds]), flush=True)
    return results


def missed(results):
    """The aims that Roost missed, in medians over the rounds."""
    for case in results:
        rate, rounds = case["rate"], case["rounds"]
        median = lambda server, key: statistics.median(figures[server][key] for figures in rounds)  # noqa: B023, E731
        if rate <= MOST_WITHOUT_DROPS and (drops := median("roost", "drop_percent")) > 0:
            yield f"{drops:.2f} % of the exchanges were lost at {rate}/s; the aim is none"
        if "kea" in rounds[0] and (ours := median("roost", "cpu_per_1000")) > (theirs := median("kea", "cpu_per_1000")):
            yield f"{ours:.3f} CPU-s per 1,000 exchanges at {rate}/s; Kea takes {theirs:.3f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("roost", "fast", "disk", "switch", "server"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--on", choices=("memory", "disk"), default="memory", help="where leases lie")
    parser.add_argument("--rates", type=lambda text: [int(rate) for rate in text.split(",")], default=RATES, metavar="A,B,C")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=8, help="of each measurement")
    parser.add_argument("--servers", type=lambda text: text.split(","), default=["roost", "kea", "dnsmasq"], metavar="A,B,C")
    parser.add_argument("--strangers", action="store_true", help="no machine is in a client's place")
    parser.add_argument("--plain", action="store_true", help="the machines send no options of network boot")
    parser.add_argument("--beside", metavar="BINARY", help="another build of Roost, measured in the same rounds")
    parser.add_argument("--json", type=Path, help="write every figure of every round to this file")
    options = parser.parse_args()
    names = options.servers + (["beside"] if options.beside else [])
    began, subjects = time.monotonic(), []
    try:
        for number, name in enumerate(names):
            subjects.append(Subject(name, number, options))
            subjects[-1].start()
        results = measure(subjects, options)
    finally:
        for subject in subjects:
            subject.stop()
    if options.json:
        options.json.write_text(json.dumps({"on": options.on, "seconds": options.seconds, "results": results}, indent=1) + "\n")
    where = "in memory" if options.on == "memory" else "on a disk"
    print(f"leases {where}; {options.rounds} rounds, {time.monotonic() - began:.0f} s; load of this machine: {os.getloadavg()[0]:.1f}")
    misses = list(missed(results)) if "roost" in names else []
    for what in misses:
        print(f"missed: {what}")
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main())
