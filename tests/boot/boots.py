#!/usr/bin/env python3
"""Real machines boot to their operating system from children of one master (run by tests/boot/run).

Fleets: three machines, one for each way into a boot, and a fourth whose disk is reset, power-cycled in between, with their
disks (VHDs, and a VHDX) then read by two programs that nobody here wrote; every firmware beside another DHCP server, on
another host and on Roost's own, and through a relay (ways.py); two that boot over IPv6, by PXE and by HTTP (over_ipv6.py); two
that must pass CHAP, both ways; two Debian systems, on VHDXs, that
write, one of them to a second disk too, while Roost is killed and their network cut, and that are reset amid it; and two
machines that read a master of 2 GiB to its end, while Roost's memory is watched.

ROOST_PARTS names some of these alone, as the functions of `main` are called.
"""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from report import TESTER, Report, arguments, no_panic, run, same, sha256_by_7zip, sha256_over_iscsi  # noqa: E402

import over_ipv6  # noqa: E402
import ways  # noqa: E402
from fleet import IMAGE, VHDX_IMAGE, Fleet, boots_to_its_marker, debian_master_path, master_path, name_of, resets  # noqa: E402
from seconddisk import SecondDisk  # noqa: E402
from server import ADDRESS, IQN, bytes_on_host, sha256_file, wait_for  # noqa: E402
from writer import Writer  # noqa: E402

TWICE = ["bios", "bios-chain:vhdx", "uefi"]
# A client whose disk is clean at every boot, on this firmware.
RESET = "bios:reset"
# Of the data disk of a Debian machine whose disk is reset.
DATA_MIB = 3072

# Seconds for a Debian system that has lost its disk to write again, once the disk is back. iscsid waits two between tries.
RETURN_SECONDS = 60
# How long its network is cut, and in one restart Roost away: longer than iscsid waits for the answer to a NOP-Out.
OUTAGE_SECONDS = 10
SETTLE_SECONDS = 3
# How Roost ends under them, and for how long it is away.
RESTARTS = [("SIGKILL", 0), ("SIGTERM", 0), ("SIGKILL", OUTAGE_SECONDS), ("SIGTERM", 0)]

BULK_MIB = 640
BIG_DISK_MIB = 2048
MEMORY_LIMIT_KIB = 64 * 1024


def finds_its_own_writes(machine, macs):
    """What earlier boots of this client wrote is there, whatever machine was in its place, and nothing of another's."""
    if resets(machine):
        macs = macs[-1:]
    count = len(macs)
    code, story = machine.shell("cat /var/story")
    same((code, story.splitlines()), (0, [f"{n} {mac}" for n, mac in enumerate(macs, 1)]), "the boots on its disk")
    if count > 1:
        same(machine.shell("cat /data/mark")[1], machine.name, "the mark that it left at its first boot")
    code, output = machine.shell(f"echo {machine.name} >/data/mark && sync")
    same((code, output), (0, ""), "writing a mark")


def is_replaced(fleet, machine):
    """The machine broke; another with a MAC of its own is to boot in its place."""
    old, new = machine.mac, machine.mac.replace("52:54:00:77:01", "52:54:00:77:91")
    before, address = fleet.roost.config.read_text(), fleet.roost.client(machine.name)["address"]
    said = fleet.roost.cli("replace", machine.name, "--mac", new).stdout
    assert said.startswith(f"{machine.name}: {old} is now {new}; "), said
    same(fleet.roost.config.read_text(), before.replace(old, new), "roost.toml with one value changed")
    shown = fleet.roost.client(machine.name)
    same((shown["macs"], shown["sessions"], shown["address"]), ([new], [], address), "MAC, sessions and address")
    machine.mac = new
    return said.strip()


def settles(fleet, machine):
    """Ten seconds without a command, and the boot's story has its last stage."""
    wait_for(
        f"the idle stage of {machine.name}",
        lambda: any(stage == "idle" for stage, _ in fleet.stages_of_this_boot(machine)),
        60, pause=0.5, tail=fleet.roost.tail,
    )  # fmt: skip


