"""Adds up the suites' lines against expected-failures.txt: `summary.py EXPECTED RESULTS SUITE...`.

Exit code 0 if every failure is a known one, and every known one of the suites that ran still fails.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

LINE = re.compile(r"^(ok|FAIL) (\S+): (.*)$")
DURATION = re.compile(r" \([0-9]+ ms\)$")


def known_failures(text: str, suites: list[str]) -> dict[str, str]:
    """`SUITE: NAME` of each known failure of `suites`, with its reason."""
    known = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        check, separator, reason = line.partition(" | ")
        if not separator or not reason.strip():
            sys.exit(f"expected-failures.txt: no reason in: {line}")
        if check.split(":", 1)[0] in suites:
            known[check] = reason
    return known


def main(expected: str, results: str, suites: list[str]) -> int:
    """Prints what is not as expected, then the totals."""
    passed: list[str] = []
    failed: list[str] = []
    known = known_failures(Path(expected).read_text(encoding="utf-8"), suites)
    for line in Path(results).read_text(encoding="utf-8").splitlines():
        if found := LINE.match(line):
            outcome, suite, rest = found.groups()
            if outcome == "ok":
                passed.append(f"{suite}: {DURATION.sub('', rest)}")
            else:
                check = f"{suite}: {rest}"
                failed.append(next((name for name in known if check.startswith(f"{name}: ")), check))
    surprises = [check for check in failed if check not in known]
    stale = [check for check in known if check not in failed]
    for check in failed:
        print(f"# known: {check} | {known[check]}" if check in known else f"# FAILED: {check}")
    for check in stale:
        print(f"# NO LONGER FAILS (strike it from expected-failures.txt): {check}")
    print(f"{len(passed)} passed, {len(failed)} failed")
    return 1 if surprises or stale or not passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
