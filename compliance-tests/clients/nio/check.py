"""Named checks for the matrix-nio tests: the Python twin of ../lib/check.js, with the same output.

A check is a step in one conversation between real clients, so the order matters and what one made the next one uses.
Lines are read by ../summary.py: `ok SUITE: NAME (MS ms)` or `FAIL SUITE: NAME: REASON`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

CHECK_SECONDS_MAX = 60.0
UNTIL_SECONDS_MAX = 15.0
UNTIL_SECONDS_EVERY = 0.02

Value = TypeVar("Value")


class Suite:
    """Runs checks one after another and counts them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.passed = 0
        self.failed = 0

    async def check(self, name: str, body: Callable[[], Awaitable[None]]) -> bool:
        """Runs `body`; true if it returned in time without raising."""
        started = time.monotonic()
        try:
            await asyncio.wait_for(body(), CHECK_SECONDS_MAX)
        except Exception as error:  # a check may fail in any way, and the next ones still run
            self.failed += 1
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
            print(f"FAIL {self.name}: {name}: {reason}", flush=True)
            return False
        self.passed += 1
        print(f"ok {self.name}: {name} ({round((time.monotonic() - started) * 1000)} ms)", flush=True)
        return True

    def close(self) -> int:
        """Prints the closing line and gives the process's exit code."""
        print(f"{self.name}: {self.passed} passed, {self.failed} failed", flush=True)
        return 0 if self.failed == 0 else 1


async def until(what: str, condition: Callable[[], Value | None]) -> Value:
    """Waits until `condition` gives something truthy, and returns that."""
    deadline = time.monotonic() + UNTIL_SECONDS_MAX
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"after {UNTIL_SECONDS_MAX:g} s still not so: {what}")
        await asyncio.sleep(UNTIL_SECONDS_EVERY)


def equal(actual: Any, expected: Any) -> None:
    """Both values in the message, which a bare `assert` does not give."""
    if actual != expected:
        raise AssertionError(f"{actual!r} is not {expected!r}")


def expect(kind: type[Value], answer: Any) -> Value:
    """nio returns its errors: turns any other answer than `kind` into an exception."""
    if not isinstance(answer, kind):
        raise AssertionError(f"expected {kind.__name__}, got {answer}")
    return answer


def made(what: str, value: Value | None) -> Value:
    """A value made by an earlier check, or an error that names it."""
    if value is None:
        raise AssertionError(f"an earlier check did not make {what}")
    return value