def children_read_alike(fleet, report):
    """Each child over iSCSI by qemu-img, and from the file by 7-Zip."""
    over_iscsi = {}
    for machine in fleet.machines:
        over_iscsi[machine.name] = sha256_over_iscsi(fleet.options.server, machine.name, fleet.folder)
    report.test("roost-stops-when-asked", fleet.roost.stop)
    for machine in fleet.machines:

        def alike(machine=machine):
            from_file = sha256_by_7zip(fleet.roost.disk(machine.name))
            same(from_file, over_iscsi[machine.name], "SHA-256 and size by 7-Zip and over iSCSI")
            return f"{from_file[0][:16]}..., {from_file[1]} bytes"

        report.test(f"{name_of(machine)}-child-by-7zip-is-the-disk-over-iscsi", alike)
    same(len(set(over_iscsi.values())), len(fleet.machines), "children that differ from each other")


def master_unchanged(fleet):
    """Whatever the children did."""
    same({image: sha256_file(path) for image, path in fleet.masters.items()}, fleet.masters_sha256, "the masters' SHA-256")
    for path in fleet.masters.values():
        same(path.stat().st_mode & 0o222, 0, f"write permission on {path}")
    return ", ".join(sha256[:16] + "..." for sha256 in fleet.masters_sha256.values())


def every_firmware(options, report):
    """BIOS, BIOS chained through undionly.kpxe, and UEFI, each twice; and one whose disk is reset in between."""
    with Fleet(options, Path(options.fast) / "firmware", [*TWICE, RESET], master_path()) as fleet:
        for count in (1, 2):
            fleet.start_all()
            for machine in fleet.machines:
                if report.test(f"{name_of(machine)}-boot-{count}", boots_to_its_marker, fleet, machine, count):
                    report.test(f"{name_of(machine)}-boot-{count}-finds-its-own-writes", finds_its_own_writes, machine, fleet.macs[machine.name])
            if count == 2:
                for machine in fleet.machines:
                    report.test(f"{name_of(machine)}-settles", settles, fleet, machine)
            # The plug is pulled: no shutdown.
            fleet.power_off_all()
            if count == 1:
                report.test("a-broken-machine-is-replaced", is_replaced, fleet, fleet.machines[0])
        report.test("master-unchanged-by-boots", master_unchanged, fleet)
        report.test("children-are-read-over-iscsi", children_read_alike, fleet, report)
        report.test("no-panic-in-boots", no_panic, fleet.roost)


def passes_chap(fleet, machine):
    """The loader and the system passed CHAP, and who does not know the secret does not get in."""
    sessions = fleet.roost.client(machine.name)["sessions"]
    same({session["kind"] for session in sessions} & {"system"}, {"system"}, "the kinds of its sessions")
    target = f"iscsi://{ADDRESS}/{IQN}:{machine.name}/0"
    for url in (target, target.replace("//", f"//{machine.name}%a-guess@")):
        answer = run(fleet.options.server, "iscsi-inq", "-i", TESTER, url, check=False)
        assert answer.returncode != 0, f"{url} opens the disk: {answer.stdout}"
    script = run(fleet.options.server, "curl", "-sSf", f"http://{ADDRESS}/boot.ipxe?mac={machine.mac}").stdout
    assert "password" not in script, f"anybody is told its secret:\n{script}"


def with_chap(options, report):
    """iPXE on either firmware and open-iscsi after it, which has the secrets from the iBFT, with mutual CHAP."""
    with Fleet(options, Path(options.fast) / "chap", ["bios:chap", "uefi:chap"], master_path()) as fleet:
        fleet.start_all()
        for machine in fleet.machines:
            report.test(f"{machine.mode}-boots-with-chap", boots_to_its_marker, fleet, machine, 1)
            report.test(f"{machine.mode}-alone-knows-its-secret", passes_chap, fleet, machine)
        report.test("no-panic-with-chap", no_panic, fleet.roost)


def writes_through_restarts(fleet, writers):
    """Roost is killed and stopped under systems that write. They wait, and go on."""
    returns = []
    for signal_name, seconds in RESTARTS:
        for writer in writers:
            writer.wait_more(3, RETURN_SECONDS)
        if signal_name == "SIGKILL":
            fleet.roost.kill()
        else:
            fleet.roost.stop()
        time.sleep(seconds)
        fleet.roost.start()
        began = time.monotonic()
        for writer in writers:
            writer.wait_more(1, RETURN_SECONDS)
            returns.append(time.monotonic() - began)
    return f"{len(RESTARTS)} restarts; writing again after {min(returns):.1f} to {max(returns):.1f} s"


