"""What the suites that run cargo share: its commands, and the lines that tests/run counts.

A test that finds that it cannot run here prints `skip: NAME reason` and returns; that, and an ignored test, is a skip.
"""

import re
import subprocess

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
SKIP = re.compile(r"\s*(skip: \S+.*)")
NEXTEST = {
    "hush": re.compile(r"\s*PASS \["),
    "speak": re.compile(r"\s*(?:[A-Z-]+ \[|────)"),
    "summary": re.compile(r"\s*Summary \[.*?\]\s.*?(\d+) passed"),
    "failed": re.compile(r"\s*(?:FAIL|SIGABRT|SIGSEGV|SIGKILL|TIMEOUT|LEAK-FAIL) \[.*?\]\s+(?:\(.*?\)\s+)?(.*)"),
    "ignored": re.compile(r"\s*SKIP \[.*?\]\s+(?:\(.*?\)\s+)?(.*)"),
}
CARGO_TEST = {
    "hush": re.compile(r"successes:"),
    "speak": re.compile(r"failures:|test result:"),
    "summary": re.compile(r"test result: .*? (\d+) passed"),
    "failed": re.compile(r"test (.*?) \.\.\. FAILED"),
    "ignored": re.compile(r"test (.*?) \.\.\. ignored"),
}


def name(text):
    """One word, as the lines of tests/run have it."""
    return "-".join(text.split())


def check(what, *command):
    """A command that is right or wrong as a whole."""
    print(f"-- {' '.join(command)}", flush=True)
    code = subprocess.run(command, check=False).returncode
    print(f"pass: {what}" if code == 0 else f"fail: {what} ended with {code}", flush=True)
    return code == 0


def tests(what, patterns, *command, show=None):
    """A command that runs tests; its output goes through, but for what passed tests printed, if it does not match `show`."""
    print(f"-- {' '.join(command)}", flush=True)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    passed, failed, ignored, hushed = 0, set(), set(), False
    for raw in process.stdout:
        line = ESCAPES.sub("", raw).rstrip()
        if match := SKIP.match(line):
            # As it stands, at the start of a line, where tests/run looks.
            print(match[1], flush=True)
            continue
        if match := patterns["summary"].match(line):
            passed += int(match[1])
        elif match := patterns["failed"].match(line):
            failed.add(match[1])
        elif match := patterns["ignored"].match(line):
            # The test's own name: cargo test does not tell of which binary it is.
            ignored.add(match[1].split()[-1])
        if patterns["hush"].match(line):
            hushed = True
        elif patterns["speak"].match(line):
            hushed = False
        if not hushed or (show and show.match(line)):
            print(line, flush=True)
    code = process.wait()
    for test in sorted(failed):
        print(f"fail: {name(test)} see above")
    for test in sorted(ignored):
        print(f"skip: {name(test)} it is marked #[ignore]")
    if code != 0 and not failed:
        print(f"fail: {what} ended with {code}")
    print(f"passed: {passed} {what}", flush=True)
    return code == 0
