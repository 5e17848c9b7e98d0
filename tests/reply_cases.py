"""Replies of every format, written as the models' templates write them, and what they say."""

# ruff: noqa: RUF001

from __future__ import annotations

import json
import re

from reply_tools import BOTH, CITY, PING, WEATHER, Case

J_WEATHER, J_PING = json.dumps(WEATHER, ensure_ascii=False), json.dumps(PING)
MORE = json.dumps(WEATHER["more"])


def objects(name: str = "name", arguments: str = "arguments") -> tuple[str, str]:
    return (
        f'{{"{name}": "get_weather", "{arguments}": {J_WEATHER}}}',
        f'{{"{name}": "ping", "{arguments}": {J_PING}}}',
    )


def parameters(begin: str, close: str, between: str = "") -> tuple[str, str]:
    """Both calls' arguments one by one; begin has %s for the key."""
    texts = {"city": CITY, "days": "3", "exact": "true", "more": MORE}
    weather = between.join(begin % key + text + close for key, text in texts.items())
    return weather, begin % "host" + "a.b" + close


OBJECTS = objects()
LIST = f"[{OBJECTS[0]}, {OBJECTS[1]}]"
COHERE = objects("tool_name", "parameters")
COHERE_IDS = [text.replace('{"tool_name"', f'{{"tool_call_id": "{i}", "tool_name"') for i, text in enumerate(COHERE)]
CODER = parameters("<parameter=%s>\n", "\n</parameter>\n")
SEED = parameters("<parameter=%s>", "</parameter>\n")
INVOKE = parameters('<parameter name="%s">', "</parameter>\n")
GLM = parameters("<arg_key>%s</arg_key>\n<arg_value>", "</arg_value>\n")
HUNYUAN = [
    text.replace("arg_key>", "arg_key:opensource>").replace("arg_value>", "arg_value:opensource>") for text in GLM
]
DSML = [
    re.sub(r'"(city|host)" string="false"', r'"\1" string="true"', text)
    for text in parameters('<｜DSML｜parameter name="%s" string="false">', "</｜DSML｜parameter>\n")
]
K3_TYPES = {"city": "string", "days": "number", "exact": "boolean", "more": "object", "host": "string"}
K3 = [
    re.sub(r'"(\w+)" type="x"', lambda found: f'"{found[1]}" type="{K3_TYPES[found[1]]}"', text)
    for text in parameters('<|open|>argument key="%s" type="x"<|sep|>', "<|close|>argument<|sep|>")
]
M3 = "]<]minimax[>["
GEMMA = (
    f'{{city:<|"|>{CITY}<|"|>,days:3,exact:true,more:{{a:[1,2],b:<|"|>it\'s 3<|"|>}}}}',
    '{host:<|"|>a.b<|"|>}',
)
PYTHON = (f"get_weather(city={CITY!r}, days=3, exact=True, more={MORE})", "ping(host='a.b')")
MUSE = [text.replace("parameter", "atem:parameter") for text in INVOKE]
FENCE = "function<｜tool▁sep｜>%s\n```json\n%s\n```"

