"""`mixkv evaluate`: what each cache does to generated text: when it begins to differ, and what it still remembers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING

from mixkv.cli.flags import flag, with_flags
from mixkv.cli.hub import HubFlags
from mixkv.cli.perplexity import TEXT, SubjectFlags, make_table, show
from mixkv.cli.terminal import DONE, Terminal
from mixkv.kernels.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from mixkv.engine.evaluate import DivergenceRow, RecallRow


@dataclass(frozen=True)
class EvaluateFlags:
    """How many trials of what length."""

    n_prompts: int = flag("--prompts", panel=TEXT, value=8, metavar="N", help="Texts continued, needles", default="8")
    n_predict: int = flag("-n", "--predict", panel=TEXT, value=128, help="Tokens to continue each", default="128")
    depths: str = flag(
        "--depths", panel=TEXT, value="0,25,50,75,100", metavar="LIST", default="0,25,50,75,100",
        help="Where the needle stands, in percent of the text before the question",
    )  # fmt: skip
    seed: int = flag("-s", "--seed", panel=TEXT, value=0, help="Draws the needles' passwords", default="0")

    def depth_shares(self) -> list[float]:
        """Depths as shares; ConfigError names the bad one, or a bad count."""
        if self.n_prompts < 1 or self.n_predict < 1:
            raise ConfigError("--prompts and -n must be 1 or more")
        shares = []
        for item in self.depths.split(","):
            try:
                percent = float(item)
            except ValueError:
                percent = -1.0
            if not 0 <= percent <= 100:
                raise ConfigError(f"--depths: {item.strip()!r} is no percentage from 0 to 100")
            shares.append(percent / 100)
        return shares


@with_flags
def evaluate(subject: SubjectFlags, hub: HubFlags, how: EvaluateFlags) -> int:
    """Measure greedy divergence from the FP16 cache, and the recall of a fact by its depth.

    Prompts are stretches of the text, of --ctx tokens with what is generated. The second table shows how much of a
    password that the text mentions once is found again; its first line is FP16 without the mention.
    """
    from mixkv.engine.evaluate import TextWindows, greedy_divergence, needle_recall, parse_variants

    text, variants, depths = subject.text(), parse_variants(subject.kv), how.depth_shares()
    terminal = Terminal(quiet=subject.quiet)
    llm, n_ctx = subject.load(hub, terminal)
    if how.n_predict >= n_ctx:
        raise ConfigError(f"-n {how.n_predict} leaves no room for a prompt in --ctx {n_ctx}")
    windows = list(islice(TextWindows.of(text, llm.tokenizer, n_ctx, most=how.n_prompts), how.n_prompts))
    if len(windows) < how.n_prompts:
        terminal.note(f"{text} is long enough for {len(windows)} of {how.n_prompts} prompts")
    with terminal.progress("greedy divergence") as progress:
        prompts = [window[: n_ctx - how.n_predict] for window in windows]
        divergence = greedy_divergence(llm, prompts, how.n_predict, variants, progress)
    with terminal.progress("needle recall") as progress:
        recall = needle_recall(llm, windows, text, depths, variants, seed=how.seed, progress=progress)
    data = {
        "divergence": [
            asdict(r) | {"mean_same": r.mean_same, "median_same": r.median_same, "identical": r.identical}
            for r in divergence
        ],
        "recall": [asdict(r) for r in recall],
    }
    title = f"{llm.config.name} on {text.name}, {len(windows)} prompts of {n_ctx - how.n_predict} tokens"
    show(subject.output, data, lambda: [_divergence_table(divergence, title), _recall_table(recall)])
    return DONE


def _divergence_table(rows: Sequence[DivergenceRow], title: str) -> Table:
    lines = [
        [
            row.kv, f"{row.mean_same:.1f}", f"{row.median_same:.0f}", f"{min(row.same_tokens)}",
            f"{100 * row.identical:.0f}", f"{max(row.gaps):.3f}" if row.gaps else "-",
        ]
        for row in rows
    ]  # fmt: skip
    columns = ["kv", "tokens as f16: mean", "median", "least", "texts all the same, %", "widest gap at the fork, nats"]
    return make_table(f"{title}: greedy text against f16's, at most {max(rows[0].lengths)} tokens", columns, lines)


def _recall_table(rows: Sequence[RecallRow]) -> Table:
    lines = [
        [
            row.kv, "not there" if row.depth is None else f"{100 * row.depth:.0f} %", f"{100 * row.recall:.1f}",
            f"{row.logprob:.3f}",
        ]
        for row in rows
    ]  # fmt: skip
    columns = ["kv", "needle at", "answer tokens found, %", "mean log probability"]
    return make_table(f"Recall of a password, {rows[0].n_tokens} answer tokens", columns, lines)
