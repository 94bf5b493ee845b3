"""The Hugging Face hub and its cache, through huggingface_hub: HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and HF_HOME hold.

The only file that imports it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TypeVar
from urllib.parse import unquote

import httpx2
from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from llm_local.address import shown
from llm_local.errors import StartupError
from llm_local.models.catalogue import known_models, near_names
from llm_local.models.choose import choose
from llm_local.models.download import reason
from llm_local.models.patience import Patience, TryAgain
from llm_local.models.progress import Progress
from llm_local.models.remote import BUSY, RemoteFile, retry_after_s
from llm_local.models.source import HUB_HOSTS, HubFile

T = TypeVar("T")

ASK_TIMEOUT_S = 10.0
PUBLIC = tuple(f"https://{host}" for host in HUB_HOSTS)
_SHA256 = re.compile(r"[0-9a-f]{64}")


def endpoint() -> str:
    """Return the base address of the hub."""
    return str(constants.ENDPOINT)


def _hub() -> str:
    return shown(endpoint())


class Hub:
    """Asks the hub about one model."""

    def __init__(self, source: HubFile, patience: Patience, progress: Progress) -> None:
        self._source, self._patience, self._progress = source, patience, progress

    def files(self) -> list[RemoteFile]:
        """Return the files that the source means, all shards in order, at one commit.

        Raises:
            StartupError: there is no such file or repository, it is gated, or the hub cannot be reached.
        """
        source = self._source
        info = self._ask(
            lambda: HfApi(endpoint=endpoint()).model_info(
                source.repository, revision=source.revision, timeout=ASK_TIMEOUT_S
            )
        )
        names = choose(source, [sibling.rfilename for sibling in info.siblings or []])
        return [self._file(name, info.sha or source.revision) for name in names]

    def _file(self, name: str, commit: str) -> RemoteFile:
        url = hf_hub_url(self._source.repository, name, revision=commit, endpoint=endpoint())
        known = self._ask(lambda: get_hf_file_metadata(url, timeout=ASK_TIMEOUT_S, endpoint=endpoint()))
        etag = known.etag or ""
        return RemoteFile(
            name=PurePosixPath(name).name,
            url=url,
            headers=build_hf_headers(library_name="llm-local"),
            size=known.size or None,
            sha256=etag if _SHA256.fullmatch(etag) else None,
            version=etag,
        )

    def _ask(self, call: Callable[[], T]) -> T:
        what = f"asking the hub for {self._source.repository}"
        while True:
            try:
                return call()
            except OfflineModeIsEnabled:
                raise StartupError(offline(self._source) or "HF_HUB_OFFLINE is set") from None
            except HfHubHTTPError as error:
                failure = self._explained(error)
            except httpx2.InvalidURL as error:
                raise StartupError(f"{_hub()} is no address ({error}): check HF_ENDPOINT") from None
            except httpx2.RequestError as error:
                failure = TryAgain(
                    f"{_hub()} cannot be reached ({reason(error)}): check the network, HTTPS_PROXY and "
                    "HF_ENDPOINT, or copy the files into the models folder by hand"
                )
            except HFValidationError:
                raise StartupError(f"'{self._source.repository}' is no name of a repository") from None
            except UnicodeEncodeError:
                raise StartupError("HF_TOKEN has letters that are in no token: copy it again") from None
            except (ValueError, TypeError, KeyError):
                raise StartupError(f"{_hub()} does not answer as a hub does: check HF_ENDPOINT") from None
            self._patience.check(what)
            self._patience.wait(what, failure, self._progress.say)

    def _explained(self, error: HfHubHTTPError) -> TryAgain:
        """Return what may pass.

        Raises:
            StartupError: what will not.
        """
        repository, page = self._source.repository, f"{_hub()}/{self._source.repository}"
        status = error.response.status_code
        if status in BUSY:
            return TryAgain(f"the hub answered {status}", retry_after_s(error.response.headers))
        if isinstance(error, GatedRepoError):
            raise StartupError(
                f"{repository} is gated ({status}): accept its conditions at {page} and set HF_TOKEN to a token "
                "of that account"
            ) from None
        if isinstance(error, RevisionNotFoundError):
            raise StartupError(
                f"{repository} has no revision '{self._source.revision}'; main is the usual one"
            ) from None
        if isinstance(error, RemoteEntryNotFoundError):
            raise StartupError(f"{repository} lists {self._source.file or 'the file'} but does not have it") from None
        if isinstance(error, RepositoryNotFoundError) or status in (401, 403, 404):
            raise StartupError(self._missing(status)) from None
        raise StartupError(f"{page}: the hub answered {status}") from None

    def _missing(self, status: int) -> str:
        known = [model.repository for model in known_models() if model.repository]
        near = near_names(self._source.repository, known)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        mirror = "" if endpoint() in PUBLIC else "; or HF_ENDPOINT is no hub"
        return (
            f"there is no repository {self._source.repository} at {_hub()}, or it is private and HF_TOKEN does not "
            f"open it ({status}){hint}{mirror}"
        )


def offline(source: HubFile) -> str | None:
    """Return what is said of a model that is not here where the hub may not be asked; None where it may."""
    if not constants.HF_HUB_OFFLINE:
        return None
    return (
        f"HF_HUB_OFFLINE is set, and {source} is neither whole in the models folder nor in the cache "
        f"{constants.HF_HUB_CACHE}: unset it, or copy all of its files there by hand"
    )


def cached_model(source: HubFile) -> Path | None:
    """Return the first shard of a model that is whole in the hub's cache, without asking the hub."""
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=source.repository, repo_type="model")
    try:
        commit = (folder / "refs" / source.revision).read_text().strip()
    except OSError:
        commit = source.revision
    snapshot = folder / "snapshots" / commit
    try:
        names = [str(path.relative_to(snapshot)) for path in snapshot.rglob("*.gguf") if path.is_file()]
        return snapshot / choose(source, names)[0] if names else None
    except (StartupError, OSError):  # Another user's cache may not be readable.
        return None


def cached_file(repository: str, remote: RemoteFile) -> Path | None:
    """Return a file of the hub's cache with the size and version of `remote`."""
    commit, name = _commit_and_path(remote.url)
    found = try_to_load_from_cache(repository, name, revision=commit)
    if not isinstance(found, str):
        return None
    path = Path(found)
    return path if remote.size in (None, path.stat().st_size) else None


def cached_sha256(path: Path) -> str | None:
    """Return the sha256 of a file in the hub's cache, which names large files by it; None of any other file."""
    name = path.resolve().name
    return name if _SHA256.fullmatch(name) else None


def _commit_and_path(url: str) -> tuple[str, str]:
    commit, _, name = url.partition("/resolve/")[2].partition("/")
    return commit, unquote(name)