def writes_through_a_cut(fleet, writers):
    """The cables of running systems are pulled for a while. They keep their disks, and Roost does not take it for a boot."""
    disks = {writer.machine.name: fleet.roost.disk(writer.machine.name) for writer in writers}
    before = {name: disk.stat().st_ino for name, disk in disks.items()}
    plug = ["ip", "-n", fleet.options.switch, "link", "set"]
    for writer in writers:
        subprocess.run([*plug, writer.machine.tap, "nomaster"], check=True)
    try:
        # What was on the disk already may still be told.
        time.sleep(SETTLE_SECONDS)
        cut = [len(writer.look()) for writer in writers]
        time.sleep(OUTAGE_SECONDS)
        same([len(writer.look()) for writer in writers], cut, "files written without a network")
    finally:
        for writer in writers:
            subprocess.run([*plug, writer.machine.tap, "master", "br0"], check=True)
    began = time.monotonic()
    for writer in writers:
        writer.wait_more(3, RETURN_SECONDS)
    seconds = time.monotonic() - began
    same({name: disk.stat().st_ino for name, disk in disks.items()}, before, "the files of their disks")
    return f"cut for {SETTLE_SECONDS + OUTAGE_SECONDS} s; 3 files each {seconds:.1f} s after it"


def met_no_error(fleet, writer):
    """Through all of it: no error in the program, none in the kernel, and the disk holds what it wrote."""
    writer.stop()
    lost = writer.saw_no_error()
    # Else nothing was proven: its system never had to log in again. (Where Roost is stopped in order, it asks the system to
    # log out; one that does so in time loses nothing.)
    kills = sum(signal_name == "SIGKILL" for signal_name, _ in RESTARTS)
    assert lost >= kills, f"{writer.machine.name}'s kernel lost {lost} connections"
    files = writer.finds_all()
    words = [stage for stage, _ in fleet.stages_of_this_boot(writer.machine)]
    assert "refused" not in words, f"a login was refused: {words}"
    return f"{files}, {lost} connections lost"


def keeps_on_its_data_disk(fleet, machine, boot):
    """A machine whose disk is reset finds its second disk as it left it: in the first boot empty, then with what it wrote."""
    code, size = machine.shell("cat /sys/block/sdb/size")
    same((code, int(size)), (0, DATA_MIB * 2048), "blocks of /dev/sdb")
    code, begins = machine.shell("head -c 12 /dev/sdb | tr -d '\\0'; echo")
    same((code, begins.strip()), (0, "" if boot == 1 else "roost-data-1"), "what the disk begins with")
    if boot == 1:
        code, _ = machine.shell("printf roost-data-1 | dd of=/dev/sdb conv=fsync,notrunc status=none")
        same(code, 0, "the exit code of the write")
    file = fleet.roost.disk(machine.name).with_suffix(".data.vhdx")
    return f"{int(size) // 2048} MiB, {file.stat().st_blocks // 2} KiB on the host"


def comes_back(fleet, writer):
    """After the plug was pulled amid its writing: a disk that is kept has its files, a disk that is reset has none."""
    figures = boots_to_its_marker(fleet, writer.machine, 2)
    if resets(writer.machine):
        same(writer.machine.shell("ls -A /var/written")[0], 2, "the exit code of ls, as for a folder that is not there")
        return f"clean, {figures}"
    files = writer.finds_all()
    writer.saw_no_error()
    return f"{files}, {figures}"


