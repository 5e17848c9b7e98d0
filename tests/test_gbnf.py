"""GBNF as llama.cpp reads it: what a grammar in it accepts, and what is told of one that is wrong."""

from __future__ import annotations

import re

import pytest
from grammar_tools import accepts
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_vocabs import bpe_metadata, tokenizer_of

from mixkv.engine.grammar.gbnf import gbnf_to_lark, is_gbnf
from mixkv.engine.grammar.vocabulary import GrammarVocabulary
from mixkv.kernels.errors import ConfigError


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> GrammarVocabulary:
    return GrammarVocabulary(tokenizer_of(tmp_path_factory.mktemp("vocab"), bpe_metadata()))


# (GBNF, the same for Python's re)
EXPRESSIONS: st.SearchStrategy[tuple[str, str]] = st.recursive(
    st.sampled_from([('"a"', "a"), ('"b"', "b"), ('"ab"', "ab"), ("[ab]", "[ab]"), ("[^a]", "[^a]"), ('""', "(?:)")]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda two: (f"{two[0][0]} {two[1][0]}", two[0][1] + two[1][1])),
        st.tuples(inner, inner).map(lambda two: (f"({two[0][0]} | {two[1][0]})", f"(?:{two[0][1]}|{two[1][1]})")),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{1,}", "{0,0}"])).map(
            lambda one: (f"({one[0][0]}){one[1]}", f"(?:{one[0][1]}){one[1]}")
        ),
    ),
    max_leaves=6,
)


@given(expression=EXPRESSIONS, text=st.text("abc", max_size=5))
@settings(max_examples=300)
def test_what_is_regular_is_matched_as_a_regular_expression(
    vocabulary: GrammarVocabulary, expression: tuple[str, str], text: str
) -> None:
    """The lexer takes the longest terminal: with one for each literal, `("b" | "bc") "c"` would never end at "bc"."""
    gbnf, regex = expression
    wanted = re.fullmatch(regex, text) is not None
    assert accepts(vocabulary, text, grammar=f"root ::= {gbnf}") == wanted
    pieces = f"root ::= first\nfirst ::= {gbnf}"
    assert accepts(vocabulary, text, grammar=pieces) == wanted


JSON = r"""
# llama.cpp's way of writing JSON
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws

ws ::= | " " | "\n" [ \t]{0,20}
"""


@pytest.mark.parametrize(
    "grammar, right, wrong",
    [
        (JSON, ['{}', '{"a": [1, -2e3 ,{"b":null}],\n\t"c":"d\\n\\u00e9é"}'], ['[]', '{"a":}', '{"a":1,}', '{"a":01}']),
        ('root ::= "(" root ")" root | ""', ["", "()", "(())()"], ["(", ")("]),
        ('root ::= root "+" [0-9] | [0-9]', ["1", "1+2+3"], ["+1", "1+"]),
        ('root ::= start-2 START\nstart-2 ::= "x"\nSTART ::= "y" | "(" root ")"', ["xy", "x(xy)"], ["x", "xx"]),
        ('root ::= "\\u0041\\x42\\U0001F600" [\\u00e9-\\u00eb/\\]]', ["AB😀ê", "AB😀/", "AB😀]"], ["AB😀f"]),
        ('root ::= [a-] [^-] [+--]', ["a++", "-a,", "-+-"], ["b+a", "a-+"]),
        ('root ::= . "x"', ["\nx", "éx"], ["x"]),
        ('root ::= "a" | # one\n  "b"\nother ::= "never said"', ["a", "b"], ["never said"]),
        ('root ::= ("a"\n | "b")+\r\n\r\n', ["ab"], ["c"]),
    ],
)  # fmt: skip
def test_grammars_mean_what_they_mean_to_llama_cpp(
    vocabulary: GrammarVocabulary, grammar: str, right: list[str], wrong: list[str]
) -> None:
    """Names with digits and dashes, rules called like Lark's own, left recursion, rules over several lines, comments,
    escapes, dashes and brackets in classes, rules that nobody asks for."""
    assert is_gbnf(grammar)
    assert [text for text in right if not accepts(vocabulary, text, grammar=grammar)] == []
    assert [text for text in wrong if accepts(vocabulary, text, grammar=grammar)] == []


@pytest.mark.parametrize(
    "grammar, complaint",
    [
        ('root ::= "a', 'line 1, at its end: expected "'),
        ('root ::= "a"\nb ::= [z-a]', "line 2, at ']': the range z-a runs backwards"),
        ('root ::= ("a"', "expected )"),
        ('root ::= "a" )', "expected the end of the rule"),
        ('root ::= b', "there is no rule 'b'"),
        ('main ::= "a"', "there is no rule 'root'"),
        ('root ::= "\\q"', r"there is no character \q"),
        ('root ::= "\\u12"', r"there is no character \u"),
        ('root ::= []', "a class of no characters"),
        ('root ::= "a"{3,2}', "at most 2 and at least 3"),
        ('root ::= <think> "a"', "line 1, at '<think> \"a\"': tokens by number or name"),
        ('root ::= "a"\n::= "b"', "line 2, at '::= \"b\"': expected the name of a rule"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(grammar: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        gbnf_to_lark(grammar)


def test_lark_is_told_from_gbnf_by_what_it_says() -> None:
    assert not is_gbnf('start: "a" b\nb: "::= "') and is_gbnf('\n# x\nstart ::= "a"')
