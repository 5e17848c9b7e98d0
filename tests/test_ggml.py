"""The format's numbers, held against the `gguf` package; and that loading a model does not import that package."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize as expected
from gguf_tools import tiny_llama, write_gguf
from tokenizer_vocabs import bpe_metadata

from mixkv.engine.load import demo_model
from mixkv.kernels import default_backend
from mixkv.kernels.errors import GGUFError
from mixkv.kernels.ggml import BLOCK_SIZES, WeightType, dequantize
from mixkv.models.gguf_types import WEIGHT_TYPES, ValueType

ROOT = Path(__file__).resolve().parents[1]
NEVER = {"gguf", "yaml", "jinja2", "rich", "typer", "tomllib", "difflib"}
"""Packages that reading a model and generating from it must not wait for."""


native_only = pytest.mark.skipif(
    default_backend().name != "native", reason="NumPy's kernels dequantize with the gguf package"
)


def test_value_types_are_those_of_the_format() -> None:
    assert {t.name: int(t) for t in ValueType} == {t.name: int(t) for t in gguf.GGUFValueType}


def test_weight_types_are_those_of_the_format() -> None:
    """All that the package knows up to our newest; older packages know fewer."""
    ours = {t.name: int(t) for t in WeightType}
    theirs = {t.name: int(t) for t in gguf.GGMLQuantizationType if t <= max(WeightType)}
    assert theirs.items() <= ours.items()
    assert len(theirs) > 20
    for t in gguf.GGMLQuantizationType:
        if t <= max(WeightType):
            assert BLOCK_SIZES[WeightType(t)] == gguf.GGML_QUANT_SIZES[t], t.name


def test_every_weight_type_has_a_block() -> None:
    assert set(BLOCK_SIZES) == set(WeightType)


@pytest.mark.parametrize("kind", sorted(WEIGHT_TYPES - {WeightType.F64}), ids=lambda t: t.name)
def test_values_are_those_of_the_package(kind: WeightType) -> None:
    """Bit for bit, on every pattern of bytes that a file may hold."""
    rng = np.random.default_rng(int(kind))
    raw = rng.integers(0, 256, (5, 2 * 256 // BLOCK_SIZES[kind][0] * BLOCK_SIZES[kind][1]), np.uint8)
    try:
        with np.errstate(all="ignore"):
            want = expected(raw, gguf.GGMLQuantizationType(kind))
    except NotImplementedError:
        pytest.skip("the package knows this type's size alone: test_gguf_tensors.py works a block out by hand")
    found = dequantize(raw, kind)
    assert found.dtype == np.float32
    assert found.shape == (5, 512)
    np.testing.assert_array_equal(found.view(np.uint32), np.ascontiguousarray(want).view(np.uint32))


def test_the_pages_list_the_types_that_run() -> None:
    """README and docs/weights.md, with the bits that a number of each type takes in the file and in memory."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = re.search(r"^Weights \S+: ([\w, \n]+); split files", readme, re.MULTILINE)
    assert listed is not None
    assert sorted(listed.group(1).replace("\n", " ").split(", ")) == sorted(kind.name for kind in WEIGHT_TYPES)
    page = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    rows = {row[1]: row.group(2, 3) for row in re.finditer(r"^\| (\w+) \| ([\d.]+) \| ([\d.]+) \|", page, re.MULTILINE)}
    bits = {kind.name: f"{8 * BLOCK_SIZES[kind][1] / BLOCK_SIZES[kind][0]:.2f}" for kind in WEIGHT_TYPES}
    assert {name: row[0] for name, row in rows.items()} == bits
    if default_backend().name == "native":
        for name, (_, packed) in rows.items():
            n_bytes = default_backend().packed_bytes(int(WeightType[name]), 64, 256)
            assert packed == f"{8 * n_bytes / (64 * 256):.2f}", name


def test_an_old_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy's kernels with a package from before a type was invented: its own error said nothing of what to do."""
    monkeypatch.delitem(gguf.quants._type_traits, gguf.GGMLQuantizationType.TQ1_0)
    with pytest.raises(GGUFError, match="gguf package cannot read weights of type TQ1_0: install a newer one"):
        dequantize(np.zeros((1, 54), np.uint8), WeightType.TQ1_0)


def test_f64_is_rounded() -> None:
    x = np.array([[1.0, -1 / 3, 1e300, np.nan, -np.inf]])
    np.testing.assert_array_equal(
        dequantize(x.view(np.uint8), WeightType.F64), [[1, np.float32(-1 / 3), np.inf, np.nan, -np.inf]]
    )


def loaded_by(code: str) -> set[str]:
    """Names of the modules that a fresh process has after `code`."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"{code}\nimport sys; print('\\n' + ' '.join(sys.modules))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(done.stdout.splitlines()[-1].split())


def test_importing_mixkv_loads_no_backend_and_no_package() -> None:
    assert not loaded_by("import mixkv") & (NEVER | {"numpy", "sentencepiece", "tokenizers"})
    assert not loaded_by("from mixkv import load") & (NEVER | {"sentencepiece", "tokenizers"})


def generate(path: Path) -> str:
    return f"import mixkv; mixkv.load({str(path)!r}, mixed_kv_cache=True).generate([1, 2], max_tokens=1)"


@native_only
def test_an_spm_model_runs_without_the_gguf_package() -> None:
    modules = loaded_by(generate(demo_model()))
    assert "sentencepiece" in modules
    assert not modules & (NEVER | {"tokenizers"})


@native_only
def test_a_bpe_model_runs_without_sentencepiece_too(tmp_path: Path) -> None:
    """Here all vectors are F16."""
    metadata, tensors = tiny_llama()
    vocabulary = bpe_metadata()
    metadata = {key: value for key, value in metadata.items() if not key.startswith("tokenizer.")} | vocabulary
    n_vocab = len(vocabulary["tokenizer.ggml.tokens"])  # type: ignore[arg-type]
    halves = {
        name: np.asarray(x, np.float16)[: n_vocab if name in ("token_embd.weight", "output.weight") else None]
        for name, x in tensors.items()
    }
    modules = loaded_by(generate(write_gguf(tmp_path / "bpe.gguf", metadata, halves)))
    assert "tokenizers" in modules
    assert not modules & (NEVER | {"sentencepiece"})
