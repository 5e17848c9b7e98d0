"""What the plan of a cache predicts, beside what real text does."""

from __future__ import annotations

import pytest
from prose import PROSE

import mixkv
from mixkv.engine.kv_plan import score_loss
from mixkv.engine.llm import LLM
from mixkv.engine.load import demo_model
from mixkv.kernels import LayerFormat, default_backend
from mixkv.models.batch import F32
from mixkv.models.gguf import open_gguf
from mixkv.models.key_sample import HeadSample, HeadStatistics


def heads_of(llm: LLM, text: str, n: int) -> list[tuple[F32, F32]]:
    """Each layer's q and k (n, n_kv_heads, head_dim) after RoPE on a text, one query head for each KV head."""
    found = []

    def attend(layer: int, q: F32, k: F32, v: F32, sinks: None) -> F32:
        found.append((q[:, :: q.shape[1] // k.shape[1]].copy(), k.copy()))
        return store(layer, q, k, v, sinks)

    store = llm.cache.attend
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llm.cache, "attend", attend)
        llm.logits(llm.tokenize(text)[:n])
    llm.reset()
    return found


@pytest.mark.parametrize("layer", [LayerFormat(), LayerFormat(rotate_k=True), LayerFormat(type_k="q8_0")])
def test_the_prediction_holds_on_real_text(layer: LayerFormat) -> None:
    """Queries and keys of real text are twice as long as those drawn, which cancels. What does not is a part that the
    keys of trained heads have in common without any bias: 1.0 times the prediction in the first layers, 2.5 at most."""
    llm = mixkv.load(n_threads=1, dense=True)
    n, half = 192, len(PROSE) // 2
    with open_gguf(demo_model()) as gguf:
        heads = HeadStatistics(gguf, default_backend())
        drawn = [heads.sample(i) for i in range(llm.config.n_layers)]
    for sample, (q, k), (_, other) in zip(drawn, heads_of(llm, PROSE, n), heads_of(llm, PROSE[half:], n), strict=True):
        assert sample is not None
        real = score_loss(HeadSample(q[8:], k[8:], other[8:], 0, 0), layer, llm.config.attentions[0].scale)
        assert 0.9 < real / score_loss(sample, layer, llm.config.attentions[0].scale) < 3
