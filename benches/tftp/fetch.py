#!/usr/bin/env python3
"""How fast and how dear boot files are, beside the servers that labs have (run by benches/tftp/run).

TFTP: all machines of a lab fetch one loader at once, over a wire that loses packets in both directions. What counts is that
all get it, and when the last one has it. The clients are Debian's `busybox tftp` and `atftp`, one process for each
machine, each from an address of its own. Beside Roost: tftpd-hpa, and dnsmasq with room for so many transfers.

HTTP: a file of 100 MB in tmpfs, fetched by curl again and again, over one connection and over sixteen. What counts is the
server's CPU for each GB. Beside Roost: nginx, which sends files by sendfile(2) too.

Servers take turns within a round, and ratios are medians of those within a round: absolute figures move with whatever else
the machine does. CPU is the server's own, with its children's (/proc/PID/stat). It says where an aim is missed, and its
exit code is 1 then.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "appliance" / "lab"))

from server import ADDRESS, Roost, mapping_file, wait_for  # noqa: E402

LOADER = Path("/usr/lib/ipxe/snponly.efi")
BLKSIZE = 1468
HTTP_MB = 100
NETWORK = "10.77.0"
FIRST_HOST, MOST_MACHINES = 10, 240
# Each machine's process has a user of its own, by which the kernel chooses its address.
FIRST_USER = 42_000
# A machine that has not got its loader by then has not got it.
PATIENCE = 90
TICK = os.sysconf("SC_CLK_TCK")
MAX_LAST, MAX_CPU = 1.0, 2.0

CLIENTS = {
    "busybox": lambda name, to, host: ["busybox", "tftp", "-b", str(BLKSIZE), "-g", "-r", name, "-l", to, host, "69"],
    "atftp": lambda name, to, host: ["atftp", "--option", f"blksize {BLKSIZE}", "--get", "-r", name, "-l", to, host, "69"],
}


def in_namespace(namespace, *command):
    return ["ip", "netns", "exec", namespace, *map(str, command)]


def run(*command, **more):
    subprocess.run([str(word) for word in command], check=True, **more)


def children(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def cpu_of(pid):
    """Seconds of CPU that a process has taken, with its threads and its children, those that ended included."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    except FileNotFoundError:
        return 0.0
    return sum(map(int, fields[11:15])) / TICK + sum(cpu_of(child) for child in children(pid))


def fetch_all(machines, client, host, name, folder):
    """Within the machines' namespace: all fetch at once. Seconds until each had it, or None where it did not get it."""
    began = time.monotonic()
    processes, took = {}, {}
    for machine in range(machines):
        command = CLIENTS[client](name, str(folder / f"got-{machine}"), host)
        user = FIRST_USER + machine
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, user=user, group=user, extra_groups=[], stdin=quiet, stdout=quiet, stderr=quiet)
        processes[process.pid] = (machine, process)
    while processes and time.monotonic() - began < PATIENCE:
        pid, _ = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            time.sleep(0.002)
        elif pid in processes:
            took[processes.pop(pid)[0]] = time.monotonic() - began
    for _, process in processes.values():
        process.kill()
        process.wait()
    wanted = LOADER.read_bytes()
    for machine in range(machines):
        got = folder / f"got-{machine}"
        if not got.exists() or got.read_bytes() != wanted:
            took[machine] = None
        got.unlink(missing_ok=True)
    return [took.get(machine) for machine in range(machines)]


