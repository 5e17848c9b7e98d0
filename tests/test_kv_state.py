"""What the cache holds and counts: bytes, peaks, truncation, forks, and states after errors.

One small random llama; the numbers of bytes are worked out by hand for its shape.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attention_oracle import exact_attention, nmse
from model_tools import F32, load_exact, logits_of, random_ids, random_llama, sequence

import mixkv
from mixkv.engine.scheduler import Scheduler
from mixkv.engine.sequence import Sequence
from mixkv.engine.state.mixed_policy import PIECE
from mixkv.kernels import LayerFormat, default_backend
from mixkv.models.decoder import Decoder

MIXED: dict[str, Any] = {"mixed_kv_cache": True, "hot_window": 32, "sink_tokens": 16}
# 2 layers, 2 KV heads of 64, K and V: 512 numbers a token. FP16: 2 bytes each. Q4_0: 18 bytes for 32 of them.
FP16, Q4, SCALES = 512 * 2, 512 // 32 * 18, 512 // 32 * 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return load_exact(random_llama(tmp_path_factory.mktemp("model") / "llama.gguf"))


@pytest.fixture(scope="module")
def ids(model: Decoder) -> list[int]:
    return random_ids(model, 300)


def filled(model: Decoder, ids: list[int], **settings: Any) -> Sequence:
    seq = sequence(model, **settings)
    seq.feed(ids)
    return seq


def held_bytes(seq: Sequence) -> int:
    """Bytes of the rows that the store gives out: sinks, cold tiles, hot rows."""
    marks, sinks, total = seq.cache.states[0].policy.marks, seq.cache.plan.sink_tokens, 0
    for layer in range(2):
        store = seq.cache.states[0].store
        pairs = [store.get_hot(layer, 0, min(sinks, marks.n))] if sinks else []
        pairs += [store.get_cold(layer, sinks, marks.quant_end), store.get_hot(layer, marks.hot_start, marks.n)]
        total += sum(side.nbytes for pair in pairs for side in pair)
    return total


@pytest.mark.parametrize("n", [1, 16, 17, 62, 63, 64, 150, 300])
def test_each_token_is_stored_once(model: Decoder, ids: list[int], n: int) -> None:
    """The gain is in the bytes: sinks and window in FP16, everything else in Q4_0 and nowhere else."""
    seq = filled(model, ids[:n], **MIXED)
    cold = max(0, (n + 1 - 32 - 16) // 16 * 16)
    stats = seq.cache.stats()
    assert (stats.n_tokens, stats.cold_tokens) == (n, cold)
    assert stats.sink_tokens + stats.hot_tokens + stats.cold_tokens == n
    assert stats.cold_bytes == cold * Q4 and stats.scale_bytes == cold * SCALES
    assert stats.sink_bytes + stats.hot_bytes == (n - cold) * FP16
    assert stats.nbytes == seq.cache.nbytes == held_bytes(seq) == (n - cold) * FP16 + cold * Q4
    assert stats.bits_per_element == pytest.approx(8 * stats.nbytes / (512 * n)) == seq.cache.bits_per_element
    assert stats.fp16_bytes == n * FP16
    assert stats.degraded_tokens == 0


def test_an_empty_cache_holds_nothing(model: Decoder) -> None:
    stats = sequence(model, **MIXED).cache.stats()
    assert (stats.n_tokens, stats.nbytes, stats.bits_per_element, stats.peak_bytes) == (0, 0, 0.0, 0)


@pytest.mark.parametrize("n_batch", [16, 50, 300])
def test_peak_during_prefill_is_bounded(model: Decoder, ids: list[int], n_batch: int) -> None:
    """Others peak above FP16 while they quantize; here: quantized bytes of n tokens, and window + piece + tile hot."""
    seq = filled(model, ids, n_batch=n_batch, **MIXED)
    peak = seq.cache.peak_nbytes
    assert peak == seq.cache.stats().peak_bytes
    assert seq.cache.nbytes <= peak <= 300 * Q4 + (16 + 32 + min(n_batch, PIECE) + 16) * FP16
    if n_batch == 16:
        assert peak < 0.55 * 300 * FP16
    seq.cache.clear()
    assert seq.cache.peak_nbytes == 0


def test_the_ring_is_allocated_for_window_and_piece_not_for_the_context(model: Decoder) -> None:
    """Hot rows beyond the ring must not be kept somewhere: the store's own arrays are the memory."""
    for n_batch, piece in ((32, 32), (PIECE, PIECE), (512, PIECE)):
        for n_ctx in (512, 10**5):
            policy = sequence(model, n_ctx=n_ctx, n_batch=n_batch, **MIXED).cache.states[0].policy
            assert policy.hot_tiles == (32 + piece) // 16 + 2


