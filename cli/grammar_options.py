"""The flags of constrained output: the fields of SamplingParams that say what the text may be, spelled in llama-cli's
four ways. See options.py for the rules."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from mixkv.cli.flags import flag
from mixkv.kernels.errors import ConfigError, InputError

CONSTRAINT = "Constrained output"


@dataclass(frozen=True)
class GrammarFlags:
    """What the text may be. An empty value is none."""

    grammar: str | None = flag(
        "--grammar", panel=CONSTRAINT, metavar="TEXT", help="Write a sentence of this grammar, in GBNF or Lark"
    )
    grammar_file: str | None = flag("--grammar-file", panel=CONSTRAINT, metavar="FILE", help="The same from a file")
    json_schema: str | None = flag(
        "-j", "--json-schema", panel=CONSTRAINT, metavar="TEXT",
        help="Write JSON that fits this schema; {}: any JSON object",
    )  # fmt: skip
    json_schema_file: str | None = flag(
        "-jf", "--json-schema-file", panel=CONSTRAINT, metavar="FILE", help="The same from a file"
    )

    def chosen(self) -> dict[str, str]:
        """The field of SamplingParams that is given, and its value; none without a flag. ConfigError for two flags and
        for a schema that is not JSON, InputError for a file that is not text, OSError where it cannot be read."""
        given = [field for field in dataclasses.fields(self) if getattr(self, field.name)]
        if len(given) > 1:
            names = " and ".join(str(field.metadata["names"][-1]) for field in given[:2])
            raise ConfigError(f"{names} both say what the text may be: give one of them")
        if not given:
            return {}
        name, value = given[0].name, str(getattr(self, given[0].name))
        where = given[0].metadata["names"][-1]
        if name.endswith("_file"):
            where, value = value, _text_of(value)
        if "json_schema" in name:
            return {"json_schema": _schema(value, where)}
        return {"grammar": value}


def _text_of(path: str) -> str:
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); convert it to UTF-8") from None


def _schema(text: str, where: str) -> str:
    """The schema; an empty one allows any JSON, of which llama-cli writes objects."""
    try:
        empty = json.loads(text) == {}
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON ({error}): give a JSON schema, such as {{}}") from None
    return '{"type": "object"}' if empty else text
