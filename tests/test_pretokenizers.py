"""The rules that cut text into words: nothing is lost, and nothing takes long, whatever stands in a text."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex
from tokenizers.pre_tokenizers import PreTokenizer, Sequence, Split

from mixkv.engine.tokenizer.pretokenizers import RULES, find_rule, pre_tokenizer

DIFFERENT = {tuple(rule.expressions): name for name, rule in RULES.items()}  # one name for each list of expressions
RUNS = [" ", "\n", "\r\n", "\t", "\u3000", "\u2028", "a", "A", "aA", "\u01c5", "7", "!", "'s", "\u4e2d", "\uac00",
        "\u0301", "A\u0301", "\U0001f600", " \n", " a"]  # fmt: skip
ENDS = ["", "x", "1", "!", "\u4e2d"]
LENGTH = 40_000


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_pre_tokenizer_keeps_the_text(name: str) -> None:
    """Cut text, put together, is the text: nothing lost at the cuts."""
    text = "It's 12345 Words,\tfooBar \u00e9\u00c9 \u4e2d\u6587 \uac00  \r\n\n x<|y|>^~ \U0001f600\u3000\u0301a"
    cuts = pre_tokenizer(RULES[name]).pre_tokenize_str(text)
    assert "".join(piece for piece, _ in cuts) == text and all(piece for piece, _ in cuts)
    assert len(cuts) > 2


@pytest.mark.parametrize("name", sorted(DIFFERENT.values()))
def test_no_run_of_characters_takes_long(name: str) -> None:
    """`deepseek-llm` took 9 s for 40,000 spaces before a digit, four times as long for twice as many: `\\s+$` was tried
    at each of them. Every class of characters, with each end that can break a match off at the last moment."""
    cut = pre_tokenizer(RULES[name]).pre_tokenize_str
    for run in RUNS:
        for end in ENDS:
            text = run * (LENGTH // len(run)) + end
            start = time.process_time()
            pieces = cut(text)
            seconds = time.process_time() - start
            assert seconds < 3, f"{run!r} with {end!r} behind: {seconds:.0f} s"
            assert sum(len(piece) for piece, _ in pieces) == len(text)


@pytest.mark.parametrize(
    ("name", "same"), [("kormo", "qwen2"), ("f2llmv2", "qwen2"), ("jina-v5-nano", "llama-bpe"), ("talkie", "gpt-4o")]
)
def test_names_that_mean_the_same(name: str, same: str) -> None:
    """Files with newer names were cut by the default rule, with a warning."""
    assert find_rule(name) == find_rule(same)


def test_minicpm5_cuts_numbers_in_threes() -> None:
    """MiniCPM 5 is stored as `llama` and was cut by the default rule, which keeps longer words apart."""
    rule = find_rule("minicpm5")
    cuts = [piece for piece, _ in pre_tokenizer(rule).pre_tokenize_str("It's 12345 fooBar!\n\nx")]
    assert cuts == ["It", "'s", " ", "123", "45", " fooBar", "!\n\n", "x"] and rule.ignore_merges


def rule_of(expressions: list[str]) -> PreTokenizer:
    return Sequence([Split(Regex(e), behavior="isolated", invert=False) for e in expressions])


# What stands in the vocabularies' own files, written out; the case of contractions is that of ASCII letters.
C = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
START, SPACES = r"[^\r\n\p{L}\p{N}]?", r"\s+(?!\S)|\s+"
U, L = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
UK, LK = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
SYMBOLS, LINES = r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+"
GPT4O = (
    rf"{START}{U}*{L}+{C}?|{START}{U}+{L}*{C}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
PUNCTUATED = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"
ORIGINALS = {
    "llama-bpe": [rf"{C}|{START}\p{{L}}+|\p{{N}}{{1,3}}|{SYMBOLS}|{LINES}|{SPACES}"],
    "qwen2": [rf"{C}|{START}\p{{L}}+|\p{{N}}|{SYMBOLS}|{LINES}|{SPACES}"],
    "qwen35": [rf"{C}|{START}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{LINES}|{SPACES}"],
    "ufakzeka": [rf"{START}\p{{L}}+|\p{{N}}|{SYMBOLS}|{LINES}|{SPACES}"],
    "laguna": [r"[^\n]+|[\n]+", rf"{C}|{START}\p{{L}}+|\p{{N}}|{SYMBOLS}|{LINES}|{SPACES}"],
    "exaone-moe": [
        rf"{C}|{START}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}|"
        rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|{SPACES}"
    ],
    "bailingmoe2": [
        r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}|"
        rf" ?[^\s\p{{L}}\p{{N}}]++[\r\n]*|\s*[\r\n]|{SPACES}"
    ],
    "seed-coder": [rf"{C}|{START}\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{LINES}|{SPACES}"],
    "jais-2": [
        rf"{C}|{START}\p{{L}}+|\p{{N}}{{1,3}}|{SYMBOLS}|{LINES}|\s{{512}}(?!\S)|\s{{256}}(?!\S)|\s{{128}}(?!\S)|"
        r"\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}"
    ],
    "minicpm5": [r"\p{N}{1,3}", rf"{C}|{START}\p{{L}}+|\p{{N}}+|{SYMBOLS}|{LINES}|{SPACES}"],
    "tekken": [rf"{START}{U}*{L}+|{START}{U}+{L}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{LINES}|{SPACES}"],
    "gpt-4o": [GPT4O],
    "granite-embed-multi-97m": [GPT4O],
    "tiny_aya": [r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O],
    "youtu": [
        "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+|"
        f"[\u3105-\u312f]+|{CJK}",
        GPT4O.replace(r"\p{N}{1,3}", r"\p{N}"),
    ],
    "kimi-k2": [
        rf"[\p{{Han}}]+|{START}{UK}*{LK}+{C}?|{START}{UK}+{LK}*{C}?|\p{{N}}{{1,3}}|{SYMBOLS}|{LINES}|{SPACES}",
    ],
    "deepseek-v3": [r"\p{N}{1,3}", CJK, rf"{PUNCTUATED}[\r\n]*|{LINES}|{SPACES}"],
    "spark2_5": [r"\p{N}{1,3}", CJK, rf"{PUNCTUATED}|[\r\n]|{SPACES}", r"\p{N}"],
    "afmoe": [
        r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
        "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f\u0e80-\u0eff"
        "\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+",
        rf"{PUNCTUATED}[\r\n]*|{LINES}|{SPACES}",
    ],
    "superbpe": [r"\p{N}+", r"(?=(\d{3})+(?!\d))"],
    "deepseek-llm": [r"\s+$" if e == r"(?<!\s)\s+$" else e for e in RULES["deepseek-llm"].expressions],
}  # fmt: skip
FEW = " \t\n\r\v\u3000\u2028\u00a0aAbB1234567\u0663\u00b2!/_'s\u4e2d\u306e\uac00\u0e44\u0301\u01c5"


@pytest.mark.parametrize("name", ORIGINALS)
@settings(max_examples=200)
@given(
    text=st.text(st.sampled_from(FEW), max_size=24)
    | st.text("111111a_ \u00b2\u0663", max_size=24)
    | st.text(max_size=24)
)
def test_expressions_cut_like_those_of_the_vocabulary(name: str, text: str) -> None:
    """Cuts are what models were trained with: expressions may be made of parts, or fast, but mean the same."""
    assert pre_tokenizer(RULES[name]).pre_tokenize_str(text) == rule_of(ORIGINALS[name]).pre_tokenize_str(text)


CUTS = {
    "kimi-k2": ("fooBar's \u4e2d\u6587ab 12345", ["foo", "Bar's", " ", "\u4e2d\u6587", "ab", " ", "123", "45"]),
    "tiny_aya": ("x 1234567 12ab", ["x", " ", "1", "234", "567", " ", "12", "ab"]),
    "afmoe": ("v1234 \u4e2d\uf900\u306ea!ok", ["v", "1", "234", " ", "\u4e2d\uf900\u306e", "a", "!ok"]),
    "superbpe": ("a b 12345678 c", ["a b ", "12", "345", "678", " c"]),
    "bailingmoe2": ("I'M 12\n\nx", ["I", "'M", " ", "1", "2", "\n\n", "x"]),
    "exaone-moe": ("a big dog!\n\n", ["a big dog", "!\n", "\n"]),
    "ufakzeka": ("Ali'den", ["Ali", "'den"]),
    "jais-2": ("a" + " " * 9 + "b", ["a", " " * 8, " b"]),
    "chameleon": ("IMGIMGABZ ok,  12\t", ["IMGIMGABZ", " ok", ",", "  ", "1", "2", "\t"]),
    "laguna": ("ab \n\n c", ["ab", " ", "\n\n", " c"]),
    "youtu": ("\uac00a\u3001\u4e2d1B", ["\uac00", "a", "\u3001", "\u4e2d", "1", "B"]),
    "spark2_5": ("12\n\n3!\n", ["1", "2", "\n", "\n", "3", "!", "\n"]),
    "gemma4": ("a b\n\n c", ["a b", "\n\n", " c"]),
}


@pytest.mark.parametrize("name", CUTS)
def test_pieces_of_new_vocabularies(name: str) -> None:
    """These names were unknown, and the default rule, which cuts otherwise, took their place."""
    text, pieces = CUTS[name]
    assert [piece for piece, _ in pre_tokenizer(RULES[name]).pre_tokenize_str(text)] == pieces


BOS = "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano tekken chameleon"
WHOLE = (
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano tekken glm4 glm5 minicpm5 youtu "
    "granite-embed-multi-97m kimi-k2"
)
OTHERS = """
    default deepseek-llm deepseek-coder deepseek-v3 spark2_5 falcon mpt starcoder gpt-2 phi-2 jina-es jina-de gigachat
    jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert jais-2 gemma4 granite-embed-multi-311m sarvam-moe jina-v1-en
    jina-v2-code roberta-bpe refact command-r qwen2 deepseek-r1-qwen kormo f2llmv2 qwen35 stablelm2 olmo dbrx smaug-bpe
    poro-chat chatglm-bpe viking jais smollm codeshell bloom gpt3-finnish exaone exaone4 exaone-moe minerva-7b megrez
    gpt-4o llama4 kanana2 talkie tiny_aya cohere2moe superbpe trillion granite-docling bailingmoe bailingmoe2 llada-moe
    seed-coder hunyuan hunyuan-dense hy_v4 joyai-llm ufakzeka grok-2 afmoe laguna minimax-m2 solar-open mellum2
"""


def test_all_names_of_llama_cpp_are_known_with_what_hangs_on_them() -> None:
    """23 of its names were cut by the default rule; `whitespace` stands only in files of the kind of that name."""
    assert set(RULES) == {*BOS.split(), *WHOLE.split(), *OTHERS.split()}
    assert {name for name, rule in RULES.items() if rule.add_bos} == set(BOS.split())
    assert {name for name, rule in RULES.items() if rule.ignore_merges} == set(WHOLE.split())
    page = (Path(__file__).resolve().parents[1] / "docs" / "metadata.md").read_text(encoding="utf-8")
    listed = page.partition("### Pre-tokenizers")[2].partition("\n- ")[2].partition("\n\n")[0]
    assert sorted(re.findall("`(.*?)`", listed)) == sorted(RULES)
    raw = {name for name, rule in RULES.items() if rule.raw}
    assert raw == {"gemma4", "granite-embed-multi-311m", "sarvam-moe"}
    assert {n for n in raw if RULES[n].needs_bos} == {n for n in raw if RULES[n].whole_lines} == raw - {"sarvam-moe"}
