"""A second disk of a running system, as an administrator adds one: discovered, logged in to, formatted, mounted, and written
by fio, which reads back and checks what it wrote.
"""

import time

from server import ADDRESS, IQN
from writer import trouble_of

MOUNT = "/mnt/second"

# A job's pass writes its file at random, in pieces of 4 to 64 KiB, and then reads all of it back.
JOB = "--directory=" + MOUNT + " --size=16M --bsrange=4k-64k --rw=randwrite --direct=1 --ioengine=libaio --iodepth=4 " \
    "--verify=crc32c --verify_fatal=1 --output=/run/fio.txt"  # fmt: skip

# Passes without end, until it is told to stop.
PROGRAM = f"""\
n=0
while [ ! -e /run/stop-fio ]; do
    n=$((n + 1))
    nice fio --name=load --end_fsync=1 {JOB} || {{ cat /run/fio.txt; echo "FIO-FAILED $n"; exit 1; }}
    echo "FIO-VERIFIED $n"
done
echo "FIO-STOPPED $n"
"""
# With numbers, that is not as the program's text shows where the terminal repeats it.
VERIFIED = r"\bFIO-VERIFIED \d"
FAILED = r"\bFIO-FAILED \d"
STOPPED = r"\bFIO-STOPPED \d"


class SecondDisk:
    """The disk of the client `name`, which lets this machine in, on this machine."""

    def __init__(self, machine, name):
        self.machine, self.target = machine, f"{IQN}:{name}"
        self.device = f"/dev/disk/by-path/ip-{ADDRESS}:3260-iscsi-{self.target}-lun-0"

    def run(self, command, seconds=120):
        """A command in the machine, which must work; its output."""
        code, output = self.machine.shell(command, seconds)
        assert code == 0, f"{self.machine.name}: `{command}` ended with {code}: {output[-1500:]}"
        return output

    def log_in(self):
        """Returns once the disk is there; how long that took."""
        began = time.monotonic()
        self.run(f"iscsiadm -m node -T {self.target} -p {ADDRESS} --login")
        self.run(f"for i in $(seq 300); do [ -b {self.device} ] && break; sleep 0.1; done; [ -b {self.device} ]")
        return time.monotonic() - began

    def is_added(self):
        """Found among the targets, and formatted."""
        listed = self.run(f"iscsiadm -m discovery -t sendtargets -p {ADDRESS}")
        assert self.target in listed, f"the targets that it is told of: {listed}"
        seconds = self.log_in()
        self.run(f"mkfs.ext4 -q -F {self.device} && mkdir -p {MOUNT} && mount {self.device} {MOUNT}")
        # One that stays as it is, for after the reset.
        self.run(f"fio --name=kept --do_verify=0 --end_fsync=1 {JOB}; cat /run/fio.txt", 300)
        return f"logged in after {seconds:.1f} s"

    def start(self):
        """Begins to write, and to check it, in the background."""
        self.run(f"cat >/run/fio-loop <<'PROGRAM'\n{PROGRAM}PROGRAM\nrm -f /run/stop-fio")
        self.run("sh /run/fio-loop &")

    def wait_more(self, count, seconds):
        """Waits until so many more passes were written and checked."""
        self.machine.wait_matches(VERIFIED, len(self.machine.matches(VERIFIED)) + count, seconds)

    def was_right_all_the_time(self, seconds=300):
        """Lets the pass that runs come to its end. Every byte that was read was what had been written, and no read or
        write failed."""
        self.run("touch /run/stop-fio")
        self.machine.wait_matches(f"{STOPPED}|{FAILED}", 1, seconds)
        failures = [match.string for match in self.machine.matches(FAILED)]
        assert not failures, f"{self.machine.name}: {failures}\n{self.machine.tail(40)}"
        trouble = trouble_of(self.machine)
        assert not trouble, f"{self.machine.name}'s kernel met trouble:\n" + "\n".join(trouble)
        return f"{len(self.machine.matches(VERIFIED))} passes of 16 MiB"

    def is_there_after_a_reset(self):
        """Logged in to again at once, its file system is sound, and what was written before is on it."""
        seconds = self.log_in()
        self.run(f"mount {self.device} {MOUNT}", 300)
        self.run(f"fio --name=kept --verify_only {JOB}; code=$?; cat /run/fio.txt; [ $code = 0 ]", 300)
        self.start()
        self.wait_more(1, 300)
        return f"logged in after {seconds:.1f} s; {self.was_right_all_the_time()}"
