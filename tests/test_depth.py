"""Real text at a depth of 8,192 tokens: native logits beside NumPy's, teacher-forced, through the mixed cache.

Speed tests use random tokens, which hide errors that only real text and many tiles show. The demo model is too small
to recall a planted fact, so logits are compared instead.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from attention_oracle import nmse

import mixkv
from mixkv.kernels import default_backend

ROOT = Path(__file__).resolve().parents[1]
DEPTH, SCORED = 8192, 32
PROGRAM = """
import sys, numpy as np, mixkv
ids = np.load(sys.argv[1]).tolist()
llm = mixkv.load(n_ctx=len(ids), mixed_kv_cache=True, exact=True, dense=True)
llm.sequence.feed(ids[:-{scored}])
np.save(sys.argv[2], llm.sequence.feed(ids[-{scored}:], all_rows=True))
"""


def text_ids(n: int) -> list[int]:
    """n tokens of this project's own pages and sources."""
    files = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("tests/*.py")])
    ids = mixkv.load(n_ctx=1).tokenizer.encode("".join(f.read_text(encoding="utf-8") for f in files))
    assert len(ids) >= n
    return ids[:n]


@pytest.mark.skipif(default_backend().name != "native", reason="the native kernels are not in use")
def test_logits_at_depth_8192_agree_with_the_reference(tmp_path: Path) -> None:
    """A tile read wrongly far back moves no benchmark; here it would, by as much as the cache's own rounding."""
    ids = text_ids(DEPTH + SCORED)
    np.save(tmp_path / "ids.npy", ids)
    logits = {}
    for backend in ("reference", "native"):
        program, files = PROGRAM.format(scored=SCORED), (tmp_path / "ids.npy", tmp_path / f"{backend}.npy")
        subprocess.run(
            [sys.executable, "-P", "-c", program, *files],
            env=os.environ | {"MIXKV_KERNELS": backend}, check=True, timeout=500,
        )  # fmt: skip
        logits[backend] = np.load(tmp_path / f"{backend}.npy")
    llm = mixkv.load(n_ctx=len(ids), exact=True)
    llm.sequence.feed(ids[:-SCORED])
    fp16 = llm.sequence.feed(ids[-SCORED:], all_rows=True)
    rounding = nmse(logits["reference"], fp16)
    assert nmse(logits["native"], logits["reference"]) < rounding / 20
    assert np.mean(logits["native"].argmax(1) == logits["reference"].argmax(1)) > 0.9
