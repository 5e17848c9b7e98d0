"""Every family on tiny files of its own (tiny_families.py), against a forward pass in float64 (family_oracle.py), and
what holds for all of them: cuts, batches, sessions, forks, going back.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from attention_oracle import nmse
from conftest import ISAS
from family_oracle import Oracle
from float_forward import F64
from model_tools import logits_of
from tiny_families import families
from tiny_parts import VOCAB

import mixkv
from mixkv.engine.cache_config import CachePlan, KVCacheConfig
from mixkv.engine.memory import plan_memory
from mixkv.engine.state.batch import BatchStates
from mixkv.engine.state.cache import KVCache
from mixkv.kernels import Backend, default_backend, open_backend
from mixkv.models.batch import Batch
from mixkv.models.config import ModelConfig
from mixkv.models.decoder import Decoder
from mixkv.models.gguf import open_gguf
from mixkv.models.key_sample import HeadStatistics
from mixkv.models.layers import Attention, Recurrent
from mixkv.models.registry import architectures, load_model

FILES = families()
N, N_CTX = 90, 512
IDS = np.random.default_rng(5).integers(3, VOCAB, N).tolist()
F32_CACHE = {"type_k": "f32", "type_v": "f32"}
MIXED = {"mixed_kv_cache": True, "hot_window": 16, "sink_tokens": 4, "kv_plan": "off"}
ROUNDING = {"gemma2, 27B": 1e-6, "gemma3n": 1e-6}
"""NMSE that float32 may cost where rounding grows over many layers, or a gate cuts off; elsewhere 1e-10."""


@pytest.fixture(scope="module", params=ISAS if default_backend().name == "native" else ["numpy"])
def kernels(request: pytest.FixtureRequest) -> Backend:
    """Each instruction set that this machine runs, or NumPy's twin where that is in use."""
    return default_backend() if request.param == "numpy" else open_backend(2, isa=request.param)


@pytest.fixture(scope="module", params=dict.fromkeys((*ISAS[:1], *ISAS[-1:])) if ISAS else ["numpy"])
def least_and_most(request: pytest.FixtureRequest) -> Backend:
    """The least instruction set and the best one: tests of kernels hold those between."""
    return open_backend(2, isa=request.param) if default_backend().name == "native" else default_backend()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@cache
def file_of(folder: Path, name: str, kind: str = "F32") -> Path:
    return FILES[name].write(folder / f"{len(list(folder.iterdir()))}.gguf", kind)


@cache
def wanted(path: Path) -> F64:
    return Oracle(path, N_CTX).logits(IDS)


def load(path: Path, backend: Backend, *, exact: bool = True) -> Decoder:
    with open_gguf(path) as gguf:
        return load_model(gguf, backend, n_ctx=N_CTX, exact=exact, dense=True)


def test_every_architecture_has_a_file() -> None:
    assert {tiny.arch for tiny in FILES.values()} == set(architectures())


@pytest.mark.parametrize("name", FILES)
def test_logits_are_those_of_the_formulas(folder: Path, kernels: Backend, name: str) -> None:
    """Whatever a family brings and is done wrongly moves logits by more than rounding does, from the first piece on or
    from the first token past a window."""
    path = file_of(folder, name)
    got = logits_of(load(path, kernels), IDS, [1, 40, 80], **F32_CACHE)
    assert nmse(got, wanted(path)) <= ROUNDING.get(name, 1e-10)


@pytest.mark.parametrize("name", [name for name in FILES if name not in ROUNDING])
def test_activations_of_8_bits_stay_close(folder: Path, least_and_most: Backend, name: str) -> None:
    """Rounding activations is all that may change unless `exact` is asked for. It may send a token to other experts,
    which moves its logits and those after it by far more: so half of the tokens count.
    Gemma 4 does not scale its scores, which makes attention of random weights a matter of one key or another."""
    path = file_of(folder, name, "Q8_0")
    got = logits_of(load(path, least_and_most, exact=False), IDS, [33], **F32_CACHE)
    each = [nmse(mine, theirs) for mine, theirs in zip(got, wanted(path), strict=True)]
    assert np.median(each) <= (0.2 if name.startswith("gemma4") else 1e-2)


class Sequences:
    """Caches of one model, worked on batch by batch."""

    def __init__(self, model: Decoder, **settings: object) -> None:
        self.model = model
        self.plan = CachePlan.of(KVCacheConfig.from_keywords(**settings), model.config.layers)

    def new(self) -> KVCache:
        return KVCache(self.model.config, self.plan, self.model.backend, n_ctx=N_CTX, chunk=64)

    def step(self, *parts: tuple[KVCache, list[int]]) -> list[np.ndarray]:
        """Logits of all tokens that each cache is given."""
        batch = Batch.of([(ids, kv.begin(len(ids)), len(ids)) for kv, ids in parts])
        out = self.model.forward(batch, BatchStates([kv for kv, _ in parts], batch.runs))
        for kv, _ in parts:
            kv.commit()
        return np.split(out, np.cumsum([len(ids) for _, ids in parts])[:-1])


@pytest.mark.parametrize("settings", [F32_CACHE, MIXED], ids=["f32", "mixed"])
@pytest.mark.parametrize("name", FILES)
def test_bits_do_not_depend_on_cuts_or_company(
    folder: Path, least_and_most: Backend, name: str, settings: dict[str, object]
) -> None:
    """One way to cut a prompt into pieces is another's equal to the bit, also beside other sequences."""
    run = Sequences(load(file_of(folder, name), least_and_most, exact=False), **settings)
    alone, cut, other = run.new(), run.new(), run.new()
    expected = run.step((alone, IDS[:60]))[0]
    expected = np.concatenate([expected, run.step((alone, IDS[60:]))[0]])
    pieces = []
    for start, stop in ((0, 1), (1, 18), (18, 60), (60, 61), (61, N)):
        mine, _ = run.step((cut, IDS[start:stop]), (other, IDS[: stop - start][::-1]))
        pieces.append(mine)
    assert np.concatenate(pieces).tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", FILES)
