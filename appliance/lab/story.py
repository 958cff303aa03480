#!/usr/bin/env python3
"""The demo's second half: one Roost, two diskless machines, one of which breaks and is replaced, told as it happens.

    story.py --roost BINARY --master RAW --folder DIR --switch NETNS --server NETNS [--keep]

Ends with 0 only if all machines reached their operating system and the master stayed as it was.
"""

import argparse
import json
import signal
import sys
import threading
import time
from pathlib import Path

from machine import MODES, Machine, MachineError
from server import Roost, RoostError, bytes_on_host, sha256_file

IMAGE = "lab-linux"
CLIENTS = {"pc-bios": ("52:54:00:77:00:01", "bios"), "pc-uefi": ("52:54:00:77:00:02", "uefi")}
SPARE = "52:54:00:77:00:91"  # the machine that takes the place of pc-bios's
PATIENCE = 240  # seconds for both to be up; a slow machine takes one

# What each stage means, for somebody who sees one for the first time.
MEANINGS = {
    "replaced": "a new machine was put into its place",
    "offer": "DHCP offered it an address and told it what to boot",
    "loader": "it fetched the boot loader, iPXE",
    "script": "it fetched its own boot script",
    "login": "its loader logged in to its own iSCSI target",
    "first-read": "it read the first block of its disk",
    "os-session": "its operating system logged in by itself",
    "idle": "it has settled",
    "refused": "a login was refused",
    "trouble": "something stands between its system and its disk",
    "up": "its operating system says that it is up",
}
STAGES = list(MEANINGS)


def step(text):
    print(f"\n== {text}", flush=True)


def say(text=""):
    print(f"   {text}".rstrip(), flush=True)


def mib(count):
    return f"{count / (1 << 20):.1f} MiB"


class Story:
    """Prints what happens to the machines in one order, and remembers when."""

    def __init__(self, roost, names, since):
        self.roost = roost
        self.since = since  # wall clock, as Roost's events have
        self.reached = {name: {} for name in names}  # client -> stage -> first seconds
        self.seen = set()
        self.lock = threading.Lock()

    def tell(self, name, stage, seconds, detail):
        with self.lock:
            self.reached[name].setdefault(stage, seconds)
            say(f"{seconds:6.1f} s  {name}  {stage:<11} {MEANINGS.get(stage, '')}{': ' + detail if detail else ''}")

    def look(self):
        """Tells what is new in Roost's own timelines."""
        news = []
        for name in self.reached:
            for event in self.roost.stages(name):
                key = (name, event["stage"], event["at_ms"], event["detail"])
                # What was before is another boot's, and told already.
                if key not in self.seen and event["at_ms"] / 1000 >= self.since:
                    self.seen.add(key)
                    news.append((event["at_ms"] / 1000 - self.since, name, event["stage"], event["detail"]))
        for seconds, name, stage, detail in sorted(news):
            self.tell(name, stage, seconds, detail)


def boot(roost, machines, since=None):
    """Powers all machines on at once and follows them to their markers. Seconds count from power-on, or from `since`."""
    since = since or time.time()
    story = Story(roost, [machine.name for machine in machines], since)
    powered = time.time()
    for machine in machines:
        machine.start()
    markers, failures = {}, {}

    def wait(machine):
        try:
            fields = machine.wait_up(PATIENCE)
        except MachineError as error:
            failures[machine.name] = error
            return
        markers[machine.name] = fields
        detail = f"boot {fields['boots']} of its disk, data {fields['data']}, {fields['fw'].upper()}"
        up = machine.stages["up"] + powered - since
        story.tell(machine.name, "up", up, detail)

    waiting = [threading.Thread(target=wait, args=(machine,), daemon=True) for machine in machines]
    for thread in waiting:
        thread.start()
    while any(thread.is_alive() for thread in waiting):
        story.look()
        time.sleep(0.5)
    story.look()
    for error in failures.values():
        raise error
    return story, markers


def show_disks(roost, machines):
    for machine in machines:
        # A mark of its own, flushed to its disk, beside the counter that its boot wrote there.
        code, written = machine.shell(f"echo {machine.name} >/data/mark && sync && cat /data/mark /var/story")
        if code != 0:
            raise RoostError(f"{machine.name} cannot write its disk: {written}")
        mark, *boots = written.splitlines()
        if mark != machine.name or boots != [f"1 {machine.mac}"]:
            raise RoostError(f"{machine.name} found on its disk what it did not write: {written}")
        disk = roost.disk(machine.name)
        say(f"{machine.name} wrote disks/{disk.name}: {mib(bytes_on_host(disk))} on this host, for the machine a whole disk")
        say(f"    read back on the machine: mark \"{mark}\", boots {', '.join(boots)}")


