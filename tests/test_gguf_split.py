"""Split models, `name-00001-of-00003.gguf`: any part opens all; a wrong part is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf_tools import refusal, split_model, write_gguf

import mixkv
from mixkv.engine.load import demo_model
from mixkv.kernels.errors import GGUFError
from mixkv.models.gguf import open_gguf

Change = dict[str, object]


def part_name(i: int, n_parts: int = 3) -> str:
    return f"model-{i + 1:05d}-of-{n_parts:05d}.gguf"


def values_of(i: int) -> np.ndarray:
    return np.arange(100 * i, 100 * i + 4, dtype=np.float32)


def write_part(folder: Path, i: int, change: Change | None = None, tensors: dict | None = None) -> Path:
    """Part i of three; the first holds the metadata. `change` overrides its split keys (None drops one)."""
    keys: Change = {"general.architecture": "llama", "general.name": "split"} if i == 0 else {}
    keys |= {"split.no": np.uint16(i), "split.count": np.uint16(3), "split.tensors.count": np.int32(5)}
    keys |= change or {}
    kept = {key: value for key, value in keys.items() if value is not None}
    if tensors is None:
        tensors = {f"t{i}": values_of(i)} | ({f"u{i}": np.ones((2, 3), np.float16)} if i else {})
    return write_gguf(folder / part_name(i), kept, tensors)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(3):
        write_part(tmp_path, i)
    return tmp_path


@pytest.mark.parametrize("i", range(3))
def test_any_part_opens_all(folder: Path, i: int) -> None:
    with open_gguf(folder / part_name(i)) as file:
        assert file.str("general.name") == "split"
        assert list(file.tensors) == ["t0", "t1", "u1", "t2", "u2"]
        for k in range(3):
            assert file.tensors[f"t{k}"].part == k
            np.testing.assert_array_equal(file.array_of(f"t{k}"), values_of(k))
        assert file.raw("u2").shape == (2, 6)
        file.release("u2")


def test_a_model_that_another_program_split_is_the_same_model(tmp_path: Path) -> None:
    """Every part made by ourselves could share our own misunderstanding of the keys."""
    parts = split_model(demo_model(), tmp_path, 30)
    assert [path.name for path in parts] == [f"model-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    logits = set()
    for path in (None, parts[0], parts[2]):
        with mixkv.load(path, n_ctx=64) as llm:
            logits.add(llm.logits(llm.tokenize("The sea")).tobytes())
    assert len(logits) == 1


def test_first_part_may_hold_metadata_alone(folder: Path) -> None:
    for i in range(3):
        write_part(folder, i, {"split.tensors.count": np.int32(4)}, {} if i == 0 else None)
    with open_gguf(folder / part_name(0)) as file:
        assert list(file.tensors) == ["t1", "u1", "t2", "u2"]


def test_split_of_one_needs_no_special_name(tmp_path: Path) -> None:
    keys = {"split.no": np.uint16(0), "split.count": np.uint16(1), "split.tensors.count": np.int32(1)}
    with open_gguf(write_gguf(tmp_path / "any.gguf", keys, {"t": values_of(1)})) as file:
        assert list(file.tensors) == ["t"]


def check_refused(folder: Path, part: int, words: str, open_part: int = 0) -> None:
    message = refusal(GGUFError, lambda: open_gguf(folder / part_name(open_part)))
    assert message.startswith(f"{folder / part_name(part)}: ") and words in message, message


@pytest.mark.parametrize("open_part", [0, 2])
def test_missing_part(folder: Path, open_part: int) -> None:
    (folder / part_name(1)).unlink()
    check_refused(folder, 1, "part 2 of 3 is missing", open_part)


def test_part_with_the_number_of_another(folder: Path) -> None:
    write_part(folder, 2, {"split.no": np.uint16(1)})
    check_refused(folder, 2, "says that it is part 2 of 3, not 3 of 3")


def test_part_twice(folder: Path) -> None:
    (folder / part_name(2)).write_bytes((folder / part_name(1)).read_bytes())
    check_refused(folder, 2, "says that it is part 2 of 3, not 3 of 3")


def test_part_of_another_count(folder: Path) -> None:
    write_part(folder, 1, {"split.count": np.uint16(4)})
    check_refused(folder, 1, "says that it is part 2 of 4, not 2 of 3")


def test_part_that_is_no_part(folder: Path) -> None:
    write_part(folder, 1, {"split.count": None, "split.no": None})
    check_refused(folder, 1, "'split.no' should be an integer, but it is missing")


def test_part_of_another_model(folder: Path) -> None:
    write_part(folder, 2, {"split.tensors.count": np.int32(77)})
    check_refused(folder, 2, "belongs to another split")


def test_tensor_in_two_parts(folder: Path) -> None:
    write_part(folder, 2, tensors={"t2": values_of(2), "t1": values_of(1)})
    check_refused(folder, 2, f"'t1' is in part {part_name(1)} as well")


def test_fewer_tensors_than_promised(folder: Path) -> None:
    write_part(folder, 2, tensors={"t2": values_of(2)})
    check_refused(folder, 0, "should have 5 tensors, its parts hold 4")


def test_tensor_count_missing(folder: Path) -> None:
    for i in range(3):
        write_part(folder, i, {"split.tensors.count": None})
    check_refused(folder, 0, "'split.tensors.count' should be an integer")


def test_damaged_part(folder: Path) -> None:
    path = folder / part_name(1)
    path.write_bytes(path.read_bytes()[:-1])
    check_refused(folder, 1, "needs bytes")


def test_renamed_part(folder: Path) -> None:
    renamed = (folder / part_name(0)).rename(folder / "renamed.gguf")
    message = refusal(GGUFError, lambda: open_gguf(renamed))
    assert "must end with -00001-of-00003.gguf" in message


def test_split_count_without_number(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", {"split.count": np.uint16(2)}, {"t": values_of(0)})
    assert "'split.no'" in refusal(GGUFError, lambda: open_gguf(path))


def test_absurd_counts(tmp_path: Path) -> None:
    """65,535 parts of which one is there; a part number beyond the count; a count of the wrong type."""
    keys: Change = {"split.no": np.uint16(0), "split.count": np.uint16(65535)}
    path = write_gguf(tmp_path / "m-00001-of-65535.gguf", keys, {})
    assert "part 2 of 65535 is missing" in refusal(GGUFError, lambda: open_gguf(path))
    path = write_gguf(tmp_path / "m-00010-of-00002.gguf", keys | {"split.no": 9, "split.count": 2}, {})
    refusal(GGUFError, lambda: open_gguf(path))
    path = write_gguf(tmp_path / "x.gguf", {"split.count": "two"}, {})
    assert "'split.count' should be an integer" in refusal(GGUFError, lambda: open_gguf(path))
