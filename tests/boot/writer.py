"""A program that a machine runs to write its disk: each file is on the disk before the console is told of it.

What it told is therefore what must be there after the plug was pulled, whatever happened to the server meanwhile.
"""

import re

# $1 is the number of the first file. Sizes differ, from 16 KiB to 1.5 MiB. `sync` with names is fsync, of file and folder.
# Beside it something is always on its way to the disk, so that no moment to lose the disk is a quiet one.
PROGRAM = """\
n=$1
mkdir -p /var/written
failed() { echo "WRITING-FAILED $1"; exit 1; }
go_on() { [ ! -e /run/stop-writing ]; }
while go_on; do
    dd if=/data/blob of=/var/load bs=256k oflag=direct conv=notrunc status=none || failed 0
done &
while go_on; do
    dd if=/dev/urandom of=/run/next bs=16k count=$((n * 7 % 97 + 1)) status=none &&
        sum=$(sha256sum </run/next) &&
        cat /run/next >/var/written/$n &&
        sync /var/written/$n /var/written || failed $n
    echo "WROTE $n ${sum%% *}"
    n=$((n + 1))
done
wait
echo "WRITING-STOPPED $n"
"""
# With numbers, that is not as the program's text shows where the terminal repeats it.
WROTE = r"\bWROTE (\d+) ([0-9a-f]{64})$"
FAILED = r"WRITING-FAILED \d"
STOPPED = r"WRITING-STOPPED \d"

# What the kernel says where a disk failed it: none of this may be in its log. That a connection was lost may.
TROUBLE = re.compile(
    r"I/O error|EXT4-fs (?:error|warning)|Aborting journal|[Rr]emounting filesystem|rejecting I/O|recovery timed out|"
    r"hostbyte=|blocked for more than"
)
LOST = "detected conn error"


def kernel_log(machine):
    """What its kernel said since power-on."""
    code, log = machine.shell("dmesg")
    assert code == 0 and "Linux version" in log, f"{machine.name} has no kernel log: {log[:200]}"
    return log


def trouble_of(machine):
    """The lines of its kernel log that must not be there."""
    return [line for line in kernel_log(machine).splitlines() if TROUBLE.search(line)]


class Writer:
    """The program in one machine, and what it told."""

    def __init__(self, machine):
        self.machine = machine
        self.told = {}  # number of a file -> SHA-256

    def start(self):
        """Starts it in the background; it goes on where an earlier one stopped."""
        install = f"cat >/run/writer <<'PROGRAM'\n{PROGRAM}PROGRAM\n"
        code, output = self.machine.shell(install + "rm -f /run/stop-writing")
        assert code == 0, output
        # Its first number is looked up before it can tell another.
        first = max(self.look(), default=0) + 1
        code, output = self.machine.shell(f"sh /run/writer {first} &")
        assert code == 0, output

    def look(self):
        """The files that it told of until now, in all boots."""
        self.told |= {int(match[1]): match[2] for match in self.machine.matches(WROTE)}
        return self.told

    def wait_more(self, count, seconds):
        """Waits until it told of so many files more."""
        self.machine.wait_matches(WROTE, len(self.machine.matches(WROTE)) + count, seconds)

    def stop(self, seconds=60):
        """Lets it end by itself."""
        stops = len(self.machine.matches(STOPPED))
        self.machine.shell("touch /run/stop-writing")
        self.machine.wait_matches(STOPPED, stops + 1, seconds)
        self.look()

    def saw_no_error(self):
        """Neither the program nor the kernel under it met an error since power-on. Answers how often a connection was lost."""
        failures = [match.string for match in self.machine.matches(FAILED)]
        assert not failures, f"{self.machine.name}: {failures}"
        trouble, log = trouble_of(self.machine), kernel_log(self.machine)
        assert not trouble, f"{self.machine.name}'s kernel met trouble:\n" + "\n".join(trouble)
        return sum(LOST in line for line in log.splitlines())

    def finds_all(self, seconds=120):
        """Every file that it told of is on the disk, and holds what it held; the machine's memory is emptied before."""
        code, output = self.machine.shell("sync; echo 3 >/proc/sys/vm/drop_caches; cd /var/written && sha256sum *", seconds)
        assert code == 0, f"{self.machine.name} cannot read what it wrote: {output[-500:]}"
        found = {int(name): sha256 for sha256, name in re.findall(r"^([0-9a-f]{64})  (\d+)$", output, re.MULTILINE)}
        wrong = {n: (found.get(n), sha256) for n, sha256 in self.told.items() if found.get(n) != sha256}
        assert self.told and not wrong, f"{self.machine.name}: {len(wrong)} of {len(self.told)} files are not as they were: {wrong}"
        return f"{len(self.told)} files"
