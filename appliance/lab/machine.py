#!/usr/bin/env python3
"""One diskless machine: a QEMU with a network card and nothing else, watched over its serial console.

    machine.py console SOCKET       talk to a machine that runs (Ctrl-] leaves)

As a module: `Machine(...).start()`, `.wait_up()`, `.shell("command")`, `.power_off()`. What a machine says on its console
is only what the machine knows; which loader, script and disk it was given is for Roost to say.

Machines are emulated (TCG): firmware does not run under every nested KVM, and the tests must mean the same everywhere.
"""

import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

# Firmware that is code and, in a copy of its own for each board, variables.
OVMF = ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd")
AAVMF = ("/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd")
U_BOOT = Path("/usr/lib/u-boot/qemu_arm64/u-boot.bin")
IPXE_KERNEL = Path("/usr/lib/ipxe/ipxe.lkrn")

# What `bios-chain` runs first: an iPXE that does as a PXE ROM would, and fetches the loader that it is told.
# Where a proxy answered beside the DHCP server, it is the proxy that has it.
CHAIN_SCRIPT = """#!ipxe
dhcp net0
set server ${next-server}
isset ${proxydhcp/next-server} && set server ${proxydhcp/next-server} ||
chain tftp://${server}/undionly.kpxe
"""

MODES = {
    "bios": "SeaBIOS, iPXE in the network card's ROM",
    "bios-chain": "SeaBIOS, iPXE that chains undionly.kpxe over TFTP",
    "uefi": "OVMF with its own PXE client",
    "uefi-http": "OVMF with its own HTTP client",
    "uefi-rom": "OVMF, iPXE in the network card's ROM",
    "arm64": "AAVMF on an ARM64 board, with its own PXE client",
    "u-boot": "U-Boot on an ARM64 board",
    "uefi-ipv6": "OVMF with its own PXE client, over IPv6",
    "uefi-http-ipv6": "OVMF with its own HTTP client, over IPv6 once it got no answer over IPv4",
}

# Console stages, in the order of a boot.
STAGES = [
    ("firmware", rb"SeaBIOS|BdsDxe|>>Start (?:PXE|HTTP)"),
    ("pxe", rb"iPXE \d|>>Start (?:PXE|HTTP Boot) over IPv4"),
    ("loader", rb"NBP file downloaded|Downloading\.\.\.100%|undionly\.kpxe\.\.\. ok"),
    ("disk-registered", rb"Registered SAN device|Registered as SAN device"),
    ("sanboot", rb"Booting from SAN device"),
    ("grub", rb"GRUB: loading"),
    ("init", rb"ROOST-LAB-INIT"),
    ("os-disk", rb"ROOST-LAB-DISK"),
    ("up", rb"ROOST-LAB-UP [^\n]*\n"),
    ("failed", rb"ROOST-LAB-FAIL|Kernel panic|No bootable device"),
]

ESCAPES = re.compile(rb"\x1b[\[(][0-9;=?]*[A-Za-z]")


class MachineError(Exception):
    """The machine did not do what was waited for; the text carries the end of its console."""


