"""The files that `serve` loads: found at the start, fetched in the background when they are missing."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from llm_local.cli.pull import Lines
from llm_local.config import Settings
from llm_local.errors import Draining
from llm_local.models.find import find_model
from llm_local.models.patience import Patience
from llm_local.models.progress import Progress
from llm_local.models.source import Source

if TYPE_CHECKING:
    from llm_local.cli.fit import Weights

log = logging.getLogger("llm_local")

LINE_EVERY_S = 10.0
LOOK_EVERY_S = 0.1


class WeightFiles:
    """Where the model and its helpers are, or come from.

    Made on the main thread; `get` runs on the loader's, and downloads on one of its own, which the process does not
    wait for at its end: what has come by then is a file that the next start goes on with.
    """

    def __init__(self, settings: Settings) -> None:
        """Look for the files.

        Raises:
            StartupError: one is not here, and nothing says where it could be fetched.
        """
        self._settings = settings
        self._stop = threading.Event()
        self._progress: Progress | None = None
        named = "model" in settings.model_fields_set or not settings.model_url
        self._found: dict[str, Path | Source] = {
            "model": find_model(
                settings.model if named else "",
                settings.model_url,
                settings.models_dir,
                checksum=settings.model_checksum,
            )
        }
        embedding = settings.embedding_model if settings.embedding else None
        for helper, name in (("embedding", embedding), ("draft", settings.draft_model)):
            if name:
                setting = f"LLM_{helper.upper()}_MODEL"
                self._found[helper] = find_model(name, None, settings.models_dir, setting=setting)

    @property
    def name(self) -> str:
        """What is loaded, for the log."""
        found = self._found["model"]
        return found.name if isinstance(found, Path) else str(found)

    def doing(self) -> str:
        """Say what a client waits for."""
        if self._progress is not None:
            return f"The model is not here yet: {self._progress}."
        return "The model is being loaded; try again in a moment."

    def give_up(self) -> None:
        """End a download that runs."""
        self._stop.set()

    def get(self) -> Weights:
        """Return the files, when all of them are here.

        Raises:
            StartupError: one cannot be had.
            Draining: the process was told to stop meanwhile.
        """
        from llm_local.cli.fit import Weights

        for name, found in self._found.items():
            if not isinstance(found, Path):
                self._found[name] = self._fetch(name, found)
        self._progress = None
        paths = {name: path for name, path in self._found.items() if isinstance(path, Path)}
        return Weights(**paths)

    def _fetch(self, name: str, source: Source) -> Path:
        from llm_local.models.pull import Wishes, pull

        log.info("%s is not in %s/: fetching it", source, self._settings.models_dir)
        lines = Lines(log.info, LINE_EVERY_S)

        def on_change(progress: Progress) -> None:
            if self._stop.is_set():
                raise Draining("The server is shutting down.")
            lines(progress)

        self._progress = Progress(on_change)
        settings, checksum = self._settings, self._settings.model_checksum
        # A given sha256 is the model's own; helpers are checked by what their servers publish.
        given = checksum if name == "model" or checksum == "off" else "sha256:auto"
        patience = Patience(settings.download_retries, settings.download_timeout, sleep=self._stop.wait)
        done: Future[Path] = Future()

        def run() -> None:
            assert self._progress is not None
            try:
                done.set_result(pull(source, Wishes(settings.models_dir, given), patience, self._progress))
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=run, name="download", daemon=True).start()
        while not self._stop.is_set():
            concurrent.futures.wait([done], timeout=LOOK_EVERY_S)
            if done.done():
                path = done.result()
                log.info("fetched %s", path)
                return path
        raise Draining("The server is shutting down.")
