"""docs/flags.md, made from the declarations of the flags: `python -m mixkv.cli.flag_table > docs/flags.md`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, get_type_hints

from mixkv.cli.accepted import ACCEPTED, REFUSED
from mixkv.cli.flags import METAVARS
from mixkv.cli.generate import generate

HEAD = """# Flags of `mixkv generate` (= `mixkv-cli`)

Names and meanings are llama-cli's, where it has the flag. Each is one of three kinds:

- **yes**: it does what it says;
- **no effect**: it is accepted, so that scripts run, and one line on stderr says why nothing comes of it (not where it
  asks for what happens anyway, as `-ngl 0` does);
- **refused**: it would change the text and cannot be obeyed yet, so it ends with status 2.

What is not in this table is refused as unknown, with the nearest name that exists. `mixkv chat` has the same flags but
those of the prompt cache, `--json`, `--logprobs`, `-cnv`, `-no-cnv` and `-i`. This page is made from the code:
`python -m mixkv.cli.flag_table > docs/flags.md`."""


def flag_table() -> str:
    """The whole page."""
    lines = [HEAD]
    panel = None
    for field, hint in sorted(_fields(), key=lambda item: _panels().index(item[0].metadata["option"].rich_help_panel)):
        option = field.metadata["option"]
        if option.rich_help_panel != panel:
            panel = option.rich_help_panel
            lines += ["", f"## {panel}", "", "| flag | | what it does |", "| --- | --- | --- |"]
        kind = "no effect" if panel == ACCEPTED else "refused" if panel == REFUSED else "yes"
        value = (option.metavar or METAVARS.get(hint) or "").strip()
        names = ", ".join(f"`{name.replace('/', ' / ')}`" for name in field.metadata["names"])
        cells = (f"{names} {f'`{value}`' if value else ''}".strip(), kind, option.help)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _fields() -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """Every flag with the type of its value, in the order of their declaration."""
    for parameter in generate.__groups__.values():  # type: ignore[attr-defined]
        hints = get_type_hints(parameter)
        for field in dataclasses.fields(parameter):
            yield field, hints[field.name]


def _panels() -> list[str]:
    """The panels in the order in which the help shows them."""
    return list(dict.fromkeys(field.metadata["option"].rich_help_panel for field, _ in _fields()))


if __name__ == "__main__":
    print(flag_table(), end="")