@dataclass
class Machine:
    """A machine's hardware. `folder` takes its console log, its socket and its firmware variables."""

    name: str
    mac: str
    mode: str
    tap: str
    namespace: str
    folder: Path
    memory_mb: int = 512
    on_stage: object = None  # called as on_stage(machine, stage, seconds) from the console's thread

    stages: dict = field(default_factory=dict)  # stage -> seconds since power-on, of this boot
    started: float = 0.0
    process: object = None

    def __post_init__(self):
        assert self.mode in MODES, self.mode
        self.folder = Path(self.folder)
        self.log = self.folder / f"{self.name}.console.log"
        self.socket_path = self.folder / f"{self.name}.console"
        self._changed = threading.Condition()
        self._lines = []
        self._tail = b""
        self._closed = True
        self._commands = 0

    def command(self):
        """The QEMU command line."""
        system, board = {"arm64": ("aarch64", self._arm64), "u-boot": ("aarch64", self._u_boot)}.get(
            self.mode, ("x86_64", self._uefi if self.mode.startswith("uefi") else self._bios)
        )
        return [
            "ip", "netns", "exec", self.namespace,
            f"qemu-system-{system}", "-name", self.name, "-accel", "tcg,thread=multi", "-smp", "1",
            "-m", str(self.memory_mb), "-nodefaults", "-display", "none", "-monitor", "none", "-no-reboot",
            "-netdev", f"tap,id=net0,ifname={self.tap},script=no,downscript=no",
            "-chardev", f"socket,id=console,path={self.socket_path},server=on,wait=on",
            "-serial", "chardev:console",
            *board(),
        ]  # fmt: skip

    def _card(self, *more):
        """Its network card."""
        return ["-device", ",".join(["virtio-net-pci", "netdev=net0", f"mac={self.mac}", *more])]

    def _bios(self):
        # Without graphics SeaBIOS and iPXE speak on the serial port.
        board = ["-machine", "pc,graphics=off", "-cpu", "max"]
        if self.mode == "bios":
            return [*board, "-boot", "n", *self._card("bootindex=1")]
        script = self.folder / f"{self.name}.chain.ipxe"
        script.write_text(CHAIN_SCRIPT)
        return [*board, "-kernel", str(IPXE_KERNEL), "-initrd", str(script), *self._card("romfile=")]

    def _uefi(self):
        # An empty ROM: else the card's iPXE would take the place of OVMF's own client.
        rom = [] if self.mode == "uefi-rom" else ["romfile="]
        board = ["-machine", "q35,smm=off", "-cpu", "max", *self._flash(OVMF), *self._card(*rom, "bootindex=1")]
        # Unanswered, each kind of PXE would be tried for a minute first; answered, the others would not be tried at all.
        http = self.mode.startswith("uefi-http")
        for way in ["IPv4PXESupport", "IPv6PXESupport"] if http else ["IPv4PXESupport"] if self.mode == "uefi-ipv6" else []:
            board += ["-fw_cfg", f"name=opt/org.tianocore/{way},string=n"]
        return board

    def _arm64(self):
        return ["-machine", "virt", "-cpu", "cortex-a57", *self._flash(AAVMF), *self._card("romfile=", "bootindex=1")]

    def _u_boot(self):
        # It finds no disk, and turns to the network.
        return ["-machine", "virt", "-cpu", "cortex-a57", "-bios", str(U_BOOT), *self._card("romfile=")]

    def _flash(self, firmware):
        """Firmware of UEFI's kind, and the random numbers that it wants."""
        code, factory = firmware
        variables = self.folder / f"{self.name}.vars"
        shutil.copy(factory, variables)  # a factory-new board at each power-on
        return [
            "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}",
            "-drive", f"if=pflash,unit=1,format=raw,file={variables}",
            "-device", "virtio-rng-pci",
        ]  # fmt: skip

    def start(self):
        """Powers it on."""
        assert self.process is None, f"{self.name} is on already"
        self.stages, self._lines, self._tail = {}, [], b""
        self.socket_path.unlink(missing_ok=True)
        errors = (self.folder / f"{self.name}.qemu.log").open("w")
        # A session of its own: Ctrl-C at the terminal is for whoever runs the lab, who then powers the machines off.
        self.process = subprocess.Popen(
            self.command(), stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, start_new_session=True
        )
        self._console = self._connect()
        self.started = time.monotonic()
        self._closed = False
        threading.Thread(target=self._read, args=(self._console,), daemon=True).start()
        return self

    def _connect(self):
        deadline = time.monotonic() + 20
        while True:
            console = socket.socket(socket.AF_UNIX)
            try:
                console.connect(str(self.socket_path))
                return console
            except OSError:
                console.close()
            if self.process.poll() is not None or time.monotonic() > deadline:
                errors = (self.folder / f"{self.name}.qemu.log").read_text()
                raise MachineError(f"{self.name}: QEMU did not start:\n{errors}")
            time.sleep(0.05)

    def _read(self, console):
        """Thread: console bytes to lines with times, stages, and the log file."""
        rest = b""
        with self.log.open("a") as log:
            log.write(f"-- power on: {self.name} {self.mac} {self.mode}\n")
            while True:
                try:
                    data = console.recv(65536)
                except OSError:
                    data = b""
                seconds = time.monotonic() - self.started
                if not data:
                    break
                data = ESCAPES.sub(b"", data)
                rest += data
                *lines, rest = rest.split(b"\n")
                reached = []
                with self._changed:
                    self._tail = (self._tail + data)[-8192:]
                    for stage, pattern in STAGES:
                        if stage not in self.stages and re.search(pattern, self._tail):
                            self.stages[stage] = round(seconds, 2)
                            reached.append(stage)
                    for line in lines:
                        text = line.decode("latin-1").strip("\r\n ")
                        if text:
                            log.write(f"{seconds:8.2f} {text}\n")
                            self._lines.append(text)
                    log.flush()
                    self._changed.notify_all()
                for stage in reached:
                    if self.on_stage:
                        self.on_stage(self, stage, seconds)
        with self._changed:
            if console is self._console:
                self._closed = True
            self._changed.notify_all()

    def _wait(self, what, found, seconds):
        """Waits until `found()` is true, and fails with the console's end where it does not come."""
        with self._changed:
            self._changed.wait_for(lambda: found() or self._closed or "failed" in self.stages, timeout=seconds)
            if found():
                return
            why = "its console closed" if self._closed else "it says that it failed" if self.stages.get("failed") else f"not within {seconds:.0f} s"
            raise MachineError(f"{self.name}: waited for {what}: {why}; its console ends:\n{self.tail()}")

    def wait_up(self, seconds=180):
        """Waits for the operating system's marker; returns its fields as a dictionary."""
        self._wait("the operating system's marker", lambda: "up" in self.stages, seconds)
        line = next(line for line in self._lines if "ROOST-LAB-UP " in line)
        return dict(re.findall(r"(\w+)=(\S+)", line.split("ROOST-LAB-UP ", 1)[1]))

    def matches(self, pattern):
        """What of its console's lines since power-on matches, oldest first."""
        with self._changed:
            return [match for line in self._lines if (match := re.search(pattern, line))]

    def wait_matches(self, pattern, count, seconds):
        """Waits until so many lines since power-on match."""
        self._wait(f"{count} lines like {pattern!r}", lambda: len(self.matches(pattern)) >= count, seconds)

    def shell(self, command, seconds=60):
        """Runs a shell command in the machine; returns (exit code, output)."""
        self._commands += 1
        # The quotes keep the terminal's echo of this line from looking like the answer.
        begin, end = f"begin-{self._commands}", f"end-{self._commands}"
        first = len(self._lines)
        text = f"echo @@'{begin}'; {{ {command}\n}} 2>&1; echo @@'{end}' $?\n"
        self._console.sendall(text.encode())

        # The prompt may stand before either of them, where the terminal was quicker than the shell.
        def index(mark):
            matches = (i for i in range(first, len(self._lines)) if mark in self._lines[i])
            return next(matches, None)

        self._wait(f"the end of `{command}`", lambda: index(f"@@{end} ") is not None, seconds)
        last = index(f"@@{end} ")
        output = self._lines[index(f"@@{begin}") + 1 : last]
        # The shell repeats each line that it reads behind its prompt.
        output = [line for line in output if not line.startswith(("lab# ", "> "))]
        return int(self._lines[last].split(f"@@{end} ")[1]), "\n".join(output)

    def power_off(self):
        """Pulls the plug: no shutdown, no flush, no farewell to the target."""
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        self.process = None
        self._console.close()

    def tail(self, lines=25):
        """The end of its console."""
        return "\n".join("    " + line for line in self._lines[-lines:])


def console(path):
    """A terminal's bytes to a machine's console and back."""
    import termios
    import tty

    link = socket.socket(socket.AF_UNIX)
    link.connect(path)
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard) if os.isatty(keyboard) else None
    print("Connected; press Enter for a prompt, Ctrl-] to leave.", flush=True)
    try:
        if before:
            tty.setraw(keyboard)
        while True:
            ready, _, _ = select.select([keyboard, link], [], [])
            if link in ready:
                data = link.recv(65536)
                if not data:
                    return
                os.write(sys.stdout.fileno(), data)
            if keyboard in ready:
                data = os.read(keyboard, 1024)
                if not data or b"\x1d" in data:
                    return
                link.sendall(data)
    finally:
        if before:
            termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "console":
        sys.exit(__doc__.strip())
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    console(sys.argv[2])
