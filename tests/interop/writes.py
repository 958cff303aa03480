"""What was written is there: as other programs read it, and after Roost was killed."""

import random
import subprocess
import time
from pathlib import Path

from report import LONG, TESTER, run, same, sha256_by_7zip, sha256_over_iscsi
from server import ADDRESS, IQN

SINGLE_SECTORS = 20_000
KILLS = 200 if LONG else 20
# From the first write to the kill, in seconds: from within the first milliseconds to well into steady work.
DELAYS = (0.01, 0.8)
# At most so many sectors in a write, and so many at once, while it is killed.
MOST, DEPTH = 256, 16


def url(client):
    return f"iscsi://{ADDRESS}/{IQN}:{client}/0"


class Writer:
    """tests/interop/ackwriter.c on one client's disk, and its log."""

    def __init__(self, options, client, master):
        self.options, self.client, self.master = options, client, master
        self.log = Path(options.fast) / f"{client}.acknowledged"
        self.program = Path(options.fast) / "ackwriter"
        if not self.program.exists():
            source = Path(__file__).with_name("ackwriter.c")
            subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-o", self.program, source, "-liscsi"], check=True)

    def command(self, verb, *words):
        return [self.program, verb, url(self.client), TESTER, self.log, *map(str, words)]

    def verify(self):
        """What was acknowledged is on the disk, and nothing else that was not sent."""
        return run(self.options.server, *self.command("verify", self.master), seconds=180).stdout.strip()

    def write(self, seed, count, most, depth):
        return run(self.options.server, *self.command("write", seed, count, most, depth), seconds=180).stdout.strip()

    def write_on(self, seed):
        """Writes until the connection ends, in the background."""
        command = ["ip", "netns", "exec", self.options.server, *self.command("write", seed, 0, MOST, DEPTH)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def single_sectors(writer):
    """Each alone in its place: what a sector bitmap gets wrong shows here."""
    written = writer.write(seed=1, count=SINGLE_SECTORS, most=1, depth=8)
    return f"{written}; {writer.verify()}"


def kill_once(roost, writer, delay, seed):
    """Roost is killed under write load; returns how many writes it had acknowledged in this round."""
    process = writer.write_on(seed)
    try:
        before = writer.log.stat().st_size if writer.log.exists() else 0
        deadline = time.monotonic() + 20
        # Its log is written in blocks; the first one says that writes flow.
        while process.poll() is None and time.monotonic() < deadline:
            if writer.log.exists() and writer.log.stat().st_size > before:
                break
            time.sleep(0.005)
        time.sleep(delay)
        assert process.poll() is None, f"the writer ended before the kill: {process.communicate()[0]}\n{roost.tail()}"
        roost.kill()
        output = process.communicate(timeout=60)[0].strip()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert process.returncode == 0, f"the writer ended with {process.returncode}: {output}"
    roost.start()
    acknowledged = int(output.split(" sent, ")[1].split()[0])
    assert acknowledged > 0, f"nothing was acknowledged before the kill: {output}"
    return acknowledged


def kills(roost, writer):
    """Every acknowledged write is there after each of many kills."""
    seed = int.from_bytes(random.SystemRandom().randbytes(4))
    print(f"   kills: seed {seed}", flush=True)
    source = random.Random(seed)
    acknowledged = 0
    for number in range(1, KILLS + 1):
        delay = source.uniform(*DELAYS)
        try:
            acknowledged += kill_once(roost, writer, delay, source.getrandbits(32))
            found = writer.verify()
        except Exception as error:
            raise AssertionError(f"kill {number} of {KILLS}, {delay:.3f} s into the writes: {error}\n{roost.tail()}") from error
    return f"{KILLS} kills, {acknowledged} writes acknowledged; at the end {found}"


def alike(options, roost, image, clients):
    """qemu-img over iSCSI and 7-Zip from the file see one disk."""
    over_iscsi = {client: sha256_over_iscsi(options.server, client, options.fast) for client in clients}
    roost.stop()
    from_file = {client: sha256_by_7zip(roost.disk(client)) for client in clients}
    roost.start()
    same(from_file, over_iscsi, "SHA-256 and size by 7-Zip and over iSCSI")
    return ", ".join(f"{client} {digest[:16]}..." for client, (digest, _) in from_file.items())


def tests(options, roost, report, image, master):
    """All of them."""
    report.test("single-sectors-are-read-back", single_sectors, Writer(options, "pc-writes", master))
    report.test(f"acknowledged-writes-survive-{KILLS}-kills", kills, roost, Writer(options, "pc-kills", master))
    if not roost.runs():
        roost.kill()
        roost.start()
    written = ["pc-writes", "pc-kills"]
    report.test("children-by-7zip-are-the-disks-over-iscsi", alike, options, roost, image, written)
