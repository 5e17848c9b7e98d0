"""Which files of a repository are the model that was asked for.

Without a quantization it is Q4_K_M, else Q8_0, as in llama.cpp; where there is neither, the one nearest to four bits.
Files beside a model (projectors of images, draft heads, importance matrices) are none, unless one is named outright.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from mixkv.engine.hub.reference import Reference, is_gguf
from mixkv.kernels.errors import HubError

USUAL = ("Q4_K_M", "Q8_0")
USUAL_BITS = 4
BESIDE = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
"""Words in the names of files that are no model by themselves, llama.cpp's list."""
PART = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf", re.IGNORECASE | re.DOTALL)
LABEL = re.compile(
    r"(?<![a-z0-9])((?:ud-)?(?:i?q[1-8]|tq[12])_[a-z0-9_]+|b?f16|f32|[mn]x?v?fp4(?:_moe)?)(?=[./-])", re.IGNORECASE
)
SHOWN = 40
"""Names in a message."""


@dataclass(frozen=True)
class Candidate:
    """A model: its files in order, more than one where it is split, and what its quantization is called, if known."""

    files: tuple[str, ...]
    quant: str | None
    n_parts: int = 1

    @property
    def name(self) -> str:
        """The first file, the one to open."""
        return self.files[0]


def candidates(names: Iterable[str]) -> list[Candidate]:
    """All GGUF files among `names`, parts put together, by name."""
    groups: dict[tuple[str, int], list[str]] = {}
    for name in sorted(filter(is_gguf, names)):
        part = PART.fullmatch(name)
        groups.setdefault((part[1], int(part[3])) if part else (name, 1), []).append(name)
    return [Candidate(tuple(files), _label(files[0]), n_parts) for (_, n_parts), files in groups.items()]


def choose(names: Collection[str], reference: Reference, where: str) -> Candidate:
    """The model that `reference` means, all of its parts. where: whose names these are, for messages.

    Raises HubError, with the names that there are, where it is not among them or lacks parts.
    """
    found = candidates(names)
    models = [model for model in found if _is_model(model.name)]
    if reference.file is not None:
        chosen = next((model for model in found if _is_file_of(reference.file, model)), None)
        have = [name for name in sorted(names) if is_gguf(name)]
        missing = f"{where} has no file {reference.file!r} of {reference.repo}"
    elif reference.quant is not None:
        chosen = _with_label(models, reference.quant)
        have = [model.quant or model.name for model in models]
        missing = f"{where} has no {reference.quant!r} of {reference.repo}"
    else:
        chosen = next(filter(None, (_with_label(models, quant) for quant in USUAL)), None) or _nearest(models)
        have = [model.name for model in found]
        missing = f"{where} has no GGUF model of {reference.repo}"
    if chosen is None:
        raise HubError(f"{missing}; {_listed(have)}")
    numbers = [int(part[2]) for part in map(PART.fullmatch, chosen.files) if part]
    if numbers and numbers != [*range(1, chosen.n_parts + 1)]:
        lacking = sorted({*range(1, chosen.n_parts + 1)} - {*numbers})
        raise HubError(
            f"{where} has {len(numbers)} of {chosen.n_parts} parts of {reference.repo}/{chosen.name}: "
            f"{', '.join(map(str, lacking[:SHOWN])) or 'others'} missing; take another quantization"
        )
    return chosen


def _listed(have: Sequence[str]) -> str:
    names = list(dict.fromkeys(have))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"there is {', '.join(names[:SHOWN])}{more}" if names else "there is no GGUF file at all"


def _label(name: str) -> str | None:
    found = LABEL.findall(name)
    return found[-1].upper() if found else None


def _is_model(name: str) -> bool:
    file = name.rpartition("/")[2].lower()
    return not any(word in file for word in BESIDE)


def _is_file_of(file: str, model: Candidate) -> bool:
    """Any part names them all."""
    return file.lower() in (name.lower() for name in model.files)


def _with_label(models: Sequence[Candidate], quant: str) -> Candidate | None:
    """The first that is called so, else the first whose path has the word: F16 is not BF16, Q4_K not Q4_K_M."""
    word = re.compile(rf"(?<![a-z0-9_]){re.escape(quant)}[./-]", re.IGNORECASE)
    named = (model for model in models if model.quant == quant.upper())
    return next(named, None) or next((model for model in models if word.search(model.name)), None)


def _nearest(models: Sequence[Candidate]) -> Candidate | None:
    """The nearest to four bits; of two as near K-quants, then more bits, then the first by name."""

    def distance(model: Candidate) -> tuple[int, bool, int]:
        number = re.search("[0-9]+", model.quant or "")
        bits = int(number[0]) if number else 1000
        return abs(bits - USUAL_BITS), "_K" not in (model.quant or ""), -bits

    return min(models, key=distance, default=None)
