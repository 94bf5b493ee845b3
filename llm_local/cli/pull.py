"""`llm-local pull`: fetch a model into the models folder, with a bar on a terminal and lines elsewhere."""

from __future__ import annotations

import io
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from llm_local.address import shown
from llm_local.config import Settings
from llm_local.errors import StartupError
from llm_local.models.find import find_model
from llm_local.models.patience import Patience
from llm_local.models.progress import Progress

EXIT_INTERRUPTED = 130
LINE_EVERY_S = 5.0


def pull(settings: Settings, name: str, out: TextIO | None = None) -> int:
    """Fetch what is missing of a model and print where it is; return the exit code.

    The model of the settings comes from where `serve` would fetch it.

    Raises:
        StartupError: it cannot be had.
    """
    out = out or sys.stderr or io.StringIO()  # A daemon may have none.
    url, setting = (settings.model_url, "LLM_MODEL") if name == settings.model else (None, "NAME")
    found = find_model(name, url, settings.models_dir, checksum=settings.model_checksum, setting=setting)
    if isinstance(found, Path):
        print(f"{shown(name)} is here already", file=out)
        print(found)
        return 0
    from llm_local.models.pull import Wishes
    from llm_local.models.pull import pull as fetch

    show = Bar(out) if out.isatty() else Lines(lambda text: print(text, file=out, flush=True))
    patience = Patience(settings.download_retries, settings.download_timeout)
    try:
        path = fetch(found, Wishes(settings.models_dir, settings.model_checksum), patience, Progress(show))
    except KeyboardInterrupt:
        show.close()
        print("interrupted; the same command goes on where it stopped", file=out)
        return EXIT_INTERRUPTED
    except StartupError:
        show.close()
        raise
    show.close()
    print(path)
    return 0


class Lines:
    """Says how far it is every few seconds, and notes at once; for logs and pipes."""

    def __init__(
        self, say: Callable[[str], None], every_s: float = LINE_EVERY_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say, self._every_s, self._clock = say, every_s, clock
        self._last_at = float("-inf")
        self._last_note: str | None = None

    def __call__(self, progress: Progress) -> None:
        """Take a change."""
        if progress.note is not None:
            if progress.note != self._last_note:
                self._say(progress.note)
            self._last_note = progress.note
            return
        finished = progress.total and progress.done == progress.total
        if finished or self._clock() - self._last_at >= self._every_s:
            self._last_at = self._clock()
            self._say(str(progress))

    def close(self) -> None:
        """There is nothing to close."""


class Bar:
    """A bar with rate and time left; for terminals."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._bar: tqdm[None] | None = None
        self._last_note: str | None = None

    def __call__(self, progress: Progress) -> None:
        """Take a change."""
        if progress.note is not None:
            if progress.note != self._last_note:
                tqdm.write(progress.note, file=self._out)
            self._last_note = progress.note
            return
        if self._bar is None:
            columns, rows = shutil.get_terminal_size()
            self._bar = tqdm(
                total=progress.total or None,
                initial=progress.done,
                desc=progress.what,
                unit="B",
                unit_scale=True,
                # A container's terminal may say that it has no columns and no rows, and tqdm would show nothing.
                ncols=columns,
                nrows=rows,
                smoothing=0.1,
                file=self._out,
            )
        self._bar.update(progress.done - self._bar.n)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
