"""CHAP and header digests by libiscsi: a disk that opens to its machine's address and secret, and to nothing less."""

import json
import re

from report import run, same
from server import ADDRESS, IQN

CLIENT = "pc-chap"
MAC = "52:54:00:77:02:06"
MACHINE = "10.77.0.90"
VALUE = f'{{ mac = "{MAC}", ip = "{MACHINE}", chap = true }}'


def inquiry(options, user="", arguments="", namespace=None):
    """A standard INQUIRY as the client's own initiator."""
    url = f"iscsi://{user}{ADDRESS}/{IQN}:{CLIENT}/0{arguments}"
    return run(namespace or options.switch, "iscsi-inq", "-i", f"{IQN}:client.{CLIENT}", url, check=False)


def settings(options, namespace):
    """What the client's boot script sets."""
    script = run(namespace, "curl", "-sSf", f"http://{ADDRESS}/boot.ipxe?mac={MAC}").stdout
    return dict(re.findall(r"^set (\S*(?:username|password)) (\S+)$", script, re.MULTILINE))


def opens_to_its_secret(options, roost):
    """One way, and both ways; not without, not with another, and not from elsewhere."""
    same(settings(options, options.server), {}, "what another address is told")
    told = settings(options, options.switch)
    same(sorted(told), ["password", "reverse-password", "reverse-username", "username"], "what the machine is told")
    user = f"{told['username']}%{told['password']}@"
    mutual = f"?target_user={told['reverse-username']}&target_password={told['reverse-password']}"
    for arguments in ("", mutual):
        answer = inquiry(options, user, arguments)
        assert answer.returncode == 0, f"{arguments}: {answer.stdout}{answer.stderr}"
    wrong = mutual[:-1] + ("x" if mutual[-1] != "x" else "y")
    for refused, answer in {
        "no secret": inquiry(options),
        "another secret": inquiry(options, f"{told['username']}%{told['reverse-password']}@"),
        "another name": inquiry(options, f"pc-writes%{told['password']}@"),
        "a server that does not know its own": inquiry(options, user, wrong),
        "another address": inquiry(options, user, namespace=options.server),
    }.items():
        assert answer.returncode != 0, f"{refused}: {answer.stdout}"
    same(settings(options, options.switch), told, "the secrets at the next boot")
    counted = json.loads(roost.cli("status", "--json").stdout)["iscsi"]
    assert counted["refused_logins"] >= 4, f"logins were refused, and counted are {counted}"
    assert "logins refused" in roost.cli("status").stdout


def is_shown_on_request(options, roost):
    """An operator is told what the boot script tells, and nothing of a disk that opens without."""
    told = settings(options, options.switch)
    shown = json.loads(roost.cli("client", "secret", CLIENT, "--json").stdout)
    same((shown["client"], shown["target"]), (CLIENT, f"{IQN}:{CLIENT}"), "whose it is")
    wanted = (told["username"], told["password"], told["reverse-username"], told["reverse-password"])
    same(tuple(shown[key] for key in ("user", "secret", "server_user", "server_secret")), wanted, "the secrets")
    page = roost.cli("client", "secret", CLIENT).stdout
    assert all(f"{key}  {value}" in re.sub(" +", "  ", page) for key, value in told.items()), page
    refused = roost.cli("client", "secret", "pc-writes", check=False)
    assert refused.returncode == 5 and "asks for no CHAP" in refused.stderr, refused
    assert told["password"] not in roost.log.read_text(), "the log has a secret"


def header_digest(options):
    """libiscsi knows digests of headers."""
    told = settings(options, options.switch)
    user = f"{told['username']}%{told['password']}@"
    for digest in ("crc32c", "none"):
        answer = inquiry(options, user, f"?header_digest={digest}")
        assert answer.returncode == 0, f"{digest}: {answer.stdout}{answer.stderr}"


def tests(options, roost, report):
    """All of them, from the machine's address on the switch."""
    run(options.switch, "ip", "address", "add", f"{MACHINE}/24", "dev", "br0")
    try:
        report.test("chap-opens-to-name-address-and-secret", opens_to_its_secret, options, roost)
        report.test("chap-secret-is-shown-on-request", is_shown_on_request, options, roost)
        report.test("header-digests", header_digest, options)
    finally:
        run(options.switch, "ip", "address", "del", f"{MACHINE}/24", "dev", "br0")