def test_forks_and_going_back(folder: Path, name: str) -> None:
    """A fork goes on as its original would, and taking tokens back is as if they had never come."""
    run = Sequences(load(file_of(folder, name), default_backend(), exact=False), **MIXED)
    cache, straight = run.new(), run.new()
    run.step((cache, IDS[:40]))
    run.step((straight, IDS[:40]))
    cache.checkpoint()
    fork = cache.fork()
    expected = run.step((straight, IDS[40:60]))[0]
    run.step((cache, IDS[60:75]))
    assert run.step((fork, IDS[40:60]))[0].tobytes() == expected.tobytes()
    kept = cache.truncate(40)
    assert kept == 40
    if cache.truncates_exactly(40):
        assert run.step((cache, IDS[40:60]))[0].tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", FILES)
def test_keys_are_sampled_whatever_their_matrix_is_called(folder: Path, name: str) -> None:
    """kv_plan judges keys by samples from the weights. Without one it leaves keys to the settings, as if all were well;
    and rows of another part of a fused matrix would tell of other keys.

    What the model makes of inputs as the samples assume them has the same spread, within what chance allows.
    """
    path = file_of(folder, name)
    with open_gguf(path) as gguf:
        heads = HeadStatistics(gguf, default_backend())
        heads.read()
    model = load(path, default_backend())
    for i, layer in enumerate(model.config.layers):
        a = layer.mixer
        if not isinstance(a, Attention) or a.kv_from is not None:
            continue
        sample = heads.sample(i)
        assert sample is not None and sample.k.shape[1:] == (a.n_kv_heads, a.head_dim_k)
        x = np.random.default_rng(i).standard_normal((400, model.config.n_embd), np.float32)
        k = keys_of(model, i, x, np.arange(len(x)) * 7)
        assert np.sqrt(np.square(sample.k).mean()) == pytest.approx(np.sqrt(np.square(k).mean()), rel=0.25)


def keys_of(model: Decoder, layer: int, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Keys (n, n_kv_heads, head_dim) of one layer for these rows of the residual stream."""

    class Stop(Exception):
        pass

    class Catches:
        def attend(self, layer: int, q: object, k: np.ndarray, v: object, sinks: object) -> None:
            self.keys = k
            raise Stop

        def recurrent(self, layer: int) -> list[object]:
            return []

    states = Catches()
    batch = Batch(np.zeros(len(x), np.int32), positions, (), slice(0, 0))
    mixer = model.layers[layer]._mixer if hasattr(model.layers[layer], "_mixer") else None
    mixer = getattr(model.layers[layer], "_attend", None) or getattr(mixer, "_first", None) or mixer
    with pytest.raises(Stop):
        mixer(x, batch, states, None)  # type: ignore[misc, arg-type]
    return states.keys


@pytest.mark.parametrize("name", FILES)
def test_sessions_plans_and_pages_of_a_whole_model(folder: Path, tmp_path: Path, name: str) -> None:
    """A file of each family is loaded as people load it: the text after a saved session is the one without, the plan
    of memory covers what the cache holds, which is what its layers' kinds cost by hand."""
    path = file_of(folder, name, "Q8_0")
    options = {"max_tokens": 12, "temperature": 0.0}
    settings = {"n_ctx": 256, "n_batch": 16, "prefix_reuse": "exact", **MIXED}
    with mixkv.load(path, n_threads=2, **settings) as llm:
        llm.generate(IDS[:70], **options)
        llm.save_session(tmp_path / "s.mixkv")
        text = llm.generate([*llm.sequence.tokens, *IDS[70:75]], **options).tokens
        stats = llm.cache.stats()
        assert stats.nbytes - stats.checkpoint_bytes == bytes_by_hand(llm.config, llm.cache.n)
        plan = plan_memory(llm.gguf, llm.config, llm.cache.plan, llm.backend, n_ctx=256, n_batch=16)
        assert stats.nbytes - stats.checkpoint_bytes <= plan.cache
    with mixkv.load(path, n_threads=1, **settings) as other:
        other.load_session(tmp_path / "s.mixkv")
        assert other.generate([*other.sequence.tokens, *IDS[70:75]], **options).tokens == text


RING_TILES = 4
"""Tiles of 16 tokens that a window of 24 and a step of 16 touch at most, wherever they begin."""


def bytes_by_hand(config: ModelConfig, n: int) -> int:
    """Of n tokens with MIXED: sinks and window in FP16, the rest in whole tiles of q4_0, 18 bytes for 32 numbers; a
    layer with a window has a ring of tiles in FP16, one with chunks its newest, a recurrent one its state and that of
    the step before."""
    total = 0
    for layer in config.layers:
        for mixer in (layer.mixer, layer.beside):
            if isinstance(mixer, Recurrent):
                total += 2 * mixer.state_bytes
            elif mixer is not None and mixer.kv_from is None:
                kv, k, v = mixer.kv_shape
                fp16 = 2 * kv * (k + v)
                if mixer.chunk:
                    total += fp16 * (n % mixer.chunk)
                elif mixer.window:
                    total += fp16 * (n - max(0, -(-n // 16) - RING_TILES) * 16)
                else:
                    cold = max(0, n - 4 - 16) // 16 * 16
                    total += (n - cold) * fp16 + cold * kv * 18 * (-(-k // 32) + -(-v // 32))
    return total
