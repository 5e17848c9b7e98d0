"""How BPE vocabularies cut text into words before merging: one list of regular expressions per family.

Know before you change this room: merges never cross the cuts, so a wrong expression gives wrong ids on some texts
only, and no error. The expressions are those with which each family's vocabulary was trained; the names are the
ones that model files use (`tokenizer.ggml.pre`). Expressions of one list are applied one after another, each to
the pieces that the one before left; what an expression does not match stays a piece of its own. A text may hold a
megabyte of digits, so an expression that looks ahead over a run for each piece of it has to be put in other words.

Checked name by name against llama.cpp. The expressions here are the vocabularies' own, so they differ where
llama.cpp's engine cannot run those: combining marks at the start of a word and capitals outside ASCII (tekken, gpt-4o
and their relatives; kimi-k2 also between small letters and capitals), spaces around U+3000 (deepseek-llm,
deepseek-coder), compatibility ideographs (afmoe).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from tokenizers import Regex
from tokenizers.pre_tokenizers import PreTokenizer, Sequence, Split

from mixkv.kernels.errors import MixkvWarning

_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_CJK_KOREAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
# deepseek-llm lists the letters that have a case one by one; it leaves out modern Georgian and mathematical letters.
_CASED_LETTERS = "\\s?[\\p{Lu}\\p{Ll}\\p{Lt}&&[^\u10d0-\u10ff\U0001d400-\U0001d7ff]]+"
_NOT_PUNCTUATION = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_WORDS_IN_LINES = r"[^\n]+|\n+"


def _like_llama3(
    digits: str,
    letters: str = r"\p{L}+",
    symbols: str = r"[^\s\p{L}\p{N}]+[\r\n]*",
    lines: str = r"\s*[\r\n]+",
    spaces: str = _SPACES,
) -> str:
    """Contractions, words with one leading non-letter, numbers, symbols with their line ends, line ends, spaces."""
    return rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?{letters}|{digits}| ?{symbols}|{lines}|{spaces}"


def _like_gpt4o(digits: str, contraction: str = f"{_CONTRACTION}?", but: str = "", symbols: str = r"[\r\n/]*") -> str:
    """Words cut where a capital follows a small letter; `but`: what to take out of the classes of letters."""
    start, upper, lower = r"[^\r\n\p{L}\p{N}]?", f"[{_UPPER}{but}]", f"[{_LOWER}{but}]"
    words = rf"{start}{upper}*{lower}+{contraction}|{start}{upper}+{lower}*{contraction}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+{symbols}|\s*[\r\n]+|{_SPACES}"


def _like_deepseek3(lines: str) -> str:
    """ASCII symbols with the letters behind them, words, symbols, line ends, spaces."""
    return (
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        rf"| ?[\p{{P}}\p{{S}}]+{lines}|{_SPACES}"
    )


def _threes(digit: str, run: str) -> list[str]:
    """Runs of digits in threes counted from their end, as numbers are written; each digit is looked at three times.

    A vocabulary's own words are often `digit{1,3}(?=(digit{3})*end)`, which takes minutes for a megabyte of digits.
    """
    head = rf"\A{digit}{{1,2}}(?=(?:{digit}{{3}})++\z)"
    return [run, head, rf"\A(?={digit}++\z){digit}{{3}}|(?<={digit})\G{digit}{{3}}"]


# superbpe: numbers are cut before all threes counted from their end, first before those in front, then the others.
_THREES_FOLLOW = r"(?=(?:\d{3})++(?!\d))"
_BEFORE_THREES = [
    rf"(?:(?<!\d)|(?<=\A\d|\D\d)|(?<=\A\d\d|\D\d\d)){_THREES_FOLLOW}",
    r"\A\d{3}(?=\d{3})|(?<=\d)\G\d{3}(?=\d{3})",
]
_LLAMA3 = [_like_llama3(r"\p{N}{1,3}")]
_QWEN2 = [_like_llama3(r"\p{N}")]
_STARCODER = [r"\p{N}", _GPT2]
_DEEPSEEK3 = [r"\p{N}{1,3}", _CJK, _like_deepseek3(r"[\r\n]*|\s*[\r\n]+")]
_GPT4O = [_like_gpt4o(r"\p{N}{1,3}")]
_DEFAULT = [r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]


_HALVING_SPACES = "|".join(rf"\s{{{2**i}}}(?!\S)" for i in range(9, 1, -1)) + r"|\s{1,2}(?!\S)|\s"
_HANGUL, _BOPOMOFO = "[\uac00-\ud7a3\u3131-\u318e]+", "[\u3105-\u312f]+"
_CJK_PUNCTUATION = "[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
# Scripts of East and South-East Asia, most of them written without spaces.
_UNSPACED = (
    "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0eff\u1780-\u17ff"
    "\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)


@dataclass(frozen=True)
class PreTokenizerRule:
    """Expressions, and what else hangs on the name.

    `ignore_merges`: whole words of the vocabulary are taken without merging. `add_bos`: the file's default for putting
    BOS in front; `needs_bos`: whatever the file says. `raw`: tokens are text as it is and not in GPT-2's alphabet, with
    U+2581 for a space and `<0x41>` for a byte; `whole_lines`: runs of line ends that the vocabulary holds are taken
    without merging. llama.cpp's flag `clean_spaces` is about printing, where
    this program changes nothing, and `add_sep` about embedding models, which it does not run.
    """

    expressions: list[str]
    ignore_merges: bool = False
    add_bos: bool = False
    needs_bos: bool = False
    raw: bool = False
    whole_lines: bool = False


_FAMILIES: dict[str, PreTokenizerRule] = {
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": PreTokenizerRule(
        _LLAMA3, ignore_merges=True, add_bos=True
    ),
    "glm4 glm5": PreTokenizerRule(_LLAMA3, ignore_merges=True),
    "dbrx smaug-bpe chatglm-bpe": PreTokenizerRule(_LLAMA3),
    "jais-2": PreTokenizerRule([_like_llama3(r"\p{N}{1,3}", spaces=_HALVING_SPACES)]),
    "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2": PreTokenizerRule(_QWEN2),
    "laguna": PreTokenizerRule([_WORDS_IN_LINES, *_QWEN2]),
    "ufakzeka": PreTokenizerRule([_QWEN2[0].removeprefix(f"{_CONTRACTION}|")]),
    "qwen35": PreTokenizerRule([_like_llama3(r"\p{N}", r"[\p{L}\p{M}]+", r"[^\s\p{L}\p{M}\p{N}]+[\r\n]*")]),
    "exaone-moe": PreTokenizerRule(
        [_like_llama3(r"\p{N}", r"(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+", r"[^\s\p{L}\p{N}]+[\r\n/]?", r"\s*[\r\n]")]
    ),
    "bailingmoe bailingmoe2 llada-moe": PreTokenizerRule([_like_llama3(r"\p{N}", lines=r"\s*[\r\n]")]),
    "seed-coder": PreTokenizerRule([_like_llama3(r"\p{N}", symbols=r"[^\s\p{L}\p{N}\r\n]+")]),
    "minicpm5": PreTokenizerRule([r"\p{N}{1,3}", _like_llama3(r"\p{N}+")], ignore_merges=True),
    "gpt-2 phi-2 mpt olmo jais gigachat jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe "
    "a.x-4.0 mellum exaone4 trillion granite-docling modern-bert": PreTokenizerRule([_GPT2]),
    "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2": PreTokenizerRule(_STARCODER),
    "falcon": PreTokenizerRule([r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"]),
    "deepseek-llm": PreTokenizerRule(
        [
            r"[\r\n]",
            _CASED_LETTERS,
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
            r"(?<!\s)\s+$",  # `\s+$`, tried once for a run of spaces and not at each of them, which is quadratic
            _CJK_KOREAN,
            r"\p{N}+",
        ]
    ),
    "deepseek-coder": PreTokenizerRule([r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_KOREAN, r"\p{N}"]),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": PreTokenizerRule(_DEEPSEEK3),
    "spark2_5": PreTokenizerRule([r"\p{N}{1,3}", _CJK, _like_deepseek3(r"|[\r\n]"), r"\p{N}"]),
    "afmoe": PreTokenizerRule([*_threes(r"\p{N}", r"\p{N}+"), _UNSPACED, _DEEPSEEK3[-1]]),
    "tekken": PreTokenizerRule([_like_gpt4o(r"\p{N}", "")], ignore_merges=True, add_bos=True),
    "gpt-4o llama4 kanana2 minimax-m2 talkie": PreTokenizerRule(_GPT4O),
    "granite-embed-multi-97m": PreTokenizerRule(_GPT4O, ignore_merges=True),
    "tiny_aya cohere2moe": PreTokenizerRule([*_threes(r"\d", r"(?<!\d)\d++\b"), *_GPT4O]),
    "youtu": PreTokenizerRule(
        [f"{_HANGUL}|{_CJK_PUNCTUATION}|{_BOPOMOFO}|{_CJK}", _like_gpt4o(r"\p{N}")], ignore_merges=True
    ),
    "kimi-k2": PreTokenizerRule(
        [r"\p{Han}+|" + _like_gpt4o(r"\p{N}{1,3}", but=r"&&[^\p{Han}]", symbols=r"[\r\n]*")], ignore_merges=True
    ),
    "bloom gpt3-finnish poro-chat": PreTokenizerRule([_NOT_PUNCTUATION]),
    "viking": PreTokenizerRule([_NOT_PUNCTUATION, r"\p{N}"]),
    "superbpe": PreTokenizerRule([r"\p{N}+", *_BEFORE_THREES]),
    "chameleon": PreTokenizerRule(
        [
            "<sentinel:[0-9]+>",
            "IMGIMG[A-I]{1,4}Z",
            r"[\t\n]|    |  ",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ],
        add_bos=True,
    ),
    "gemma4 granite-embed-multi-311m": PreTokenizerRule([_WORDS_IN_LINES], needs_bos=True, raw=True, whole_lines=True),
    "sarvam-moe": PreTokenizerRule([_WORDS_IN_LINES], raw=True),
    "default": PreTokenizerRule(_DEFAULT),
}
RULES: dict[str, PreTokenizerRule] = {name: rule for names, rule in _FAMILIES.items() for name in names.split()}


def find_rule(name: str | None) -> PreTokenizerRule:
    """The rule for the name in a model file; for none or an unknown one a MixkvWarning and the default rule."""
    if name in RULES:
        return RULES[name]
    problem = "names no pre-tokenizer" if name is None else f"names the unknown pre-tokenizer {name[:60]!r}"
    warnings.warn(
        f"the model file {problem} (tokenizer.ggml.pre); using 'default', so some texts may be cut differently from "
        "how the model was trained, and answers may be worse: override tokenizer.ggml.pre with the name of one that "
        f"cuts like the model's own ({_similar(name)}all of them in docs/metadata.md), or convert the model again",
        MixkvWarning,
        stacklevel=2,
    )
    return RULES["default"]


def _similar(name: str | None) -> str:
    from difflib import get_close_matches  # only here: importing it takes as long as building a small vocabulary

    names = get_close_matches(name[:60], RULES, cutoff=0.7) if name else []
    return f"perhaps {' or '.join(map(repr, names))}; " if names else ""


def pre_tokenizer(rule: PreTokenizerRule) -> PreTokenizer:
    """The rule as the `tokenizers` package runs it."""
    return Sequence([Split(Regex(e), behavior="isolated", invert=False) for e in rule.expressions])
