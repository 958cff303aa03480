"""libiscsi's conformance suite, iscsi-test-cu: every suite in a process of its own, against a record of what passes.

What it reports as passed, failed and skipped is kept in iscsi-test-cu.txt beside this file, and may not get worse. Where it
got better: ROOST_BASELINE=write tests/run interop, and look at the difference.

A process of its own for each suite, because one that leaves a hook behind spoils the commands of all that follow it in
its process. The exit code says nothing: it is 0 with failures too.
"""

import collections
import os
import re
import subprocess
from pathlib import Path

from report import run
from server import ADDRESS, IQN

BASELINE = Path(__file__).with_name("iscsi-test-cu.txt")
# What the suite calls itself, first and second initiator.
INITIATORS = tuple("iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-test" + tail for tail in ("", "-2"))
SUITE_SECONDS = 90
# What is better stands first.
ORDER = ["pass", "skip", "fail", "unknown"]


def suites():
    listed = subprocess.run(["iscsi-test-cu", "--list"], capture_output=True, text=True, check=False).stdout
    names = [name[1] for line in listed.splitlines() if (name := re.fullmatch(r"ALL\.(\w+)", line.strip()))]
    assert len(names) > 40, f"iscsi-test-cu lists {len(names)} suites:\n{listed}"
    return names


def verdicts(output):
    """test -> verdict, from a suite's output.

    CUnit counts a skipped test as passed: it is one that printed [SKIPPED] before it passed. (Behind the last test of a
    suite stands what its clean-up says, which is no verdict.)
    """
    found, test, text = {}, None, []

    def close():
        if not test:
            return
        whole = "\n".join(text)
        # The verdict ends the line of the test, or a line of its own where the test printed something.
        passed = re.search(r"^\s*passed(\s|$)|passed\s*$", whole, re.M)
        if re.search(r"(^|[^\[\w])FAILED\s*$|^\s+1\. \S+\s+- ", whole, re.M):
            found[test] = "fail"
        elif passed:
            found[test] = "skip" if "[SKIPPED]" in whole[: passed.start()] else "pass"
        else:
            found[test] = "unknown"

    for line in output.splitlines():
        if match := re.match(r"  Test: (\S+) \.\.\.(.*)", line):
            close()
            test, text = match[1], [match[2]]
        elif line.startswith(("Run Summary", "Suite: ")):
            close()
            test = None
        else:
            text.append(line)
    close()
    return found


def run_suite(options, roost, target, suite):
    """One suite; neither it nor Roost may hang or crash."""
    try:
        done = run(options.server, "iscsi-test-cu", "--dataloss", "--allow-sanitize", "--verbose", f"--test=ALL.{suite}",
                   f"iscsi://{ADDRESS}/{IQN}:{target}/0", seconds=SUITE_SECONDS, check=False)  # fmt: skip
    except subprocess.TimeoutExpired as error:
        output = (error.stdout or b"").decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        raise AssertionError(f"iscsi-test-cu {suite} took over {SUITE_SECONDS} s\n{output[-2000:]}") from error
    assert done.returncode >= 0, f"iscsi-test-cu {suite} ended by signal {-done.returncode}\n{done.stdout[-2000:]}"
    assert roost.runs(), f"roost ended in {suite}\n{roost.tail()}"
    return verdicts(done.stdout)


def recorded():
    """`SUITE.TEST` -> verdict."""
    if not BASELINE.exists():
        return {}
    lines = (line for line in BASELINE.read_text().splitlines() if line and not line.startswith("#"))
    return dict(reversed(line.split()) for line in lines)


def write(results):
    counts = collections.Counter(results.values())
    lines = ["# iscsi-test-cu against Roost: what may not get worse. Written by conformance.py (ROOST_BASELINE=write).",
             "# " + ", ".join(f"{counts[verdict]} {verdict}" for verdict in ORDER if counts[verdict])]  # fmt: skip
    lines += [f"{verdict} {test}" for test, verdict in sorted(results.items())]
    BASELINE.write_text("\n".join(lines) + "\n")


def table(results):
    """One row for each suite."""
    rows = collections.defaultdict(collections.Counter)
    for test, verdict in results.items():
        rows[test.split(".")[0]][verdict] += 1
    print(f"   {'suite':<26}" + "".join(f"{verdict:>8}" for verdict in ORDER[:3]))
    for suite, counts in rows.items():
        odd = "  (unknown: {})".format(counts["unknown"]) if counts["unknown"] else ""
        print(f"   {suite:<26}" + "".join(f"{counts[verdict]:>8}" for verdict in ORDER[:3]) + odd)
    total = collections.Counter(results.values())
    print(f"   {'all':<26}" + "".join(f"{total[verdict]:>8}" for verdict in ORDER[:3]), flush=True)
    return total


def not_worse(results):
    """Against the record: nothing that passed may fail or be skipped, nothing that was skipped may fail."""
    before = recorded()
    if os.environ.get("ROOST_BASELINE") == "write":
        write(results)
        return f"{BASELINE.name} written"
    worse = [f"{test}: was {verdict}, is {results.get(test, 'missing')}"
             for test, verdict in before.items()
             if ORDER.index(results.get(test, "unknown")) > ORDER.index(verdict)]  # fmt: skip
    assert before, f"{BASELINE.name} is not there; write it with ROOST_BASELINE=write"
    assert not worse, f"{len(worse)} tests got worse\n" + "\n".join(worse)
    better = [test for test, verdict in before.items() if ORDER.index(results[test]) < ORDER.index(verdict)]
    better += [test for test in results if test not in before]
    if better:
        print(f"   better than {BASELINE.name} (ROOST_BASELINE=write records it): {', '.join(better)}")
    total = collections.Counter(results.values())
    return ", ".join(f"{total[verdict]} {verdict}" for verdict in ORDER[:3])


def tests(options, roost, report, target):
    """Every suite, the table, and the comparison."""
    results = {}

    def all_suites():
        for suite in suites():
            for test, verdict in run_suite(options, roost, target, suite).items():
                results[f"{suite}.{test}"] = verdict
        return f"{len(results)} tests, no crash and no hang"

    if report.test("iscsi-test-cu-runs-to-its-end", all_suites):
        table(results)
        report.test("iscsi-test-cu-is-not-worse-than-recorded", not_worse, results)
