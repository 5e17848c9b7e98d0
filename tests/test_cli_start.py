"""Ctrl-C whenever it comes: status 130, no traceback, not even while Python imports or shuts down."""

from __future__ import annotations

import sys

import pytest
from cli_process import run

AT_IMPORT = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""
WITHIN_A_CALLBACK = """
import os, signal, sys
class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "mixkv.engine.llm":
            Dying()
sys.meta_path.insert(0, Finder())
"""
AT_EXIT = """
import atexit, os, signal
atexit.register(os.kill, os.getpid(), signal.SIGINT)
"""
IN_A_DESTRUCTOR_AT_WORK = """
import os, signal
from mixkv.cli.start import interruptible
import mixkv.engine.load as llm
load = llm.load
class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
def loading(*args, **options):
    Dying()
    while True:
        load(*args, **options)
llm.load = loading
"""
PROGRAM = """
from mixkv.cli.start import {entry}
sys.argv = ["mixkv", *{words!r}]
{entry}()
"""
GENERATE = ("-p", "Hello", "-n", "2", "--temp", "0")


def ended_by(trouble: str, *words: str, entry: str = "main_generate") -> tuple[int, bytes]:
    """Status and stderr of a process into which `trouble` sends SIGINT at one certain moment."""
    code = "import sys\n" + trouble + PROGRAM.format(entry=entry, words=words)
    result = run(line=[sys.executable, "-c", code])
    return result.status, result.err


@pytest.mark.parametrize(
    "name",
    ["mixkv.cli.main", "typer", "mixkv.cli.terminal", "mixkv.cli.generate", "numpy", "mixkv.kernels.native",
     "mixkv.engine.llm", "mixkv.engine.tokenizer"],
)  # fmt: skip
def test_ctrl_c_while_modules_are_imported_is_status_130_without_a_word(name: str) -> None:
    """The first 0.3 s of every run are imports: a traceback of importlib, and death by a signal."""
    assert ended_by(AT_IMPORT.format(name=name), *GENERATE) == (130, b"")


@pytest.mark.parametrize("words", [("chat",), ("inspect",), ("perplexity", "-f", "x"), ("--help",)])
def test_ctrl_c_while_any_command_starts(words: tuple[str, ...]) -> None:
    assert ended_by(AT_IMPORT.format(name="typer"), *words, entry="main") == (130, b"")
    assert ended_by(AT_IMPORT.format(name="numpy"), *words, entry="main") == (130, b"")


def test_ctrl_c_in_a_callback_of_the_import_is_not_printed_and_forgotten() -> None:
    """Python prints "Exception ignored in" for it, and goes on."""
    assert ended_by(WITHIN_A_CALLBACK, *GENERATE) == (130, b"")


def test_ctrl_c_in_a_destructor_while_it_works_ends_the_run_all_the_same() -> None:
    assert ended_by(IN_A_DESTRUCTOR_AT_WORK, *GENERATE) == (130, b"")


def test_ctrl_c_while_python_shuts_down_is_status_130_without_a_word() -> None:
    assert ended_by(AT_EXIT, *GENERATE) == (130, b"")
    assert ended_by(AT_EXIT, "--version", entry="main") == (130, b"")


def test_a_process_that_ignores_ctrl_c_goes_on_ignoring_it() -> None:
    """nohup and background jobs of a shell start programs so."""
    ignored = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    assert ended_by(ignored + AT_IMPORT.format(name="typer") + AT_EXIT, *GENERATE) == (0, b"")
