"""Templates of published models: each has the format that it shows, and what it renders is read back."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from reply_tools import PING, TOOLS, format_named

from mixkv.engine.chat.formats import ReplyFormat
from mixkv.engine.chat.parser import ReplyParser

TEMPLATES = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "templates"
NAMES = sorted(path.name for path in TEMPLATES.glob("*.jinja"))
NO_TOOLS = {
    "HuggingFaceTB-SmolLM3-3B.jinja": "says nothing of tools",
    "google-gemma-2-2b-it.jinja": "says nothing of tools",
    "llama-cpp-rwkv-world.jinja": "says nothing of tools",
    "microsoft-Phi-3.5-mini-instruct.jinja": "says nothing of tools",
}
"""Templates without a format of calls."""
CALLS_AS_TEXT = {
    "LFM2-8B-A1B.jinja": "renders content alone",
    "LFM2.5-Instruct.jinja": "renders content alone",
    "ibm-granite-granite-3.3-2B-Instruct.jinja": "renders content alone",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja": "renders calls of messages without content alone, in place of it",
    **NO_TOOLS,
}
"""Templates that do not render a message's calls: nothing to read back."""
AS_STRING = {"meetkai-functionary-medium-v3.2.jinja"}
"""Templates that want arguments as text; they are compared all the same."""
WEATHER = {"city": 'Zürich "☂"\n</a> \\ |', "days": 3, "exact": True, "more": {"a": [1, 2], "b": "it is 3"}}

pytestmark = pytest.mark.skipif(not NAMES, reason="the templates are not beside the checkout")


def environment() -> Any:
    """Jinja as models' templates expect it."""
    jinja2 = pytest.importorskip("jinja2", reason="jinja2 is not installed")
    from jinja2.ext import loopcontrols

    made = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])

    def tojson(value: Any, **options: Any) -> str:
        options.setdefault("ensure_ascii", False)
        return json.dumps(list(value) if hasattr(value, "__next__") else value, **options)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    made.filters["tojson"] = tojson
    made.globals |= {
        "raise_exception": refuse,
        "strftime_now": lambda form: datetime(2025, 1, 2).strftime(form),
        "bos_token": "<BOS>",
        "eos_token": "<EOS>",
        "datetime": "today",
        "functions": "",
    }
    return made


def assistant_turn(name: str, begin: str, calls: list[tuple[str, dict[str, Any]]]) -> tuple[str, str]:
    """(what the prompt ends with, what the model would have written) for a message with these calls. begin: of
    thoughts, which the prompt may have closed where the message has some."""
    source = (TEMPLATES / name).read_text()
    source = re.sub(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}", r"{#\1 \2#}", source)
    template = environment().from_string(source)
    written = [
        {
            "id": f"abcdefgh{i}",
            "type": "function",
            "function": {"name": n, "arguments": json.dumps(a) if name in AS_STRING else a},
        }
        for i, (n, a) in enumerate(calls)
    ]
    tools = json.loads(json.dumps(TOOLS))
    tools[0]["function"]["parameters"]["properties"]["more"]["additionalProperties"] = {"type": "string"}
    user = {"role": "user", "content": "Hello"}
    thought = dict.fromkeys(("reasoning_content", "reasoning", "thinking"), "Hm.")
    turn = {"role": "assistant", "content": "", "tool_calls": written, **thought}
    before = template.render(messages=[user], tools=tools, add_generation_prompt=False)
    opened = template.render(messages=[user], tools=tools, add_generation_prompt=True)
    whole = template.render(messages=[user, turn], tools=tools, add_generation_prompt=False)
    if not whole.startswith(before):
        n = next(i for i, (a, b) in enumerate(zip(opened, whole, strict=False)) if a != b)
        return opened[:n], whole[n:]
    prompt = opened[len(before) :]
    reply = whole[len(before) :]
    if reply.startswith(prompt):
        return prompt, reply[len(prompt) :]
    start = reply.find(begin)
    return "", reply[start if prompt.startswith(reply[:start]) else 0 :]


def test_every_template_with_tools_has_a_format() -> None:
    """A model whose calls nobody understands would show them as text."""
    plain = {n for n in NAMES if ReplyFormat.of_template((TEMPLATES / n).read_text()).name == "plain"}
    assert plain == set(NO_TOOLS)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_template_renders_is_read_back(name: str) -> None:
    """A model writes as its template does: calls, in their order, with their arguments."""
    if name in CALLS_AS_TEXT:
        pytest.skip(CALLS_AS_TEXT[name])
    format = ReplyFormat.of_template((TEMPLATES / name).read_text())
    one, two = [("get_weather", WEATHER)], [("get_weather", WEATHER), ("ping", PING)]
    begin, end = format.thinking or ("\0", "\0")
    try:
        prompt, reply = assistant_turn(name, begin, two)
    except Exception as error:
        assert "single" in str(error), error
        prompt, reply = assistant_turn(name, begin, one)
    opened = prompt.rfind(begin) > prompt.rfind(end)
    parser = ReplyParser(format, thinking_open=opened, tools=TOOLS)
    for character in reply:
        parser.feed(character)
    parser.finish("stop")
    message = parser.message()
    assert [(call.name, json.loads(call.arguments)) for call in message.tool_calls] in (one, two)
    if "Hm." in reply and begin in prompt + reply:
        assert message.reasoning == "Hm."


@pytest.mark.parametrize(
    ("name", "format", "thinking"),
    [
        ("Qwen-Qwen3-0.6B", "hermes", "<think>"),
        ("Qwen-Qwen2.5-7B-Instruct", "hermes", None),
        ("Qwen3-Coder", "qwen-coder", None),
        ("meta-llama-Llama-3.1-8B-Instruct", "llama", None),
        ("mistralai-Mistral-Nemo-Instruct-2407", "mistral-list", None),
        ("mistralai-Ministral-3-14B-Reasoning-2512", "mistral", "[THINK]"),
        ("google-gemma-4-31B-it", "gemma", "<|channel>thought"),
        ("openai-gpt-oss-120b", "harmony", "<|channel|>analysis<|message|>"),
        ("deepseek-ai-DeepSeek-V3.1", "deepseek", "<think>"),
        ("GLM-4.6", "glm", "<think>"),
        ("ibm-granite-granite-4.0", "hermes", None),
    ],
)
def test_formats_of_models_that_are_much_used(name: str, format: str, thinking: str | None) -> None:
    """A mark that more templates show than it should would give a model another's format."""
    found = ReplyFormat.of_template((TEMPLATES / f"{name}.jinja").read_text())
    assert (found.name, found.thinking and found.thinking[0]) == (format, thinking)
    assert found.calls == format_named(format).calls