def replace(arguments, roost, machines):
    """One machine breaks; another takes its place, and boots from the same disk. The seconds to its first read."""
    broken = machines[0]
    address = roost.client(broken.name)["address"]
    broken.power_off()
    say(f"{broken.name}: its board dies, in the middle of its work. The box with a new one says {SPARE}.")
    since = time.time()
    say(f"$ roost replace {broken.name} --mac {SPARE}")
    say(roost.cli("replace", broken.name, "--mac", SPARE).stdout.strip())
    say()
    machines[0] = Machine(broken.name, SPARE, broken.mode, "tap0", arguments.switch, Path(arguments.folder))
    story, markers = boot(roost, machines[:1], since)
    marker, now = markers[broken.name], roost.client(broken.name)["address"]
    if (marker["boots"], marker["mac"], now) != ("2", SPARE, address):
        raise RoostError(f"the new machine is not in the place of the old one: {marker} at {now}, not at {address}")
    code, mark = machines[0].shell("cat /data/mark")
    if (code, mark) != (0, broken.name):
        raise RoostError(f"the new machine does not find what the old one wrote: {mark}")
    seconds = story.reached[broken.name]["first-read"]
    say()
    say(f"the same disk (boot {marker['boots']} of it, the mark is there), the same address {now};")
    say(f"{seconds:.1f} s from the command to the new machine's first read")
    return seconds


def figures(story, roost, master_bytes, seconds, replaced):
    names = list(CLIENTS)
    say(f"{'seconds from power-on to':<28}" + "".join(f"{name:>10}" for name in names))
    for stage in STAGES:
        times = [story.reached[name].get(stage) for name in names]
        if any(time is not None for time in times):
            cells = "".join(f"{'-' if t is None else format(t, '.1f'):>10}" for t in times)
            say(f"  {stage:<26}{cells}")
    disks = "".join(f"{mib(bytes_on_host(roost.disk(name))):>10}" for name in names)
    say(f"{'own disk on the host':<28}{disks}")
    rss, high = roost.memory_kib()
    say(f"{'master on the host':<28}{mib(master_bytes):>10}   one file, shared by both")
    say(f"{'roost in memory':<28}{mib(rss * 1024):>10}   highest {mib(high * 1024)}")
    say(f"{'from here to both systems up':<28}{seconds:>8.1f} s")
    say(f"{'from replace to first read':<28}{replaced:>8.1f} s")


def tell(arguments):
    folder = Path(arguments.folder)
    roost = Roost(arguments.roost, folder, arguments.server)
    began = time.monotonic()

    step("roost.toml: one line per client")
    roost.configure({name: f'"{mac}"' for name, (mac, _) in CLIENTS.items()}, IMAGE)
    for line in roost.config.read_text().splitlines():
        say(f"  {line}" if line else "")

    step(f"roost image import: the golden master becomes version 1 of the image {IMAGE}")
    roost.cli("image", "import", arguments.master, "--name", IMAGE)
    master = roost.master(IMAGE)
    before = sha256_file(master)
    say(f"{mib(bytes_on_host(master))} on this host, read-only, SHA-256 {before[:16]}...")

    step("roost run: DHCP, TFTP, HTTP and iSCSI from one process")
    roost.start()
    say(f"process {roost.process.pid}, alone on its network at 10.77.0.1")

    step("Two machines without a disk are switched on")
    machines = [
        Machine(name, mac, mode, f"tap{index}", arguments.switch, folder)
        for index, (name, (mac, mode)) in enumerate(CLIENTS.items())
    ]
    for machine in machines:
        say(f"{machine.name}  {machine.mac}  {MODES[machine.mode]}")
    say("(emulated in software: firmware takes its time. Seconds count from power-on.)")
    say()
    story, markers = boot(roost, machines)
    took = time.monotonic() - began

    step("Each wrote its own disk")
    if any(fields["data"] != "ok" for fields in markers.values()):
        raise RoostError(f"a machine read wrong data: {markers}")
    show_disks(roost, machines)

    step("A machine breaks, and is replaced: one value of roost.toml changes")
    replaced = replace(arguments, roost, machines)

    step("The master is as it was")
    after = sha256_file(master)
    if after != before:
        raise RoostError(f"the master changed: {before} became {after}")
    say(f"master: SHA-256 {after[:16]}..., unchanged")

    step("roost client list")
    print(roost.cli("client", "list").stdout, end="", flush=True)

    step("What was measured")
    figures(story, roost, bytes_on_host(master), took, replaced)

    if arguments.keep:
        keep(arguments, roost, machines)
        return
    for machine in machines:
        machine.power_off()
    roost.stop()


def keep(arguments, roost, machines):
    console = Path(__file__).resolve().parent / "machine.py"
    step("It goes on running (--keep)")
    inside = f"ip netns exec {arguments.server}"
    say(f"ask Roost:          {inside} {arguments.roost} --config {roost.config} client show pc-bios")
    say(f"its log:            tail -f {roost.log}")
    for machine in machines:
        say(f"shell on {machine.name}:   {console} console {machine.socket_path}")
    say(f"the disks:          ls -ls {roost.state}/disks")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("roost", "master", "folder", "switch", "server"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--keep", action="store_true")
    arguments = parser.parse_args()
    # Ended by a signal: leave at once; whoever made the namespaces ends what runs in them.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        tell(arguments)
    except (RoostError, MachineError, json.JSONDecodeError, OSError) as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
