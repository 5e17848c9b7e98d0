"""`mixkv` and `mixkv-cli`: the commands, and the way from a command line to an exit status.

Know before you change this room: a new command is a function under `with_flags` in a file of its own, both named like
it, and a word in COMMANDS. A run imports the file of its own command, `--help` those of all, so they import what is
heavy (the engine, matplotlib, ...) inside their functions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module
from typing import Annotated, Any

import typer

from mixkv.cli.flags import spell_out
from mixkv.cli.terminal import DONE, INTERRUPTED, WRONG_USAGE, fail, prepare_streams
from mixkv.kernels.errors import ConfigError

COMMANDS = ("generate", "chat", "serve", "get", "models", "inspect", "bench", "perplexity", "evaluate")
HELP_FLAGS = {"help_option_names": ["-h", "--help"]}
# What typer raises for a wrong command line; newer versions do not say where it lives.
USAGE_ERRORS: tuple[type[Exception], ...] = (typer.BadParameter.__mro__[2],)


def _show_version(wanted: bool) -> None:
    if wanted:
        from mixkv import __version__

        print(f"mixkv {__version__}")
        raise typer.Exit(DONE)


Version = Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")]


def _app(commands: Iterable[str] = COMMANDS) -> typer.Typer:
    """The program with these commands: building the flags of one takes 3 ms."""
    app = typer.Typer(name="mixkv", add_completion=False, rich_markup_mode="rich", context_settings=HELP_FLAGS)

    @app.callback(invoke_without_command=True)
    def mixkv(ctx: typer.Context, version: Version = False) -> None:
        """LLM inference for long contexts on ordinary CPUs: GGUF in, text out."""
        if ctx.invoked_subcommand is None:
            print(ctx.get_help())

    for name in commands:
        app.command(name, context_settings=HELP_FLAGS)(getattr(import_module(f"mixkv.cli.{name}"), name))
    return app


def main(arguments: list[str] | None = None) -> int:
    """The command `mixkv`; its exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    named = words[:1] if words and words[0] in COMMANDS else COMMANDS
    command: Any = typer.main.get_command(_app(named))
    return _run(command, "mixkv", words)


def main_generate(arguments: list[str] | None = None) -> int:
    """The command `mixkv-cli`, which is `mixkv generate`; its exit status."""
    group: Any = typer.main.get_command(_app(["generate"]))
    words = sys.argv[1:] if arguments is None else arguments
    if words == ["--version"]:
        return _run(group, "mixkv", words)
    return _run(group.commands["generate"], "mixkv-cli", words)


def _run(command: Any, name: str, words: list[str]) -> int:
    """Run one command line; its exit status."""
    prepare_streams()
    try:
        status = command.main(args=_spelled_out(command, words), prog_name=name, standalone_mode=False)
    except ConfigError as error:
        fail(f"{error} ({name} --help shows what there is)")
        return WRONG_USAGE
    except USAGE_ERRORS as error:
        fail(f"{error.format_message()} ({name} --help shows what there is)")  # type: ignore[attr-defined]
        return WRONG_USAGE
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    return status or DONE


def _spelled_out(command: Any, words: list[str]) -> list[str]:
    """The words as typer reads them; of `mixkv`, those behind the name of a command are that command's."""
    help_names = HELP_FLAGS["help_option_names"]
    commands = getattr(command, "commands", None)
    if commands is None:
        return spell_out(words, command.params, help_names)
    own = next((i for i, word in enumerate(words) if not word.startswith("-")), len(words))
    spelled = spell_out(words[:own], command.params, help_names)
    chosen = commands.get(words[own]) if own < len(words) else None
    if chosen is None:
        return spelled + words[own:]
    return [*spelled, words[own], *spell_out(words[own + 1 :], chosen.params, help_names)]