def test_truncation_within_the_reserve_is_exact(model: Decoder, ids: list[int]) -> None:
    """A rejected draft is taken back without a trace: what follows equals the run that never saw it."""
    settings = MIXED | {"rollback_reserve": 20}
    seq = filled(model, ids[:200], **settings)
    seq.feed(ids[100:118])  # 18 tokens that will be rejected; tile boundaries lie among them
    seq.truncate(200)
    assert seq.tokens == ids[:200] and seq.cache.stats().degraded_tokens == 0
    got = np.concatenate([seq.feed([token]) for token in ids[200:240]])
    control = filled(model, ids[:200], **settings)
    wanted = np.concatenate([control.feed([token]) for token in ids[200:240]])
    np.testing.assert_array_equal(got, wanted)


def test_truncation_past_the_window_is_reported_and_close(model: Decoder, ids: list[int]) -> None:
    """It works on dequantized values and says so; it never lies about precision."""
    seq = filled(model, ids, **MIXED)
    seq.truncate(150)
    stats = seq.cache.stats()
    first_hot = 16 + (150 + 1 - 32 - 16) // 16 * 16
    assert (stats.n_tokens, stats.hot_tokens, stats.degraded_tokens) == (150, 150 - first_hot, 150 - first_hot)
    degraded = seq.feed(ids[150:151])
    intact = filled(model, ids[:150], **MIXED).feed(ids[150:151])
    coarse = filled(model, ids[:150], type_k="q4_0", type_v="q4_0").feed(ids[150:151])
    assert 0 < nmse(degraded, intact) < 0.2
    assert nmse(degraded, intact) < 4 * nmse(coarse, intact)
    seq.feed(ids[151:230])
    assert seq.cache.stats().degraded_tokens == 0


def test_truncation_to_nothing_starts_over(model: Decoder, ids: list[int]) -> None:
    seq = filled(model, ids, **MIXED)
    seq.truncate(0)
    assert seq.tokens == [] and seq.cache.nbytes == 0
    np.testing.assert_array_equal(seq.feed(ids[:100]), sequence(model, **MIXED).feed(ids[:100]))


@pytest.mark.parametrize("n", [-1, 301])
def test_truncation_to_a_length_that_is_not_there(model: Decoder, ids: list[int], n: int) -> None:
    seq = filled(model, ids, **MIXED)
    with pytest.raises(mixkv.InputError, match="300 tokens"):
        seq.truncate(n)
    assert seq.cache.n == 300


def test_forks_are_independent(model: Decoder, ids: list[int]) -> None:
    """A shared buffer would let one branch write into the other's past."""
    cache = filled(model, ids[:150], **MIXED).cache
    branches = []
    for tail in (ids[150:220], ids[200:270]):
        seq = Sequence(Scheduler(model, n_batch=512), cache.fork())
        branches.append((seq, tail))
    got = [seq.feed(tail[:35]) for seq, tail in branches]
    got = [seq.feed(tail[35:]) for seq, tail in branches]
    assert cache.n == 150
    for logits, (_, tail) in zip(got, branches, strict=True):
        control = filled(model, ids[:150], **MIXED)
        control.feed(tail[:35])
        np.testing.assert_array_equal(logits, control.feed(tail[35:]))


def test_a_full_context_is_an_error_before_anything_is_written(model: Decoder, ids: list[int]) -> None:
    """Half a prompt in the cache would make the next call continue from nonsense."""
    seq, control = (filled(model, ids[:90], n_ctx=100, n_batch=8, **MIXED) for _ in range(2))
    before = seq.cache.stats(), list(seq.tokens)
    with pytest.raises(mixkv.ContextFullError, match=r"11 more tokens after 90 exceed the context of 100"):
        seq.feed(ids[90:101])
    assert (seq.cache.stats(), seq.tokens) == before
    np.testing.assert_array_equal(seq.feed(ids[90:100]), control.feed(ids[90:100]))


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_exception_in_the_middle_of_a_step_changes_nothing(
    model: Decoder, ids: list[int], error: type[BaseException]
) -> None:
    """Layer 0 has already written and quantized when layer 1 fails: the retry must not see it."""
    seq, control = (filled(model, ids[:100], **MIXED) for _ in range(2))
    before = seq.cache.stats()

    attend = seq.cache.attend

    def failing(layer: int, q: F32, k: F32, v: F32, sinks: None) -> F32:
        if layer == 1:
            raise error
        return attend(layer, q, k, v, sinks)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(error):
        patch.setattr(seq.cache, "attend", failing)
        seq.feed(ids[200:240])
    assert seq.cache.stats() == before
    np.testing.assert_array_equal(seq.feed(ids[100:160]), control.feed(ids[100:160]))


