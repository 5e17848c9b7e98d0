"""The flags of sampling: every field is one of SamplingParams. See options.py for the rules."""

from __future__ import annotations

from dataclasses import dataclass

from mixkv.cli.flags import flag
from mixkv.engine.sampling.params import SAMPLERS
from mixkv.kernels.errors import ConfigError

LENGTH, SAMPLING, REPETITION = "Length and end", "Sampling", "Against repetition"
LETTERS = dict(zip("edskypmxt", SAMPLERS, strict=True))
"""llama-cli's letter of each sampler."""
NAMES = {name: name for name in SAMPLERS} | {
    "temp": "temperature", "typical": "typ_p", "typical_p": "typ_p", "typ": "typ_p", "nucleus": "top_p",
}  # fmt: skip
"""All names by which llama-cli knows them."""


@dataclass(frozen=True)
class SamplingFlags:
    """Fields of SamplingParams; None where a flag was not given."""

    max_tokens: int | None = flag(
        "-n", "--predict", "--n-predict", panel=LENGTH, default="-1",
        help="Tokens to generate; -1 and -2: until the context is full",
    )  # fmt: skip
    stop: list[str] | None = flag(  # noqa: RUF009  # a new list is made for each run
        "-r", "--reverse-prompt", panel=LENGTH, metavar="TEXT", help="End before this text; may be repeated"
    )
    ignore_eos: bool | None = flag("--ignore-eos", panel=LENGTH, help="The model may not end the text")
    draft: str | None = flag(
        "--draft", panel=LENGTH, metavar="lookup", help="Guess tokens from the text so far: the same text, sooner"
    )
    seed: int | None = flag("-s", "--seed", panel=SAMPLING, help="Same seed, same text; -1: random", default="-1")
    temperature: float | None = flag(
        "--temp", "--temperature", panel=SAMPLING, help="0: always the most probable token", default="0.8"
    )
    top_k: int | None = flag("--top-k", panel=SAMPLING, help="The K most probable; 0: all", default="40")
    top_p: float | None = flag("--top-p", panel=SAMPLING, help="The best that add up to P; 1: all", default="0.95")
    min_p: float | None = flag("--min-p", panel=SAMPLING, help="At least P times the best; 0: all", default="0.05")
    typical_p: float | None = flag(
        "--typical", "--typical-p", panel=SAMPLING, help="The most typical that add up to P; 1: all", default="1.0"
    )
    top_n_sigma: float | None = flag(
        "--top-nsigma", "--top-n-sigma", panel=SAMPLING, help="Within N deviations of the best; -1: all", default="-1.0"
    )
    xtc_probability: float | None = flag(
        "--xtc-probability", panel=SAMPLING, help="How often to drop the most probable ones", default="0.0"
    )
    xtc_threshold: float | None = flag("--xtc-threshold", panel=SAMPLING, help="... those above this", default="0.1")
    mirostat: int | None = flag("--mirostat", panel=SAMPLING, help="Hold the surprise: 0 off, 1 or 2", default="0")
    mirostat_lr: float | None = flag("--mirostat-lr", panel=SAMPLING, help="Its learning rate", default="0.1")
    mirostat_ent: float | None = flag("--mirostat-ent", panel=SAMPLING, help="Its target, in bits", default="5.0")
    logit_bias: list[str] | None = flag(  # noqa: RUF009  # a new list is made for each run
        "-l", "--logit-bias", panel=SAMPLING, metavar="ID(+|-)BIAS",
        help="Token 15043 likelier: 15043+1; never: 15043-inf; may be repeated",
    )  # fmt: skip
    repeat_penalty: float | None = flag("--repeat-penalty", panel=REPETITION, help="Factor; 1: off", default="1.0")
    repeat_last_n: int | None = flag("--repeat-last-n", panel=REPETITION, help="Among so many; -1: all", default="64")
    presence_penalty: float | None = flag("--presence-penalty", panel=REPETITION, help="Once; 0: off", default="0.0")
    frequency_penalty: float | None = flag(
        "--frequency-penalty", panel=REPETITION, help="For each time; 0: off", default="0.0"
    )
    dry_multiplier: float | None = flag(
        "--dry-multiplier", panel=REPETITION, help="On repeated sequences (DRY); 0: off", default="0.0"
    )
    dry_base: float | None = flag("--dry-base", panel=REPETITION, help="Growth with their length", default="1.75")
    dry_allowed_length: int | None = flag(
        "--dry-allowed-length", panel=REPETITION, help="Free up to this length", default="2"
    )
    dry_penalty_last_n: int | None = flag(
        "--dry-penalty-last-n", panel=REPETITION, help="Among so many; -1: all", default="-1"
    )
    dry_sequence_breakers: list[str] | None = flag(  # noqa: RUF009  # a new list is made for each run
        "--dry-sequence-breaker", panel=REPETITION, metavar="TEXT",
        help=r"Ends a sequence, in place of \n : quote *; may be repeated; none: nothing does",
    )  # fmt: skip


@dataclass(frozen=True)
class ChainFlags:
    """Which samplers act, and in which order: SamplingParams.samplers, spelled in two ways."""

    samplers: str | None = flag(
        "--samplers", panel=SAMPLING, metavar="NAMES", default=";".join(SAMPLERS),
        help="What acts, in this order, with ; between; what is left out does not act",
    )  # fmt: skip
    sampler_seq: str | None = flag(
        "--sampler-seq", "--sampling-seq", panel=SAMPLING, metavar="LETTERS", default="".join(LETTERS),
        help="The same by letters",
    )  # fmt: skip

    def chosen(self) -> tuple[str, ...] | None:
        """The names, None if neither flag was given. ConfigError for one that does not exist."""
        if self.samplers is not None and self.sampler_seq is not None:
            raise ConfigError("--samplers and --sampler-seq say the same in two ways: give one of them")
        if self.samplers is not None:
            words = [word.strip() for word in self.samplers.split(";") if word.strip()]
            return tuple(_known(word, NAMES, f"--samplers {self.samplers!r}") for word in words)
        if self.sampler_seq is not None:
            return tuple(_known(letter, LETTERS, f"--sampler-seq {self.sampler_seq!r}") for letter in self.sampler_seq)
        return None


def _known(word: str, names: dict[str, str], where: str) -> str:
    if word.replace("-", "_") not in names:
        raise ConfigError(f"{where}: there is no sampler {word!r}: use {' '.join(names)}")
    return names[word.replace("-", "_")]
