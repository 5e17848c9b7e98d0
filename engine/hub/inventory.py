"""What models of the hub the cache holds, how large they are, and their removal."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mixkv.engine.hub.cache import INCOMPLETE, RepoCache
from mixkv.engine.hub.choice import SHOWN, Candidate, candidates, choose
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


def find(cache: Path, reference: Reference) -> tuple[Candidate, dict[str, Path]]:
    """A model in the newest snapshot that has it, and that snapshot's files by their names.

    Raises HubError, with the names that there are, if none has it.
    """
    repo = RepoCache(cache, reference.repo)
    names: set[str] = set()
    for snapshot in repo.snapshots():
        have = repo.models(snapshot)
        with suppress(HubError):
            return choose(have, reference, "the cache"), have
        names |= set(have)
    if names:
        choose(names, reference, "the cache")
    others = [other.repo for other in RepoCache.all(cache) if any(map(other.models, other.snapshots()))]
    there = f"; it has {', '.join(others[:SHOWN])}" if others else ""
    raise HubError(f"the cache {cache} has nothing of {reference.repo}{there}")


def cached_models(cache: Path) -> Iterator[CachedModel]:
    """All of them, by repository."""
    for repo in RepoCache.all(cache):
        names: dict[str, str] = {}  # of each model by its first file
        paths: dict[str, list[Path]] = {}
        for snapshot in repo.snapshots():
            have = repo.models(snapshot)
            for model in candidates(have):
                name = _name(repo.repo, model, have)
                unnamed = str(Reference(repo.repo, file=model.name))
                names.setdefault(model.name, unnamed if name in names.values() else name)
                paths.setdefault(model.name, []).extend(have[file] for file in model.files)
        for first, name in sorted(names.items(), key=lambda item: item[1]):
            contents = {path.resolve() for path in paths[first]}
            yield CachedModel(name, paths[first][0], sum(path.stat().st_size for path in contents))
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
                find(cache, reference)
            shutil.rmtree(repo.folder)
        else:
            _remove_files(cache, reference)
    except OSError as error:
        raise HubError(f"{error.filename or cache}: cannot remove {reference}: {error.strerror or error}") from None
    return before - _size(repo.folder)


def _remove_files(cache: Path, reference: Reference) -> None:
    """The files of one model in all snapshots, and contents that nothing links to any more."""
    repo = RepoCache(cache, reference.repo)
    chosen, _ = find(cache, reference)
    everything = [repo.models(snapshot) for snapshot in repo.snapshots()]
    gone = [have[file] for have in everything for file in chosen.files if file in have]
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
        with suppress(HubError):  # a projector, or a model whose parts are not all there
            if choose(have, named, "the cache") == model:
                return str(named)
    return str(Reference(repo, file=model.name))


def _size(folder: Path) -> int:
    """Bytes of the files below, links not followed."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