class Bench:
    """All servers, started; ended by `stop`."""

    def __init__(self, options):
        self.options, self.folder, self.processes = options, Path(options.fast), []
        # Other users read in it.
        self.folder.chmod(0o755)
        self.files, self.out = self.folder / "files", self.folder / "out"
        self.files.mkdir()
        self.out.mkdir()
        self.out.chmod(0o777)
        shutil.copy(LOADER, self.files / LOADER.name)
        with (self.files / "image").open("wb") as file:
            for _ in range(HTTP_MB):
                file.write(os.urandom(1_000_000))
        self.wire()
        self.roost = Roost(options.roost, self.folder / "roost", options.server)
        text = mapping_file(self.roost.state, {"pc-01": '"52:54:00:77:02:01"'}, "none", pool=None)
        self.roost.config.write_text(text.replace("[server]", f'[server]\nfiles = "{self.files}"', 1))
        self.roost.start()
        self.tftp = {"roost": (ADDRESS, self.roost.process.pid)}
        self.http = {"roost": (f"http://{ADDRESS}/files/image", self.roost.process.pid)}
        if options.only != "http":
            address = self.address(2)
            hpa = self.start("in.tftpd", "-L", "--address", f"{address}:69", "--user", "nobody", "--secure", self.files)
            self.tftp["tftpd-hpa"] = (address, hpa)
            address = self.address(3)
            dnsmasq = self.start(
                "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--enable-tftp", f"--tftp-root={self.files}",
                f"--tftp-max={2 * MOST_MACHINES}", f"--listen-address={address}", "--bind-interfaces", "--user=root", "--pid-file",
            )  # fmt: skip
            self.tftp["dnsmasq"] = (address, dnsmasq)
        if options.only != "tftp":
            address = self.address(4)
            self.http["nginx"] = (f"http://{address}/image", self.nginx(address))
        for name, (_, pid) in [*self.tftp.items(), *self.http.items()]:
            wait_for(name, lambda pid=pid: Path(f"/proc/{pid}").exists(), 5)

    def wire(self):
        """An address for each machine."""
        switch = self.options.switch
        for machine in range(self.options.machines):
            address, table = f"{NETWORK}.{FIRST_HOST + machine}", 1000 + machine
            user = FIRST_USER + machine
            for words in (
                f"addr add {address}/24 dev br0",
                f"route add {NETWORK}.0/24 dev br0 src {address} table {table}",
                f"rule add uidrange {user}-{user} lookup {table} pref {table}",
            ):
                run("ip", "-n", switch, *words.split())

    def address(self, host):
        address = f"{NETWORK}.{host}"
        run("ip", "-n", self.options.server, "addr", "add", f"{address}/24", "dev", "lan0")
        return address

    def lose(self, percent):
        """Both ends of the wire drop so many of the datagrams that arrive."""
        for namespace, device in ((self.options.server, "lan0"), (self.options.switch, "uplink")):
            subprocess.run(in_namespace(namespace, "nft", "delete", "table", "netdev", "loss"), stderr=subprocess.DEVNULL, check=False)
            if percent:
                dropped = f"ip protocol udp numgen random mod 1000 < {round(percent * 10)} drop"
                rules = f'table netdev loss {{\n chain in {{\n type filter hook ingress device "{device}" priority 0;\n {dropped}\n }}\n}}\n'
                run(*in_namespace(namespace, "nft", "-f", "-"), input=rules, text=True)

    def start(self, *command):
        with (self.folder / "servers.log").open("a") as log:
            process = subprocess.Popen(in_namespace(self.options.server, *command), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.processes.append(process)
        return process.pid

    def nginx(self, address):
        folder = self.folder / "nginx"
        folder.mkdir()
        places = "".join(f"{kind}_temp_path {folder}/{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        (folder / "conf").write_text(
            f"user root; daemon off; worker_processes auto; pid {folder}/pid; error_log stderr crit;\n"
            f"events {{ worker_connections 512; }}\n"
            f"http {{ sendfile on; tcp_nopush on; access_log off; keepalive_requests 100000; {places}\n"
            f"server {{ listen {address}:80; root {self.files}; }} }}\n"
        )
        return self.start("nginx", "-c", folder / "conf")

    def fetch(self, server, client):
        """All machines fetch the loader of this server."""
        host, pid = self.tftp[server]
        before = cpu_of(pid)
        command = in_namespace(self.options.switch, sys.executable, __file__, "--inside", client, host, self.options.machines, self.out)
        took = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        had = [seconds for seconds in took if seconds is not None]
        # tftpd-hpa never asks what its children took, so theirs is nowhere.
        cpu = None if server == "tftpd-hpa" else cpu_of(pid) - before
        return {"last": max(had, default=PATIENCE), "failed": len(took) - len(had), "cpu": cpu}

    def download(self, server, connections):
        """So many GB of this server, over so many connections at once."""
        url, pid = self.http[server]
        each = max(1, round(self.options.gigabytes * 1000 / HTTP_MB / connections))
        began, before = time.monotonic(), cpu_of(pid)
        command = in_namespace(self.options.switch, "curl", "-sSf", *["-o", "/dev/null", url] * each)
        fetching = [subprocess.Popen(command, stdin=subprocess.DEVNULL) for _ in range(connections)]
        if any([process.wait() != 0 for process in fetching]):
            raise SystemExit(f"curl got nothing from {server}\n{self.roost.tail()}")
        gigabytes, seconds = each * connections * HTTP_MB / 1000, time.monotonic() - began
        return {"cpu_per_gb": (cpu_of(pid) - before) / gigabytes, "gb_per_s": gigabytes / seconds}

    def stop(self):
        for process in self.processes:
            for child in children(process.pid):
                os.kill(child, 9)
            process.kill()
            process.wait()
        self.roost.kill()


def rounds(bench, case, servers, measure):
    """Every server, one right after the other, again and again; who begins changes."""
    names = list(servers)
    for number in range(bench.options.rounds):
        turn = names[number % len(names):] + names[: number % len(names)]
        figures = {name: measure(name) for name in turn}
        case["rounds"].append({name: figures[name] for name in names})
    return case


def median(case, server, key):
    return statistics.median(figures[server][key] for figures in case["rounds"])


def ratio(case, other, key):
    """The median of Roost's figure as a share of the other's."""
    return statistics.median(figures["roost"][key] / max(figures[other][key], 0.001) for figures in case["rounds"])


def measure_tftp(bench, results):
    options, missed = bench.options, []
    print(f"TFTP: {options.machines} machines fetch {LOADER.name} ({LOADER.stat().st_size} bytes, blksize {BLKSIZE}) at once")
    print(f"{'':<22}" + "".join(f"{name:>12}" for name in bench.tftp) + f"{'last':>14}{'roost':>10}")
    print(f"{'loss, client':<22}" + f"{'last, s':>12}" * len(bench.tftp) + f"{'x tftpd-hpa':>14}{'CPU, s':>10}")
    for loss in [0, *options.loss]:
        bench.lose(loss)
        for client in options.client or list(CLIENTS):
            case = {"what": "tftp", "loss": loss, "client": client, "rounds": []}
            results.append(rounds(bench, case, bench.tftp, lambda server: bench.fetch(server, client)))
            last = ratio(case, "tftpd-hpa", "last")
            cells = "".join(f"{median(case, name, 'last'):>12.2f}" for name in bench.tftp)
            print(f"{f'{loss:g} %, {client}':<22}{cells}{last:>14.2f}{median(case, 'roost', 'cpu'):>10.2f}", flush=True)
            for name in bench.tftp:
                failed = [figures[name]["failed"] for figures in case["rounds"]]
                if any(failed):
                    print(f"  {name}: {sum(failed)} of {options.machines * len(failed)} did not get it", flush=True)
                    if name == "roost":
                        missed.append(f"all machines get the loader, {loss:g} % loss, {client}")
            # Without loss there is nothing to wait for, and the clients' own start is most of what is measured.
            if loss and last > MAX_LAST:
                missed.append(f"the last machine no later than tftpd-hpa's, {loss:g} % loss, {client}: {last:.2f}")
    bench.lose(0)
    return missed


def measure_http(bench, results):
    missed = []
    print(f"HTTP: {bench.options.gigabytes} GB of a file of {HTTP_MB} MB")
    print(f"{'':<22}" + "".join(f"{name:>12}{'':>12}" for name in bench.http) + f"{'CPU':>14}")
    print(f"{'connections':<22}" + f"{'CPU-s/GB':>12}{'GB/s':>12}" * len(bench.http) + f"{'x nginx':>14}")
    for connections in (1, 16):
        case = {"what": "http", "connections": connections, "rounds": []}
        results.append(rounds(bench, case, bench.http, lambda server: bench.download(server, connections)))
        cpu = ratio(case, "nginx", "cpu_per_gb")
        cells = "".join(f"{median(case, name, 'cpu_per_gb'):>12.3f}{median(case, name, 'gb_per_s'):>12.2f}" for name in bench.http)
        print(f"{connections:<22}{cells}{cpu:>14.2f}", flush=True)
        if cpu > MAX_CPU:
            missed.append(f"at most {MAX_CPU:.0f} times nginx's CPU per GB, {connections} connections: {cpu:.2f}")
    return missed


def main():
    if sys.argv[1:2] == ["--inside"]:
        client, host, machines, folder = sys.argv[2:]
        print(json.dumps(fetch_all(int(machines), client, host, LOADER.name, Path(folder))))
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("roost", "fast", "disk", "switch", "server"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--quick", action="store_true", help="one round, and less of everything")
    parser.add_argument("--only", choices=("tftp", "http"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--machines", type=int, default=200, help=f"at most {MOST_MACHINES}")
    parser.add_argument("--loss", type=float, action="append", help="percent, in each direction; may be given again (default: 1)")
    parser.add_argument("--client", action="append", choices=list(CLIENTS), help="may be given again (default: both)")
    parser.add_argument("--gigabytes", type=float, default=8.0, help="of each measurement of HTTP")
    parser.add_argument("--json", type=Path, help="write every figure of every round to this file")
    options = parser.parse_args()
    if not 0 < options.machines <= MOST_MACHINES:
        parser.error(f"--machines: 1 to {MOST_MACHINES}")
    options.loss = options.loss or [1.0]
    if options.quick:
        options.rounds, options.gigabytes = 1, 2.0
    bench, results, missed = Bench(options), [], []
    began = time.monotonic()
    try:
        if options.only != "http":
            missed += measure_tftp(bench, results)
        if options.only != "tftp":
            missed += measure_http(bench, results)
    finally:
        bench.stop()
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{options.rounds} rounds, {time.monotonic() - began:.0f} s; load of this machine: {os.getloadavg()[0]:.1f}")
    for what in missed:
        print(f"missed: {what}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
