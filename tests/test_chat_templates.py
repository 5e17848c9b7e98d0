"""Chat templates of published models render as in Hugging Face's `transformers`; what differs stands here.

tests/data/chat_templates.json: the first 12 digits of the SHA-256 of each text that transformers 5.24 renders for the
cases of chat_cases.py (`render_jinja_template` with `add_generation_prompt`, BOS <s>, EOS </s>, the time at NOW), null
content given as "" where it fails on it or writes "None" (16 templates), arguments as JSON text where it fails on an
object or writes that as Python does (3).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from chat_cases import CALL, CASES, NOW, PLAIN, THOUGHT, TURN, WEATHER, tokenizer
from conftest import SHARED

from mixkv.engine.chat.template import ChatTemplate
from mixkv.kernels.errors import InputError, TemplateError

EXPECTED: dict[str, dict[str, str]] = json.loads(
    (Path(__file__).parent / "data" / "chat_templates.json").read_text("utf-8")
)
TOOLS_LEFT_OUT = (
    "CohereForAI-c4ai-command-r-plus-tool_use",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
)
REMARKS: dict[tuple[str, str], str] = {
    # transformers gives None for absent tools, over which these three loop; left out, they are an empty list to them
    **{(name, case): "" for name in TOOLS_LEFT_OUT for case in ("plain", "system", "thinking_on", "thinking_off")},
    # what `map` gives, written as JSON: a list here, a TypeError there
    **{("llama-cpp-deepseek-r1", case): "" for case in ("tools", "tool_turn")},
    # wants variables that nothing else knows: chat_template_kwargs={"functions": ..., "datetime": ...}
    **{("fireworks-ai-llama-3-firefunction-v2", case): "'functions' is undefined" for case in CASES},
    ("google-gemma-2-2b-it", "system"): "System role not supported",
    ("google-gemma-2-2b-it", "tool_turn"): "roles must alternate",
    # change a list in place, which the sandbox forbids, here and there
    ("Kimi-K2-Instruct", "tool_turn"): "access to attribute 'append' of 'list' object is unsafe",
    ("Kimi-K2-Thinking", "tool_turn"): "access to attribute 'append' of 'list' object is unsafe",
}
"""(template, case) that transformers does not render -> what stands in our error; "" where it renders here."""


def template(name: str) -> ChatTemplate:
    path = SHARED / "data" / "templates" / f"{name}.jinja"
    if not path.is_file():
        pytest.skip(f"no template at {path}")
    return ChatTemplate(path.read_text("utf-8"), tokenizer(), now=NOW)


@pytest.mark.parametrize("name", EXPECTED)
def test_published_templates_render_as_in_transformers(name: str) -> None:
    """Null content, arguments in either form, tags and line ends: a prompt that differs is one the model never saw."""
    chosen = template(name)
    for case, (messages, options) in CASES.items():
        remark = REMARKS.get((name, case))
        if remark:
            with pytest.raises(TemplateError, match=remark.replace("(", ".")):
                chosen.render(messages, **options)
            continue
        text = chosen.render(messages, **options).text
        assert remark == "" or hashlib.sha256(text.encode()).hexdigest()[:12] == EXPECTED[name].get(case), case
        assert str(messages[-1]["content"]).strip() in text
        assert "tools" not in case or not chosen.knows_tools or "get_weather" in text


def test_every_template_is_compared_or_explained(shared: Path) -> None:
    """A template, or a case of one, that is neither in the table nor among the remarks would be checked by nobody."""
    names = {path.stem for path in (shared / "data" / "templates").glob("*.jinja")}
    assert names == set(EXPECTED)
    for name, row in EXPECTED.items():
        for case in CASES:
            assert (case in row) != ((name, case) in REMARKS), (name, case)


def test_calls_come_as_text_or_object_and_ids_in_any_form(shared: Path) -> None:
    """OpenAI's arguments are JSON text, which 26 templates cannot use; Mistral's refuse ids that are not 9 long."""
    text = {**CALL, "function": {"name": "get_weather", "arguments": json.dumps(CALL["function"]["arguments"])}}  # type: ignore[index]
    as_text = [TURN[0], {**TURN[1], "tool_calls": [text]}, *TURN[2:]]
    for name in EXPECTED:
        if REMARKS.get((name, "tool_turn")):
            continue
        chosen = template(name)
        assert chosen.render(as_text, tools=[WEATHER]).text == chosen.render(TURN, tools=[WEATHER]).text, name
    long_id = [
        {**m, "tool_call_id": "call-0123456789"} if m["role"] == "tool"
        else {**m, "tool_calls": [{**CALL, "id": "call-0123456789"}]} if m.get("tool_calls") else m
        for m in TURN
    ]  # fmt: skip
    nemo = template("mistralai-Mistral-Nemo-Instruct-2407").render(long_id, tools=[WEATHER]).text
    assert nemo.count("call-") == 0 and '"id": "' in nemo


def test_parts_are_joined_or_kept_as_the_template_wants_them() -> None:
    """36 templates fail on parts, a few on text: which it is shows when something small is rendered."""
    parts = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]
    text = ChatTemplate("{% for m in messages %}[{{ m.content | trim }}]{% endfor %}", tokenizer())
    assert text.render(parts).text == "[one\ntwo]"
    loop = "{% for m in messages %}{% for p in m.content %}<{{ p.type }} {{ p.text }}>{% endfor %}{% endfor %}"
    wants_parts = ChatTemplate(loop, tokenizer())
    assert wants_parts.render(parts).text == "<text one\ntwo>"
    assert wants_parts.render([{"role": "user", "content": "one"}]).text == "<text one>"


def test_arguments_are_given_as_the_template_wants_them() -> None:
    """A dict added to a text is an error in 20 templates; a text that is looped over, in others."""
    base = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}%s{% endfor %}{% endfor %}"
    adds = ChatTemplate(base.replace("%s", "{{ 'A' + c.function.arguments }}"), tokenizer())
    assert 'A{"city": "Paris", "days": 2}' in adds.render(TURN).text
    loops = ChatTemplate(
        base.replace("%s", "{% for k, v in c.function.arguments | items %}{{ k }}={{ v }};{% endfor %}"), tokenizer()
    )
    assert "city=Paris;days=2;" in loops.render(TURN).text


WHAT_TEMPLATES_EXPECT = {
    "tojson": ("{{ [{'b': 'é<>&\\'', 'a': none}] | tojson }}", '[{"b": "é<>&\'", "a": null}]'),
    "tojson-sorted": ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}", '{"a":2,"b":1}'),
    "tojson-indent": ("{{ {'a': [1]} | tojson(indent=1) }}", '{\n "a": [\n  1\n ]\n}'),
    "tojson-ascii": ("{{ 'é' | tojson(ensure_ascii=True) }}", '"\\u00e9"'),
    "blocks": ("{% if true %}\n  {% if true %}\nx\n  {% endif %}\n{% endif %}\ny", "x\ny"),
    "loop-controls": ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
    "generation": ("a{% generation %}b{{ messages[0].role }}{% endgeneration %}c", "abuserc"),
    "tokens": ("{{ bos_token }}|{{ eos_token }}", "<s>|</s>"),
    "time": ("{{ strftime_now('%d %B %Y') }}", "25 November 2026"),
    "absent": ("{{ tools is none }}{{ documents is none }}{{ enable_thinking is defined }}", "TrueTrueFalse"),
    "prompt": ("{{ add_generation_prompt }}", "True"),
    "namespace": ("{% set n = namespace(x=1) %}{% for i in [1] %}{% set n.x = 2 %}{% endfor %}{{ n.x }}", "2"),
}


@pytest.mark.parametrize("case", WHAT_TEMPLATES_EXPECT)
def test_what_templates_expect_is_there(case: str) -> None:
    """Hugging Face's surroundings of a template; the texts are those that transformers renders."""
    source, text = WHAT_TEMPLATES_EXPECT[case]
    assert ChatTemplate(source, tokenizer(), now=NOW).render(PLAIN).text == text


