"""Every family and option against a forward pass in float64 (float_forward.py), on files made here.

Contexts are short and prompts run far past them where RoPE is scaled, so that a wrong frequency turns a pair by whole
radians. Weights are float32 unless a case says so; the cache is, too. The backend that this run does not use gets the
same tests from test_backends.py.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from attention_oracle import nmse
from conftest import ISAS
from float_forward import F64, logits
from gguf_tools import write_gguf
from model_tools import logits_of
from tiny_models import FFN, QKV, Tiny

from mixkv.kernels import Backend, default_backend, open_backend
from mixkv.kernels.errors import GGUFError
from mixkv.models.decoder import Decoder
from mixkv.models.gguf import open_gguf
from mixkv.models.layers import Dense
from mixkv.models.registry import load_model, read_config

N, STEPS = 330, 24
"""Tokens of a prompt, and how many of them go in one by one at the end where that is tried."""
IDS = np.random.default_rng(7).integers(0, 97, N).tolist()
F32_CACHE = {"type_k": "f32", "type_v": "f32"}
ROUNDING = 1e-10
"""NMSE that float32 arithmetic may cost; 1e-12 is usual."""

LLAMA = Tiny()
QWEN2 = Tiny("qwen2", biases=QKV)
QWEN3 = Tiny("qwen3", qk_norm=True)
LINEAR = {"scaling.type": "linear", "scaling.factor": 4.0}
YARN = {"scaling.type": "yarn", "scaling.factor": 8.0, "scaling.original_context_length": 64}


def rope(tiny: Tiny, **options: object) -> Tiny:
    """With keys `rope.*` (two underscores stand for a dot) beside those of `tiny`."""
    return replace(tiny, rope={**tiny.rope, **{key.replace("__", "."): value for key, value in options.items()}})


def scaled(tiny: Tiny, scaling: dict[str, object], **options: object) -> Tiny:
    return rope(replace(tiny, rope=scaling), **options)


ROTATIONS = {
    "base": lambda t: rope(t, freq_base=500.0),
    "partial": lambda t: rope(t, dimension_count=24),
    "freq_factors": lambda t: replace(t, freq_factors=True),
    "linear": lambda t: scaled(t, LINEAR),
    "linear, no type": lambda t: rope(t, scaling__factor=4.0),
    "scale_linear": lambda t: rope(t, scale_linear=4.0),
    "linear, freq_factors, partial": lambda t: replace(scaled(t, LINEAR, dimension_count=24), freq_factors=True),
    "linear, attn_factor": lambda t: scaled(t, LINEAR, scaling__attn_factor=1.25),
    "yarn": lambda t: scaled(t, YARN),
    "yarn, context of the model": lambda t: replace(rope(t, scaling__type="yarn", scaling__factor=8.0), n_ctx=96),
    "yarn, attn_factor": lambda t: scaled(t, YARN, scaling__attn_factor=0.75),
    "yarn, beta_fast": lambda t: scaled(t, YARN, scaling__yarn_beta_fast=2.0),
    "yarn, beta_slow": lambda t: scaled(t, YARN, scaling__yarn_beta_slow=0.05),
    "yarn, ext_factor": lambda t: scaled(t, YARN, scaling__yarn_ext_factor=0.5),
    "yarn, base": lambda t: scaled(t, YARN, freq_base=500000.0),
    "yarn, freq_factors, partial": lambda t: replace(scaled(t, YARN, dimension_count=24), freq_factors=True),
}
"""What a family's rotation may be given, each by itself and some together."""

SHAPES = {
    **{
        f"{g} queries a key": replace(LLAMA, n_heads=2 * g, head_dim=16, head_dim_v=16, n_layers=1) for g in range(1, 9)
    },
    "one key head": replace(QWEN3, n_kv_heads=1),
    "sizes not said": replace(LLAMA, n_heads=2, n_kv_heads=1, said=False),
    "wide values": replace(LLAMA, head_dim=16, head_dim_v=48),
    "narrow values": replace(QWEN2, head_dim=48, head_dim_v=24),
    "long keys": replace(QWEN3, n_heads=6, n_kv_heads=3, head_dim=40, head_dim_v=40),
    "eps": replace(LLAMA, eps=0.25),
    "eps, QK norm": replace(QWEN3, eps=0.25),
    "odd feed-forward": replace(LLAMA, n_ff=101),
    "odd vocabulary": replace(LLAMA, n_vocab=131, tied=False),
    "untied": replace(QWEN3, tied=False),
    "more biases": replace(QWEN2, biases=(*QKV, "attn_output")),
    "biases of a llama": replace(LLAMA, biases=(*QKV, "attn_output")),
    "MLP biases": replace(LLAMA, biases=FFN),
    "f16": replace(LLAMA, kind="F16"),
    "Q8_0": replace(QWEN3, kind="Q8_0"),
}
CASES: dict[str, Tiny] = {"llama": LLAMA, "qwen2": QWEN2, "qwen3": QWEN3, **SHAPES}
CASES |= {f"{t.arch}: {name}": change(t) for t in (LLAMA, QWEN2, QWEN3) for name, change in ROTATIONS.items()}


