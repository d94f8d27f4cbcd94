#!/usr/bin/env python3
"""What users of two servers do with each other, in both directions, and then those of three.

flows.py SERVERS [FLOW...]: a JSON file with the servers to start, two Guildhalls and a Synapse, and which flows are
wanted (all). Each check prints a line; the exit code says whether all of them passed.
"""

import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import client
import encryption
import outages
import people
import rooms
import three
from client import PATIENCE, Refused, User
from servers import running

# Nobody waits long for what is known to fail, in seconds.
PATIENCE_KNOWN = 8

def checks(guildhall, guest, synapse):
    """Flow, what tells its runs apart, and the servers of its users."""
    def of_two(flows):
        for flow in flows:
            yield flow, "from ours", (guildhall, synapse)
            yield flow, "from theirs", (synapse, guildhall)

    yield from of_two(rooms.FLOWS + people.FLOWS + encryption.FLOWS)
    for flow in three.FLOWS:
        for order in ((guildhall, synapse, guest), (synapse, guildhall, guest), (guildhall, guest, synapse)):
            yield flow, "of " + ", ".join(server.name for server in order), order
    # Last, so that what they break breaks nothing else.
    yield from of_two(outages.FLOWS)


def known_failures():
    """Name and reason of each known gap."""
    lines = Path(__file__).with_name("expected-failures.txt").read_text(encoding="utf-8").splitlines()
    entries = [line.split(" | ", 1) for line in lines if line and not line.startswith("#")]
    return {name: reason for name, reason in entries}


def outcome(flow, where):
    """What went wrong, if anything."""
    try:
        flow(*(User(server, who) for server, who in zip(where, ("one", "other", "third"))))
        return None
    except (AssertionError, Refused) as error:
        return str(error) or "an assertion"
    except Exception as error:
        traceback.print_exc()
        return repr(error)


def main(path, *wanted):
    known, counts = known_failures(), Counter()
    with running(path) as servers:
        for flow, kind, where in checks(*servers):
            if wanted and flow.__name__ not in wanted:
                continue
            name, begin = f"{flow.__name__}: {kind}", time.monotonic()
            client.PATIENCE = PATIENCE_KNOWN if name in known else PATIENCE
            wrong = outcome(flow, where)
            if wrong and name in known:
                result, wrong = "known", known[name]
            elif wrong or name in known:
                result, wrong = "FAIL", wrong or "no longer fails, strike it from expected-failures.txt"
            else:
                result = "ok"
            counts[result] += 1
            took = f"{time.monotonic() - begin:5.1f} s"
            print(f"{result:<5} {took}  {name}" + (f" | {wrong}" if wrong else ""), flush=True)
    print(f"{counts['ok']} passed, {counts['FAIL']} failed, {counts['known']} known to fail")
    sys.exit(1 if counts["FAIL"] or not counts["ok"] else 0)


# So that the servers are stopped then, too.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
main(*sys.argv[1:])
