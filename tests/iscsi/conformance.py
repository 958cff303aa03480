"""libiscsi's conformance suite, iscsi-test-cu: every suite in a process of its own, against a record of what passes.

Three runs for each format of a client's disk: all suites on a disk that may be written; the multipath suite on it, by two
portals; the read-only suite on a disk that may only be read. These disks have physical sectors of 512 bytes; where a format
knows others, a fourth run is on a disk with 4,096, of the suites that have something to say of those. A test passes if it
passes in one run and fails in none. What came of each is kept in iscsi-test-cu.FORMAT.txt beside this file, with the reason
of each that does not pass, and may not get worse. Where it got better: ROOST_BASELINE=write tests/run iscsi, and look at
the difference.

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

# What the suite calls itself, first and second initiator.
INITIATORS = tuple("iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-test" + tail for tail in ("", "-2"))
SUITE_SECONDS = 90
# What is better stands first.
ORDER = ["pass", "skip", "fail", "unknown"]
# A second portal, beside `ADDRESS`.
SECOND_ADDRESS = "10.77.0.2"
# The suites that only say something on two paths (whose CompareAndWrite expects zeros in a block that it does not write
# first, where an earlier suite left some), or on a disk that is read-only.
MULTIPATH = "MultipathIO"
READ_ONLY = "ReadOnly"
# The suites with tests that are skipped where a physical block is one logical block.
LARGE_SECTORS = ["CompareAndWrite", "WriteSame10", "WriteSame16"]


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


def run_suite(options, roost, urls, suite):
    """One suite; neither it nor Roost may hang or crash."""
    try:
        done = run(options.server, "iscsi-test-cu", "--dataloss", "--allow-sanitize", "--verbose", f"--test=ALL.{suite}",
                   *urls, seconds=SUITE_SECONDS, check=False)  # fmt: skip
    except subprocess.TimeoutExpired as error:
        output = (error.stdout or b"").decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        raise AssertionError(f"iscsi-test-cu {suite} took over {SUITE_SECONDS} s\n{output[-2000:]}") from error
    assert done.returncode >= 0, f"iscsi-test-cu {suite} ended by signal {-done.returncode}\n{done.stdout[-2000:]}"
    assert roost.runs(), f"roost ended in {suite}\n{roost.tail()}"
    found = verdicts(done.stdout)
    if "fail" in found.values() or os.environ.get("ROOST_VERBOSE") == "1":
        print(done.stdout)
    return {f"{suite}.{test}": verdict for test, verdict in found.items()}


def union(results, more):
    """What came of a test in two runs: a failure counts, else a pass."""
    for test, verdict in more.items():
        both = (results.get(test, "skip"), verdict)
        choose = max if {"fail", "unknown"} & set(both) else min
        results[test] = choose(both, key=ORDER.index)


def record(kind):
    """The file of what passes on disks of this format."""
    return Path(__file__).with_name(f"iscsi-test-cu.{kind}.txt")


def lines(kind):
    text = record(kind).read_text() if record(kind).exists() else ""
    return [line.split(maxsplit=2) for line in text.splitlines() if line and not line.startswith("#")]


def recorded(kind):
    """`SUITE.TEST` -> verdict."""
    return {test: verdict for verdict, test, *_ in lines(kind)}


def reasons(kind):
    """`SUITE.TEST` -> why it does not pass."""
    return {test: reason[0] for _, test, *reason in lines(kind) if reason}


def write(kind, results):
    counts = collections.Counter(results.values())
    head = ["# iscsi-test-cu against Roost: what may not get worse. Written by conformance.py (ROOST_BASELINE=write); behind",
            "# a test that does not pass stands the reason, which is kept.",
            "# " + ", ".join(f"{counts[verdict]} {verdict}" for verdict in ORDER if counts[verdict])]  # fmt: skip
    why = reasons(kind)
    body = [
        f"{verdict} {test}" + (f" {why[test]}" if verdict != "pass" and test in why else "")
        for test, verdict in sorted(results.items())
    ]
    record(kind).write_text("\n".join(head + body) + "\n")


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


def not_worse(kind, results):
    """Against the record: nothing that passed may fail or be skipped, nothing that was skipped may fail."""
    before, name = recorded(kind), record(kind).name
    if os.environ.get("ROOST_BASELINE") == "write":
        write(kind, results)
        return f"{name} written"
    worse = [f"{test}: was {verdict}, is {results.get(test, 'missing')}"
             for test, verdict in before.items()
             if ORDER.index(results.get(test, "unknown")) > ORDER.index(verdict)]  # fmt: skip
    assert before, f"{name} is not there; write it with ROOST_BASELINE=write"
    assert not worse, f"{len(worse)} tests got worse\n" + "\n".join(worse)
    better = [test for test, verdict in before.items() if ORDER.index(results[test]) < ORDER.index(verdict)]
    better += [test for test in results if test not in before]
    if better:
        print(f"   better than {name} (ROOST_BASELINE=write records it): {', '.join(better)}")
    total = collections.Counter(results.values())
    return ", ".join(f"{total[verdict]} {verdict}" for verdict in ORDER[:3])


def everything_has_its_reason(kind, results):
    """Nothing is skipped, and nothing fails, without somebody having said why."""
    why = reasons(kind)
    silent = [f"{test}: {verdict}" for test, verdict in results.items() if verdict != "pass" and test not in why]
    assert not silent, f"{record(kind).name} gives no reason for {len(silent)} tests\n" + "\n".join(silent)
    groups = collections.Counter(f"{verdict}: {why[test]}" for test, verdict in results.items() if verdict != "pass")
    for group, count in groups.most_common():
        print(f"   {count} {group}")


def portals_are_listed(options):
    """Whoever comes by one portal is told of both."""
    for address, other in ((ADDRESS, SECOND_ADDRESS), (SECOND_ADDRESS, ADDRESS)):
        listed = run(options.server, "iscsi-ls", "-i", INITIATORS[0], f"iscsi://{address}").stdout
        told = set(re.findall(r"Portal:(\S+),1", listed))
        assert told == {f"{address}:3260", f"{other}:3260"}, f"by {address}:\n{listed}"


def tests(options, roost, report, kind, writable, readonly, large_sectors=None):
    """The runs, the table, and the comparison, of these clients' disks, which are of one format."""
    results = {}
    url = {client: f"iscsi://{ADDRESS}/{IQN}:{client}/0" for client in (writable, readonly, large_sectors)}
    paths = [url[writable], url[writable].replace(ADDRESS, SECOND_ADDRESS)]
    only = os.environ.get("ROOST_SUITES", "").split()

    def all_suites():
        chosen = only or suites()
        for suite in chosen:
            union(results, run_suite(options, roost, [url[writable]], suite))
        return f"{len(results)} tests, no crash and no hang"

    def special(suite, urls):
        if only and suite not in only:
            return "not asked for"
        found = run_suite(options, roost, urls, suite)
        bad = [f"{test}: {verdict}" for test, verdict in found.items() if verdict != "pass"]
        union(results, found)
        assert found and not bad, "\n".join(bad)
        return f"{len(found)} tests"

    if not report.test(f"{kind}-iscsi-test-cu-runs-to-its-end", all_suites):
        return
    report.test(f"{kind}-iscsi-test-cu-by-two-portals", special, MULTIPATH, paths)
    report.test(f"{kind}-iscsi-test-cu-on-a-read-only-disk", special, READ_ONLY, [url[readonly]])
    for suite in LARGE_SECTORS if large_sectors else []:
        report.test(f"{kind}-iscsi-test-cu-on-large-sectors-{suite}", special, suite, [url[large_sectors]])
    table(results)
    if only:
        return
    report.test(f"{kind}-iscsi-test-cu-is-not-worse-than-recorded", not_worse, kind, results)
    report.test(f"{kind}-iscsi-test-cu-says-why-what-does-not-pass", everything_has_its_reason, kind, results)
