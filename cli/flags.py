"""How flags are declared and read: a dataclass per group, typer options from its fields.

Know before you change this room: `flag` is a dataclass field that carries its typer option; `with_flags` makes a
command out of a function whose parameters are such dataclasses, and is where every error of a command becomes one
line and an exit status. Names of the typer package's own parts are avoided: they moved between its versions.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Collection, Sequence
from typing import Annotated, Any, get_type_hints

import typer

from mixkv.cli.terminal import guarded
from mixkv.kernels.errors import ConfigError

BARE = {"-fa": "on", "--flash-attn": "on", "-co": "on", "--color": "on"}
"""Flags that llama-cli lets stand alone, and what they then mean."""
METAVARS: dict[Any, str] = {bool: " ", bool | None: " ", int: "N", int | None: "N", float: "X", float | None: "X"}
"""What stands for a value in the help; nothing for switches."""
SWITCH_WORDS = frozenset({"on", "off", "auto", "1", "0", "true", "false", "enabled", "disabled"})


def flag(
    *names: str, panel: str, help: str, default: str = "", value: Any = None, metavar: str | None = None, **more: Any
) -> Any:
    """A dataclass field for a flag: `value` without it, which `default` puts into words for the help."""
    text = f"{help} (default: {default})" if default else help
    declared = typer.Option(*names, help=text, rich_help_panel=panel, show_default=False, metavar=metavar)
    return dataclasses.field(default=value, metadata={"option": declared, "names": names, **more})


def spelled(field: dataclasses.Field[Any], value: object) -> str:
    """How a command line gives this value to a field's flag: `-ngl 99`, `--mlock`, `--no-mmap`."""
    first, _, off = str(field.metadata["names"][-1 if value is False else 0]).partition("/")
    return off if value is False else first if value is True else f"{first} {value}"


def with_flags(command: Callable[..., int]) -> Callable[..., int]:
    """Make a typer command of `command`, each parameter that is a dataclass becoming the options of its fields."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind) and isinstance(kind, type)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            parameters += _options(groups[name])
        else:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))

    def run(**values: Any) -> int:
        given = {
            name: kind(**{field.name: values.pop(field.name) for field in dataclasses.fields(kind)})
            for name, kind in groups.items()
        }
        return guarded(functools.partial(command, **given, **values))

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__groups__ = groups  # type: ignore[attr-defined]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def _options(group: type) -> list[inspect.Parameter]:
    hints = get_type_hints(group)
    parameters = []
    for field in dataclasses.fields(group):
        declared = copy.copy(field.metadata["option"])
        if declared.metavar is None:
            declared.metavar = METAVARS.get(hints[field.name])
        parameters.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=Annotated[hints[field.name], declared],
            )
        )
    return parameters


def spell_out(arguments: Sequence[str], parameters: Sequence[Any], help_names: Sequence[str] = ()) -> list[str]:
    """The words of a command line as typer is to read them; `parameters` are those of the command.

    Flags that stand alone (BARE) get the value that they mean, and `--ctx_size` is `--ctx-size`, as in llama-cli. A
    word that is the value of another flag (`-p -fa`) is left as it is. ConfigError for a flag that does not exist:
    typer would read `-hp X` as `-h -p X` and `-st` as `-s t`, and llama-cli knows no values glued to their flag.
    """
    with_value = {
        name
        for parameter in parameters
        if parameter.param_type_name == "option" and not parameter.is_flag and not parameter.count
        for name in parameter.opts
    }
    known = {name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)}
    known |= {*help_names, *with_value}
    out: list[str] = []
    at = 0
    while at < len(arguments):
        word = arguments[at]
        following = arguments[at + 1 : at + 2]
        at += 1
        if word == "--":
            return [*out, word, *arguments[at:]]
        if word.startswith("-") and len(word) > 1:
            word = _existing(word, known, with_value)
        out.append(word)
        if word in BARE and not (following and following[0].lower() in SWITCH_WORDS):
            out.append(BARE[word])
        elif word in with_value:
            out += following
            at += 1
    return out


def _existing(word: str, known: Collection[str], with_value: Collection[str]) -> str:
    """The flag as it is declared, with what follows `=`. ConfigError, and the nearest name, if there is none."""
    name, equals, value = word.partition("=")
    if name.startswith("--"):
        name = name.replace("_", "-")
    if name in known and (not equals or len(name) > 2):
        return name + equals + value
    short, glued = word[:2], word[2:].removeprefix("=")
    if short in with_value and re.fullmatch(r"-?[0-9.]+", glued):
        raise ConfigError(f"no such option: {word}; did you mean {short} {glued}?")
    import difflib  # for this message alone

    close = difflib.get_close_matches(name, sorted(known), n=1)
    raise ConfigError(f"no such option: {name}" + (f"; did you mean {close[0]}?" if close else ""))
