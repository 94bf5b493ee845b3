"""Progress on stderr: a bar on a terminal, a line a round elsewhere."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from llm_local.bench.result import ALL, Round


class Lines:
    """One plain line for each round."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._what = ""
        self._n_rounds = 0

    def begin(self, workload: str, load: str, n_rounds: int) -> None:
        """A workload under a load begins."""
        self._what, self._n_rounds = f"{workload}, {load}", n_rounds

    def answer(self) -> None:
        """An answer came."""

    def round(self, number: int, rounds: dict[str, Round]) -> None:
        """All servers have had their round."""
        shown = ", ".join(f"{name} {short(result)}" for name, result in rounds.items())
        self.note(f"{self._what}, round {number + 1}/{self._n_rounds}: {shown}")

    def note(self, text: str) -> None:
        """Say something once."""
        print(text, file=self._out, flush=True)

    def close(self) -> None:
        """Nothing is left open."""


class Bar(Lines):
    """A bar of rounds with a count of answers."""

    def __init__(self, out: TextIO | None = None) -> None:
        from tqdm import tqdm

        super().__init__(out)
        self._tqdm: Any = tqdm
        self._bar: Any = None
        self._n_answers = 0

    def begin(self, workload: str, load: str, n_rounds: int) -> None:
        """A workload under a load begins."""
        super().begin(workload, load, n_rounds)
        self.close()
        # Twice a second is enough: it takes time on the cores that are measured. (`miniters`: within rounds, too.)
        self._bar = self._tqdm(
            total=n_rounds, desc=self._what, unit="round", mininterval=0.5, miniters=0, file=self._out
        )

    def answer(self) -> None:
        """An answer came."""
        self._n_answers += 1
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self._n_answers} answers", refresh=False)
            self._bar.update(0)

    def round(self, number: int, rounds: dict[str, Round]) -> None:
        """All servers have had their round."""
        super().round(number, rounds)
        self._bar.update(1)

    def note(self, text: str) -> None:
        """Say something once, above the bar."""
        self._tqdm.write(text, file=self._out)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


@contextmanager
def byte_bar(out: TextIO | None = None) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how many bytes were written; the value is told of each piece."""
    out = out or sys.stderr
    if not out.isatty():
        yield lambda n: None
        return
    from tqdm import tqdm

    with tqdm(unit="B", unit_scale=True, mininterval=0.5, file=out) as bar:
        yield lambda n: bar.update(n) and None


def short(result: Round) -> str:
    """Return the figure that says most in a few characters, and the number of failures."""
    figures = result.groups.get(ALL) or next(iter(result.groups.values()), {})
    chosen = [("tok_s", "tok/s"), ("inputs_s", "inputs/s"), ("gap_p99_ms", "ms gap p99")]
    known = [f"{figures[name]:.1f} {unit}" for name, unit in chosen if not math.isnan(figures.get(name, math.nan))]
    failed = sum(result.errors.values())
    return (known or ["no answer"])[0] + (f" ({failed} failed)" if failed else "")
