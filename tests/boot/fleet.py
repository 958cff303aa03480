"""A Roost with its machines: made, switched on, and held to what a boot is."""

import subprocess
import time
from pathlib import Path

from report import TESTER, same

from machine import Machine
from server import IQN, POOL, Roost, bytes_on_host, sha256_file

LAB = Path(__file__).resolve().parent.parent.parent / "appliance" / "lab"
IMAGE = "lab-linux"
# The same as a VHDX.
VHDX_IMAGE = "lab-linux-vhdx"

# What Roost is to serve as the loader; `None` where the machine's own ROM is the loader already.
LOADERS = {"bios": None, "bios-chain": "undionly.kpxe", "uefi-rom": None}
LOADERS |= dict.fromkeys(["uefi", "uefi-http", "uefi-ipv6", "uefi-http-ipv6"], "snponly.efi")
MARKER_SECONDS = 600
# Debian's build of U-Boot gives this address to whatever card it has.
U_BOOT_MAC = "52:52:52:52:52:52"


class Fleet:
    """A Roost with one machine for each of these modes, on children of one image. The disk of `MODE:vhdx` is a VHDX, that of
    `MODE:reset` is reset, and that of `MODE:chap` asks for CHAP. With `data`, machines whose disks are reset have a second disk
    of this size. `more` are clients without a machine: name -> value; `tables` are more of `roost.toml`. The machines are
    plugged in at tap0.. of `namespace`, which is the lab's switch where it is not said.

    As a context it ends with all of them switched off and Roost gone."""

    def __init__(self, options, folder, modes, master, pool=POOL, data=None, more=None, tables="", namespace=None):
        self.options, self.folder = options, Path(folder)
        self.roost = Roost(options.roost, self.folder, options.server)
        self.machines = [
            Machine(f"pc-{mode.replace(':', '-')}", mac_of(mode, index), mode.split(":")[0], f"tap{index}", namespace or options.switch, self.folder)
            for index, mode in enumerate(modes)
        ]
        clients = {
            m.name: f'{{ mac = "{m.mac}", image = "{image_of(m)}", disk = "{"reset" if resets(m) else "keep"}", initiators = ["{TESTER}"], '
            f'chap = {"true" if asks_for_chap(m) else "false"}'
            + (f', data = "{data}"' if data and resets(m) else "")
            + " }"
            for m in self.machines
        } | (more or {})
        images = sorted({image_of(machine) for machine in self.machines})
        self.roost.configure(clients, images[0], pool=pool, tables=tables)
        for image in images:
            form = "vhdx" if image == VHDX_IMAGE else "vhd"
            self.roost.cli("image", "import", str(master), "--name", image, "--format", form, seconds=300)
        self.masters = {image: self.roost.master(image) for image in images}
        self.masters_sha256 = {image: sha256_file(path) for image, path in self.masters.items()}
        self.roost.start()
        self.power_on = {}  # machine's name -> when
        self.macs = {m.name: [] for m in self.machines}  # of each boot

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.power_off_all()
        self.roost.kill()

    def start(self, machine):
        """Switches one machine on."""
        self.power_on[machine.name] = time.time()
        self.macs[machine.name].append(machine.mac)
        machine.start()

    def start_all(self):
        """Switches every machine on in the same moment."""
        for machine in self.machines:
            self.start(machine)

    def each_in_turn(self, look):
        """Switches every machine on, never more than two at once, calls `look(machine)`, and switches it off again."""
        waiting, on = list(self.machines), []
        while waiting or on:
            while waiting and len(on) < 2:
                on.append(waiting.pop(0))
                self.start(on[-1])
            look(on[0])
            on.pop(0).power_off()

    def power_off_all(self):
        for machine in self.machines:
            machine.power_off()

    def stages_of_this_boot(self, machine):
        """What Roost recorded since power-on, in order: [(stage, detail)]."""
        # Its clock is this host's; a second for the rounding of both.
        since = (self.power_on[machine.name] - 1) * 1000
        return [(s["stage"], s["detail"]) for s in self.roost.stages(machine.name) if s["at_ms"] >= since]


