"""`mixkv` and `mixkv-cli`: the commands, and the way from a command line to an exit status.

Know before you change this room: a new command is a function under `with_flags` in a file of its own, both named like
it, and a word in COMMANDS. A run imports the file of its own command, `--help` those of all, so they import what is
heavy (the engine, matplotlib, ...) inside their functions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer

from mixkv.cli.flags import spell_out
from mixkv.cli.terminal import DONE, INTERRUPTED, WRONG_USAGE, fail, prepare_streams

COMMANDS = ("generate", "chat", "inspect", "bench", "perplexity", "evaluate")
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


def main(arguments: list[str] | None = None) -> NoReturn:
    """The command `mixkv`."""
    words = sys.argv[1:] if arguments is None else arguments
    named = words[:1] if words and words[0] in COMMANDS else COMMANDS
    command: Any = typer.main.get_command(_app(named))
    chosen = command.commands.get(words[0]) if words else None
    if chosen is not None:
        words = [words[0], *spell_out(words[1:], chosen.params)]
    _run(command, "mixkv", words)


def main_generate(arguments: list[str] | None = None) -> NoReturn:
    """The command `mixkv-cli`, which is `mixkv generate`."""
    group: Any = typer.main.get_command(_app(["generate"]))
    command = group.commands["generate"]
    words = sys.argv[1:] if arguments is None else arguments
    if words == ["--version"]:
        _run(group, "mixkv", words)
    _run(command, "mixkv-cli", spell_out(words, command.params))


def _run(command: Any, name: str, words: list[str]) -> NoReturn:
    """Run one command line and leave with its status."""
    prepare_streams()
    try:
        status = command.main(args=words, prog_name=name, standalone_mode=False)
    except USAGE_ERRORS as error:
        fail(f"{error.format_message()} ({name} --help shows what there is)")  # type: ignore[attr-defined]
        status = WRONG_USAGE
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    sys.exit(status or DONE)


if __name__ == "__main__":
    main()
