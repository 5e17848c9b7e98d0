"""The hub's cache on disk, laid out as the huggingface_hub package does it, so that all programs share one.

models--USER--REPO/blobs/DIGEST              contents; DIGEST.incomplete is one that is not finished
                   refs/main                 the commit that was the newest when last asked
                   snapshots/COMMIT/FILE     a link to the contents
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mixkv.engine.hub.reference import REPO, is_gguf

INCOMPLETE = ".incomplete"
PREFIX = "models--"


class RepoCache:
    """One repository's folder. It need not exist."""

    def __init__(self, root: Path, repo: str) -> None:
        """repo: USER/REPO, checked by the caller."""
        self.repo = repo
        self.folder = root / (PREFIX + repo.replace("/", "--"))
        self.blobs = self.folder / "blobs"

    @classmethod
    def all(cls, root: Path) -> Iterator[RepoCache]:
        """Those of all models, by name."""
        for folder in sorted(root.glob(f"{PREFIX}*")):
            repo = folder.name.removeprefix(PREFIX).replace("--", "/")
            if REPO.fullmatch(repo) and folder.is_dir():
                yield cls(root, repo)

    def snapshots(self) -> list[Path]:
        """Folders of commits: that of the branch main first, then the newest."""
        known = [path for path in self.folder.glob("snapshots/*") if path.is_dir()]
        main = self._main()
        return sorted(known, key=lambda path: (path.name != main, -path.stat().st_mtime, path.name))

    def models(self, snapshot: Path) -> dict[str, Path]:
        """GGUF files of a snapshot that are there: name in the repository -> path."""
        found = {}
        for folder, _, files in os.walk(snapshot):  # does not follow links to folders
            for file in files:
                path = Path(folder, file)
                if is_gguf(file) and path.is_file():
                    found[path.relative_to(snapshot).as_posix()] = path
        return found

    def path(self, commit: str, name: str) -> Path:
        """Where a file of a commit stands, or will."""
        return self.folder / "snapshots" / commit / name

    def place(self, commit: str, name: str, digest: str) -> None:
        """Link contents into a snapshot, in place of what may stand there; moved where there are no links."""
        path, blob = self.path(commit, name), self.blobs / digest
        path.parent.mkdir(parents=True, exist_ok=True)
        link = path.with_name(f".{os.urandom(8).hex()}.tmp")
        try:
            link.symlink_to(os.path.relpath(blob, path.parent))
        except OSError:  # a file system without links
            blob.replace(path)
            return
        link.replace(path)

    def remember(self, commit: str) -> None:
        """Make a commit what `main` is while there is no network. A cache that cannot be written stays as it is."""
        if self._main() == commit:
            return
        ref = self.folder / "refs" / "main"
        with suppress(OSError):
            ref.parent.mkdir(parents=True, exist_ok=True)
            new = ref.with_name(f".{os.urandom(8).hex()}.tmp")
            new.write_text(commit)
            new.replace(ref)

    def _main(self) -> str:
        with suppress(OSError, UnicodeDecodeError):
            return (self.folder / "refs" / "main").read_text().strip()
        return ""