@pytest.fixture(scope="module", params=ISAS if default_backend().name == "native" else ["numpy"])
def kernels(request: pytest.FixtureRequest) -> Backend:
    """Each instruction set that this machine runs, or NumPy's twin where that is in use."""
    return default_backend() if request.param == "numpy" else open_backend(2, isa=request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@cache
def case(folder: Path, name: str) -> tuple[Path, F64]:
    """A case's file and its logits in float64."""
    path = CASES[name].write(folder / f"{len(list(folder.iterdir()))}.gguf")
    return path, logits(path, IDS)


def load(path: Path, *, exact: bool, backend: Backend | None = None) -> Decoder:
    return load_model(open_gguf(path), backend or default_backend(), exact=exact, dense=True)


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_formulas(folder: Path, kernels: Backend, name: str) -> None:
    """A pairing, scaling, bias or norm that is wrong by little still writes fluent text, and no other test saw it.

    The whole prompt at once, then again in pieces and one by one at the end: positions must not depend on the cuts.
    """
    path, wanted = case(folder, name)
    model = load(path, exact=True, backend=kernels)
    assert nmse(logits_of(model, IDS, **F32_CACHE), wanted) <= ROUNDING
    cuts = [1, 130, *range(N - STEPS, N)]
    assert nmse(logits_of(model, IDS, cuts, **F32_CACHE), wanted) <= ROUNDING


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "llama: yarn"])
def test_token_by_token_from_the_first(folder: Path, name: str) -> None:
    """Single tokens take kernels of their own (one row), at every position and not only the last ones."""
    path, wanted = case(folder, name)
    assert nmse(logits_of(load(path, exact=True), IDS, range(1, N), **F32_CACHE), wanted) <= ROUNDING


@pytest.mark.parametrize("tiny", [LLAMA, QWEN2, QWEN3, scaled(QWEN3, YARN)], ids=["llama", "qwen2", "qwen3", "yarn"])
def test_activations_of_8_bits_stay_close(tmp_path: Path, kernels: Backend, tiny: Tiny) -> None:
    """What runs unless `exact` is asked for rounds activations to 8 bits, which is all that it may change."""
    path = replace(tiny, kind="Q8_0").write(tmp_path / "q8.gguf")
    wanted, model = logits(path, IDS), load(path, exact=False, backend=kernels)
    assert nmse(logits_of(model, IDS, [1, 130, *range(N - STEPS, N)], **F32_CACHE), wanted) <= 5e-3


ALONE = [name for name in CASES if ": " in name and "freq_factors, " not in name]


@pytest.mark.parametrize("name", ALONE)
def test_each_rotation_shows_in_the_logits(folder: Path, name: str) -> None:
    """A case whose option moves nothing would pass whatever the code did: each is far from its family's plain model."""
    plain = case(folder, name.partition(": ")[0])[1]
    assert nmse(case(folder, name)[1], plain) > 1e-3


@pytest.mark.parametrize(
    "name", ["yarn, attn_factor", "yarn, beta_fast", "yarn, beta_slow", "yarn, ext_factor", "linear, attn_factor"]
)
def test_each_parameter_shows_in_the_logits(folder: Path, name: str) -> None:
    """The same for the parameters of a scaling, each against the scaling without it."""
    plain = case(folder, f"llama: {name.partition(',')[0]}")[1]
    assert nmse(case(folder, f"llama: {name}")[1], plain) > 1e-4


MUST_HAVES = [(QWEN2, f"blk.1.{name}.bias") for name in QKV]
MUST_HAVES += [(QWEN3, f"blk.1.{name}_norm.weight") for name in ("attn_q", "attn_k")]


@pytest.mark.parametrize(("tiny", "name"), MUST_HAVES)
def test_a_family_needs_what_makes_it_one(tmp_path: Path, tiny: Tiny, name: str) -> None:
    """A file without the biases of Qwen2 or the norms of Qwen3 is damaged, not a model that lacks them."""
    tensors = tiny.tensors()
    del tensors[name]
    path = write_gguf(tmp_path / "damaged.gguf", tiny.metadata(), tensors)
    with pytest.raises(GGUFError, match=f"'{name}' is missing"):
        load(path, exact=True)


@pytest.mark.parametrize(
    ("tiny", "qk_norm", "biases", "interleaved"),
    [(LLAMA, "", (), True), (QWEN2, "", ("attn_q", "attn_k", "attn_v"), False), (QWEN3, "head", (), False)],
)
def test_what_a_family_says_of_its_layers(
    tmp_path: Path, tiny: Tiny, qk_norm: str, biases: tuple[str, ...], interleaved: bool
) -> None:
    """One specification a layer, from the file's own metadata; families without experts do not ask."""
    path = tiny.write(tmp_path / "m.gguf")
    with open_gguf(path, {"{arch}.expert_count": 0 if tiny is LLAMA else 8}) as gguf:
        config = read_config(gguf)
    assert config.n_layers == len(config.layers) == len(config.attentions) and len(set(config.layers)) == 1
    attention, layer = config.attentions[0], config.layers[0]
    assert (attention.qk_norm, attention.biases, layer.norms) == (qk_norm, biases, "before")
    assert attention.rope is not None and attention.rope.interleaved == interleaved
    assert attention.scale == attention.head_dim_k**-0.5 and layer.ffn == Dense(tiny.n_ff)
    assert (attention.window, attention.softcap, attention.sinks, attention.gate) == (0, 0.0, False, False)
