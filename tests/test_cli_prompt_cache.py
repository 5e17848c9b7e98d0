"""--prompt-cache: it saves what is worth it, never throws a longer computed prompt away, and its errors name flags."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_process import generate

import mixkv

HELLO = "Once upon a time there was a little"


def reused(file: Path, *words: str) -> int:
    """Run with this prompt cache; how many tokens of the prompt were in it."""
    result = generate("--prompt-cache", str(file), "--json", *words)
    assert result.status == 0, result
    stats: dict[str, Any] = json.loads(result.out)["stats"]
    return int(stats["reused_tokens"])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A prompt cache that holds HELLO."""
    path = tmp_path / "prompt.session"
    assert reused(path, "-p", HELLO) == 0
    return path


def test_the_computed_prompt_is_gone_on_from(file: Path) -> None:
    n = len(mixkv.load(n_ctx=64).tokenize(HELLO))
    first = generate("-p", HELLO)
    again = generate("-p", HELLO, "--prompt-cache", str(file), "--prompt-cache-ro")
    assert first == again == generate("--prompt-cache", str(file))
    assert reused(file, "-p", HELLO) == n - 1, "the last one gives the logits"


@pytest.mark.parametrize("prompt", [HELLO, "Once upon", ""])
def test_an_unchanged_or_shorter_prompt_writes_nothing(file: Path, prompt: str) -> None:
    """It was rewritten at every run, and a shorter prompt threw the longer computed one away."""
    before, inode = file.read_bytes(), file.stat().st_ino
    reused(file, "-p", prompt)
    assert (file.read_bytes(), file.stat().st_ino) == (before, inode)


def test_a_longer_or_another_prompt_is_saved(file: Path) -> None:
    before = file.read_bytes()
    assert reused(file, "-p", f"{HELLO} girl") > 0
    longer = file.read_bytes()
    assert len(longer) > len(before)
    reused(file, "-p", "Something else")
    assert file.read_bytes() != longer


def test_the_generated_text_is_saved_on_request_and_once(file: Path) -> None:
    before = file.stat().st_size
    reused(file, "-p", HELLO, "--prompt-cache-all")
    after, inode = file.stat().st_size, file.stat().st_ino
    assert after > before
    reused(file, "-p", HELLO, "--prompt-cache-all")
    assert file.stat().st_ino == inode, "it holds all this already"


def test_an_empty_file_starts_anew(tmp_path: Path) -> None:
    """mktemp makes such files."""
    file = tmp_path / "empty"
    file.touch()
    assert reused(file, "-p", HELLO) == 0
    assert reused(file, "-p", HELLO) > 0


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (("--mixed-kv-cache",), "give the cache flags that it was saved with, or --prompt-cache another file"),
        (("-c", "4", "-n", "1"), "n_ctx (-c)"),
    ],
)
def test_errors_name_flags_that_exist(file: Path, words: tuple[str, ...], advice: str) -> None:
    """`convert=True` is Python's, no flag."""
    result = generate("-p", "Once", "--prompt-cache", str(file), *words)
    assert (result.status, result.out) == (1, b"")
    assert str(file) in result.complaint
    assert advice in result.complaint
    assert "convert" not in result.complaint


def test_a_damaged_file_is_named_and_so_is_the_flag(file: Path) -> None:
    file.write_bytes(b"no session at all")
    complaint = generate("-p", "Once", "--prompt-cache", str(file)).complaint
    assert str(file) in complaint
    assert "--prompt-cache another file" in complaint
