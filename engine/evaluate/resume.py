"""What a perplexity run has measured so far, and the file that keeps it between two calls.

The file is a NumPy archive with a JSON key that says what was measured; it is replaced as a whole after each window,
so a kill at any moment leaves the last whole window.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mixkv.engine.atomic_file import writing
from mixkv.engine.evaluate.divergence import F64, Scores
from mixkv.kernels.errors import SessionError

VERSION = 2


@dataclass(frozen=True)
class RunKey:
    """What a run measures; a resume file of another run is refused."""

    model: str
    n_ctx: int
    text: str
    kernels: str
    caches: tuple[str, ...]


@dataclass(frozen=True)
class Progress:
    """Windows measured so far, by n caches (the first is FP16).

    nll, kld, same_top: (n, n_windows, n_scored), see Scores. seconds (n,): time spent in the model. nbytes,
    peak_bytes, bits (n,): the caches after the last window.
    """

    nll: NDArray[np.float32]
    kld: NDArray[np.float32]
    same_top: NDArray[np.bool_]
    seconds: F64
    nbytes: F64
    peak_bytes: F64
    bits: F64

    @classmethod
    def empty(cls, n_caches: int, n_scored: int) -> Progress:
        shape = (n_caches, 0, n_scored)
        nothing = [np.zeros(n_caches) for _ in range(4)]
        return cls(np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty(shape, np.bool_), *nothing)

    @property
    def n_windows(self) -> int:
        return self.nll.shape[1]

    def scores(self, i: int) -> Scores:
        """Scores (n_windows, n_scored) of cache i."""
        return Scores(self.nll[i], self.kld[i], self.same_top[i])

    def plus(
        self, parts: Sequence[Sequence[Scores]], seconds: F64, nbytes: Sequence[int], peak_bytes: Sequence[int],
        bits: Sequence[float],
    ) -> Progress:  # fmt: skip
        """With one more window. parts: for each cache the window's scores in pieces."""

        def longer(name: str) -> np.ndarray:
            window = np.stack([np.concatenate([getattr(s, name) for s in pieces]) for pieces in parts])
            return np.concatenate([getattr(self, name), window[:, None]], axis=1)

        return Progress(
            longer("nll"), longer("kld"), longer("same_top"), self.seconds + seconds, np.array(nbytes, float),
            np.array(peak_bytes, float), np.array(bits),
        )  # fmt: skip


class ResumeFile:
    """Reads and replaces the file at `path`; every failure is a SessionError that names it."""

    def __init__(self, path: Path, key: RunKey) -> None:
        self.path, self.key = path, key

    def read(self) -> Progress | None:
        """What was measured; None where there is no file yet."""
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                key = json.loads(str(archive["key"]))
                progress = Progress(**{f.name: archive[f.name] for f in fields(Progress)})
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SessionError(f"resume file {self.path} cannot be read: {error.strerror or error}") from None
        except (ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
            raise SessionError(
                f"resume file {self.path} is damaged or of another kind; delete it to start over"
            ) from None
        self._check_key(key)
        self._check_shapes(progress)
        return progress

    def _check_key(self, key: object) -> None:
        mine = json.loads(json.dumps({"version": VERSION, **asdict(self.key)}))
        if not isinstance(key, dict) or key.keys() != mine.keys():
            raise SessionError(f"resume file {self.path} is of another kind; delete it to start over")
        for name, value in mine.items():
            if key[name] != value:
                raise SessionError(
                    f"resume file {self.path} belongs to another run: its {name} is {key[name]!r}, this run's is "
                    f"{value!r}; delete it, or name another file"
                )

    def _check_shapes(self, progress: Progress) -> None:
        fresh = Progress.empty(len(self.key.caches), self.key.n_ctx - self.key.n_ctx // 2 - 1)
        for f in fields(Progress):
            mine, theirs = getattr(fresh, f.name), getattr(progress, f.name)
            shape = (
                (mine.shape[0], progress.nll.shape[1], mine.shape[2])
                if mine.ndim == 3 and progress.nll.ndim == 3
                else mine.shape
            )
            if theirs.dtype != mine.dtype or theirs.shape != shape:
                raise SessionError(f"resume file {self.path} is damaged ({f.name}); delete it to start over")

    def write(self, progress: Progress) -> None:
        """Replace the file: the old one or the new one is there at any moment."""
        key = json.dumps({"version": VERSION, **asdict(self.key)})
        with writing(self.path, "resume file", SessionError) as file:
            np.savez(file, key=np.array(key), **{f.name: getattr(progress, f.name) for f in fields(Progress)})
