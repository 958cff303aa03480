"""iSCSI discovery and single commands by libiscsi's tools, and who is refused."""

import re

from report import TESTER, run, same
from server import ADDRESS, IQN

OPEN = "pc-writes"
PRIVATE = "pc-private"


def url(client):
    return f"iscsi://{ADDRESS}/{IQN}:{client}/0"


def discovery(options, clients):
    """iscsi-ls sees the targets that it may use, and no other."""
    found = set(re.findall(r"Target:(\S+)", run(options.server, "iscsi-ls", "-i", TESTER, f"iscsi://{ADDRESS}").stdout))
    same(found, {f"{IQN}:{client}" for client in clients}, "the targets for the tests' initiator")
    stranger = run(options.server, "iscsi-ls", "-i", f"{IQN}:stranger", f"iscsi://{ADDRESS}", check=False)
    same(re.findall(r"Target:(\S+)", stranger.stdout), [], "the targets for a stranger")


def logical_units(options):
    listed = run(options.server, "iscsi-ls", "-s", "-i", TESTER, f"iscsi://{ADDRESS}").stdout
    assert re.search(r"Lun:0\s.*DIRECT_ACCESS", listed), listed


def inquiry(options):
    """Standard INQUIRY and the pages that name the disk."""
    standard = run(options.server, "iscsi-inq", "-i", TESTER, url(OPEN)).stdout
    assert re.search(r"Peripheral Device Type:.*DIRECT_ACCESS", standard), standard
    pages = {}
    for page in (0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2):
        pages[page] = run(options.server, "iscsi-inq", "-i", TESTER, "-e", "1", "-c", page, url(OPEN)).stdout
        assert pages[page].strip(), f"VPD page {page:#x} is empty"
    same(len(set(pages.values())), len(pages), "pages that differ")
    serials = {run(options.server, "iscsi-inq", "-i", TESTER, "-e", "1", "-c", 0x80, url(client)).stdout
               for client in (OPEN, "pc-kills")}  # fmt: skip
    assert len(serials) == 2, f"two clients' disks have one serial number: {serials}"


def capacity(options, wanted):
    answer = run(options.server, "iscsi-readcapacity16", "-i", TESTER, url(OPEN)).stdout
    last = int(re.search(r"RETURNED LOGICAL BLOCK ADDRESS:(\d+)", answer)[1])
    size = int(re.search(r"LOGICAL BLOCK LENGTH IN BYTES:(\d+)", answer)[1])
    same((last + 1) * size, wanted, "bytes by READ CAPACITY(16)")


def refused(options):
    """Nobody logs in by a name that is not allowed, and nobody by a client's own name from another address."""
    for initiator in (f"{IQN}:stranger", TESTER, f"{IQN}:client.{PRIVATE}"):
        answer = run(options.server, "iscsi-inq", "-i", initiator, url(PRIVATE), check=False)
        assert answer.returncode != 0, f"{initiator} may use {PRIVATE}: {answer.stdout}"
    nowhere = run(options.server, "iscsi-inq", "-i", TESTER, url("pc-nowhere"), check=False)
    assert nowhere.returncode != 0, f"a target that is not there answers: {nowhere.stdout}"


def tests(options, roost, report, size):
    """All of them."""
    allowed = ["pc-writes", "pc-kills"]
    report.test("iscsi-ls-shows-what-this-initiator-may-use", discovery, options, allowed)
    report.test("iscsi-ls-lists-the-logical-unit", logical_units, options)
    report.test("iscsi-inq", inquiry, options)
    report.test("iscsi-readcapacity16", capacity, options, size)
    report.test("strangers-are-refused", refused, options)
    assert roost.runs(), roost.tail()
