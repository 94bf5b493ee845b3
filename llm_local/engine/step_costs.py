"""How long a decode of certain rows takes: their number, their logits, and the cells that they attend to.

`StepTime` learns seconds by work on this machine. Here rows become work: a row alone is 1, its logits and each cell of
its context are shares of that. So a step that was measured deep in a long prompt says nothing wrong about the next one
among short answers. What a cell costs is learnt, too, beginning with the backend's estimate. Engine thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from llm_local.engine.step_time import StepTime

WEIGHT, MOST_STEP, MOST_WRONG = 0.3, 1.25, 2.0
"""Of a decode that is attention alone in what a cell costs; by what factor that may change at once, and in all."""

FORGET = 0.01
"""Part of what was learnt of cells in batches of the other kind (with tiles or without) that a decode lets go: what is
not seen any more, perhaps because it seemed too dear, may have changed."""


@dataclass(frozen=True, slots=True)
class RowCosts:
    """What comes with a row of a decode, as shares of the row without it.

    Attributes:
        output: its logits.
        cell: a cell that it attends to.
        tiled_cell: the same in a batch of `tile` rows and more, where attention is computed for so many rows at once:
            all rows of a tile go over the cells of each of them.
        tile: 0 where attention is computed the same way in all batches.
    """

    output: float = 0.0
    cell: float = 0.0
    tiled_cell: float = 0.0
    tile: int = 0


class Rows(Protocol):
    """Numbers of a batch; see `batch.Rows`."""

    n_rows: int
    n_outputs: int
    n_seen: float
    n_seen_in_tiles: float


class StepCosts:
    """Work and seconds of decodes.

    Args:
        costs: the backend's estimate.
        step_time: seconds by work.
    """

    def __init__(self, costs: RowCosts, step_time: StepTime) -> None:
        self.step_time = step_time
        self._costs = costs
        self._first_cell = {False: costs.cell, True: costs.tiled_cell}
        self._cell = dict(self._first_cell)

    @property
    def tile(self) -> int:
        """Rows from which on attention is computed by the tile; 0 when it never is."""
        return self._costs.tile

    def work(self, rows: Rows) -> float:
        """Return the work of a batch."""
        tiled = self._is_tiled(rows.n_rows)
        seen = rows.n_seen_in_tiles if tiled else rows.n_seen
        return rows.n_rows + self._costs.output * rows.n_outputs + self._cell[tiled] * seen

    def prompt_work(self, n: int, position: int) -> float:
        """Return the work of a batch of `n` rows of one prompt, from `position` on."""
        tiled = self._is_tiled(n)
        seen = cells_seen_in_tiles(n, position, self.tile) if tiled else cells_seen(n, position)
        return n + self._cell[tiled] * seen

    def row_work(self, position: int, *, outputs: float = 1.0) -> float:
        """Return the work of one more row at `position` in a batch of few, which has logits or a share of them."""
        return 1.0 + self._costs.output * outputs + self._cell[False] * position

    def seconds(self, work: float) -> float | None:
        """Return how long so much work will take; None when nothing is known."""
        return self.step_time.seconds(work)

    def work_within(self, seconds: float) -> float | None:
        """Return how much work takes at most `seconds`; None when nothing is known."""
        return self.step_time.work_within(seconds)

    def note(self, rows: Rows, seconds: float) -> None:
        """Take in how long a decode took: the more of it is attention, the more it says of cells, the less of rows."""
        tiled = self._is_tiled(rows.n_rows)
        cell, seen = self._cell[tiled], rows.n_seen_in_tiles if tiled else rows.n_seen
        work = self.work(rows)
        attention = cell * seen / work
        worked = self.step_time.work_within(seconds)
        self.step_time.note(work, seconds, trust=1.0 - attention)
        if worked is not None and cell > 0.0:
            found = (worked - work * (1.0 - attention)) / seen
            found = min(max(found, cell / MOST_STEP), cell * MOST_STEP)
            first = self._first_cell[tiled]
            learnt = cell + WEIGHT * attention * (found - cell)
            self._cell[tiled] = min(max(learnt, first / MOST_WRONG), first * MOST_WRONG)
        self._cell[not tiled] += FORGET * (self._first_cell[not tiled] - self._cell[not tiled])

    def _is_tiled(self, n_rows: int) -> bool:
        return 0 < self.tile <= n_rows


def cells_seen(n: int, position: int) -> float:
    """Return how many cells `n` rows from `position` on attend to, one after the other."""
    return n * (position + n / 2)


def cells_seen_in_tiles(n: int, position: int, tile: int) -> float:
    """Return the same where whole tiles of rows attend to what any of their rows does."""
    return tile * -(-n // tile) * (position + n / 2) if tile else cells_seen(n, position)
