"""Open GGUF model files: memory-mapped, checked, nothing read that is not used.

Know before you change this room: `open_gguf` reads the header only; weights are read from disk when `raw` or
`array_of` touches them. Split models (`name-00001-of-00003.gguf`) look like one file. A failure is a
GGUFError and leaves no file or map open. Neighbours: gguf_header.py (the parser), gguf_metadata.py (keys and
values), gguf_types.py (limits and types).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np

from mixkv.kernels.errors import GGUFError
from mixkv.kernels.ggml import dequantize
from mixkv.models.gguf_header import Header, parse_header
from mixkv.models.gguf_metadata import Metadata
from mixkv.models.gguf_overrides import OverriddenMetadata
from mixkv.models.gguf_types import MAX_ENTRIES, WEIGHT_TYPES, TensorInfo, quoted


def open_gguf(path: str | Path, overrides: Mapping[str, object] | None = None) -> GGUFFile:
    """Open a model file; of a split model, any part opens all. Raises GGUFError.

    overrides: metadata by key in place of the file's own, see `OverriddenMetadata`, whose ConfigErrors are raised.
    """
    with contextlib.ExitStack() as undo:
        first = _Part.open(Path(path))
        undo.callback(first.close)
        n_parts = first.header.metadata.uint("split.count", 1, maximum=0xFFFF)
        if n_parts <= 1:
            parts = [first]
        else:
            parts = []
            for i, part_path in enumerate(_part_paths(first, n_parts)):
                part = first if i == _part_index(first) else _open_part(part_path, i, n_parts)
                undo.callback(part.close)
                _check_part(part, parts, i, n_parts)
                parts.append(part)
        file = GGUFFile(parts, overrides)
        undo.pop_all()
        return file


class GGUFFile:
    """An open model. `metadata`: keys and values; `tensors`: name -> TensorInfo, in file order.

    `get`, `uint`, `float`, `bool`, `str`, `strings` and `array` are the metadata's own. Arrays from `raw` are
    views on the map: they stay valid after `close`, which then only gives up this object's hold on the file.
    """

    def __init__(self, parts: list[_Part], overrides: Mapping[str, object] | None = None) -> None:
        """From the parts of one model, in order. Raises GGUFError where their tensors do not fit together."""
        self.path: Path = parts[0].path
        metadata = parts[0].header.metadata
        self.metadata: Metadata = OverriddenMetadata(metadata, overrides) if overrides else metadata
        self.tensors: dict[str, TensorInfo] = _merge_tensors(parts)
        self._parts = parts
        self._closed = False
        self.get, self.uint, self.float = self.metadata.get, self.metadata.uint, self.metadata.float
        self.bool, self.str = self.metadata.bool, self.metadata.str
        self.strings, self.array = self.metadata.strings, self.metadata.array

    def raw(self, name: str) -> np.ndarray:
        """The packed weights as (rows, row_bytes) uint8: a read-only view on the map, nothing copied.

        All dimensions but the last are flattened to rows. Raises GGUFError where the tensor is missing or has
        a weight type that mixkv cannot use.
        """
        info = self._usable(name)
        rows, row_bytes = info.rows_shape
        if info.n_bytes == 0:
            return np.empty((rows, row_bytes), np.uint8)
        buffer = self._parts[info.part].buffer
        flat = np.frombuffer(buffer, np.uint8, count=info.n_bytes, offset=info.offset)
        return flat.reshape(rows, row_bytes)

    def array_of(self, name: str) -> np.ndarray:
        """A dequantized copy, float32, in the tensor's own shape: for norms, biases, other small tensors."""
        info = self._usable(name)
        if info.n_bytes == 0:
            return np.zeros(info.shape, np.float32)
        return np.array(dequantize(self.raw(name), info.ggml_type)).reshape(info.shape)

    def release(self, name: str) -> None:
        """Let the operating system drop the tensor's pages (they are read again when touched). Never fails.

        Only pages that lie wholly inside the tensor are dropped; neighbours keep theirs.
        """
        info = self._info(name)
        start = info.offset + -info.offset % mmap.PAGESIZE
        stop = (info.offset + info.n_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if start < stop and hasattr(mmap, "MADV_DONTNEED"):
            with contextlib.suppress(OSError):
                self._parts[info.part].buffer.madvise(mmap.MADV_DONTNEED, start, stop - start)

    def close(self) -> None:
        """Give up the map; views from `raw` keep it alive until they are gone. May be called twice."""
        self._closed = True
        for part in self._parts:
            part.close()

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _info(self, name: str) -> TensorInfo:
        if self._closed:
            raise GGUFError(f"{self.path}: the file was closed; open it again to read tensors")
        try:
            return self.tensors[name]
        except KeyError:
            raise GGUFError(
                f"{self.path}: tensor {quoted(name)} is missing; the file is incomplete or not of the "
                "architecture that it names: convert or download it again"
            ) from None

    def _usable(self, name: str) -> TensorInfo:
        info = self._info(name)
        if info.ggml_type not in WEIGHT_TYPES:
            raise GGUFError(
                f"{self.path}: tensor {quoted(name)} has weight type {info.ggml_type.name}, which mixkv "
                "cannot use; take a file of another type, for example Q4_0, Q4_K_M or Q8_0"
            )
        return info


class _Part:
    """One mapped file with its header."""

    def __init__(self, path: Path, buffer: mmap.mmap, header: Header) -> None:
        self.path, self.buffer, self.header = path, buffer, header

    @classmethod
    def open(cls, path: Path) -> _Part:
        try:
            # a fifo would block without O_NONBLOCK; size from the descriptor, so nobody can swap the file
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
            reason = getattr(error, "strerror", None) or error
            raise GGUFError(f"{str(path)!r}: cannot open the model file: {reason}; check the path") from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise GGUFError(f"{path}: is not a regular file; give the path of a .gguf model")
            if status.st_size == 0:
                raise GGUFError(f"{path}: the file is empty; download or convert the model again")
            buffer = mmap.mmap(descriptor, status.st_size, access=mmap.ACCESS_READ)
        except (OSError, OverflowError) as error:
            raise GGUFError(f"{path}: cannot map the model file: {error}") from None
        finally:
            os.close(descriptor)
        try:
            return cls(path, buffer, parse_header(str(path), buffer, status.st_size))
        except BaseException:
            buffer.close()
            raise

    def close(self) -> None:
        with contextlib.suppress(BufferError):  # a view from `raw` still holds the map
            self.buffer.close()


def _part_index(part: _Part) -> int:
    return part.header.metadata.uint("split.no", maximum=0xFFFF)


def _part_paths(part: _Part, n_parts: int) -> Iterator[Path]:
    """Paths of all parts, from the name of one: `stem-%05d-of-%05d.gguf`, counted from 1."""
    i = _part_index(part)
    ending = f"-{i + 1:05d}-of-{n_parts:05d}.gguf"
    if not part.path.name.endswith(ending):
        raise GGUFError(
            f"{part.path}: is part {i + 1} of {n_parts} of a split model, so its name must end with "
            f"{ending}; give the file its name back"
        )
    stem = part.path.name.removesuffix(ending)
    for k in range(n_parts):  # lazily: a file may claim 65,535 parts
        yield part.path.with_name(f"{stem}-{k + 1:05d}-of-{n_parts:05d}.gguf")


def _open_part(path: Path, i: int, n_parts: int) -> _Part:
    if not path.exists():
        raise GGUFError(f"{path}: part {i + 1} of {n_parts} is missing; put all parts into one folder")
    return _Part.open(path)


def _check_part(part: _Part, before: list[_Part], i: int, n_parts: int) -> None:
    """Part i says of itself what its name says, and agrees with the first part."""
    metadata = part.header.metadata
    index, count = _part_index(part), metadata.uint("split.count", maximum=0xFFFF)
    if (index, count) != (i, n_parts):
        raise GGUFError(
            f"{part.path}: says that it is part {index + 1} of {count}, not {i + 1} of {n_parts}; "
            "download the parts again"
        )
    if before and "split.tensors.count" in metadata:
        total = before[0].header.metadata.uint("split.tensors.count")
        if metadata.uint("split.tensors.count") != total:
            raise GGUFError(f"{part.path}: belongs to another split of the model than {before[0].path.name}")


def _merge_tensors(parts: list[_Part]) -> dict[str, TensorInfo]:
    merged: dict[str, TensorInfo] = {}
    for i, part in enumerate(parts):
        for name, info in part.header.tensors.items():
            if name in merged:
                other = parts[merged[name].part].path.name
                raise GGUFError(f"{part.path}: tensor {quoted(name)} is in part {other} as well; download again")
            merged[name] = replace(info, part=i)
        if len(merged) > MAX_ENTRIES:
            raise GGUFError(f"{part.path}: the parts up to here hold more than {MAX_ENTRIES} tensors")
    if len(parts) > 1:
        total = parts[0].header.metadata.uint("split.tensors.count")
        if total != len(merged):
            raise GGUFError(
                f"{parts[0].path}: the model should have {total} tensors, its parts hold {len(merged)}; "
                "download the parts again"
            )
    return merged
