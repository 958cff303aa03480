#!/usr/bin/env python3
"""How dear is an operation of Roost's target, beside tgt and beside bare TCP (run by benches/target/run).

Every case is run against all subjects, one right after the other, for several rounds; what is printed are medians of the
ratios within a round, for absolute figures move with whatever else the machine does. CPU is the server's own, of all its
threads (/proc/PID/stat); client and server share the machine, so throughput has the client's ceiling in it: the client's
CPU is printed beside it.

Subjects: `roost` on a differencing VHD (or VHDX, `--format vhdx`), every other 64 KiB of it written, so that reads cross between child and master;
`tgt` on a raw file of the same bytes, with one I/O thread and with sixteen, whichever is better in the case; `tcp`, a
server that only moves as many bytes, of one buffer that the processor's cache holds; `tcp-memory`, the same of as much
memory as the disk has, for its reads come from memory too. All files lie in tmpfs, or where `--on disk` says so on a disk, where the page cache
stands between: there a write must not be made by a thread that serves others.

`--beside BINARY` measures a second build of Roost in the same rounds, and prints how the two compare.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "appliance" / "lab"))

from server import ADDRESS, IQN, Roost, wait_for  # noqa: E402

HERE = Path(__file__).resolve().parent
IMAGE = "bench"
MASTER_MIB = 512
STRIPE = 64 * 1024
TICK = os.sysconf("SC_CLK_TCK")

KIB = 1024
# (what, bytes, commands in flight on each connection)
LOADS = [("randread", 4 * KIB, 8), ("randwrite", 4 * KIB, 8), ("read", 64 * KIB, 4), ("write", 64 * KIB, 4), ("read", 256 * KIB, 2), ("write", 256 * KIB, 2)]
CONNECTIONS = [1, 8, 64]


def in_namespace(namespace, *command):
    return ["ip", "netns", "exec", namespace, *map(str, command)]


def cpu_of(pid):
    """Seconds of CPU that a process has taken, with all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


class Subject:
    """A server under load: its process, and how a client is called."""

    def __init__(self, name, pid, command):
        self.name, self.pid, self.command = name, pid, command

    def run(self, mode, size, conns, depth, seconds):
        """One measurement: operations per second, CPU of server and client per operation in microseconds."""
        load = subprocess.Popen(self.command(mode, size, conns, depth, seconds), stdout=subprocess.PIPE, text=True)
        # The client says when its warm-up is over.
        load.stdout.readline()
        before = cpu_of(self.pid)
        # And its last line comes when it stops counting.
        figures = json.loads(load.stdout.readline())
        cpu = cpu_of(self.pid) - before
        if load.wait() != 0:
            raise SystemExit(f"the load on {self.name} ended with {load.returncode}")
        count = max(figures["operations"], 1)
        return {
            "per_second": count / figures["seconds"],
            "cpu_us": cpu / count * 1e6,
            "client_cpu": figures.get("client_cpu", 0) / figures["seconds"],
            "p50_us": figures.get("p50_us"),
            "p99_us": figures.get("p99_us"),
        }


