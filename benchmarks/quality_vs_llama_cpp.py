"""mixkv's caches and llama.cpp's, each against its own FP16 cache: same model, text, windows and scoring rule.

    pip install '.[bench]'
    python benchmarks/quality_vs_llama_cpp.py BOOK.txt... [--model FILE.gguf] [--json FILE]

llama.cpp runs through its C interface in a process of its own and sends the logits of the scored half of each window;
they are scored here by the code that scores ours. Its quantized caches need flash attention, so its f16 cache runs
with it as well. `q4_0 without rotation` sets LLAMA_ATTN_ROT_DISABLE. Bits are those of one number of the cache; bytes
those of a full window. --llama-python names another interpreter that has llama_cpp (see versus_llama_cpp.py for builds
that crash). Use an F16 model: on 8-bit weights both engines round activations to 8 bits, which adds its own noise.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

N_BATCH = 512
UNROTATED = "q4_0 without rotation"
LLAMA_TYPES = {"f16": (1, 16.0), "q8_0": (8, 8.5), "q4_0": (2, 4.5), UNROTATED: (2, 4.5)}
"""ggml's number of a type, and its bits for each number."""
OURS = "f16,q8_0,q4_0:rotate=off,scale=plain,q4_0:scale=plain,q4_0,mixed:hot=64,sink=4,mixed:hot=256,mixed"


def work(model: str, n_ctx: int, threads: int) -> None:
    """The worker: a JSON list of ids a line in; out, for each cache, float32 logits (n_ctx - n_ctx // 2, n_vocab)."""
    import ctypes

    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    loaded = llama_cpp.llama_model_load_from_file(model.encode(), llama_cpp.llama_model_default_params())
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(loaded))
    contexts = []
    for kind, (number, _) in LLAMA_TYPES.items():
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, N_BATCH, N_BATCH
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type, params.type_k, params.type_v = 1, number, number
        os.environ["LLAMA_ATTN_ROT_DISABLE"] = str(int(kind == UNROTATED))
        contexts.append(llama_cpp.llama_init_from_model(loaded, params))
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    out.write(n_vocab.to_bytes(4, "little"))
    out.flush()
    for line in sys.stdin:
        ids = json.loads(line)
        for context in contexts:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
            for start in range(0, n_ctx, N_BATCH):
                out.write(_decode(llama_cpp, context, ids[start : start + N_BATCH], start, n_ctx // 2, n_vocab))
        out.flush()


def _decode(api: Any, context: Any, ids: list[int], start: int, scored_from: int, n_vocab: int) -> bytes:
    """Feed ids at positions start...; the logits of those from `scored_from` on."""
    batch = api.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, start + i, 1, 0
        batch.logits[i] = start + i >= scored_from
    failed = api.llama_decode(context, batch)
    api.llama_batch_free(batch)
    if failed:
        raise SystemExit("llama_decode failed")
    n_rows = min(len(ids), max(0, start + len(ids) - scored_from))
    if not n_rows:
        return b""
    return np.ctypeslib.as_array(api.llama_get_logits(context), shape=(n_rows, n_vocab)).tobytes()


class Peer:
    """llama.cpp's logits of windows, from a worker process."""

    def __init__(self, args: argparse.Namespace) -> None:
        command = [args.llama_python, __file__, "--worker", "--model", str(args.model), "--ctx", str(args.ctx)]
        self._process = subprocess.Popen(
            [*command, "--threads", str(args.threads), "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._n_ctx = args.ctx
        self._n_vocab = int.from_bytes(self._read(4), "little")

    def logits(self, ids: NDArray[np.int32]) -> list[NDArray[np.float32]]:
        """For each cache of LLAMA_TYPES the rows (n_scored, n_vocab) whose next token is known."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(ids.tolist()).encode() + b"\n")
        self._process.stdin.flush()
        rows = self._n_ctx - self._n_ctx // 2
        blocks = [self._read(4 * rows * self._n_vocab) for _ in LLAMA_TYPES]
        return [np.frombuffer(b, np.float32).reshape(rows, self._n_vocab)[:-1] for b in blocks]

    def _read(self, n: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(n)
        if len(data) < n:
            raise SystemExit(f"llama.cpp ended with status {self._process.wait()}; see the head of this file")
        return data

    def close(self) -> None:
        self._process.communicate()


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Figures of every cache, pooled over the texts: llama.cpp's first, then ours."""
    from quality_sweep import order, pool

    from mixkv.engine.evaluate import PerplexityRun, TextWindows, load_subject, parse_variants
    from mixkv.engine.evaluate.divergence import Scores, score_rows, summarize

    llm = load_subject(args.model, n_ctx=args.ctx, n_batch=N_BATCH, n_threads=args.threads, exact=True)
    args.model, variants = llm.path, parse_variants(OURS)
    peer = Peer(args)
    theirs: dict[str, list[Scores]] = {kind: [] for kind in LLAMA_TYPES}
    ours: dict[str, list[Scores]] = {v.name: [] for v in variants}
    for text in args.texts:
        beginning = folder / text.name
        beginning.write_text(text.read_text(encoding="utf-8")[: args.chars], encoding="utf-8", newline="")
        windows = TextWindows.of(beginning, llm.tokenizer, args.ctx)
        print(f"{text.stem}: {len(windows)} windows", file=sys.stderr)
        for ids in windows:
            base, *others = peer.logits(ids)
            for kind, logits in zip(LLAMA_TYPES, (base, *others), strict=True):
                theirs[kind].append(score_rows(base, logits, ids[args.ctx // 2 + 1 :]))
        run = PerplexityRun(llm, windows, variants)
        rows = run.run()
        for name, i in zip(ours, order(variants), strict=True):
            ours[name].append(run.done.scores(i))
    peer.close()
    numbers = args.ctx * 2 * llm.config.n_layers * llm.config.n_kv_heads * llm.config.head_dim_k
    table = []
    for kind, parts in theirs.items():
        bits = LLAMA_TYPES[kind][1]
        quality = summarize(pool(parts), pool(theirs["f16"]))
        table.append(
            {"engine": "llama.cpp", "kv": kind, "kv_bytes": numbers * bits / 8, "bits": bits, **asdict(quality)}
        )
    for own in rows:
        quality = summarize(pool(ours[own.kv]), pool(ours["f16"]))
        row = {"engine": "mixkv", "kv": own.kv, "kv_bytes": own.kv_bytes, "bits": own.bits_per_element}
        table.append(row | asdict(quality))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--model", type=Path, default=None, help="the demo model if left out")
    parser.add_argument("--ctx", type=int, default=2048)
    parser.add_argument("--chars", type=int, default=120_000)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--llama-python", default=sys.executable)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(str(args.model), args.ctx, args.threads)
        return
    from quality_sweep import cells, columns, markdown

    from mixkv.engine.evaluate.divergence import Quality

    with tempfile.TemporaryDirectory() as folder:
        table = measure(args, Path(folder))
    if args.json:
        args.json.write_text(json.dumps(table, indent=1) + "\n")
    lines = [
        cells(f"{row['engine']} {row['kv']}", Quality(**{f: row[f] for f in Quality.__dataclass_fields__}),
              row["kv_bytes"], row["bits"], [])
        for row in table
    ]  # fmt: skip
    print(markdown(columns([]), lines))


if __name__ == "__main__":
    main()