def mac_of(mode, index):
    """The hardware address of machine number `index`."""
    return U_BOOT_MAC if mode == "u-boot" else f"52:54:00:77:01:{index:02x}"


def name_of(machine):
    """What tests call it."""
    return machine.name.removeprefix("pc-")


def resets(machine):
    """Whether its disk is clean at every boot."""
    return machine.name.endswith("-reset")


def image_of(machine):
    """The image that its disk is a child of."""
    return VHDX_IMAGE if "vhdx" in machine.name.split("-") else IMAGE


def asks_for_chap(machine):
    """Whether its disk opens only to who knows its secret."""
    return machine.name.endswith("-chap")


def master_path(bulk_mib=0):
    """The lab's master disk, built on first use."""
    built = subprocess.run([LAB / "image.sh", str(bulk_mib)], stdout=subprocess.PIPE, text=True, check=True)
    return Path(built.stdout.strip())


def debian_master_path():
    """The lab's Debian disk, built on first use."""
    built = subprocess.run([LAB / "debian.sh"], stdout=subprocess.PIPE, text=True, check=True)
    return Path(built.stdout.strip())


def boots_to_its_marker(fleet, machine, count):
    """A boot: the marker is right, and Roost says what it served for it. To a machine that is reset each is the first."""
    marker = machine.wait_up(MARKER_SECONDS)
    wanted = {
        "mac": machine.mac,
        "boots": "1" if resets(machine) else str(count),
        "data": "ok",
        "fw": "efi" if machine.mode.startswith("uefi") else "bios",
        "target": f"{IQN}:{machine.name}",
        "initiator": f"{IQN}:client.{machine.name}",
    }
    same({key: marker.get(key) for key in wanted}, wanted, "the marker")

    stages = fleet.stages_of_this_boot(machine)
    words = [stage for stage, _ in stages]
    needed = ["offer", "script", "login", "first-read", "os-session"]
    loader = LOADERS[machine.mode]
    if loader:
        needed.insert(1, "loader")
    firsts = [words.index(stage) if stage in words else None for stage in needed]
    assert None not in firsts and firsts == sorted(firsts), f"wanted the stages {needed} in this order, Roost saw {stages}"
    assert "refused" not in words, f"a login was refused: {stages}"
    loaders = sorted({detail.split()[0] for stage, detail in stages if stage == "loader"})
    same(loaders, [loader] if loader else [], "the loaders that Roost served")
    scripts = sorted({detail.split()[0] for stage, detail in stages if stage == "script"})
    same(scripts, ["boot.ipxe"], "the scripts that Roost served")
    anew = any(stage == "script" and detail.endswith("; disk made anew") for stage, detail in stages)
    same(anew, resets(machine) and count > 1, "whether the disk was made anew, by Roost's own words")

    shown = fleet.roost.client(machine.name)
    form = ".vhdx" if image_of(machine) == VHDX_IMAGE else ".vhd"
    same(Path(shown["disk_path"]), fleet.roost.disk(machine.name), "the disk that Roost says it has")
    same(fleet.roost.disk(machine.name).suffix, form, "its format")
    sessions = [session for session in shown["sessions"] if session["kind"] == "system"]
    same([session["initiator"] for session in sessions], [wanted["initiator"]], "the sessions of an operating system")
    assert sessions[0]["writes"] > 0, f"the operating system wrote nothing: {sessions}"
    log = fleet.roost.log.read_text(errors="replace")
    for served in [loader, "boot.ipxe"] if loader else ["boot.ipxe"]:
        assert any(machine.name in line and served in line for line in log.splitlines()), f"the log does not name {served}"
    return (
        f"up {machine.stages['up']:.1f} s, loader {loader or 'in the ROM'}, script {scripts[0]}, "
        f"child disks/{fleet.roost.disk(machine.name).name} ({bytes_on_host(fleet.roost.disk(machine.name))} bytes)"
    )
