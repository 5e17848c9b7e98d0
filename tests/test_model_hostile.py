"""Model files with broken numbers or bytes: weights of NaN and infinity are data, mutations an error or a model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf_tools import gguf_bytes, random_blocks, tiny_llama, write_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mixkv
from mixkv.kernels.errors import MixkvError
from mixkv.models.gguf import open_gguf
from mixkv.models.registry import read_config

BROKEN_NUMBERS: dict[str, tuple[str, np.ndarray]] = {
    "nan-norm": ("blk.0.attn_norm.weight", np.full(32, np.nan, np.float32)),
    "inf-norm": ("blk.0.attn_norm.weight", np.full(32, np.inf, np.float32)),
    "zero-norm": ("output_norm.weight", np.zeros(32, np.float32)),
    "nan-embedding": ("token_embd.weight", np.full((276, 32), np.nan, np.float32)),
    "zero-embedding": ("token_embd.weight", np.zeros((276, 32), np.float32)),
    "huge-keys": ("blk.0.attn_k.weight", np.full((16, 32), 1e30, np.float32)),
    "huge-values": ("blk.1.attn_v.weight", np.full((16, 32), 3e38, np.float32)),
    "huge-ffn": ("blk.1.ffn_up.weight", np.full((64, 32), 3e38, np.float32)),
    "zero-rope_freqs": ("rope_freqs.weight", np.zeros(4, np.float32)),
    "nan-rope_freqs": ("rope_freqs.weight", np.full(4, np.nan, np.float32)),
}


def runs(llm: mixkv.LLM) -> None:
    """Logits come, whatever they are; where they are numbers text comes as well, and else one line says why not."""
    usable = np.isfinite(llm.logits([5] * 20)).all()
    for temperature in (0.0, 1.0):
        options: dict[str, Any] = {"max_tokens": 3, "temperature": temperature, "ignore_eos": True, "logprobs": 2}
        if usable:
            assert len(llm.generate([5] * 20, **options).tokens) == 3
        else:
            with pytest.raises(mixkv.InputError, match=r"logits contain (NaN|.inf): the model file is damaged"):
                llm.generate([5] * 20, **options)


@pytest.mark.parametrize("case", BROKEN_NUMBERS)
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.filterwarnings("error")
def test_weights_of_nan_infinity_and_zero_are_data(tmp_path: Path, case: str, mixed: bool) -> None:
    """They load and run, without exceptions or warnings from inside NumPy."""
    meta, tensors = tiny_llama()
    name, numbers = BROKEN_NUMBERS[case]
    tensors[name] = numbers
    path = write_gguf(tmp_path / "nan.gguf", meta, tensors)
    runs(mixkv.load(path, n_threads=1, mixed_kv_cache=mixed, hot_window=0, sink_tokens=0))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q6_K", "Q2_K", "IQ4_XS"])
@pytest.mark.filterwarnings("error")
def test_random_bytes_are_weights_of_any_type(tmp_path: Path, kind: str, dense: bool) -> None:
    """Scales of NaN, zero and infinity in quantized blocks."""
    meta, tensors = tiny_llama()
    meta["llama.feed_forward_length"] = 256
    for layer in range(2):
        for name in ("gate", "up"):
            tensors[f"blk.{layer}.ffn_{name}.weight"] = np.ones((256, 32), np.float32)
        blocks = random_blocks(GGMLQuantizationType[kind], (256, 32), np.random.default_rng(layer))
        tensors[f"blk.{layer}.ffn_down.weight"] = blocks
    runs(mixkv.load(write_gguf(tmp_path / "random.gguf", meta, tensors), n_threads=1, dense=dense))


GOOD = gguf_bytes(*tiny_llama(n_layers=1))
NAMES = [key.encode() for key in [*tiny_llama(1)[0], *tiny_llama(1)[1]]]
INTERESTING = sorted({i for name in NAMES for at in [GOOD.find(name)] for i in range(at - 8, at + len(name) + 48)})


@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.one_of(st.sampled_from(INTERESTING), st.integers(0, len(GOOD) - 1)), st.integers(0, 255)),
        min_size=1, max_size=4,
    ),
    st.sampled_from([None, 0, 1, 7, 100]),
)  # fmt: skip
def test_mutated_bytes_are_an_error_or_a_model(tmp_path: Path, changes: list[tuple[int, int]], cut: int | None) -> None:
    """Never another exception, a hang or huge memory, whatever bytes are wrong."""
    data = bytearray(GOOD)
    for at, value in changes:
        data[at] = value
    path = tmp_path / "mutant.gguf"
    path.write_bytes(data if cut is None else data[:-cut] if cut else data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mixkv.MixkvWarning)
        try:
            llm = mixkv.load(path, n_threads=1, n_ctx=16, mixed_kv_cache=True, hot_window=4, sink_tokens=0)
            out = llm.generate("the the", max_tokens=1, temperature=0.0)
        except MixkvError as error:
            assert "\n" not in str(error)
        else:
            assert len(out.tokens) <= 1


def test_the_undamaged_bytes_load(tmp_path: Path) -> None:
    """The mutations above start from a file that works."""
    path = tmp_path / "good.gguf"
    path.write_bytes(GOOD)
    assert read_config(open_gguf(path)).n_layers == 1
    assert len(mixkv.load(path, n_ctx=16).generate("the the", max_tokens=1, ignore_eos=True).tokens) == 1
