"""A model file that is cut off or overwritten while its model is in use.

Reading a mapped page that is no longer there ends the process with SIGBUS, sessions and all. Native weights are packed
copies, so after loading nothing is read from the file; the NumPy kernels compute on the map itself, and with them
forward passes need the file, but nothing else does.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf_tools import tiny_llama, write_gguf

import mixkv

SCRIPT = """
import os, sys
from pathlib import Path
import mixkv
from mixkv.engine.evaluate import PerplexityRun, TextWindows, parse_variants
from mixkv.engine.kv_plan import plan_cache
from mixkv.models.key_sample import HeadStatistics
from mixkv.kernels import default_backend
from mixkv.models.gguf import open_gguf

path, damage, mixed = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "mixed"
ids = list(range(5, 65))
text = path.with_name("text")
text.write_text("the old man and the sea. " * 20)
llm = mixkv.load(path, n_threads=1, n_ctx=128, mixed_kv_cache=mixed, hot_window=16)
want = llm.logits(ids)
variants = parse_variants("f16,mixed,mixed:hot=16,q4_0:rotate=off")
with open_gguf(path) as gguf:
    planned = [plan_cache(HeadStatistics(gguf, default_backend()), v.config).within(64) for v in variants]
if default_backend().name == "native" and Path("/proc/self/maps").exists():
    assert path.name not in Path("/proc/self/maps").read_text(), "the file is still mapped"
if damage == "cut":
    os.truncate(path, 0)
else:
    path.open("r+b").write(bytes(path.stat().st_size))
llm.save_session(path.with_name("s"))
assert llm.load_session(path.with_name("s")) == 60
assert llm.weight_bytes > 0 and llm.gguf.str("general.name") == "tiny random llama"
assert llm.tokenizer.decode(llm.tokenize("the")).strip() == "the"
assert [llm.new_sequence(v.config, 64).cache.plan for v in variants] == planned
PerplexityRun(llm, TextWindows.of(text, llm.tokenizer, 32, most=1), variants, resume=path.with_name("state"))
if default_backend().name == "native":
    assert (llm.logits(ids) == want).all()
    llm.generate(ids, max_tokens=3)
print("alive")
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Its second layer's keys have a bias that the plan of the cache must see, also later."""
    metadata, tensors = tiny_llama()
    bias = np.random.default_rng(0).standard_normal(16).astype(np.float32)
    bias[3] = 200
    return write_gguf(tmp_path / "llama.gguf", metadata, tensors | {"blk.1.attn_k.bias": bias})


@pytest.mark.parametrize("damage", ["cut", "overwritten"])
@pytest.mark.parametrize("cache", ["f16", "mixed"])
def test_a_loaded_model_outlives_its_file(model: Path, damage: str, cache: str) -> None:
    """Saving took its fingerprint from the map again, at the moment at which people want their text kept; so did the
    plan of another cache, which must also be the one that the file gave while it was whole."""
    words = [sys.executable, "-c", SCRIPT, str(model), damage, cache]
    result = subprocess.run(words, capture_output=True, cwd=model.parent, timeout=120)
    assert (result.returncode, result.stdout) == (0, b"alive\n"), result.stderr.decode()


def test_a_session_saved_after_the_file_was_overwritten_is_still_the_models(model: Path) -> None:
    """Not that of the file which now lies at its place."""
    good = model.read_bytes()
    llm = mixkv.load(model, n_threads=1, n_ctx=128)
    before = llm.sequence.model.fingerprint
    model.write_bytes(good[: len(good) // 2] + bytes(len(good) - len(good) // 2))
    llm.save_session(model.with_name("s"))
    model.write_bytes(good)
    assert llm.sequence.model.fingerprint == before
    assert mixkv.load(model, n_threads=1, n_ctx=128).load_session(model.with_name("s")) == 0
