"""Functions of a file as tools: their schemas, what a call gets back, and being asked at a terminal."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from chat_cases import THINKING_CHATML
from cli_process import DEMO, OnTerminal, screen

from mixkv.cli.chat_session import ROUNDS
from mixkv.cli.chat_tools import LONGEST, Tool, load_tools
from mixkv.kernels.errors import InputError

WEATHER = '''
from typing import Annotated, Literal, Optional
import json as _json
from pathlib import Path

LIMIT = 3

def get_weather(city: str, days: int = 1, unit: Literal["C", "F"] = "C", *, near: Optional[list[float]] = None,
                more: dict[str, int] = {}, exact: Annotated[bool, "to the degree"] = False, n: int | str = 2, other=5):
    """Get the weather
    of a city.

    Args:
        city: the city's name
        days (int): how many days
    """
    return {"city": city, "days": days}

async def later(x):
    return x + "!"

def fails() -> str:
    raise KeyError("no")

def leaves() -> str:
    raise SystemExit(3)

def long() -> str:
    return "x" * 100000

def _private(x: set): ...
'''


def tools(tmp_path: Path, text: str = WEATHER) -> dict[str, Tool]:
    (tmp_path / "my-tools.py").write_text(text)
    return load_tools(tmp_path / "my-tools.py")


def test_a_function_is_described_by_its_annotations_and_docstring(tmp_path: Path) -> None:
    found = tools(tmp_path)
    assert list(found) == ["get_weather", "later", "fails", "leaves", "long"], "of the file's own, public ones"
    function = found["get_weather"].schema["function"]
    assert (function["name"], function["description"]) == ("get_weather", "Get the weather of a city.")
    assert function["parameters"] == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "the city's name"},
            "days": {"type": "integer", "default": 1, "description": "how many days"},
            "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
            "near": {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "null"}], "default": None},
            "more": {"type": "object", "additionalProperties": {"type": "integer"}, "default": {}},
            "exact": {"type": "boolean", "description": "to the degree", "default": False},
            "n": {"anyOf": [{"type": "integer"}, {"type": "string"}], "default": 2},
            "other": {"type": "integer", "default": 5},
        },
        "required": ["city"],
    }
    assert found["later"].schema["function"]["parameters"]["properties"] == {"x": {"type": "string"}}


@pytest.mark.parametrize(
    ("name", "arguments", "result"),
    [
        ("get_weather", '{"city": "Paris", "days": 2.0, "near": [1, 2.5], "n": "x"}', '{"city": "Paris", "days": 2}'),
        ("get_weather", "{}", "error: the argument 'city' is missing"),
        ("get_weather", '{"city": "Paris", "day": 1}', "error: there is no argument 'day'; there are city, days, unit"),
        ("get_weather", '{"city": 5}', "error: the argument 'city' is 5, but must fit {\"type\": \"string\"}"),
        ("get_weather", '{"city": "P", "days": true}', "error: the argument 'days' is true"),
        ("get_weather", '{"city": "P", "days": 1.5}', "error: the argument 'days' is 1.5"),
        ("get_weather", '{"city": "P", "days": Infinity}', "error: the argument 'days' is Inf"),
        ("get_weather", '{"city": "P", "unit": "K"}', "error: the argument 'unit' is \"K\""),
        ("get_weather", '{"city": "P", "near": ["x"]}', "error: the argument 'near'"),
        ("get_weather", '{"city": "P", "more": {"a": "b"}}', "error: the argument 'more'"),
        ("get_weather", "[]", "error: the arguments must be an object"),
        ("get_weather", "{", "error: the arguments are not JSON"),
        ("later", '{"x": "é"}', "é!"),
        ("fails", "", "error: KeyError: 'no'"),
        ("leaves", "{}", "error: SystemExit: 3"),
        ("long", "{}", "x" * LONGEST + " ... (cut: 100000 characters)"),
    ],
)  # fmt: skip
def test_what_a_call_gets_back_is_text_in_any_case(name: str, arguments: str, result: str, tmp_path: Path) -> None:
    """A model that calls wrongly reads what was wrong; the chat does not end."""
    assert tools(tmp_path)[name].call(arguments).startswith(result)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("def f(:", "line 1: SyntaxError"),
        ("import nothing_of_this_name", "ModuleNotFoundError"),
        ("raise SystemExit(2)", "SystemExit: 2"),
        ("x = 1", "defines no functions"),
        ("def f(x: set): ...", r"f\(\): the parameter x has the type set: use str"),
        ("def f(x: list[set]): ...", r"f\(\): the parameter x has the type set: use str"),
        ("def f(x: 'Nothing'): ...", r"f\(\): its annotations cannot be read"),
        ("def f(*x): ...", r"f\(\): the parameter x cannot be given by name"),
        ("def f(x, /): ...", "the parameter x cannot be given by name"),
    ],
)
def test_a_file_that_holds_no_tools_is_one_line(text: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=why):
        tools(tmp_path, text)
    with pytest.raises(InputError, match="is not there: give a Python file"):
        load_tools(tmp_path / "none.py")


CALL = '<tool_call>{\\"name\\": \\"get_weather\\", \\"arguments\\": {\\"city\\": \\"Paris\\"}}</tool_call>'


def with_tools(tmp_path: Path, template: str = THINKING_CHATML) -> OnTerminal:
    """A chat at a terminal whose model does nothing but call a tool."""
    tools(tmp_path)
    (tmp_path / "t.jinja").write_text(template)
    words = ("--temp", "0", "--grammar", f'root ::= "{CALL}"', "--chat-template-file", str(tmp_path / "t.jinja"))
    chat = OnTerminal("chat", "-m", DEMO, *words, whole=True)
    chat.read(until="> ")
    chat.type(f"/tools {tmp_path / 'my-tools.py'}\r")
    return chat


def test_each_call_is_asked_about_and_no_is_told_to_the_model(tmp_path: Path) -> None:
    chat = with_tools(tmp_path)
    chat.read(until=r"get_weather\(city, days.*\): Get the weather of a city\.[\s\S]*> ")
    chat.type("Weather?\r")
    for answer in ("n", "maybe", "y", "a"):
        chat.read(until=r"run get_weather\? \[y\]es, \[n\]o, \[a\]lways: ")
        chat.type(f"{answer}\r")
    chat.read(until=r"the model asked for tools .* in a row: stopped[\s\S]*> ")
    chat.type(f"/save {tmp_path / 'talk.json'}\r")
    chat.read(until=r"saved: [\s\S]*> ")
    chat.type("\x04")
    shown = screen(chat.end().err)
    assert sum('call: get_weather(city="Paris")' in line for line in shown) == ROUNDS
    messages = json.loads((tmp_path / "talk.json").read_text())["messages"]
    results: list[Any] = [m["content"] for m in messages if m["role"] == "tool"]
    assert results == ["not called: the user did not allow it"] + ['{"city": "Paris", "days": 1}'] * (ROUNDS - 1)
    assert messages[1]["tool_calls"][0]["id"] == messages[2]["tool_call_id"]


def test_ctrl_c_at_a_call_ends_the_turn_and_keeps_what_was_said(tmp_path: Path) -> None:
    chat = with_tools(tmp_path)
    chat.read(until="Get the weather[^>]*> ")
    chat.type("Weather?\r")
    chat.read(until="lways: ")
    time.sleep(0.5)  # readline draws its prompt a moment before it listens for signals
    chat.type("\x03")
    chat.read(until="> ")
    chat.type(f"/save {tmp_path / 'talk.json'}\r")
    chat.read(until=r"saved: .*3 messages[\s\S]*> ")
    chat.type("\x04")
    assert chat.end().status == 0
    assert json.loads((tmp_path / "talk.json").read_text())["messages"][2]["content"].startswith("not called")


def test_tools_that_the_template_does_not_show_are_not_offered(tmp_path: Path) -> None:
    """The model would never hear of them."""
    chat = with_tools(tmp_path, "{% for m in messages %}{{ m.content }}{% endfor %}")
    chat.read(until=r"does not show tools to the model: none are offered[\s\S]*> ")
    chat.type("\x04")
    assert chat.end().status == 0