class Bench:
    """All subjects, started; ended by `stop`."""

    def __init__(self, options):
        self.options, self.folder = options, Path(options.fast if options.on == "memory" else options.disk)
        self.processes, self.roosts = [], []
        for program, libraries in (("load", ["-liscsi"]), ("bare", [])):
            subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-o", self.folder / program, HERE / f"{program}.c", *libraries], check=True)
        raw = self.folder / "master.raw"
        with raw.open("wb") as file:
            for _ in range(MASTER_MIB):
                file.write(os.urandom(1 << 20))
        self.subjects = [self.start_roost(options.roost, "roost", raw, options.server)]
        if options.beside:
            # Its ports are taken where the first one listens: it has the other namespace, and an interface of that name.
            for words in ("link add lan0 type veth peer name lan0-peer", "link set lan0-peer up", f"addr add {ADDRESS}/24 dev lan0", "link set lan0 up"):
                subprocess.run(["ip", "-n", options.switch, *words.split()], check=True)
            self.subjects.append(self.start_roost(options.beside, "beside", raw, options.switch))
        for number, threads in enumerate((1, 16), 1):
            self.subjects.append(self.tgt(number, threads, raw))
        for name, port, memory in (("tcp", 9000, []), ("tcp-memory", 9001, [MASTER_MIB])):
            bare = self.start(self.folder / "bare", "serve", port, *memory)
            self.subjects.append(Subject(name, bare, functools.partial(self.bare_command, port)))

    def start_roost(self, binary, name, raw, namespace):
        """A Roost of its own, with one client's disk over the master, half of it written."""
        roost = Roost(binary, self.folder / name, namespace)
        roost.configure({"bench": '{ mac = "52:54:00:77:02:01", initiators = ["*"] }'}, IMAGE)
        kind = [] if self.options.format == "vhd" else ["--format", self.options.format]
        roost.cli("image", "import", str(raw), "--name", IMAGE, *kind)
        self.roosts.append(roost.start())
        # `ip netns exec` became the server itself.
        subject = self.iscsi(name, roost.process.pid, f"iscsi://{ADDRESS}/{IQN}:bench/0", namespace)
        self.fill(subject)
        return subject

    def iscsi(self, name, pid, url, namespace=None):
        def command(mode, size, conns, depth, seconds):
            return in_namespace(namespace or self.options.server, self.folder / "load", url, mode, size, conns, depth, seconds)

        return Subject(name, pid, command)

    def bare_command(self, port, mode, size, conns, depth, seconds):
        mode = "write" if "write" in mode else "read"
        return in_namespace(self.options.server, self.folder / "bare", "load", ADDRESS, port, mode, size, conns, depth, seconds)

    def start(self, *command):
        process = subprocess.Popen(in_namespace(self.options.server, *command), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self.processes.append(process)
        return process.pid

    def fill(self, subject):
        """Half of the child, in stripes."""
        done = subprocess.run(subject.command("stripes", STRIPE, 1, 8, 1), stdout=subprocess.PIPE, check=False)
        if done.returncode != 0:
            raise SystemExit("the child could not be filled")

    def tgt(self, number, threads, raw):
        """A tgtd of its own with this many I/O threads for its one unit, on a copy of the bytes."""
        disk = self.folder / f"tgt-{threads}.raw"
        subprocess.run(["cp", raw, disk], check=True)
        Path("/run/tgtd").mkdir(exist_ok=True)
        port = 3300 + number
        pid = self.start("tgtd", "-f", "-C", number, "--iscsi", f"portal={ADDRESS}:{port}", "--nr_iothreads", threads)

        def admin(*arguments):
            return subprocess.run(in_namespace(self.options.server, "tgtadm", "-C", number, "--lld", "iscsi", *arguments), capture_output=True).returncode == 0

        wait_for("tgtd", lambda: admin("--op", "show", "--mode", "target"), 10, pause=0.2)
        name = f"{IQN}:tgt"
        for arguments in (
            ("--op", "new", "--mode", "target", "--tid", 1, "-T", name),
            ("--op", "new", "--mode", "logicalunit", "--tid", 1, "--lun", 1, "-b", disk),
            ("--op", "bind", "--mode", "target", "--tid", 1, "-I", "ALL"),
        ):
            if not admin(*map(str, arguments)):
                raise SystemExit(f"tgtadm {arguments} failed")
        return self.iscsi(f"tgt-{threads}", pid, f"iscsi://{ADDRESS}:{port}/{name}/1")

    def stop(self):
        for process in self.processes:
            process.kill()
            process.wait()
        for roost in self.roosts:
            roost.kill()


def measure(bench, options):
    """All cases: [{case, subject -> [figures of each round]}]."""
    results = []
    connections = options.connections or ([8] if options.quick else CONNECTIONS)
    loads = [load for load in LOADS if not options.only or f"{load[0]} {load[1] // KIB}K" in options.only]
    for mode, size, depth in loads:
        for conns in connections:
            case = {"mode": mode, "bytes": size, "connections": conns, "rounds": []}
            for _ in range(options.rounds):
                case["rounds"].append({s.name: s.run(mode, size, conns, depth, options.seconds) for s in bench.subjects})
            results.append(case)
            print(line(case) + beside(case), flush=True)
    return results


def ratios(case):
    """Medians over the rounds: CPU and throughput against the better tgt, throughput against bare TCP from the cache and from
    memory, CPU against the first."""
    cpu, fast, tcp, memory, tcp_cpu = [], [], [], [], []
    for figures in case["rounds"]:
        roost, bare = figures["roost"], figures["tcp"]
        tgts = [figure for name, figure in figures.items() if name.startswith("tgt")]
        cpu.append(roost["cpu_us"] / max(min(t["cpu_us"] for t in tgts), 0.01))
        fast.append(roost["per_second"] / max(t["per_second"] for t in tgts))
        tcp.append(roost["per_second"] / bare["per_second"])
        memory.append(roost["per_second"] / figures["tcp-memory"]["per_second"])
        tcp_cpu.append(roost["cpu_us"] / max(bare["cpu_us"], 0.01))
    return [statistics.median(values) for values in (cpu, fast, tcp, memory, tcp_cpu)]


HEAD = f"{'':<22}{'CPU/op':>8}{'ops/s':>8}{'ops/s':>9}{'ops/s':>9}{'CPU/op':>9}{'roost':>24}{'tgt':>10}{'tcp':>10}{'client':>8}\n" \
    f"{'':<22}{'x tgt':>8}{'x tgt':>8}{'x tcp':>9}{'x memory':>9}{'x tcp':>9}{'us CPU/op':>11}{'ops/s':>13}{'us/op':>10}{'us/op':>10}{'CPU':>8}"


def line(case):
    cpu, fast, tcp, memory, tcp_cpu = ratios(case)

    def median(name, key):
        return statistics.median(figures[name][key] for figures in case["rounds"])

    tgt = min(median(name, "cpu_us") for name in case["rounds"][0] if name.startswith("tgt"))
    what = f"{case['mode']} {case['bytes'] // KIB}K x{case['connections']}"
    return (
        f"{what:<22}{cpu:>8.2f}{fast:>8.2f}{tcp:>9.2f}{memory:>9.2f}{tcp_cpu:>9.2f}{median('roost', 'cpu_us'):>11.1f}"
        f"{median('roost', 'per_second'):>13.0f}{tgt:>10.1f}{median('tcp', 'cpu_us'):>10.1f}{median('roost', 'client_cpu'):>7.0%}"
    )


def beside(case):
    """How the other build of Roost compares: its CPU per operation and operations per second, as shares of this one's."""
    pairs = [(figures["beside"], figures["roost"]) for figures in case["rounds"] if "beside" in figures]
    if not pairs:
        return ""
    cpu, fast = (statistics.median(other[key] / max(this[key], 0.01) for other, this in pairs) for key in ("cpu_us", "per_second"))
    return f"   beside: {cpu:.2f} CPU/op, {fast:.2f} ops/s"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("roost", "fast", "disk", "switch", "server"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--quick", action="store_true", help="8 connections only")
    parser.add_argument("--format", choices=("vhd", "vhdx"), default="vhd", help="of the master and its child")
    parser.add_argument("--only", action="append", metavar="LOAD", help="such as `randwrite 4K`; may be given again")
    parser.add_argument("--connections", action="append", type=int, metavar="N", help="may be given again")
    parser.add_argument("--on", choices=("memory", "disk"), default="memory", help="where all files lie")
    parser.add_argument("--beside", metavar="BINARY", help="another build of Roost, measured in the same rounds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--json", type=Path, help="write every figure of every round to this file")
    options = parser.parse_args()
    bench = Bench(options)
    began = time.monotonic()
    try:
        print(HEAD, flush=True)
        results = measure(bench, options)
    finally:
        bench.stop()
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{len(results)} cases, {options.rounds} rounds, {time.monotonic() - began:.0f} s; load of this machine: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