def test_thinking_and_further_variables_reach_the_template() -> None:
    """DeepSeek and Granite call enable_thinking `thinking`; what a caller gives himself counts more."""
    source = "{{ enable_thinking }}{{ thinking }}{{ x }}{{ reasoning_effort }}"
    chosen = ChatTemplate(source, tokenizer())
    assert chosen.render(PLAIN, enable_thinking=False, variables={"x": 5}).text == "FalseFalse5"
    assert (
        chosen.render(PLAIN, enable_thinking=True, variables={"thinking": False, "reasoning_effort": "low"}).text
        == "TrueFalselow"
    )
    with pytest.raises(InputError, match="may not set 'bos_token'"):
        chosen.render(PLAIN, variables={"bos_token": "<s><s>"})
    with pytest.raises(InputError, match="must be a dict"):
        chosen.render(PLAIN, variables=[1])  # type: ignore[arg-type]


def test_reasoning_has_all_its_names() -> None:
    """Templates read old thoughts as reasoning_content, reasoning or thinking."""
    source = "{% for m in messages %}{{ m.reasoning_content }}|{{ m.reasoning }}|{{ m.thinking }};{% endfor %}"
    for name in ("reasoning_content", "reasoning", "thinking"):
        messages = [THOUGHT[0], {"role": "assistant", "content": "Hi.", name: "hm"}]
        assert ChatTemplate(source, tokenizer()).render(messages).text == "||;hm|hm|hm;"
