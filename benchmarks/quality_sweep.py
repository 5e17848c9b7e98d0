"""What each setting of the cache costs in quality: the tables and pictures of docs/quality.md.

    pip install '.[plot]'
    python benchmarks/quality_sweep.py BOOK.txt... [--model FILE.gguf] [--ctx 2048,1024,512] [--state FOLDER]

Every cache reads the first --chars characters of each text in windows of --ctx tokens, side by side with a plain FP16
cache; the second half of a window is scored. Figures are pooled over the texts. --state keeps what was measured, so
that a run that was stopped goes on where it was. --pictures FOLDER draws; --peer FILE adds what
quality_vs_llama_cpp.py measured to the picture.

Know before you change this file: it only lists caches and prints; the measurement is `mixkv.engine.evaluate`, which
`mixkv perplexity` uses as well.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixkv.engine.evaluate import PerplexityRow, PerplexityRun, TextWindows, Variant, load_subject, parse_variants
from mixkv.engine.evaluate.divergence import Quality, Scores, summarize
from mixkv.engine.kv_plan import plan_cache
from mixkv.kernels.formats import TILE

HOT = (0, 16, 64, 256, 512, 1024)
SINKS = (0, 4, 16)
TYPES = [f"k={k},v={v}" for k in ("q8_0", "q4_0") for v in ("q8_0", "q4_0")]
FINER = (("q4_0", "q4_0"), ("q8_0", "q4_0"), ("q8_0", "q8_0"))
STUDIES: dict[str, list[str]] = {
    "Caches": ["f16", "q8_0", "q4_0:rotate=off,scale=plain", "q4_0:scale=plain", "q4_0:rotate=off", "q4_0", "mixed"],
    "Hot window": [f"mixed:hot={n}" for n in HOT],
    "Sinks": [f"mixed:hot={n},sink={s}" for n in (0, 64, 512) for s in SINKS],
    "Types and rotation, quantizer alone": [
        f"mixed:hot=0,sink=0,{types},rotate={rotate}" for types in TYPES for rotate in ("off", "on")
    ],
    "Types and rotation, hot=64": [
        f"mixed:hot=64,{types},rotate={rotate}" for types in TYPES for rotate in ("off", "on")
    ],
    "Scales": [
        f"mixed:{where},scale={scale}"
        for where in ("hot=0,sink=0", "hot=64,sink=4", "hot=512,sink=16")
        for scale in ("plain", "unbiased")
    ],
}
BESIDES_FULL = ("Caches", "Hot window")
"""Studies of contexts that are not the longest one: the others repeat there what they say for it."""


@dataclass(frozen=True)
class Result:
    """One cache at one context over all texts.

    texts: mean KL divergence of each. at_tile_end: that of the positions which complete a tile of 16, so that without
    window and sinks they read every token in cold form, their own included. by_depth: as in PerplexityRow.
    """

    kv: str
    n_ctx: int
    quality: Quality
    texts: tuple[float, ...]
    at_tile_end: float
    kv_bytes: int
    bits: float
    by_depth: tuple[tuple[float, float], ...]


def measure(args: argparse.Namespace, n_ctx: int, names: Sequence[str], state: Path) -> dict[str, Result]:
    """Results by name, over args.texts. Names of one and the same cache are measured once."""
    variants = parse_variants(",".join(names))
    scores: list[list[Scores]] = []
    rows: list[list[PerplexityRow]] = []
    for text in args.texts:
        llm = load_subject(args.model, n_ctx=n_ctx, n_batch=512, n_threads=args.threads, exact=True)
        plans = [plan_cache(llm.gguf, v.config, llm.backend).within(n_ctx) for v in variants]
        which = [plans.index(plan) for plan in plans]
        beginning = state / f"{text.stem}-{args.chars}.txt"
        beginning.write_text(text.read_text(encoding="utf-8")[: args.chars], encoding="utf-8", newline="")
        windows = TextWindows.of(beginning, llm.tokenizer, n_ctx)
        measured = [variants[i] for i in sorted(set(which))]
        run = PerplexityRun(llm, windows, measured, resume=state / f"{llm.config.name}-{text.stem}-{n_ctx}.npz")
        print(f"{text.stem} at {n_ctx}: {len(windows)} windows, {run.done.n_windows} done", file=sys.stderr)
        found = dict(zip(sorted(set(which)), zip(run.run(), order(measured), strict=True), strict=True))
        rows.append([found[i][0] for i in which])
        scores.append([run.done.scores(0), *(run.done.scores(found[i][1]) for i in which)])
    base = pool([s[0] for s in scores])
    last_of_tile = np.arange(n_ctx // 2, n_ctx - 1) % TILE == TILE - 1
    return {
        variant.name: Result(
            kv=variant.name,
            n_ctx=n_ctx,
            quality=summarize(pool([s[i + 1] for s in scores]), base),
            texts=tuple(r[i].quality.kld_mean for r in rows),
            at_tile_end=float(np.mean([s[i + 1].kld[:, last_of_tile].mean() for s in scores])),
            kv_bytes=rows[0][i].kv_bytes,
            bits=rows[0][i].bits_per_element,
            by_depth=mean_by_depth([r[i] for r in rows]),
        )
        for i, variant in enumerate(variants)
    }


def order(variants: Sequence[Variant]) -> list[int]:
    """Which of a run's scores are each variant's: FP16's are the first, whether it was asked for or not."""
    measured = [v.name for v in variants if not v.is_base]
    return [0 if v.is_base else 1 + measured.index(v.name) for v in variants]


