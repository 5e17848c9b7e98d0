"""The flags of sampling: every field is one of SamplingParams. See options.py for the rules."""

from __future__ import annotations

from dataclasses import dataclass

from mixkv.cli.flags import flag

LENGTH, SAMPLING, REPETITION = "Length and end", "Sampling", "Against repetition"


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
