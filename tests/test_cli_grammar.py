"""--grammar, --json-schema and their files: what they give the engine, and what is said of those that are wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from cli_process import generate, run
from grammar_tools import KINDS

SCHEMA = json.dumps(
    {"type": "object", "properties": {"é": KINDS["enum"]}, "required": ["é"], "additionalProperties": False}
)
GRAMMAR = 'root ::= "é" [a-c]{2,4} "\\n"'


@pytest.mark.parametrize("from_file", [False, True], ids=["text", "file"])
def test_the_text_is_held_to_what_the_flag_says(tmp_path: Path, from_file: bool) -> None:
    """The same from a file, which may begin with the mark that some editors write in front of UTF-8."""

    def given(flag: str, text: str) -> tuple[str, str]:
        if not from_file:
            return flag, text
        (tmp_path / "file").write_text("\ufeff" + text, encoding="utf-8")
        return f"{flag}-file", str(tmp_path / "file")

    result = generate("-p", "Hello", "-n", "60", *given("--json-schema", SCHEMA))
    assert result.status == 0 and json.loads(result.out)["é"] in KINDS["enum"]["enum"]
    result = generate("-p", "Hello", "-n", "60", *given("--grammar", GRAMMAR))
    assert re.fullmatch("é[a-c]{2,4}\n", result.out.decode())


def test_an_empty_schema_is_an_object_and_an_empty_value_is_none(tmp_path: Path) -> None:
    """llama-cli writes an object for {}, and scripts pass empty variables on."""
    result = generate("-p", "Hello", "-j", "{ }", "-n", "3", "--temp", "0")
    assert result.out.startswith(b"{")
    assert generate("-p", "Hello", "-j", "", "--grammar-file", "").out == generate("-p", "Hello").out


def test_flags_win_over_a_preset(tmp_path: Path) -> None:
    """Both together would be a contradiction that nobody wrote."""
    preset = tmp_path / "mine.toml"
    preset.write_text("[sampling]\nregex = 'xyz'\n")
    assert generate("-p", "Hello", "-n", "9", "--preset", str(preset)).out == b"xyz"
    assert generate("-p", "Hello", "-n", "9", "--preset", str(preset), "--grammar", 'root ::= "abc"').out == b"abc"


def test_a_chat_answers_within_it() -> None:
    result = run("chat", "-st", "-p", "Well?", "--grammar", 'root ::= "yes" | "no"', "-q")
    assert result.status == 0 and result.out in (b"yes\n", b"no\n")


def test_a_file_that_is_not_there_or_not_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"root ::= \xff")
    for flag in ("--grammar-file", "-jf"):
        result = run("generate", "-p", "Hello", flag, str(tmp_path / "none"))
        assert result.status == 1 and "none: No such file" in result.complaint
        result = run("generate", "-p", "Hello", flag, str(tmp_path / "binary"))
        assert result.status == 1 and "binary: not UTF-8 text (byte 9)" in result.complaint
