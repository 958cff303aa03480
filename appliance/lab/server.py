"""One `roost run` in the lab's server namespace: started, asked, watched, killed.

Every wait is bounded, and what fails carries the end of Roost's own log.
"""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

ADDRESS = "10.77.0.1"
INTERFACE = "lan0"
POOL = "10.77.0.100-10.77.0.199"
IQN = "iqn.2026-11.internal.roost"


class RoostError(Exception):
    """Roost did not do what was asked."""


def mapping_file(state, clients, image, pool=POOL, tables=""):
    """A `roost.toml` for the lab. `clients` is name -> the TOML value behind it (a MAC in quotes, or an inline table), `tables`
    the text of further tables.

    Without a pool another server gives the addresses, which is what a file means that says nothing of DHCP.
    """
    lines = ["[server]", f'interface = "{INTERFACE}"', f'state     = "{state}"', ""]
    if pool:
        lines.insert(2, 'dhcp      = "full"')
        lines += ["[server.pool]", f'range = "{pool}"', 'lease = "1h"', ""]
    lines += [
        *([tables] if tables else []),
        "[defaults]",
        f'image = "{image}"',
        "",
        "[clients]",
    ]
    return "\n".join(lines + [f"{name} = {value}" for name, value in clients.items()]) + "\n"


def one_of(folder, stem):
    """The disk file of this name, of whichever format."""
    vhdx = folder / f"{stem}.vhdx"
    return vhdx if vhdx.exists() else folder / f"{stem}.vhd"


def sha256_file(path):
    """The SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def wait_for(what, condition, seconds, pause=0.05, tail=lambda: ""):
    """Calls `condition` until it answers with something true, and returns that."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise RoostError(f"waited {seconds} s for {what}\n{tail()}")
        time.sleep(pause)


class Roost:
    """The process and its files: `FOLDER/roost.toml`, `FOLDER/state`, `FOLDER/roost.log`."""

    def __init__(self, binary, folder, namespace):
        self.binary = str(binary)
        self.namespace = namespace
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.config = folder / "roost.toml"
        self.state = folder / "state"
        self.log = folder / "roost.log"
        self.process = None

    def configure(self, clients, image, **more):
        """Writes the mapping file and lets Roost check it."""
        self.config.write_text(mapping_file(self.state, clients, image, **more))

    def cli(self, *arguments, check=True, seconds=120):
        """Runs a verb of the command line in the server's namespace; returns the finished process."""
        command = ["ip", "netns", "exec", self.namespace, self.binary, "--config", str(self.config), *arguments]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise RoostError(f"`roost {' '.join(arguments)}` took over {seconds} s\n{self.tail()}") from error
        if check and done.returncode != 0:
            raise RoostError(
                f"`roost {' '.join(arguments)}` ended with {done.returncode}\n{done.stdout}{done.stderr}{self.tail()}"
            )
        return done

    def client(self, name):
        """What `roost client show NAME --json` tells, as a dictionary."""
        return json.loads(self.cli("client", "show", name, "--json").stdout)

    def stages(self, name):
        """The stages of the client's last boot, oldest first."""
        return (self.client(name).get("last_boot") or {}).get("stages", [])

    def disk(self, name):
        """The client's own disk file: a VHD or a VHDX."""
        return one_of(self.state / "disks", name)

    def master(self, image, version=1):
        """The file of an image version."""
        return one_of(self.state / "images" / image, version)

    def start(self, seconds=20):
        """Starts `roost run` and waits until its control socket answers."""
        assert self.process is None, "roost runs already"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, self.binary, "--config", str(self.config), "run"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        wait_for("roost's control socket", self._answers, seconds, tail=self.tail)
        # The socket is there before the ports are. What it is asked is answered once everything serves.
        self.cli("client", "list", seconds=seconds)
        return self

    def _answers(self):
        if self.process.poll() is not None:
            raise RoostError(f"`roost run` ended with {self.process.returncode} at its start\n{self.tail()}")
        with socket.socket(socket.AF_UNIX) as control:
            try:
                control.connect(str(self.state / "roost.sock"))
            except OSError:
                return False
        return True

    def runs(self):
        """Whether the process is still there."""
        return self.process is not None and self.process.poll() is None

    def stop(self, seconds=30):
        """Asks it to end, as `systemctl stop` does, and wants exit code 0."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            self.kill()
            raise RoostError(f"`roost run` did not end within {seconds} s of SIGTERM\n{self.tail()}") from error
        self.process = None
        if code != 0:
            raise RoostError(f"`roost run` ended with {code} when asked to stop\n{self.tail()}")

    def kill(self):
        """SIGKILL: no chance to write anything."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def memory_kib(self):
        """Its resident memory now and at its highest, in KiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        return tuple(int(fields[key].split()[0]) for key in ("VmRSS", "VmHWM"))

    def tail(self, lines=30):
        """The end of Roost's log, for a failure's text."""
        text = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "roost's log ends:\n" + "\n".join("    " + line for line in text[-lines:])


class Dnsmasq:
    """Another DHCP server on the wire, that knows nothing of booting: dnsmasq, on this interface of this namespace, with these
    further options."""

    def __init__(self, namespace, interface, folder, pool=POOL, *words):
        self.log = Path(folder) / "dnsmasq.log"
        first, last = pool.split("-")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    "ip", "netns", "exec", namespace, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0",
                    f"--interface={interface}", f"--dhcp-range={first},{last},255.255.255.0,1h", "--no-ping",
                    "--dhcp-authoritative", f"--dhcp-leasefile={Path(folder) / 'dnsmasq.leases'}", "--log-dhcp",
                    "--log-facility=-", "--user=root", "--pid-file=", *words,
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        wait_for("dnsmasq", lambda: "started" in self.log.read_text(errors="replace"), 10, tail=self.log.read_text)

    def gave(self, mac):
        """The address that it leased to this machine, if it did."""
        leases = re.findall(rf"DHCPACK\(\S+\) (\S+) {mac}", self.log.read_text(errors="replace"))
        return leases[-1] if leases else None

    def kill(self):
        self.process.kill()
        self.process.wait()


def bytes_on_host(path):
    """What a file takes up; a sparse file takes less than it is long."""
    return os.stat(path).st_blocks * 512
