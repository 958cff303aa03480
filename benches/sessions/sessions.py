#!/usr/bin/env python3
"""What many sessions cost in memory, and how even-handedly they are served (run by benches/sessions/run).

Each session is on a disk of its own, as machines are: a differencing VHD over one master. Memory is what Roost's grows by
(VmRSS) from before the first login: sessions that have only logged in, and sessions that rest after they have read as fast
as they could. Fairness is the 99th percentile of the latency of all reads beside the median. Client and server share the
machine, and the client is one thread: its own share of the latency is in the figures.

It says where an aim is missed, and its exit code is 1 then.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "appliance" / "lab"))

from server import ADDRESS, IQN, Roost  # noqa: E402

IMAGE = "bench"
MASTER_MIB = 256
# All sessions together may cost so much, and a slow read may take so many times as long as the middle one.
MAX_MIB = 32
MAX_SPREAD = 4
REST_SECONDS = 3
# (bytes, commands in flight on each session)
LOADS = [(4096, 1), (4096, 8), (65536, 1), (65536, 4)]


class Sessions:
    """Roost, with a client for each session."""

    def __init__(self, options):
        self.options, folder = options, Path(options.fast)
        self.load = folder / "load"
        source = ROOT / "benches" / "target" / "load.c"
        subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-o", self.load, source, "-liscsi"], check=True)
        raw = folder / "master.raw"
        raw.write_bytes(os.urandom(MASTER_MIB << 20))
        self.roost = Roost(options.roost, folder / "roost", options.server)
        clients = {f"pc-{n:03}": f'{{ mac = "52:54:00:77:{n >> 8:02x}:{n & 255:02x}", initiators = ["iqn.2026-11.internal.bench:load{n}"] }}' for n in range(options.sessions)}
        self.roost.configure(clients, IMAGE, pool=None)
        self.roost.cli("image", "import", str(raw), "--name", IMAGE)
        self.roost.start()
        self.before, _ = self.roost.memory_kib()

    def run(self, size, depth, seconds, rest):
        """The load's figures, and what Roost's memory had grown by, in MiB, at the end of the sessions' rest."""
        command = [self.load, f"iscsi://{ADDRESS}/{IQN}:pc-###/0", "randread", size, self.options.sessions, depth, seconds, rest]
        load = subprocess.Popen(["ip", "netns", "exec", self.options.server, *map(str, command)], stdout=subprocess.PIPE, text=True)
        load.stdout.readline()
        figures = json.loads(load.stdout.readline())
        time.sleep(rest / 2)
        figures["mib"] = (self.roost.memory_kib()[0] - self.before) / 1024
        if load.wait() != 0:
            raise SystemExit(f"the load ended with {load.returncode}\n{self.roost.tail()}")
        return figures


def measure(bench, options):
    """Prints each figure beside its aim; answers those that were missed."""
    missed = []

    def line(what, figure, aim, more=""):
        print(f"{what:<44}{figure:>8.1f}   aim: at most {aim}{more}", flush=True)
        if figure > aim:
            missed.append(what)

    idle = bench.run(4096, 0, 1, REST_SECONDS)
    line(f"{options.sessions} sessions logged in, MiB", idle["mib"], MAX_MIB)
    for size, depth in LOADS:
        figures = bench.run(size, depth, options.seconds, REST_SECONDS)
        p50, p99 = figures["p50_us"], figures["p99_us"]
        what = f"random reads of {size // 1024} KiB, {depth} in flight"
        more = f"   ({p50} and {p99} us; {figures['operations'] / figures['seconds']:.0f}/s, client {figures['client_cpu'] / figures['seconds']:.0%})"
        line(f"{what}, p99 / p50", p99 / max(p50, 1), MAX_SPREAD, more)
        line("  resting after that, MiB", figures["mib"], MAX_MIB)
    return missed


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("roost", "fast", "disk", "switch", "server"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--sessions", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    options = parser.parse_args()
    bench = Sessions(options)
    try:
        missed = measure(bench, options)
    finally:
        bench.roost.kill()
    print(f"load of this machine: {os.getloadavg()[0]:.1f}")
    for what in missed:
        print(f"missed: {what}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
