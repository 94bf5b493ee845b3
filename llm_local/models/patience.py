"""How often and how long a download is tried again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from llm_local.errors import StartupError

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 30.0


class TryAgain(Exception):
    """A failure that may pass: a cut connection, a server that is busy.

    Attributes:
        retry_after_s: what the server asked for.
    """

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class Patience:
    """Counts failures in a row and waits between tries: 1 s, then twice as long each time, or what the server says.

    Attributes:
        retries: tries after the first, until bytes come again.
        timeout_s: for the whole model.
        sleep, clock: of this process; tests have their own.
    """

    retries: int
    timeout_s: float
    sleep: Callable[[float], object] = time.sleep
    clock: Callable[[], float] = time.monotonic
    failures: int = 0
    _deadline: float = field(init=False)

    def __post_init__(self) -> None:
        self._deadline = self.clock() + self.timeout_s

    @property
    def seconds_left(self) -> float:
        """Time until the download is given up."""
        return self._deadline - self.clock()

    def check(self, what: str) -> None:
        """Give up when the time is over.

        Raises:
            StartupError: it is.
        """
        if self.seconds_left <= 0:
            raise StartupError(
                f"{what} took longer than LLM_DOWNLOAD_TIMEOUT ({self.timeout_s:g} s); "
                "start again and it goes on where it stopped, or raise the limit"
            )

    def progressed(self) -> None:
        """Bytes came: the next failure is a first one."""
        self.failures = 0

    def wait(self, what: str, failure: TryAgain, say: Callable[[str], None]) -> None:
        """Wait before the next try.

        Raises:
            StartupError: there is none left, or the wait would be longer than the time that is.
        """
        self.failures += 1
        if self.failures > self.retries:
            tries = f"{self.failures} tries" if self.failures > 1 else "one try"
            raise StartupError(
                f"{what} failed after {tries}: {failure}; start again and it goes on where it stopped "
                "(LLM_DOWNLOAD_RETRIES allows more tries)"
            )
        seconds = failure.retry_after_s
        if seconds is None:
            seconds = min(FIRST_WAIT_S * 2.0 ** (self.failures - 1), LONGEST_WAIT_S)
        if seconds > self.seconds_left:
            raise StartupError(
                f"{what} failed: {failure}; the next try would be in {seconds:.0f} s, after LLM_DOWNLOAD_TIMEOUT "
                f"({self.timeout_s:g} s) is over; start again later"
            )
        say(f"{what}: {failure}; trying again in {seconds:.0f} s ({self.failures} of {self.retries})")
        self.sleep(seconds)
