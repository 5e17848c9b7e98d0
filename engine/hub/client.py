"""A model of the hub as a local file: asked for, chosen, downloaded, linked; without a network, what the cache has."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixkv.engine.hub import Progress
from mixkv.engine.hub.cache import INCOMPLETE, RepoCache
from mixkv.engine.hub.choice import choose
from mixkv.engine.hub.download import TIMEOUT_SECONDS, RemoteFile, download, transport_errors
from mixkv.engine.hub.inventory import find
from mixkv.engine.hub.reference import Reference, is_gguf, is_safe
from mixkv.kernels.errors import HubError, MixkvWarning

OLDEST_LIBRARY = 1
"""Major version of huggingface_hub."""
HEX = re.compile("[0-9a-f]+")
TOKEN = re.compile("[!-~]*")
LOCKS = ".locks"
SIMILAR = 50
"""Models of a user among which a wrong name's neighbours are looked for."""


@dataclass(frozen=True)
class Listing:
    """What the hub says of a repository's newest commit."""

    commit: str
    files: dict[str, RemoteFile]


class Hub:
    """The hub and its cache. What is not given is what the huggingface_hub package takes from the environment."""

    def __init__(
        self, *, endpoint: str | None = None, cache: Path | None = None, token: str | None = None,
        offline: bool = False, pause: float = 1.0,
    ) -> None:  # fmt: skip
        """offline: the cache alone. pause: seconds before a broken download is tried again. Raises HubError."""
        package = library()
        constants = package.constants
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self.cache = Path(constants.HF_HUB_CACHE) if cache is None else cache
        self.offline = offline or constants.HF_HUB_OFFLINE
        if not (self.offline or token or constants.HF_HUB_DISABLE_IMPLICIT_TOKEN):
            try:
                token = package.get_token()
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "it is no text"
                raise HubError(f"{constants.HF_TOKEN_PATH}: the token for the hub cannot be read: {reason}") from None
        if not TOKEN.fullmatch(token or ""):  # the HTTP library's own message would show it
            raise HubError("the token for the hub, from HF_TOKEN or as given, has characters that no token has")
        self._token: str | bool = token or False
        self._pause = pause

    def get(self, reference: Reference, progress: Progress | None = None) -> Path:
        """The path of the model, of its first file where it is split. progress: called while bytes come.

        Raises HubError: no such model, with the names that there are; no network and not in the cache; no room for it;
        damaged. Where the hub cannot be asked and the cache has the model, that is a MixkvWarning.
        """
        if self.offline:
            return self.cached(reference)
        try:
            listing = self._list(reference.repo)
        except HubError as problem:
            return self._cached_anyway(reference, problem)
        chosen = choose(listing.files, reference, "the hub")
        repo = RepoCache(self.cache, reference.repo)
        try:
            self._complete(repo, listing.commit, [listing.files[name] for name in chosen.files], progress)
        except OSError as error:
            reason = f"{error.filename or self.cache}: the cache cannot be used: {error.strerror or error}"
            return self._cached_anyway(reference, HubError(f"{reason}; HF_HOME puts it elsewhere"))
        repo.remember(listing.commit)
        return repo.path(listing.commit, chosen.name)

    def _cached_anyway(self, reference: Reference, problem: HubError) -> Path:
        """What the cache has, with a warning, where the hub's newest cannot be had. Raises HubError."""
        try:
            path = self.cached(reference)
        except HubError as missing:
            raise HubError(f"{problem}; {missing}") from None
        warnings.warn(f"{problem}; the model is taken from the cache", MixkvWarning, stacklevel=3)
        return path

    def cached(self, reference: Reference) -> Path:
        """The same from the cache alone. Raises HubError, with the names that there are, if it is not there."""
        model, files = find(self.cache, reference)
        return files[model.name]

    def _list(self, repo: str) -> Listing:
        """Ask the hub what there is. Raises HubError."""
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

        url = f"{self.endpoint}/{repo}"
        network: tuple[type[Exception], ...] = (*transport_errors(), OSError)
        try:
            return _checked(self._api().model_info(repo, files_metadata=True, timeout=TIMEOUT_SECONDS), url)
        except GatedRepoError:
            raise HubError(
                f"{url} is open to those alone who accepted its terms: do that there, set HF_TOKEN"
            ) from None
        except RepositoryNotFoundError:
            raise HubError(
                f"the hub has no model {repo} that this user may see{self._similar(repo)}; a private one needs HF_TOKEN"
            ) from None
        except HfHubHTTPError as error:
            raise HubError(f"{url}: the hub answered {error.response.status_code}") from None
        except network as error:
            raise HubError(f"{self.endpoint} cannot be reached: {str(error) or type(error).__name__}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise HubError(_no_hub(url)) from None

    def _similar(self, repo: str) -> str:
        """Names of the same user's models, nearest first, for a message."""
        import difflib

        names: list[str] = []
        with suppress(*transport_errors(), OSError, ValueError, KeyError, TypeError):
            user = repo.partition("/")[0]
            names = [info.id for info in self._api().list_models(author=user, filter="gguf", limit=SIMILAR)]
        names = [name for name in names if isinstance(name, str) and name.isprintable()]
        near = difflib.get_close_matches(repo, names, n=5, cutoff=0.0)
        return f" (its user has {', '.join(near)})" if near else ""

    def _api(self) -> Any:
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, token=self._token, library_name="mixkv")

    def _complete(self, repo: RepoCache, commit: str, files: Sequence[RemoteFile], progress: Progress | None) -> None:
        """Have all these files in the snapshot. Raises HubError, OSError."""
        absent = [file for file in files if not _has(repo.path(commit, file.name), file)]
        wanted = {file.digest: file for file in absent if not _has(repo.blobs / file.digest, file)}
        if wanted:
            repo.blobs.mkdir(parents=True, exist_ok=True)
            self._check_room(repo, list(wanted.values()))
        total, done = sum(file.size for file in files), sum(file.size for file in files if file.digest not in wanted)
        for file in wanted.values():
            self._download(repo, commit, file, lambda n, done=done: progress and progress(done + n, total))
            done += file.size
        for file in absent:
            repo.place(commit, file.name, file.digest)

    def _download(self, repo: RepoCache, commit: str, file: RemoteFile, report: Any) -> None:
        """Have the contents of one file among the blobs; while another process gets the same ones, wait for it."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import WeakFileLock, build_hf_headers

        lock = self.cache / LOCKS / repo.folder.name / f"{file.digest}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if _has(repo.blobs / file.digest, file):
                return
            url = hf_hub_url(repo.repo, file.name, revision=commit, endpoint=self.endpoint)
            part = repo.blobs / f"{file.digest}{INCOMPLETE}"
            headers = build_hf_headers(token=self._token, library_name="mixkv")
            download(file, part, url, headers, report=report, pause=self._pause)
            part.replace(repo.blobs / file.digest)

    def _check_room(self, repo: RepoCache, files: Sequence[RemoteFile]) -> None:
        """HubError where the disk has no room for what is to come."""
        needed = 0
        for file in files:
            part = repo.blobs / f"{file.digest}{INCOMPLETE}"
            needed += file.size - (part.stat().st_size if part.exists() else 0)
        free = shutil.disk_usage(repo.blobs).free
        if needed > free:
            raise HubError(
                f"{repo.repo} takes {needed / 1e9:.2f} GB more, and where the cache is, {self.cache}, {free / 1e9:.2f} "
                "GB are free: make room, take a smaller quantization, or put the cache elsewhere (HF_HOME)"
            )


def library() -> Any:
    """The huggingface_hub package. HubError says how to get it."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
    except ImportError:
        found = "which is not installed"
    else:
        if int(huggingface_hub.__version__.partition(".")[0]) >= OLDEST_LIBRARY:
            return huggingface_hub
        found = f"but {huggingface_hub.__version__} is installed"
    raise HubError(
        f"models of the hub come through huggingface_hub {OLDEST_LIBRARY}.0 or newer, {found}: pip install 'mixkv[hub]'"
    )


def _checked(info: Any, url: str) -> Listing:
    """A listing of which no part can lead out of the cache; files with such names are left out. Raises HubError."""
    files = {}
    for entry in info.siblings or ():
        name = entry.rfilename
        if isinstance(name, str) and is_gguf(name) and is_safe(name):
            digest, size = (entry.lfs.sha256, entry.lfs.size) if entry.lfs else (entry.blob_id, entry.size)
            if not (_is_hex(digest, 40, 64) and isinstance(size, int) and size >= 0):
                raise HubError(f"{_no_hub(url)}: no size or no checksum of {name}")
            files[name] = RemoteFile(name, size, digest)
    if not _is_hex(info.sha, 40):
        raise HubError(f"{_no_hub(url)}: no commit")
    return Listing(info.sha, files)


def _is_hex(value: object, *lengths: int) -> bool:
    return isinstance(value, str) and len(value) in lengths and HEX.fullmatch(value) is not None


def _no_hub(url: str) -> str:
    return f"what answers at {url} is no hub; HF_ENDPOINT says where the hub is"


def _has(path: Path, file: RemoteFile) -> bool:
    """Whether there is a file of the right size: its checksum was looked at when it came."""
    return path.is_file() and path.stat().st_size == file.size