def test_the_store_reads_no_row_that_nobody_wrote() -> None:
    """Ring slots and cold rows outside the sequence hold NaN here; one stray read and the output shows it."""
    rng, n_ctx, sinks, tiles = np.random.default_rng(0), 96, 4, 4
    store = default_backend().KVStore(
        [LayerFormat()], n_kv_heads=2, head_dim_k=64, head_dim_v=64, n_ctx=n_ctx, sink_tokens=sinks, hot_tiles=tiles
    )
    poison = np.full((tiles * 16, 2, 64), np.nan, np.float16)
    store.set_hot(0, 0, poison[:sinks], poison[:sinks])
    store.set_hot(0, sinks, poison, poison)
    bad_cold = np.full((n_ctx - sinks - 12, 2, 36), 0xFF, np.uint8)  # scale 0xFFFF is NaN
    store.set_cold(0, sinks, bad_cold, bad_cold)
    k, v = (rng.standard_normal((62, 2, 64)).astype(np.float16).astype(np.float32) for _ in range(2))
    q = rng.standard_normal((62, 4, 64)).astype(np.float32)
    for pos in range(40):
        store.write(0, k[pos : pos + 1], v[pos : pos + 1], pos)
    store.quantize(0, 4, 20)
    options = {"scale": 0.125}
    one = store.step(0, q[40:41], k[40:41], v[40:41], 40, np.array([20]), 20, 20, **options)
    many = store.step(0, q[41:62], k[41:62], v[41:62], 41, np.array([20] * 10 + [36] * 11), 20, 36, **options)
    cold_k, cold_v = (mixkv.QuantizedRows(a, "q4_0", 64).dequantize() for a in store.get_cold(0, 4, 36))
    for i, got in zip([40, *range(41, 62)], [one[0], *many], strict=True):
        hot_from = 20 if i < 51 else 36
        keys, values = (
            np.concatenate([x[:4], cold[: hot_from - 4], x[hot_from : i + 1]]) for x, cold in ((k, cold_k), (v, cold_v))
        )
        assert nmse(got[None], exact_attention(q[i : i + 1], keys, values)[0]) <= 1e-5


PROCESS = """
import sys
import numpy as np
sys.path.insert(0, {tests!r})
from model_tools import load_exact, random_ids, sequence
from pathlib import Path
from typing import Any

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

model = load_exact(Path({path!r}))
ids = random_ids(model, 512)
first = sequence(model, n_ctx=64, n_batch=64)  # stays, or the second would take its place
first.feed(ids[:64])
before = peak()
sequence(model, n_ctx=512, n_batch=64, **{settings!r}).feed(ids)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to read a process's peak memory")
def test_memory_of_a_process_with_a_long_prompt(tmp_path: Path) -> None:
    """Bytes as the operating system counts them: FP16 takes 64 KiB a token here, and the mixed cache much less."""
    path = random_llama(tmp_path / "wide.gguf", n_layers=16, n_heads=8, n_kv_heads=8, head_dim=128, n_embd=32, n_ff=32)

    def grown(settings: dict[str, Any]) -> int:
        code = PROCESS.format(tests=str(Path(__file__).parent), path=str(path), settings=settings)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
        return int(done.stdout)

    plain, mixed = grown({}), grown(MIXED)
    fp16, quantized = 512 * 65536, 512 * 18432
    scratch = (
        8 if default_backend().name == "native" else 11
    ) << 20  # NumPy puts a layer's pages together to read them
    assert plain > 0.9 * fp16
    assert mixed < quantized + (16 + 32 + 64 + 32) * 65536 + scratch < plain


def test_caches_of_different_settings_share_nothing(model: Decoder, ids: list[int]) -> None:
    """Two sequences over one model, fed in turn, are as if each were alone."""
    a, b = sequence(model, **MIXED), sequence(model, type_k="q8_0", type_v="q8_0")
    got_a = got_b = None
    for i in range(0, 120, 40):
        got_a, got_b = a.feed(ids[i : i + 40]), b.feed(ids[100 + i : 140 + i])
    wanted_a = logits_of(model, ids[:120], (40, 80), **MIXED)[-1:]
    wanted_b = logits_of(model, ids[100:220], (40, 80), type_k="q8_0", type_v="q8_0")[-1:]
    assert got_a is not None and got_b is not None
    np.testing.assert_allclose(got_a, wanted_a, atol=1e-4)
    np.testing.assert_allclose(got_b, wanted_b, atol=1e-4)
