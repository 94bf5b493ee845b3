"""Where a model comes from: a repository of the hub, or an address. What people write, read once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from llm_local.address import shown
from llm_local.errors import StartupError
from llm_local.models.catalogue import KnownModel, find, find_repository
from llm_local.models.names import as_quantization, parse_name, shard_names

HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")

_REPOSITORY = r"(?P<repository>[\w][\w.-]*/[\w][\w.-]*)"
_COLON = re.compile(rf"{_REPOSITORY}:(?P<file>.+)")
_RESOLVE = re.compile(rf"/{_REPOSITORY}/(?:resolve|blob|raw)/(?P<revision>[^/]+)/(?P<file>.+)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PAGE = re.compile(rf"/{_REPOSITORY}/?(?:tree/(?P<revision>[^/]+)/?)?")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A model in a repository of the hub.

    Attributes:
        file: as it was asked for; the repository may publish it in shards or spell it otherwise. None: by quantization.
        quantization: where no file was named; None is the repository's only one, or the catalogue's default.
    """

    repository: str
    file: str | None = None
    quantization: str | None = None
    revision: str = "main"

    def __str__(self) -> str:
        return f"{self.repository}:{self.file or self.quantization or 'default'}"


@dataclass(frozen=True, slots=True)
class WebFile:
    """A file, or the first of its shards, at an address of its own; `name` is what it is called here."""

    url: str
    name: str

    def __str__(self) -> str:
        return shown(self.url)


Source = HubFile | WebFile


def is_source(text: str) -> bool:
    """Tell whether what people wrote says itself where to fetch: an address or REPO:FILE."""
    return "://" in text or _COLON.fullmatch(text) is not None


def source_of(name: str, url: str | None, endpoint: str, *, setting: str = "LLM_MODEL") -> Source | None:
    """Return where to fetch a model from, None where neither its name nor an address says so.

    Args:
        name: a catalogue name, REPO:FILE, an address, or a file's name.
        url: an address or REPO:FILE, which wins; for a plain address the file is called by `name`.
        endpoint: base address of the hub.
        setting: what `name` was written in, for messages.

    Raises:
        StartupError: the two name different models, or the address is none.
    """
    by_name = read_source(name, endpoint)
    if not url:
        return by_name
    by_url = read_source(url, endpoint)
    if by_url is None or not is_source(url):
        raise StartupError(f"{setting}_URL: '{shown(url)}' is neither an https address nor REPO:FILE of the hub")
    _check_same(name, by_url, setting)
    # Shards find each other by their names, so that they keep those.
    if isinstance(by_url, WebFile) and name.lower().endswith(".gguf") and len(shard_names(by_url.name)) == 1:
        return WebFile(by_url.url, Path(name).name)
    return by_url


def read_source(text: str, endpoint: str) -> Source | None:
    """Return what an address, REPO:FILE or a name of the catalogue means; None where it is none of them.

    Raises:
        StartupError: it begins as an address does, and is none.
    """
    if re.match(r"https?://", text, re.IGNORECASE):
        try:
            return _from_url(text, endpoint)
        except ValueError as error:
            raise StartupError(f"'{shown(text)}' is no address: {error}") from None
    colon = _COLON.fullmatch(text)
    if colon is not None:
        return _hub_file(colon["repository"], colon["file"])
    if find_repository(text) is not None:
        return _hub_file(text, None)
    name = parse_name(text)
    model = find(name)
    return None if model is None else of_known(model, name.quantization)


def of_known(model: KnownModel, quantization: str | None) -> HubFile | None:
    """Return where a quantization of a known model is published; None where it comes with a package."""
    if model.repository is None:
        return None
    published = model.published(quantization)
    if published is not None:
        return HubFile(model.repository, published.file)
    return HubFile(model.repository, quantization=quantization)


def local_name(source: Source) -> str | None:
    """Return what the file is called on a disk, as far as the source tells without asking the hub.

    Of a repository that the catalogue does not know only the quantization may be given. By custom its files are
    called as it is.
    """
    if isinstance(source, WebFile):
        return source.name
    if source.file is not None:
        return PurePosixPath(source.file).name
    model = find_repository(source.repository)
    published = model.published(source.quantization) if model is not None else None
    if published is not None:
        return published.file
    stem = model.name if model is not None else repository_stem(source)
    return f"{stem}-{source.quantization}" if source.quantization is not None else None


def repository_stem(source: HubFile) -> str:
    """Return how the names of a repository's files begin by custom: as its own, in lower case, without `-GGUF`."""
    return re.sub(r"[-._]gguf$", "", source.repository.rpartition("/")[2].lower())


def shard_urls(url: str) -> list[str]:
    """Return the addresses of all shards of the set that an address names."""
    head, _, last = urlsplit(url).path.rpartition("/")
    return [url.replace(f"{head}/{last}", f"{head}/{name}", 1) for name in shard_names(last)]


def _from_url(url: str, endpoint: str) -> Source:
    parts, base = urlsplit(url), urlsplit(endpoint)
    path = parts.path
    if parts.netloc == base.netloc and path.startswith(base.path.rstrip("/") + "/"):
        path = path[len(base.path.rstrip("/")) :]
    elif parts.hostname not in HUB_HOSTS:
        return _web_file(url)
    # A revision may have slashes, which are escaped: refs%2Fpr%2F1.
    found = _RESOLVE.fullmatch(path)
    if found is not None:
        return _hub_file(found["repository"], unquote(found["file"]), unquote(found["revision"]))
    page = _PAGE.fullmatch(path)
    if page is not None and (parts.hostname in HUB_HOSTS or page["revision"]):
        return _hub_file(page["repository"], None, unquote(page["revision"] or "main"))
    return _web_file(url)


def _web_file(url: str) -> WebFile:
    name = shard_names(PurePosixPath(unquote(urlsplit(url).path)).name)[0]
    return WebFile(url, name if name.strip(".") and not _CONTROL.search(name) else "model.gguf")


def _hub_file(repository: str, file: str | None, revision: str = "main") -> HubFile:
    """Return the file under the repository's real name, where the catalogue knows that people use another."""
    model = find_repository(repository)
    if model is not None and model.repository is not None:
        repository = model.repository
    kind = as_quantization(file) if file is not None else None
    return HubFile(repository, None, kind, revision) if kind or not file else HubFile(repository, file, None, revision)


def _check_same(name: str, source: Source, setting: str) -> None:
    """Refuse an address that was left over from another model: it would be served under the wrong name."""
    file = local_name(source)
    if file is None:
        return
    asked, fetched = parse_name(name), parse_name(file)
    other_kind = None not in (asked.quantization, fetched.quantization) and asked.quantization != fetched.quantization
    models = (find(asked), find(fetched))
    if other_kind or (None not in models and models[0] is not models[1]):
        raise StartupError(
            f"{setting} is {shown(name)}, and {setting}_URL is the address of {file}: "
            f"change {setting}_URL to match, or unset it"
        )