def debian(options, report):
    """Systems with systemd and iscsid, one of each disk policy, that write while they lose the server and the network."""
    # Debian's initiator has a name of its own making for what it did not boot from.
    second = {"pc-second": f'{{ mac = "52:54:00:77:01:f0", image = "{VHDX_IMAGE}", initiators = ["*"] }}'}
    modes = ["bios:vhdx", "uefi:vhdx:reset"]
    with Fleet(options, Path(options.disk) / "debian", modes, debian_master_path(), data=f"{DATA_MIB}M", more=second) as fleet:
        writers = [Writer(machine) for machine in fleet.machines]
        disk = SecondDisk(fleet.machines[0], "pc-second")
        fleet.start_all()
        for machine in fleet.machines:
            if not report.test(f"debian-{name_of(machine)}-boots", boots_to_its_marker, fleet, machine, 1):
                return
        reset = next(machine for machine in fleet.machines if resets(machine))
        report.test("debian-data-disk", keeps_on_its_data_disk, fleet, reset, 1)
        if not report.test("debian-second-disk-is-added", disk.is_added):
            return
        for writer in (*writers, disk):
            writer.start()
        report.test("debian-restart", writes_through_restarts, fleet, writers)
        report.test("debian-network-cut", writes_through_a_cut, fleet, writers)
        report.test("debian-second-disk-was-right-all-the-time", disk.was_right_all_the_time)
        for writer in writers:
            report.test(f"debian-{name_of(writer.machine)}-met-no-error", met_no_error, fleet, writer)
        for writer in (*writers, disk):
            writer.start()
        for writer in writers:
            writer.wait_more(3, RETURN_SECONDS)
        fleet.power_off_all()
        for writer in writers:
            writer.look()
        fleet.start_all()
        for writer in writers:
            report.test(f"debian-{name_of(writer.machine)}-comes-back", comes_back, fleet, writer)
        report.test("debian-second-disk-is-there-after-a-reset", disk.is_there_after_a_reset)
        report.test("debian-data-disk-after-the-reset", keeps_on_its_data_disk, fleet, reset, 2)
        report.test("debian-master-unchanged", master_unchanged, fleet)
        report.test("no-panic-under-debian", no_panic, fleet.roost)


def reads_everything(machine, results):
    """One machine reads its whole disk; its verdict goes to `results`."""
    try:
        code, output = machine.shell("dd if=/dev/sda of=/dev/null bs=1M", seconds=600)
        results[machine.name] = (code, output.splitlines()[0] if output else "")
    except Exception as error:  # told by the thread that waits
        results[machine.name] = (None, str(error))


def stays_small(fleet):
    """Two machines read 2 GiB each at once."""
    results = {}
    began = time.monotonic()
    readers = [threading.Thread(target=reads_everything, args=(machine, results), daemon=True) for machine in fleet.machines]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    seconds = time.monotonic() - began
    same(results, {m.name: (0, f"{BIG_DISK_MIB}+0 records in") for m in fleet.machines}, "what the machines read")
    for machine in fleet.machines:
        read = sum(session["bytes_read"] for session in fleet.roost.client(machine.name)["sessions"])
        assert read >= BIG_DISK_MIB << 20, f"{machine.name} had {read} bytes from Roost"
    rss, high = fleet.roost.memory_kib()
    assert high < MEMORY_LIMIT_KIB, f"roost took {high} KiB at its highest, {MEMORY_LIMIT_KIB} are allowed"
    return f"VmRSS {rss} KiB, highest {high} KiB, after 2 x {BIG_DISK_MIB} MiB in {seconds:.0f} s"


def little_memory(options, report):
    """The memory that Roost takes for two clients of a large master."""
    with Fleet(options, Path(options.disk) / "memory", ["bios", "uefi"], master_path(BULK_MIB)) as fleet:
        assert bytes_on_host(fleet.masters[IMAGE]) >= 512 << 20, "the master holds too little to measure with"
        fleet.start_all()
        for machine in fleet.machines:
            report.test(f"{machine.mode}-boots-the-large-master", boots_to_its_marker, fleet, machine, 1)
        report.test("memory-with-two-clients-of-2-GiB", stays_small, fleet)
        fleet.power_off_all()
        report.test("large-master-unchanged", master_unchanged, fleet)
        report.test("no-panic-in-reading", no_panic, fleet.roost)


def main():
    options = arguments()
    report = Report()
    parts = (every_firmware, *ways.PARTS, *over_ipv6.PARTS, with_chap, debian, little_memory)
    chosen = os.environ.get("ROOST_PARTS", "").split()
    for part in [part for part in parts if not chosen or part.__name__ in chosen]:
        # Where one fleet cannot even be made, the other is still tested.
        report.part(part.__name__.replace("_", "-"), part, options, report)
    return report.exit_code()


if __name__ == "__main__":
    sys.exit(main())
