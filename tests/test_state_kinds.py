"""Layers of all kinds in one cache: whatever is done to it, a token reads what it should (float64, masks by hand)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from attention_oracle import nmse
from fake_model import N_IDS, FakeModel, full
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from state_tools import CHUNK, IDS, MIXED, MODELS, N_CTX, cache_of, feed, run, sequence_of

from mixkv.engine.cache_config import CachePlan, KVCacheConfig
from mixkv.engine.state.recurrent import RecurrentState
from mixkv.engine.state.stats import cache_bytes
from mixkv.kernels import default_backend
from mixkv.kernels.errors import ConfigError, ContextFullError
from mixkv.models.batch import F32


@pytest.fixture(scope="module")
def models() -> dict[str, FakeModel]:
    return {name: FakeModel(*layers) for name, layers in MODELS.items()}


WANTED: dict[tuple[str, bool], NDArray] = {}
"""Rows of IDS: of each model, with a mixed cache and without."""
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["feed", "feed", "batch", "draft", "break off", "truncate", "checkpoint", "fork", "clear"]),
        st.integers(1, CHUNK), st.integers(0, 1000),
    ),
    min_size=3, max_size=30,
)  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mixed", [False, True])
@settings(max_examples=100)
@given(operations=OPERATIONS)
def test_a_token_reads_what_it_should_whatever_happened_before(
    models: dict[str, FakeModel], name: str, mixed: bool, operations: list[tuple[str, int, int]]
) -> None:
    """Every row, after any steps, batches, drafts, truncations, forks: in FP16 against float64, quantized against a
    sequence that was fed at once. Cutting back so far that hot tokens are lost changes a mixed cache's rows, and is
    left out there."""
    model, options = models[name], MIXED if mixed else {}
    if (name, mixed) not in WANTED:
        WANTED[name, mixed] = feed(model, cache_of(model, **options), IDS) if mixed else model.oracle(IDS)
    wanted = WANTED[name, mixed]

    def check(rows: F32, pos: int) -> None:
        assert nmse(rows, wanted[pos : pos + len(rows)]) < 1e-6

    cache, other = cache_of(model, **options), cache_of(model, **options)
    lengths: set[int] = set()
    for what, n, number in operations:
        pos, n = cache.n, min(n, N_CTX - cache.n)
        if what == "truncate":
            cut = number % (pos + 1)
            kept = cache.kept(cut)
            if mixed and not cache.truncates_exactly(kept):
                continue
            if kept in lengths:
                assert cache.truncates_exactly(kept), "a checkpoint has what was exact"
            assert cache.truncate(cut) == kept == cache.n <= cut
            assert kept in (cut, 0) or kept in lengths
            lengths = {length for length in lengths if length <= kept}
        elif what == "checkpoint":
            cache.checkpoint()
            lengths.add(pos)
            assert all(cache.kept(length) == length for length in lengths)
        elif what == "fork":
            twin = cache.fork()
            if n:
                feed(model, cache, [(t + 1) % N_IDS for t in IDS[pos : pos + n]])
            cache = twin
            assert cache.n == pos
        elif what == "clear":
            cache.clear()
            lengths = set()
            assert (cache.n, cache.nbytes) == (0, 0)
        elif n == 0:
            continue
        elif what == "feed":
            check(feed(model, cache, IDS[pos : pos + n]), pos)
        elif what == "batch":
            if other.n + 7 > N_CTX:
                other.clear()
            at = other.n
            mine, theirs = run(model, [(cache, IDS[pos : pos + n]), (other, IDS[at : at + 7])])
            check(mine, pos)
            check(theirs, at)
            cache.commit()
            other.commit()
        elif what == "draft":
            wrong = min(number % CHUNK, cache.most_drafted())
            ids = [IDS[pos], *[(t + 1) % N_IDS for t in IDS[pos : pos + wrong]]]
            (rows,) = run(model, [(cache, ids)])
            check(rows[:1], pos)
            cache.commit(1 if wrong else None)
        elif what == "break off":
            run(model, [(cache, IDS[pos : pos + n])])
            cache.abandon()
            assert cache.n == pos
    rest = IDS[cache.n : cache.n + 60]
    if rest:
        pos = cache.n
        check(feed(model, cache, rest), pos)


@pytest.mark.parametrize("name", MODELS)
def test_how_a_prompt_is_cut_changes_no_bit(models: dict[str, FakeModel], name: str) -> None:
    if default_backend().name != "native":
        pytest.skip("NumPy's products differ in their last bits with the shape")
    model = models[name]
    wanted = feed(model, cache_of(model, **MIXED), IDS)
    for cut in (1, 5, 16):
        np.testing.assert_array_equal(feed(model, cache_of(model, **MIXED), IDS, cut), wanted)


def test_groups_are_layers_that_keep_the_same(models: dict[str, FakeModel]) -> None:
    groups = [(s.group.kind, s.group.layers, s.group.shared) for s in cache_of(models["all"]).states]
    assert groups == [
        ("mixed", (0,), True), ("sliding", (1, 4), False), ("recurrent", (2,), False), ("sliding", (5,), False),
        ("mixed", (6,), False),
    ]  # fmt: skip


def test_bytes_by_hand(models: dict[str, FakeModel]) -> None:
    """290 tokens. FP16 rows of layer 0 take 2 heads * 32 numbers * 2 bytes = 128, of layers 1 and 4 together 256, of
    layer 5 4 * 64 * 2 = 512, of layer 6 32. A window of 20 and a step of 24 lie in 4 tiles: after 290 tokens these are
    tiles 15 to 18, of which 50 positions are there; a window of 33 takes 5 tiles: 66. The recurrent layer has 3 * 6 and
    6 numbers of 4 bytes, twice.

    A checkpoint shares the rings' pages, of 64 positions each, until they are written to. It has those of its windows:
    271 to 289 in a ring of 4 tiles, which is one page; 258 to 289 in slots 1 to 3 of a ring of 5, the first page."""
    model = models["all"]
    cache = cache_of(model)
    feed(model, cache, IDS[:290])
    stats = cache.stats()
    assert stats.hot_bytes == 290 * (128 + 32) and stats.cold_bytes == stats.sink_bytes == 0
    assert stats.window_bytes == 50 * 256 + 66 * 512
    assert stats.state_bytes == 2 * 4 * (18 + 6)
    assert stats.nbytes == stats.hot_bytes + stats.window_bytes + stats.state_bytes <= stats.peak_bytes
    assert stats.fp16_bytes == stats.hot_bytes + stats.window_bytes and stats.bits_per_element == 16
    cache.checkpoint()
    kept = stats.state_bytes // 2
    assert cache.stats().checkpoint_bytes == kept and cache.nbytes == stats.nbytes + kept <= cache.peak_nbytes
    feed(model, cache, IDS[290:])
    after = cache.stats()
    assert after.checkpoint_bytes == kept + 64 * (256 + 512)
    assert after.nbytes == after.hot_bytes + after.window_bytes + after.state_bytes + after.checkpoint_bytes
    plan = CachePlan.of(KVCacheConfig(), model.config.layers)
    assert cache_bytes(model.config, plan, N_CTX, CHUNK) == {
        "mixed": 300 * 160, "sliding": 64 * 256 + 80 * 512, "recurrent": stats.state_bytes,
    }  # fmt: skip


def test_only_layers_that_see_everything_turn_cold(models: dict[str, FakeModel]) -> None:
    model = models["all"]
    cache = cache_of(model, **MIXED, type_k="q8_0")
    feed(model, cache, IDS)
    stats, plain = cache.stats(), cache_of(model)
    feed(model, plain, IDS)
    assert stats.cold_tokens > 200 and stats.window_bytes == plain.stats().window_bytes
    # a row of layer 0: K 2 heads * 34, V 2 * 18 bytes; of layer 6 34 + 18, padded to blocks of 32
    assert stats.cold_bytes == stats.cold_tokens * (2 * 52 + 52)
    plan = CachePlan.of(KVCacheConfig(**MIXED), model.config.layers)
    assert [f and f.type_k for f in plan.layers] == ["q4_0", "f16", None, None, "f16", "f16", "q4_0"]
    assert not any(f.rotate_k or f.rotate_v for i, f in enumerate(plan.layers) if f and i in (1, 4, 5))


@pytest.mark.parametrize("kind", ["f16", "f32", "q8_0"])
def test_a_window_is_kept_in_the_caches_float_type(models: dict[str, FakeModel], kind: str) -> None:
    model = models["windows"]
    plan = CachePlan.of(KVCacheConfig(type_k=kind, type_v=kind), model.config.layers)
    wanted = "f32" if kind == "f32" else "f16"
    assert plan.format(0).hot_k == plan.format(0).type_k == plan.format(0).type_v == wanted
    assert plan.format(1).type_k == kind and (plan.hot_window == 0) == (kind == "q8_0")


@pytest.mark.parametrize(
    ("layer", "why"), [(1, "sees a window"), (2, "keeps no keys"), (3, "keeps no keys"), (7, "0 to 6")]
)
def test_settings_for_a_layer_that_cannot_have_them_are_refused(
    models: dict[str, FakeModel], layer: int, why: str
) -> None:
    with pytest.raises(ConfigError, match=f"layer {layer}.*{why}"):
        CachePlan.of(KVCacheConfig(per_layer={layer: {"type_k": "q8_0"}}), models["all"].config.layers)


def test_a_state_goes_back_to_its_checkpoints_alone(models: dict[str, FakeModel]) -> None:
    model = models["recurrent"]
    cache = cache_of(model)
    for n in (24, 48, 72):
        feed(model, cache, IDS[n - 24 : n])
        if n < 72:
            cache.checkpoint()
    assert [cache.kept(n) for n in (72, 71, 48, 47, 24, 23, 0)] == [72, 48, 48, 24, 24, 0, 0]
    assert not cache.truncates_exactly(60) and cache.truncates_exactly(48)
    assert cache.most_drafted() == 0
    assert cache.truncate(60) == cache.n == 48
    assert nmse(feed(model, cache, IDS[48:90]), model.oracle(IDS)[48:90]) < 1e-6
    assert cache.truncate(30) == 24 and cache.truncate(20) == 0, "checkpoints that lie beyond are gone"
    assert nmse(feed(model, cache, IDS[:30]), model.oracle(IDS)[:30]) < 1e-6
    assert cache.kept(24) == 0


def test_checkpoints_keep_to_their_budget_and_stay_spread(models: dict[str, FakeModel]) -> None:
    """Those of "one state" take 4 * 24 = 96 bytes: six fit into 600. Dropping always the oldest left a long sequence
    with none but at its end, and whoever changed an early message computed everything again."""
    model = models["one state"]
    cache = cache_of(model, checkpoint_bytes=600)
    for n in range(10, 210, 10):
        feed(model, cache, IDS[n - 10 : n])
        cache.checkpoint()
        cache.checkpoint()
    lengths = sorted({cache.kept(n) for n in range(1, 201)} - {0})
    assert len(lengths) == 6 and lengths[-3:] == [180, 190, 200] and lengths[0] <= 90, lengths
    assert max(b - a for a, b in pairwise([0, *lengths])) <= 90
    assert cache.stats().checkpoint_bytes == 576
    twin = cache.fork()
    assert twin.truncate(185) == 180 and cache.kept(199) == 190, "a fork has them too, and drops its own"
    none = cache_of(model, checkpoint_bytes=95)
    feed(model, none, IDS[:10])
    none.checkpoint()
    assert none.stats().checkpoint_bytes == 0 and none.kept(9) == 0


def test_models_of_keys_alone_make_no_checkpoints() -> None:
    model = FakeModel(full())
    cache = cache_of(model)
    feed(model, cache, IDS[:50])
    cache.checkpoint()
    assert cache.stats().checkpoint_bytes == 0 and cache.truncate(31) == 31


def test_a_sequence_counts_what_is_really_kept(models: dict[str, FakeModel]) -> None:
    """A prefix that the cache cannot be cut back to was counted as reused, and the next token read another past."""
    model = models["all"]
    seq = sequence_of(model, cache_of(model))
    seq.feed(IDS[:60])
    seq.cache.checkpoint()
    seq.feed(IDS[60:100])
    other = [*IDS[:80], (IDS[80] + 1) % N_IDS, 3]
    assert seq.kept_prefix(other) == seq.keep_prefix(other) == 60 and seq.tokens == IDS[:60]
    assert nmse(seq.feed(other[60:]), model.oracle(other)[-1:]) < 1e-6
    assert seq.truncate(70) == 60 == len(seq.tokens) == seq.cache.n


def test_a_full_context_changes_nothing(models: dict[str, FakeModel]) -> None:
    model = models["all"]
    cache = cache_of(model)
    feed(model, cache, IDS[:290])
    before = cache.stats()
    with pytest.raises(ContextFullError):
        cache.begin(11)
    assert cache.stats() == before and nmse(feed(model, cache, IDS[290:]), model.oracle(IDS)[290:]) < 1e-6


@pytest.mark.parametrize("stop", range(5))
@pytest.mark.parametrize("what", ["commit", "truncate"])
def test_an_interrupt_between_two_groups_is_finished_later(
    models: dict[str, FakeModel], monkeypatch: pytest.MonkeyPatch, what: str, stop: int
) -> None:
    """Groups of one sequence stood at different lengths ever after."""
    model = models["all"]
    cache = cache_of(model)
    feed(model, cache, IDS[:40])
    cache.checkpoint()
    feed(model, cache, IDS[40:50])
    if what == "commit":
        run(model, [(cache, IDS[50:60])])
    state = cache.states[stop]
    name = "commit" if what == "commit" else "restore" if isinstance(state, RecurrentState) else "truncate"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(state, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache.commit() if what == "commit" else cache.truncate(45)
    n = cache.n
    assert n == (60 if what == "commit" else 40)
    assert nmse(feed(model, cache, IDS[n:120]), model.oracle(IDS)[n:120]) < 1e-6
    assert {s.n for s in cache.states} == {120}
