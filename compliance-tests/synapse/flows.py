#!/usr/bin/env python3
"""What users of two servers do with each other, in both directions, and then those of three.

flows.py SERVERS [FLOW...]: a JSON file with the servers to start, two Guildhalls and a Synapse, and which flows are
wanted (all). Each check prints a line; the exit code says whether all of them passed.
"""

import signal
import sys
import time
import traceback

import encryption
import outages
import people
import rooms
import three
from client import Refused, User
from servers import running

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


def main(path, *wanted):
    failed = done = 0
    with running(path) as servers:
        for flow, kind, where in checks(*servers):
            if wanted and flow.__name__ not in wanted:
                continue
            name, begin = f"{flow.__name__} {kind}", time.monotonic()
            try:
                flow(*(User(server, who) for server, who in zip(where, ("one", "other", "third"))))
                result = "ok   "
            except Exception as error:
                failed += 1
                result, name = "FAIL ", f"{name}: {error}"
                if not isinstance(error, (AssertionError, Refused)):
                    traceback.print_exc()
            done += 1
            print(f"{result} {time.monotonic() - begin:5.1f} s  {name}", flush=True)
    print(f"{done - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


# So that the servers are stopped then, too.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
main(*sys.argv[1:])
