"""DHCP, TFTP and HTTP: addresses and boot files, as udhcpc, dhclient, two TFTP clients and curl see them."""

import ipaddress
from pathlib import Path

from report import run, same
from server import ADDRESS, POOL

CLIENT_MAC = "52:54:00:77:02:05"
STRANGER_MAC = "52:54:00:77:02:99"
LOADERS = Path("/usr/lib/ipxe")
LOADER = "undionly.kpxe"

# What udhcpc and dhclient call with their answer in the environment: it is written down, the interface stays as it is.
NOTE_SCRIPT = '#!/bin/sh\nenv >"{out}.$1$reason"\n'


def plug_in(namespace, mac):
    """A network card on the lab's switch, for clients that want an interface."""
    run(namespace, "ip", "link", "add", "card", "address", mac, "type", "veth", "peer", "name", "socket")
    run(namespace, "ip", "link", "set", "socket", "master", "br0", "up")
    run(namespace, "ip", "link", "set", "card", "up")


def unplug(namespace):
    run(namespace, "ip", "link", "del", "card")


def noted(path):
    """The environment that a DHCP client's script wrote down."""
    return dict(line.split("=", 1) for line in path.read_text(errors="replace").splitlines() if "=" in line)


def in_pool(address):
    first, last = (ipaddress.ip_address(end) for end in POOL.split("-"))
    assert first <= ipaddress.ip_address(address) <= last, f"{address} is not in the pool {POOL}"


def addresses(options):
    """udhcpc and dhclient of one client get one address, with its mask and the client's name."""
    scratch = Path(options.fast)
    script, out = scratch / "note.sh", scratch / "dhcp"
    script.write_text(NOTE_SCRIPT.format(out=out))
    script.chmod(0o755)
    plug_in(options.switch, CLIENT_MAC)
    try:
        run(options.switch, "udhcpc", "-i", "card", "-n", "-q", "-f", "-t", "5", "-s", script)
        bound = noted(Path(f"{out}.bound"))
        in_pool(bound["ip"])
        same((bound["subnet"], bound["serverid"]), ("255.255.255.0", ADDRESS), "the mask and the server")
        again = dhclient(options, scratch, script, out)
        same(again["new_ip_address"], bound["ip"], "the address by dhclient, after udhcpc")
    finally:
        unplug(options.switch)
    return bound["ip"]


def dhclient(options, scratch, script, out):
    """One lease by dhclient, which is then told to go away without giving it back."""
    configuration = scratch / "dhclient.conf"
    configuration.write_text("timeout 15;\n")
    files = ["-cf", configuration, "-lf", scratch / "dhclient.leases", "-pf", scratch / "dhclient.pid"]
    run(options.switch, "dhclient", "-4", "-1", "-sf", script, *files, "card", seconds=40)
    run(options.switch, "dhclient", "-4", "-x", "-sf", script, *files, "card", seconds=20)
    return noted(Path(f"{out}.BOUND"))


def stranger_gets_a_lease(options):
    """A machine that is in no client's place has an address, and no disk."""
    scratch = Path(options.fast)
    script, out = scratch / "note.sh", scratch / "stranger"
    script.write_text(NOTE_SCRIPT.format(out=out))
    script.chmod(0o755)
    plug_in(options.switch, STRANGER_MAC)
    try:
        run(options.switch, "udhcpc", "-i", "card", "-n", "-q", "-f", "-t", "5", "-s", script)
        address = noted(Path(f"{out}.bound"))["ip"]
        in_pool(address)
    finally:
        unplug(options.switch)
    script = run(options.server, "curl", "-sSf", f"http://{ADDRESS}/boot.ipxe?mac={STRANGER_MAC}").stdout
    assert "sanboot" not in script, f"a stranger's script boots a disk:\n{script}"
    return address


def tftp_hpa(options):
    fetched = Path(options.fast) / "by-tftp-hpa"
    run(options.server, "tftp", "-m", "binary", ADDRESS, "-c", "get", LOADER, fetched)
    same(fetched.read_bytes(), (LOADERS / LOADER).read_bytes(), "the loader by tftp-hpa")
    run(options.server, "tftp", "-m", "ascii", ADDRESS, "-c", "get", LOADER, fetched)
    same(fetched.read_bytes(), (LOADERS / LOADER).read_bytes(), "the loader by tftp-hpa, as text and back")