def mean_by_depth(rows: Sequence[PerplexityRow]) -> tuple[tuple[float, float], ...]:
    """(position, KL divergence), the mean over texts of one cache."""
    curves = np.array([row.by_depth for row in rows])
    return tuple((float(at), float(kld)) for at, kld in curves.mean(axis=0))


def pool(parts: Sequence[Scores]) -> Scores:
    """Scores of several texts as one."""
    return Scores(*(np.concatenate([getattr(s, f).ravel() for s in parts]) for f in ("nll", "kld", "same_top")))


def markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table; the first column is text, the others are numbers."""
    head = [columns, ["---", *["---:"] * (len(columns) - 1)]]
    return "\n".join("| " + " | ".join(line) + " |" for line in [*head, *lines])


def cells(kv: str, q: Quality, kv_bytes: float, bits: float, texts: Sequence[float]) -> list[str]:
    """A line of the tables here and in quality_vs_llama_cpp.py."""
    return [
        kv,
        f"{q.ppl:.2f} ± {q.ppl_stderr:.2f}",
        f"{100 * (q.ppl_ratio - 1):+.3f} ± {100 * q.ppl_ratio_stderr:.3f}",
        f"{q.kld_mean:.3g} ± {q.kld_stderr:.1g}",
        *([f"{x:.3g}" for x in texts] if len(texts) > 1 else []),
        f"{q.kld_p99:.3g}",
        f"{100 * q.same_top:.2f}",
        f"{kv_bytes / 2**20:.2f}",
        f"{bits:.2f}",
    ]


def columns(texts: Sequence[Path]) -> list[str]:
    books = [f"KLD {text.stem}" for text in texts] if len(texts) > 1 else []
    return ["cache", "PPL", "PPL to f16, %", "KLD mean", *books, "KLD 99 %", "same top, %", "MiB", "bits"]


def report(args: argparse.Namespace, results: dict[int, dict[str, Result]]) -> None:
    for n_ctx, found in results.items():
        n = next(iter(found.values())).quality.n_tokens
        for study in studies_at(args, n_ctx):
            lines = [cells(r.kv, r.quality, r.kv_bytes, r.bits, r.texts) for r in (found[k] for k in STUDIES[study])]
            print(f"\n### {study}, context {n_ctx} ({n:,} tokens scored)\n")
            print(markdown(columns(args.texts), lines))
        uniform = [r for kv, r in found.items() if kv.startswith("q4_0")]
        print(f"\n### Every token cold, context {n_ctx} (positions that complete a tile)\n")
        print(markdown(["cache", "KLD mean"], [[r.kv, f"{r.at_tile_end:.3g}"] for r in uniform]))


def studies_at(args: argparse.Namespace, n_ctx: int) -> list[str]:
    return [s for s in STUDIES if n_ctx == max(args.ctx) or s in BESIDES_FULL]


def draw(folder: Path, found: dict[str, Result], peer: Path | None) -> None:
    """bytes.png: divergence over bits an element; position.png: over the position in the window."""
    figure_module: Any = importlib.import_module("matplotlib.figure")
    folder.mkdir(parents=True, exist_ok=True)

    def picture(name: str, x: str, plot: Any) -> None:
        figure = figure_module.Figure(figsize=(7.2, 4.4), layout="constrained", dpi=110)
        axes = figure.subplots()
        plot(axes)
        axes.set(yscale="log", xlabel=x, ylabel="mean KL divergence from FP16, nats")
        axes.grid(True, alpha=0.25)
        axes.legend(fontsize=8, frameon=False)
        figure.savefig(folder / name)

    def over_bytes(axes: Any) -> None:
        window = [found[k] for k in STUDIES["Hot window"]]
        axes.plot([r.bits for r in window], [r.quality.kld_mean for r in window], "o-", color="#0072B2",
                  label="mixed, sink 16, hot window as written")  # fmt: skip
        for n, r in zip(HOT, window, strict=True):
            axes.annotate(str(n), (r.bits, r.quality.kld_mean), (4, 5), textcoords="offset points", fontsize=8)
        finer = [found[f"mixed:hot=64,k={k},v={v},rotate=on"] for k, v in FINER]
        axes.plot([r.bits for r in finer], [r.quality.kld_mean for r in finer], "D--", color="#009E73",
                  label="mixed, hot 64, sink 16, types as written")  # fmt: skip
        for (k, v), r in list(zip(FINER, finer, strict=True))[1:]:
            axes.annotate(f"K {k}, V {v}", (r.bits, r.quality.kld_mean), (6, 3), textcoords="offset points", fontsize=8)
        named = {
            "q4_0:rotate=off,scale=plain": ("uniform q4_0, plain, not rotated", "s", "#D55E00"),
            "q4_0": ("uniform q4_0", "s", "#0072B2"),
            "q8_0": ("uniform q8_0", "^", "#009E73"),
        }
        for kv, (label, marker, colour) in named.items():
            axes.plot(found[kv].bits, found[kv].quality.kld_mean, marker, color=colour, label=label)
        markers = {"q8_0": "*", "q4_0": "P", "q4_0 without rotation": "x"}
        for row in json.loads(peer.read_text()) if peer else []:
            if row["engine"] == "llama.cpp" and row["kv"] in markers:
                axes.plot(row["bits"], row["kld_mean"], markers[row["kv"]], color="#000000",
                          linestyle="none", label=f"llama.cpp {row['kv']}")  # fmt: skip
        axes.margins(x=0.08)

    def over_position(axes: Any) -> None:
        colours = ("#D55E00", "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#CC79A7")
        for colour, kv in zip(colours, ["q4_0:rotate=off,scale=plain", *STUDIES["Hot window"]], strict=True):
            points = [p for p in found[kv].by_depth if p[1] > 0]
            axes.plot([p[0] for p in points], [p[1] for p in points], ".-", color=colour, label=kv)

    picture("bytes.png", "bits for each number of the cache, full window", over_bytes)
    picture("position.png", "position in the window, tokens", over_position)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--model", type=Path, default=None, help="the demo model if left out")
    parser.add_argument("--ctx", type=lambda text: [int(n) for n in text.split(",")], default=[2048, 1024, 512])
    parser.add_argument("--chars", type=int, default=120_000)
    parser.add_argument("--threads", type=int, default=-1)
    parser.add_argument("--state", type=Path, default=None)
    parser.add_argument("--pictures", type=Path, default=None)
    parser.add_argument("--peer", type=Path, default=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        state = args.state or Path(temporary)
        state.mkdir(parents=True, exist_ok=True)
        results = {
            n_ctx: measure(args, n_ctx, [kv for s in studies_at(args, n_ctx) for kv in STUDIES[s]], state)
            for n_ctx in args.ctx
        }
    report(args, results)
    if args.pictures:
        draw(args.pictures, results[max(args.ctx)], args.peer)


if __name__ == "__main__":
    main()
