"""What the suites with real clients share: the lines that tests/run counts, and readers of a client's disk."""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "appliance" / "lab"))

from machine import MachineError  # noqa: E402
from server import ADDRESS, IQN, RoostError  # noqa: E402

LONG = os.environ.get("ROOST_LONG") == "1"

# The initiator name that the tests' mapping files allow besides the client's own.
TESTER = f"{IQN}:tester"


# What a test may fail with: its own assertions, and what the world answers. Anything else is a mistake in the test.
ERRORS = (AssertionError, RoostError, MachineError, OSError, subprocess.SubprocessError, ValueError, KeyError)


class Report:
    """Runs tests by name, one after the other, and prints how each ended."""

    def __init__(self):
        self.failed = []

    def test(self, name, function, *arguments):
        """Runs one test. What it returns, if anything, is printed beside its name. Answers whether it passed."""
        try:
            figures = function(*arguments)
        except ERRORS as error:
            self._fail(name, error)
            return False
        print(f"pass: {name}" + (f" {figures}" if figures else ""), flush=True)
        return True

    def part(self, name, function, *arguments):
        """Runs a function that runs tests; what fails outside of them is a failure under this name."""
        try:
            function(*arguments)
        except ERRORS as error:
            self._fail(name, error)

    def _fail(self, name, error):
        where = traceback.extract_tb(error.__traceback__)[-1]
        first, *rest = str(error).splitlines() or [""]
        if rest:
            print("\n".join(rest))
        print(f"fail: {name} {type(error).__name__} in {where.name}, line {where.lineno}: {first}", flush=True)
        self.failed.append(name)

    def exit_code(self):
        """0 only if nothing failed."""
        return 1 if self.failed else 0


def arguments():
    """The arguments that tests/real.sh passes."""
    parser = argparse.ArgumentParser()
    for name in ("roost", "fast", "disk", "switch", "server"):
        parser.add_argument(f"--{name}", required=True)
    # Ended by a signal: leave at once; tests/real.sh ends what runs in the namespaces.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return parser.parse_args()


def same(got, wanted, what):
    """An assertion that says both sides."""
    assert got == wanted, f"{what}: got {got!r}, wanted {wanted!r}"


def run(namespace, *command, seconds=60, check=True):
    """Runs a client in a namespace; returns the finished process."""
    done = subprocess.run(
        ["ip", "netns", "exec", namespace, *map(str, command)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=seconds, check=False,
    )  # fmt: skip
    if check and done.returncode != 0:
        raise RoostError(f"`{' '.join(map(str, command))}` ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def sha256_over_iscsi(namespace, client, scratch, initiator=TESTER):
    """The SHA-256 of a client's disk as qemu-img reads it over iSCSI, and its size."""
    source = {
        "driver": "iscsi", "transport": "tcp", "portal": f"{ADDRESS}:3260", "target": f"{IQN}:{client}", "lun": 0,
        "initiator-name": initiator,
    }  # fmt: skip
    copy = Path(scratch) / f"{client}.raw"
    try:
        run(namespace, "qemu-img", "convert", "-O", "raw", "json:" + json.dumps(source), copy, seconds=300)
        with copy.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), copy.stat().st_size
    finally:
        copy.unlink(missing_ok=True)


def sha256_by_7zip(disk):
    """The SHA-256 of the disk that 7-Zip finds in a client's VHD or VHDX and its parent, and its size.

    Only for a file that nobody has open: what Roost still holds in memory is not in it.
    """
    # Without a type 7-Zip may open the partitions inside.
    kind = Path(disk).suffix.removeprefix(".").upper()
    with subprocess.Popen(["7zz", "e", f"-t{kind}", "-so", str(disk)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reader:
        digest, size = hashlib.sha256(), 0
        while data := reader.stdout.read(1 << 20):
            digest.update(data)
            size += len(data)
        errors = reader.stderr.read().decode(errors="replace")
        code = reader.wait()
    # A refusal is an empty output and a word in the errors.
    assert code == 0 and size > 0 and "ERROR" not in errors and "Missing" not in errors, f"7zz refuses {disk}: {errors}"
    return digest.hexdigest(), size


def no_panic(roost):
    """Roost's log tells of no panic."""
    text = roost.log.read_text(errors="replace")
    assert "panicked" not in text, roost.tail(60)