def atftp(options):
    """The options that network firmware uses."""
    for number, asked in enumerate((["blksize 1468"], ["blksize 1468", "windowsize 4"], ["tsize 0", "timeout 2"])):
        fetched = Path(options.fast) / f"by-atftp-{number}"
        words = [word for option in asked for word in ("--option", option)]
        run(options.server, "atftp", *words, "--get", "-r", LOADER, "-l", fetched, ADDRESS)
        assert fetched.read_bytes() == (LOADERS / LOADER).read_bytes(), f"the loader by atftp with {asked} differs"


def no_such_boot_file(options):
    """What is no boot file is refused by TFTP and by HTTP, paths above all."""
    strange = ["../../../etc/passwd", "..\\..\\roost.toml", "C:\\Windows\\win.ini", "\\\\host\\share\\x", "undionly.kpxe/..", "..", "/"]
    for name in ("no-such-file", "../roost.toml", "/etc/passwd", *strange):
        same(refusal_by_tftp(options.server, name), (1, "no such boot file"), f"TFTP's error for {name}")
    for name in ("no-such-file", "../roost.toml", "/etc/passwd"):
        code = run(options.server, "curl", "-s", "--path-as-is", "-o", "/dev/null", "-w", "%{http_code}", f"http://{ADDRESS}/{name}")
        same(code.stdout, "404", f"HTTP status of {name}")


# Sends one read request, and prints the code and the words of the error that answers it.
ASK_TFTP = """
import socket, sys
asker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asker.settimeout(5)
asker.sendto(b"\\0\\1" + sys.argv[2].encode() + b"\\0octet\\0", (sys.argv[1], 69))
answer = asker.recv(2048)
assert answer[:2] == b"\\0\\5", answer
print(int.from_bytes(answer[2:4], "big"), answer[4:-1].decode())
"""


def refusal_by_tftp(namespace, name):
    """The error that TFTP answers to this name, to the byte: clients change names before they ask."""
    code, words = run(namespace, "python3", "-c", ASK_TFTP, ADDRESS, name).stdout.strip().split(" ", 1)
    return int(code), words


def http(options):
    """HEAD, GET and a range, as OVMF's and iPXE's clients ask."""
    url, whole = f"http://{ADDRESS}/{LOADER}", (LOADERS / LOADER).read_bytes()
    head = run(options.server, "curl", "-sSf", "-I", url).stdout.lower()
    assert head.startswith("http/1.1 200") and f"content-length: {len(whole)}\r" in head.replace("\n", "\r"), head
    for words, wanted in (([], whole), (["-r", "100-299"], whole[100:300]), (["-r", "-100"], whole[-100:])):
        fetched = Path(options.fast) / "by-curl"
        run(options.server, "curl", "-sSf", *words, "-o", fetched, url)
        assert fetched.read_bytes() == wanted, f"{LOADER} by curl {words} differs"


def scripts(options):
    """A client's script boots its own disk; autoexec.ipxe leads to it."""
    script = run(options.server, "curl", "-sSf", f"http://{ADDRESS}/boot.ipxe?mac=52-54-00-77-02-04").stdout
    assert script.startswith("#!ipxe") and ":pc-private" in script and "sanboot" in script, script
    chain = run(options.server, "curl", "-sSf", f"http://{ADDRESS}/autoexec.ipxe").stdout
    assert chain.startswith("#!ipxe") and "boot.ipxe?mac=" in chain, chain


def tests(options, _roost, report):
    """All of them."""
    report.test("addresses-by-udhcpc-and-dhclient", addresses, options)
    report.test("a-stranger-gets-an-address-and-no-disk", stranger_gets_a_lease, options)
    report.test("loader-by-tftp-hpa", tftp_hpa, options)
    report.test("loader-by-atftp", atftp, options)
    report.test("loader-by-curl", http, options)
    report.test("scripts-by-curl", scripts, options)
    report.test("no-other-files", no_such_boot_file, options)
