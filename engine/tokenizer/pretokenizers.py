"""How BPE vocabularies cut text into words before merging: one list of regular expressions per family.

Know before you change this room: merges never cross the cuts, so a wrong expression gives wrong ids on some texts
only, and no error. The expressions are those with which each family's vocabulary was trained; the names are the
ones that model files use (`tokenizer.ggml.pre`). Expressions of one list are applied one after another, each to
the pieces that the one before left; what an expression does not match stays a piece of its own.

Checked name by name against llama.cpp on 449 awkward texts. The expressions here are the vocabularies' own, so they
differ where llama.cpp's engine cannot run those: combining marks at the start of a word and capitals outside ASCII
(tekken, gpt-4o and their relatives), spaces around U+3000 (deepseek-llm, deepseek-coder).
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
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _like_llama3(digits: str, letters: str = r"\p{L}", symbols: str = r"[^\s\p{L}\p{N}]+[\r\n]*") -> str:
    """Words with one leading non-letter, numbers, symbols with their line ends, line ends, spaces."""
    words = rf"[^\r\n\p{{L}}\p{{N}}]?{letters}+"
    return rf"{_CONTRACTION}|{words}|{digits}| ?{symbols}|\s*[\r\n]+|{_SPACES}"


def _like_gpt4o(digits: str, contraction: str) -> str:
    """Words cut where a capital follows a small letter."""
    start = r"[^\r\n\p{L}\p{N}]?"
    words = rf"{start}{_UPPER}*{_LOWER}+{contraction}|{start}{_UPPER}+{_LOWER}*{contraction}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|{_SPACES}"


_LLAMA3 = [_like_llama3(r"\p{N}{1,3}")]
_QWEN2 = [_like_llama3(r"\p{N}")]
_STARCODER = [r"\p{N}", _GPT2]
_DEEPSEEK3 = [
    r"\p{N}{1,3}",
    _CJK,
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|\s*[\r\n]+|{_SPACES}",
]
_DEFAULT = [r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]


@dataclass(frozen=True)
class PreTokenizerRule:
    """Expressions, and what else hangs on the name: whole words of the vocabulary are taken without merging
    (`ignore_merges`), and the file's default for putting BOS in front (`add_bos`)."""

    expressions: list[str]
    ignore_merges: bool = False
    add_bos: bool = False


_FAMILIES: dict[str, PreTokenizerRule] = {
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": PreTokenizerRule(
        _LLAMA3, ignore_merges=True, add_bos=True
    ),
    "glm4": PreTokenizerRule(_LLAMA3, ignore_merges=True),
    "dbrx smaug-bpe chatglm-bpe": PreTokenizerRule(_LLAMA3),
    "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2": PreTokenizerRule(_QWEN2),
    "qwen35": PreTokenizerRule([_like_llama3(r"\p{N}", r"[\p{L}\p{M}]", r"[^\s\p{L}\p{M}\p{N}]+[\r\n]*")]),
    "gpt-2 phi-2 mpt olmo jais gigachat jina-es jina-de jina-v2-es jina-v2-de a.x-4.0 mellum exaone4 trillion "
    "granite-docling modern-bert": (PreTokenizerRule([_GPT2])),
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
    "minicpm5": PreTokenizerRule([r"\p{N}{1,3}", _like_llama3(r"\p{N}+")], ignore_merges=True),
    "tekken": PreTokenizerRule([_like_gpt4o(r"\p{N}", "")], ignore_merges=True, add_bos=True),
    "gpt-4o llama4 kanana2 minimax-m2 talkie": PreTokenizerRule([_like_gpt4o(r"\p{N}{1,3}", f"{_CONTRACTION}?")]),
    "bloom gpt3-finnish poro-chat": PreTokenizerRule([_NOT_PUNCTUATION]),
    "viking": PreTokenizerRule([_NOT_PUNCTUATION, r"\p{N}"]),
    "seed-coder": PreTokenizerRule([_like_llama3(r"\p{N}", symbols=r"[^\s\p{L}\p{N}\r\n]+")]),
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
        "how the model was trained, and answers may be worse",
        MixkvWarning,
        stacklevel=2,
    )
    return RULES["default"]


def pre_tokenizer(rule: PreTokenizerRule) -> PreTokenizer:
    """The rule as the `tokenizers` package runs it."""
    return Sequence([Split(Regex(e), behavior="isolated", invert=False) for e in rule.expressions])