CASES = [
    Case(
        "hermes",
        "<think>\nHm.\n</think>\n\nLet me see.\n"
        f"<tool_call>\n{OBJECTS[0]}\n</tool_call>\n<tool_call>\n{OBJECTS[1]}\n</tool_call>",
        "Let me see.",
        "Hm.",
    ),
    Case(
        "qwen-coder",
        f"Hm.\n</think>\n\n<tool_call>\n<function=get_weather>\n{CODER[0]}</function>\n</tool_call>\n"
        f"<tool_call>\n<function=ping>\n{CODER[1]}</function>\n</tool_call>",
        None,
        "Hm.",
        thinking_open=True,
    ),
    Case(
        "qwen-coder",
        f"I look.<function=get_weather>\n{CODER[0]}</function>\n</tool_call>\n<function=ping>\n{CODER[1]}</function>",
        "I look.",
        name="qwen-coder-bare",
    ),
    Case(
        "mistral",
        f"[TOOL_CALLS]get_weather[CALL_ID]abcdefgh1[ARGS]{J_WEATHER}[TOOL_CALLS]ping[CALL_ID]abcdefgh2[ARGS]{J_PING}",
        ids=("abcdefgh1", "abcdefgh2"),
    ),
    Case(
        "mistral",
        f"So:[TOOL_CALLS]get_weather[ARGS]{J_WEATHER}[TOOL_CALLS]ping[ARGS]{J_PING}",
        "So:",
        name="mistral-plain",
    ),
    Case(
        "mistral-list",
        f'[TOOL_CALLS][{OBJECTS[0][:-1]}, "id": "abcdefgh1"}}, {OBJECTS[1][:-1]}, "id": "abcdefgh2"}}]',
        ids=("abcdefgh1", "abcdefgh2"),
    ),
    Case("llama", "\n".join(objects(arguments="parameters"))),
    Case("llama", "; ".join(objects(arguments="parameters")), name="llama-semicolon"),
    Case("llama", f"<|python_tag|>{OBJECTS[0]}", calls=BOTH[:1], name="llama-python-tag"),
    Case("llama", '<|python_tag|>ping.call(host="a.b")', calls=BOTH[1:], name="llama-builtin"),
    Case(
        "gemma",
        f"<|channel>thought\nHm.\n<channel|><|tool_call>call:get_weather{GEMMA[0]}<tool_call|><|tool_call>call:ping{GEMMA[1]}<tool_call|>",
        None,
        "Hm.",
        tag="<|channel>thought",
    ),
    Case("lfm", f"<|tool_call_start|>[{PYTHON[0]}, {PYTHON[1]}]<|tool_call_end|>I asked.", "I asked."),
    Case("lfm", f"<|tool_call_start|>{LIST}<|tool_call_end|>", name="lfm-json"),
    Case(
        "harmony",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
        f"{J_WEATHER}<|call|><|start|>assistant to=functions.ping<|channel|>commentary json<|message|>{J_PING}",
        "I look.",
        "Hm.",
    ),
    Case(
        "harmony",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>",
        "Yes.",
        "Hm.",
        (),
        name="harmony-final",
    ),
    Case(
        "muse",
        " to=self<|message|>Hm.<|eom|><|start|>assistant to=get_weather<|message|><atem:function_calls>\n"
        f'<atem:invoke name="get_weather">\n{MUSE[0]}</atem:invoke>\n</atem:function_calls><|eom|>'
        "<|start|>assistant to=ping<|message|><atem:function_calls>\n"
        f'<atem:invoke name="ping">\n{MUSE[1]}</atem:invoke>\n</atem:function_calls>',
        None,
        "Hm.",
    ),
    Case(
        "kimi-k3",
        "Hm.<|close|>think<|sep|><|open|>response<|sep|>So.<|close|>response<|sep|><|open|>tools<|sep|>"
        f'<|open|>call tool="get_weather" index="1"<|sep|>{K3[0]}<|close|>call<|sep|>'
        f'<|open|>call tool="ping" index="2"<|sep|>{K3[1]}<|close|>call<|sep|>'
        "<|close|>tools<|sep|><|close|>message<|sep|>",
        "So.",
        "Hm.",
        thinking_open=True,
    ),
    Case(
        "solar",
        "<|think|>Hm.<|end|><|begin|>assistant<|content|>So.<|end|><|begin|>assistant<|tool_calls|>"
        f"<|tool_call:begin|>x1<|tool_call:name|>get_weather<|tool_call:args|>{J_WEATHER}<|tool_call:end|>"
        f"<|tool_call:begin|>x2<|tool_call:name|>ping<|tool_call:args|>{J_PING}<|tool_call:end|><|calls|>",
        "So.",
        "Hm.",
        ids=("x1", "x2"),
    ),
    Case(
        "kimi",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        f"{J_WEATHER}<|tool_call_end|><|tool_call_begin|>functions.ping:1<|tool_call_argument_begin|>{J_PING}"
        "<|tool_call_end|><|tool_calls_section_end|>",
        ids=("functions.get_weather:0", "functions.ping:1"),
    ),
    Case(
        "dsml",
        f'</think>So.\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="get_weather">\n{DSML[0]}</｜DSML｜invoke>\n'
        f'<｜DSML｜invoke name="ping">\n{DSML[1]}</｜DSML｜invoke>\n</｜DSML｜tool_calls>',
        "So.",
        thinking_open=True,
    ),
    Case(
        "deepseek-r1",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{FENCE % ('get_weather', J_WEATHER)}<｜tool▁call▁end｜>\n"
        f"<｜tool▁call▁begin｜>{FENCE % ('ping', J_PING)}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    Case(
        "deepseek",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{J_WEATHER}<｜tool▁call▁end｜>"
        f"<｜tool▁call▁begin｜>ping<｜tool▁sep｜>{J_PING}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    Case(
        "cohere",
        f"<|START_ACTION|>[\n    {COHERE_IDS[0]},\n    {COHERE_IDS[1]}\n]<|END_ACTION|>",
        ids=("0", "1"),
    ),
    Case("cohere", "<|START_RESPONSE|>Yes.<|END_RESPONSE|>", "Yes.", calls=(), name="cohere-response"),
    Case("command-r", f"Plan: ask.\nAction:\n```json\n[\n    {COHERE[0]},\n    {COHERE[1]}\n]```\n", "Plan: ask."),
    Case("apertus", f'<|tools_prefix|>[{{"get_weather": {J_WEATHER}}}, {{"ping": {J_PING}}}]<|tools_suffix|>'),
    Case("gigachat", f"<|function_call|>{OBJECTS[0]}", calls=BOTH[:1]),
    Case(
        "gigachat-role", f"I look.<|message_sep|>\n\nfunction call<|role_sep|>\n{OBJECTS[1]}", "I look.", calls=BOTH[1:]
    ),
    Case(
        "minimax-m3",
        f'{M3}<tool_call>\n{M3}<invoke name="get_weather">{M3}<city>{CITY}{M3}</city>{M3}<days>3{M3}</days>'
        f"{M3}<exact>true{M3}</exact>{M3}<more>{M3}<a>{M3}<item>1{M3}</item>{M3}<item>2{M3}</item>{M3}</a>"
        f"{M3}<b>it's 3{M3}</b>{M3}</more>{M3}</invoke>\n"
        f'{M3}<invoke name="ping">{M3}<host>a.b{M3}</host>{M3}</invoke>\n{M3}</tool_call>',
    ),
    Case(
        "minimax",
        f'<minimax:tool_call>\n<invoke name="get_weather">\n{INVOKE[0]}</invoke>\n'
        f'<invoke name="ping">\n{INVOKE[1]}</invoke>\n</minimax:tool_call>',
    ),
    Case(
        "seed",
        f"<seed:tool_call>\n<function=get_weather>\n{SEED[0]}</function>\n</seed:tool_call>\n"
        f"<seed:tool_call>\n<function=ping>\n{SEED[1]}</function>\n</seed:tool_call>",
    ),
    Case(
        "hunyuan",
        f"<tool_calls:opensource>\n<tool_call:opensource>get_weather<tool_sep:opensource>\n{HUNYUAN[0]}</tool_call:opensource>\n"
        f"<tool_call:opensource>ping<tool_sep:opensource>\n{HUNYUAN[1]}</tool_call:opensource>\n</tool_calls:opensource>",
    ),
    Case("glm", f"<tool_call>get_weather\n{GLM[0]}</tool_call>\n<tool_call>ping\n{GLM[1]}</tool_call>"),
    Case(
        "minicpm",
        f'<function name="get_weather"><param name="city"><![CDATA[{CITY}]]></param><param name="days">3</param>'
        f"""<param name="exact">True</param><param name="more">{WEATHER["more"]}</param></function>\n"""
        '<function name="ping"><param name="host">a.b</param></function>',
    ),
    Case("functionary", f"<function=get_weather>{J_WEATHER}</function><function=ping>{J_PING}</function>"),
    Case("functionary-v3.2", f"all\nSo.>>>get_weather\n{J_WEATHER}>>>ping\n{J_PING}", "So."),
    Case("functionary-v3.2", f"get_weather\n{J_WEATHER}", calls=BOTH[:1], name="functionary-v3.2-call"),
    Case(
        "functionary-v3.2",
        "all\nAll are\nall\n>>> ...",
        "All are\nall\n>>> ...",
        calls=(),
        name="functionary-v3.2-text",
    ),
    Case("granite", f"<|tool_call|>{LIST}"),
    Case("granite", "<think>Hm.</think><response>Yes.</response>", "Yes.", "Hm.", (), name="granite-response"),
    Case("nemotron", f"<TOOLCALL>{LIST}</TOOLCALL>"),
    Case("apriel", f"<tool_calls>{LIST}</tool_calls>"),
    Case("minimax-m1", f"<tool_calls>\n{OBJECTS[0]}\n{OBJECTS[1]}\n</tool_calls>"),
    Case("firefunction", f"Yes. functools{LIST}", "Yes."),
    # What models leave out
    Case("hermes", f"<tool_call>{LIST}</tool_call>", name="hermes-list"),
    Case("hermes", f"```json\n{OBJECTS[0]}\n```", calls=BOTH[:1], name="hermes-fence"),
    Case("hermes", f"<tools>\n{OBJECTS[0]}\n</tools>", calls=BOTH[:1], name="hermes-tools"),
    Case("hermes", OBJECTS[0], calls=BOTH[:1], name="hermes-bare"),
    Case("hermes", f"<tool_call>\n{OBJECTS[0][:-1]}\n</tool_call>\nSo.", "So.", calls=BOTH[:1], name="hermes-brace"),
    Case("hermes", f"<tool_call>{OBJECTS[0]}\n<tool_call>{OBJECTS[1]}", name="hermes-ends"),
    Case(
        "qwen-coder",
        f"<tool_call>\n<function=get_weather>\n{CODER[0]}</tool_call>\n<tool_call>\n<function=ping>\n{CODER[1]}</tool_call>",
        name="qwen-coder-function",
    ),
    Case("gemma", '<|tool_call>call:ping{host:"a.b"}<tool_call|>', calls=BOTH[1:], name="gemma-quotes"),
    Case(
        "kimi",
        f"<|tool_call_begin|>functions.ping:3<|tool_call_argument_begin|>{J_PING}<|tool_call_end|>",
        calls=BOTH[1:],
        ids=("functions.ping:3",),
        name="kimi-bare",
    ),
    Case(
        "deepseek",
        f"So.<｜tool▁call▁begin｜>ping<｜tool▁sep｜>{J_PING}<｜tool▁call▁end｜>",
        "So.",
        calls=BOTH[1:],
        name="deepseek-bare",
    ),
]
