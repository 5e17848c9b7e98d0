"""What models of the hub the cache holds, how large they are, and their removal."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mixkv.engine.hub.cache import INCOMPLETE, RepoCache
from mixkv.engine.hub.choice import Candidate, candidates, choose
from mixkv.engine.hub.reference import Reference
from mixkv.kernels.errors import HubError


@dataclass(frozen=True)
class CachedModel:
    """A model in the cache. name: what it is called to the hub; path: its first file, of the newest commit.

    nbytes: of all its files, older commits included. complete: False for what a broken download left, whose path is
    that of the part.
    """

    name: str
    path: Path
    nbytes: int
    complete: bool = True


def cached_models(cache: Path) -> Iterator[CachedModel]:
    """All of them, by repository."""
    for repo in RepoCache.all(cache):
        seen: dict[str, list[Path]] = {}
        for snapshot in repo.snapshots():
            have = repo.models(snapshot)
            for model in candidates(have):
                paths = [have[file] for file in model.files]
                seen.setdefault(_name(repo.repo, model, have), []).extend(paths)
        for name, paths in sorted(seen.items()):
            contents = {path.resolve() for path in paths}
            yield CachedModel(name, paths[0], sum(path.stat().st_size for path in contents))
        for part in sorted(repo.blobs.glob(f"*{INCOMPLETE}")):
            yield CachedModel(repo.repo, part, part.stat().st_size, complete=False)


def remove(cache: Path, reference: Reference) -> int:
    """Remove a model, or with neither quantization nor file all of its repository; the bytes that are free now.

    Files of programs that run are theirs until they end. Raises HubError: nothing of it there, or the system refuses.
    """
    repo = RepoCache(cache, reference.repo)
    before = _size(repo.folder)
    try:
        if reference.quant is None and reference.file is None:
            if not repo.folder.is_dir():
                raise HubError(f"the cache {cache} has nothing of {reference.repo}")
            shutil.rmtree(repo.folder)
        else:
            _remove_files(repo, reference)
    except OSError as error:
        raise HubError(f"{error.filename or cache}: cannot remove {reference}: {error.strerror or error}") from None
    return before - _size(repo.folder)


def _remove_files(repo: RepoCache, reference: Reference) -> None:
    """The files of one model in all snapshots, and contents that nothing links to any more."""
    found = {path: repo.models(path) for path in repo.snapshots()}
    gone: list[Path] = []
    problem = HubError(f"the cache has nothing of {reference.repo}")
    for have in found.values():
        try:
            gone += [have[file] for file in choose(have, reference, "the cache").files]
        except HubError as error:
            problem = error
    if not gone:
        raise problem
    contents = {path.resolve() for path in gone}
    for path in gone:
        path.unlink()
    linked = {path.resolve() for path in repo.folder.glob("snapshots/**/*") if path.is_symlink()}
    for blob in contents - linked:
        blob.unlink(missing_ok=True)


def _name(repo: str, model: Candidate, have: dict[str, Path]) -> str:
    """USER/REPO:QUANT where that means this model, else its file's name."""
    if model.quant is not None:
        named = Reference(repo, model.quant)
        try:
            if choose(have, named, "the cache") == model:
                return str(named)
        except HubError:
            pass  # a projector, or a model whose parts are not all there
    return str(Reference(repo, file=model.name))


def _size(folder: Path) -> int:
    """Bytes of the files below, links not followed."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
