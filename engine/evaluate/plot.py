"""Pictures of a perplexity run: KL divergence over bytes and over depth. matplotlib is an extra, asked for when used.

Colours come from a palette that colour-blind readers can tell apart (Okabe and Ito 2008), and each cache has its own
marker besides.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixkv.engine.atomic_file import writing
from mixkv.engine.evaluate.perplexity import PerplexityRow
from mixkv.kernels.errors import ConfigError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vPX*"
FORMATS = (".png", ".svg", ".pdf")
SHOWN_FROM = 1e-9
"""Nats. A cache below this is FP16 but for rounding, and has no place on a logarithmic axis."""


def check_plot(path: Path) -> None:
    """To be called before a long run: ConfigError if matplotlib is missing or `path` names no picture format."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"picture {path}: the name must end in {', '.join(FORMATS)}")
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        raise ConfigError("pictures need matplotlib: pip install 'mixkv[plot]', or ask for none") from None


def plot_rows(path: Path, rows: Sequence[PerplexityRow], title: str) -> None:
    """Write the picture: left KL divergence over KV bytes, right over the position. ConfigError if it cannot be."""
    check_plot(path)
    figure_module: Any = importlib.import_module("matplotlib.figure")
    figure = figure_module.Figure(figsize=(11, 4.6), layout="constrained", dpi=150)
    over_bytes, over_depth = figure.subplots(1, 2, sharey=True)
    shown = [row for row in rows if row.quality.kld_mean > SHOWN_FROM]
    for i, row in enumerate(shown):
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i // len(COLOURS) % len(MARKERS)]}
        q = row.quality
        over_bytes.errorbar(
            row.kv_bytes / 2**20, q.kld_mean, yerr=q.kld_stderr, linestyle="none", capsize=3, label=row.kv, **style
        )
        depth = [(position, kld) for position, kld in row.by_depth if kld > SHOWN_FROM]
        over_depth.plot([d[0] for d in depth], [d[1] for d in depth], label=row.kv, markersize=4, **style)
    for axes, label in ((over_bytes, "KV cache of a full window, MiB"), (over_depth, "position in the window, tokens")):
        axes.set_xlabel(label)
        axes.grid(True, which="major", alpha=0.25)
    over_bytes.set_ylabel("mean KL divergence from the FP16 cache, nats")
    over_bytes.set_xlim(left=0)
    if shown:
        over_bytes.set_yscale("log")
        over_depth.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.suptitle(title, fontsize=11)
    with writing(path, "picture", ConfigError) as file:
        figure.savefig(file, format=path.suffix[1:].lower())
