"""`mixkv perplexity`: what each cache costs in quality on a text, as a table, as JSON, as a picture.

Know before you change this room: stdout carries the table or the JSON list, nothing else. What `mixkv evaluate`
shares stands here as well: the flags of model, text and caches, and how results are printed.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixkv.cli.flags import flag, with_flags
from mixkv.cli.hub import HubFlags, model_path
from mixkv.cli.terminal import DONE, Terminal
from mixkv.kernels.errors import ConfigError, MixkvWarning

if TYPE_CHECKING:
    from rich.table import Table

    from mixkv.engine.evaluate import PerplexityRow
    from mixkv.engine.llm import LLM

MODEL, TEXT, OUTPUT = "Model and machine", "What to measure", "Output"
DEFAULT_CTX = 2048
DEFAULT_KV = "f16,q8_0,q4_0,mixed"
TABLE_WIDTH = 160
"""Columns where stdout is no terminal."""


@dataclass(frozen=True)
class SubjectFlags:
    """The model, the text and the caches."""

    model: str | None = flag("-m", "--model", panel=MODEL, metavar="FILE", help="GGUF model", default="the demo model")
    n_threads: int = flag("-t", "--threads", panel=MODEL, value=-1, help="Threads; -1: the usable cores")
    n_batch: int = flag("-b", "--batch-size", panel=MODEL, value=512, help="Tokens at a time", default="512")
    exact: bool = flag("--exact", panel=MODEL, value=False, help="Float32 activations: slower, not rounded to 8 bits")
    file: str | None = flag("-f", "--file", panel=TEXT, metavar="FILE", help="UTF-8 text to measure on (needed)")
    kv: str = flag(
        "--kv", panel=TEXT, value=DEFAULT_KV, metavar="LIST", default=DEFAULT_KV,
        help="Caches: f32, f16, q8_0, q4_0, mixed; settings follow a colon: mixed:hot=64,sink=4,k=q8_0,rotate=off",
    )  # fmt: skip
    ctx: int = flag(
        "-c", "--ctx", "--ctx-size", panel=TEXT, value=0, metavar="N", help="Tokens the model reads at a stretch",
        default=f"{DEFAULT_CTX}, or what the model was trained for",
    )  # fmt: skip
    output: str = flag(
        "-o", "--output", panel=OUTPUT, value="table", metavar="table|json", help="Form", default="table"
    )
    quiet: bool = flag("-q", "--quiet", panel=OUTPUT, value=False, help="No progress bar, no warnings")

    def text(self) -> Path:
        """The text's path. ConfigError if it was not given, or another flag of this group is wrong."""
        if self.output not in ("table", "json"):
            raise ConfigError(f"-o {self.output!r} must be table or json")
        if self.ctx < 0:
            raise ConfigError(f"--ctx {self.ctx} must be a number of tokens")
        if self.file is None:
            raise ConfigError("there is no text to measure on: name one with -f FILE")
        return Path(self.file)

    def load(self, hub: HubFlags, terminal: Terminal) -> tuple[LLM, int]:
        """The model, and how many tokens it is to read at a stretch."""
        from mixkv.engine.evaluate import load_subject

        path = model_path(self.model, hub, terminal)
        with warnings.catch_warnings():  # what is reserved may be longer than what is read, which the note is about
            warnings.filterwarnings("ignore", "a context of", MixkvWarning)
            llm = load_subject(
                None if path is None else Path(path), n_ctx=self.ctx or DEFAULT_CTX, n_batch=self.n_batch,
                n_threads=self.n_threads, exact=self.exact,
            )  # fmt: skip
        n_ctx = self.ctx or min(DEFAULT_CTX, llm.config.n_ctx_train)
        if n_ctx > llm.config.n_ctx_train:
            terminal.note(f"--ctx {n_ctx} is more than the {llm.config.n_ctx_train} tokens the model was trained for")
        return llm, n_ctx


