"""Sessions of models whose layers keep different things: what was saved goes on, and nonsense is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attention_oracle import nmse
from fake_model import N_IDS, FakeModel, chunked, full, latent, recurrent, sliding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from session_tools import rebuild

from mixkv.engine.cache_config import CachePlan, KVCacheConfig
from mixkv.engine.scheduler import Scheduler
from mixkv.engine.sequence import Sequence
from mixkv.engine.session import restore_session, save_session
from mixkv.engine.session_group import group_from_json
from mixkv.engine.state.cache import KVCache
from mixkv.kernels import default_backend
from mixkv.kernels.errors import MixkvError, SessionError

N_CTX = 200
IDS = np.random.default_rng(3).integers(0, N_IDS, N_CTX).tolist()
MIXED: dict[str, Any] = {"mixed_kv_cache": True, "hot_window": 16, "sink_tokens": 4}


@pytest.fixture(scope="module")
def model() -> FakeModel:
    return FakeModel(full(), sliding(20), recurrent(), sliding(33, head_dim=32), full(1, 8), chunked(50), latent())


def sequence_of(model: FakeModel, n_batch: int = 24, **options: Any) -> Sequence:
    plan = CachePlan.of(KVCacheConfig(**options), model.config.layers)
    cache = KVCache(model.config, plan, model.backend, n_ctx=N_CTX, chunk=n_batch)
    return Sequence(Scheduler(model, n_batch=n_batch), cache)


@pytest.mark.parametrize("options", [{}, MIXED], ids=["f16", "mixed"])
@pytest.mark.parametrize("n", [0, 1, 19, 100, 161])
@pytest.mark.parametrize("n_batch", [24, 5, 70])
def test_what_was_saved_goes_on(
    model: FakeModel, tmp_path: Path, options: dict[str, Any], n: int, n_batch: int
) -> None:
    """Into a cache of the same settings, whose ring may be longer or shorter; bit for bit in the native kernels."""
    seq, other = sequence_of(model, **options), sequence_of(model, n_batch, **options)
    if n:
        seq.feed(IDS[:n])
    seq.cache.checkpoint()
    save_session(tmp_path / "s", seq)
    restored = restore_session(tmp_path / "s", other)
    assert restored.tokens == IDS[:n] and restored.cache.n == n == restored.cache.kept(n)
    if n_batch == 24:
        before, after = seq.cache.stats(), restored.cache.stats()
        assert (before.window_bytes, before.state_bytes) == (after.window_bytes, after.state_bytes)
    assert restored.cache.stats().checkpoint_bytes == 0, "checkpoints are not in the file"
    wanted, got = (s.feed(IDS[n : n + 30], all_rows=True) for s in (seq, restored))
    if default_backend().name == "native":
        np.testing.assert_array_equal(got, wanted)
    else:
        assert nmse(got, wanted) < 1e-9


def test_conversion_leaves_what_needs_none_as_it_is(model: FakeModel, tmp_path: Path) -> None:
    """From the mixed cache to float32: old tokens are what their cold form says, windows and states are exact."""
    seq, other = sequence_of(model, **MIXED), sequence_of(model, type_k="f32", type_v="f32")
    seq.feed(IDS[:120])
    save_session(tmp_path / "s", seq)
    with pytest.raises(SessionError, match="convert"):
        restore_session(tmp_path / "s", other)
    layer_4 = sequence_of(model, **MIXED, per_layer={4: {"type_k": "q8_0"}})
    with pytest.raises(SessionError, match=r"with layer 4 = .*and this cache has"):  # of the model, not of its group
        restore_session(tmp_path / "s", layer_4)
    restored = restore_session(tmp_path / "s", other, convert=True)
    rows, wanted = restored.feed(IDS[120:150], all_rows=True), model.oracle(IDS)[120:150]
    assert nmse(rows, wanted) < 0.02
    kept = slice(64, 64 + 64 + 6 + 128)  # the columns of layers 1 to 3
    assert nmse(rows[:, kept], wanted[:, kept]) < 1e-6
    back = restore_session(tmp_path / "s", sequence_of(model, **MIXED | {"hot_window": 32}), convert=True)
    assert nmse(back.feed(IDS[120:150], all_rows=True)[:, kept], wanted[:, kept]) < 1e-6


@pytest.fixture(scope="module")
def good(model: FakeModel, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    seq, path = sequence_of(model, **MIXED), tmp_path_factory.mktemp("session") / "s"
    seq.feed(IDS[:100])
    save_session(path, seq)
    return path.read_bytes()


def of_group(number: int, **fields: object) -> Callable[[dict[str, Any]], None]:
    return lambda header: header["groups"][number].update(fields)


NONSENSE = {
    "window-0": of_group(1, window=0),
    "window-other": of_group(1, window=21),
    "window-text": of_group(1, window="20"),
    "window-none": lambda header: header["groups"][1].pop("window"),
    "oldest-negative": of_group(1, oldest=-16),
    "oldest-no-tile": of_group(1, oldest=50),
    "oldest-beyond-the-window": of_group(1, oldest=96),
    "oldest-2^62": of_group(1, oldest=2**62),
    "oldest-0": of_group(1, oldest=0),
    "ring-heads": of_group(1, n_kv_heads=1),
    "ring-quantized": lambda header: header["groups"][1]["layers"][0].update(hot_k="q4_0"),
    "ring-layers": lambda header: header["groups"][1].update(layers=[]),
    "shapes-none": of_group(2, shapes=None),
    "shapes-empty": of_group(2, shapes=[]),
    "shapes-text": of_group(2, shapes=["36"]),
    "shapes-float": of_group(2, shapes=[[3.0, 6], [6]]),
    "shapes-turned": of_group(2, shapes=[[6, 3], [6]]),
    "shapes-zero": of_group(2, shapes=[[3, 0], [6]]),
    "shapes-negative": of_group(2, shapes=[[-3, -6], [6]]),
    "shapes-huge": of_group(2, shapes=[[2**31, 2**31], [6]]),
    "shapes-deep": of_group(2, shapes=[[1] * 1000, [6]]),
    "layers-2^40": of_group(2, n_layers=2**40),
    "layers-more": of_group(2, n_layers=2),
    "chunk-0": of_group(5, chunk=0),
    "chunk-other": of_group(5, chunk=25),
    "chunk-text": of_group(5, chunk="50"),
    "start-of-no-chunk": of_group(5, start=51),
    "start-beyond": of_group(5, start=150),
    "start-too-early": of_group(5, start=0),
    "start-none": lambda header: header["groups"][5].pop("start"),
    "latent-values": of_group(6, head_dim_v=16),
    "kind": of_group(2, kind="latent"),
    "kind-none": lambda header: header["groups"][2].pop("kind"),
    "order": lambda header: header["groups"].reverse(),
    "one-less": lambda header: header["groups"].pop(),
    "group-list": lambda header: header["groups"].__setitem__(1, []),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_nonsense_in_a_groups_header_is_refused(model: FakeModel, good: bytes, tmp_path: Path, case: str) -> None:
    seq = sequence_of(model, **MIXED)
    (tmp_path / "s").write_bytes(rebuild(good, NONSENSE[case]))
    for convert in (False, True):
        with pytest.raises(SessionError) as caught:
            restore_session(tmp_path / "s", seq, convert=convert)
        assert "\n" not in str(caught.value) and str(tmp_path / "s") in str(caught.value)


FIELDS = [
    "window", "oldest", "chunk", "start", "n_layers", "n_kv_heads", "head_dim_k", "head_dim_v", "hot_start", "kind",
    "shapes",
]  # fmt: skip


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    group=st.integers(0, 6), n=st.sampled_from([None, 0, 1, 99, 100]), n_bytes=st.none() | st.integers(0, 40_000),
    fields=st.dictionaries(
        st.sampled_from(FIELDS),
        st.sampled_from([0, 1, 16, 20, 32, 80, 96, -1, 2**31, 2**63, None, "mixed", "sliding", "recurrent", [], [[6]]]),
        max_size=3,
    ),
)  # fmt: skip
def test_any_header_is_an_error_or_a_session(
    model: FakeModel, good: bytes, tmp_path: Path, group: int, n: int | None, n_bytes: int | None,
    fields: dict[str, Any],
) -> None:  # fmt: skip
    def change(header: dict[str, Any]) -> None:
        header["groups"][group].update(fields)
        if n is not None:
            header["n"] = n

    (tmp_path / "s").write_bytes(rebuild(good, change, None if n_bytes is None else bytes(n_bytes)))
    try:
        restored = restore_session(tmp_path / "s", sequence_of(model, **MIXED))
        restored.feed(IDS[:2])
    except MixkvError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(("chunk", "start", "n"), [(40, 50, 60), (40, 80, 70), (40, 40, 81), (0, 0, 10)])
def test_tokens_of_a_chunk_lie_in_it(chunk: int, start: int, n: int) -> None:
    """Also where the payload is as long as the header says: tokens stood at other places than they were saved from."""
    layer = {"type_k": "f16", "type_v": "f16"}
    fields = {"kind": "chunked", "n_kv_heads": 2, "head_dim_k": 16, "head_dim_v": 16, "layers": [layer]}
    assert group_from_json(fields | {"chunk": 40, "start": 40}, 80).sections(80)[0].shape == (40, 2, 16)
    with pytest.raises(SessionError, match="chunk and its tokens contradict"):
        group_from_json(fields | {"chunk": chunk, "start": start}, n)