@dataclass(frozen=True)
class PerplexityFlags:
    """How much of the text, and what is kept of the run."""

    windows: int = flag("--chunks", panel=TEXT, value=-1, metavar="N", help="Windows; -1: all", default="-1")
    resume: str | None = flag(
        "--resume", panel=OUTPUT, metavar="FILE", help="Keep what was measured in FILE, and go on from what it holds"
    )
    plot: str | None = flag(
        "--plot", panel=OUTPUT, metavar="FILE.png", help="Draw KL divergence over bytes and over depth (matplotlib)"
    )


@with_flags
def perplexity(subject: SubjectFlags, hub: HubFlags, how: PerplexityFlags) -> int:
    """Measure perplexity, and KL divergence from the FP16 cache, of KV caches on a text.

    The text is cut into windows of --ctx tokens. The first half of each is context alone, the second half is scored.
    """
    from mixkv.engine.evaluate import PerplexityRun, TextWindows, parse_variants
    from mixkv.engine.evaluate.plot import check_plot, plot_rows

    text, variants = subject.text(), parse_variants(subject.kv)
    if how.windows == 0 or how.windows < -1:
        raise ConfigError(f"--chunks {how.windows} must be 1 or more, or -1 for all")
    plot, resume = (None if name is None else Path(name) for name in (how.plot, how.resume))
    if plot is not None:
        check_plot(plot)
    terminal = Terminal(quiet=subject.quiet)
    llm, n_ctx = subject.load(hub, terminal)
    windows = TextWindows.of(text, llm.tokenizer, n_ctx, most=how.windows if how.windows > 0 else None)
    run = PerplexityRun(llm, windows, variants, resume=resume)
    with terminal.progress(f"{len(windows)} windows") as progress:
        rows = run.run(progress)
    title = f"{llm.config.name} on {text.name}, windows of {n_ctx} tokens"
    show(subject.output, [_flat(row) for row in rows], lambda: [_table(rows, title)])
    if plot is not None:
        plot_rows(plot, rows, title)
    return DONE


def _flat(row: PerplexityRow) -> dict[str, Any]:
    """A row of the JSON list."""
    fields = asdict(row)
    return {"kv": fields.pop("kv"), **fields.pop("quality"), **fields}


def _table(rows: Sequence[PerplexityRow], title: str) -> Table:
    columns = [
        "kv",
        "PPL",
        "PPL vs f16, %",
        "KLD mean",
        "median",
        "99 %",
        "max",
        "same top, %",
        "KV MiB",
        "bits",
        "t/s",
    ]
    lines = []
    for row in rows:
        q = row.quality
        lines.append([
            row.kv,
            f"{q.ppl:.3f} ± {q.ppl_stderr:.3f}",
            f"{100 * (q.ppl_ratio - 1):+.3f} ± {100 * q.ppl_ratio_stderr:.3f}",
            *(f"{x:.3g}" for x in (q.kld_mean, q.kld_median, q.kld_p99, q.kld_max)),
            f"{100 * q.same_top:.2f}",
            f"{row.kv_bytes / 2**20:.2f}",
            f"{row.bits_per_element:.2f}",
            f"{row.tokens_per_second:.0f}",
        ])  # fmt: skip
    return make_table(
        f"{title}; {rows[0].quality.n_tokens} tokens scored in {rows[0].n_windows} windows", columns, lines
    )


def make_table(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """A table whose first column is text and whose others are numbers."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left", no_wrap=i > 0)
    for line in lines:
        table.add_row(*line)
    return table


def show(output: str, data: Any, tables: Callable[[], Sequence[Table]]) -> None:
    """Results to stdout: `data` as one line of JSON, or tables."""
    if output == "json":
        print(json.dumps(_finite(data)))
        return
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH, highlight=False, markup=False)
    for table in tables():
        console.print(table)


def _finite(data: Any) -> Any:
    """JSON has no infinity: such numbers become null."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
