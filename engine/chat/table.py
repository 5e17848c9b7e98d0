"""The formats of replies, a line each. A new one is a line here and one in `tests/reply_cases.py`."""

from __future__ import annotations

from dataclasses import dataclass

from mixkv.engine.chat.patterns import (
    NAME, SPACES, WORD, Arguments, CallObject, Calls, Identity, Keywords, Maybe, Parameters, Pattern,
)  # fmt: skip
from mixkv.engine.chat.values import GEMMA

Tags = tuple[str, str]


@dataclass(frozen=True)
class Row:
    """A line of the table. marks: sets of texts, all of one of which stand in a template of this format; calls: what
    the model is trained to write first, then what else is understood; thinking: where the format has its own."""

    name: str
    marks: tuple[tuple[str, ...], ...]
    calls: tuple[Calls, ...]
    thinking: Tags | None = None
    silent: tuple[str, ...] = ()
    leads: tuple[str, ...] = ()


THINKING: tuple[Tags, ...] = (
    ("[THINK]", "[/THINK]"),
    ("<|channel>thought", "<channel|>"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
    ("<mm:think>", "</mm:think>"),
    ("<think>", "</think>"),
)
"""What opens and closes thoughts, where any format of calls may come with it. The first that a template shows counts."""

OBJECT = CallObject()
STRICT = CallObject(lenient=False)
COHERE = CallObject("tool_name", ("parameters",), "tool_call_id", lenient=False)


def _in(begin: str, call: Pattern, end: str, between: Pattern = (SPACES,)) -> Calls:
    """Calls between two tags."""
    return Calls((begin,), (SPACES, *call), (SPACES, end), between)


def _list(begin: Pattern, end: Pattern = (), form: CallObject = OBJECT) -> Calls:
    """Calls in a JSON list."""
    return Calls((*begin, SPACES, "["), (SPACES, form), (SPACES, "]", *end), (SPACES, ","))


def _parameters(prefix: str = "", last: str = "invoke", typed: str | None = None) -> Parameters:
    """`<parameter name="a">1</parameter> ... </invoke>`, each tag with a prefix."""
    close = f"</{prefix}parameter>"
    return Parameters(f'<{prefix}parameter name="', ('">',), (close,), f"</{prefix}{last}>", typed)


def _invoke(prefix: str = "", typed: str | None = None) -> Pattern:
    return (f'<{prefix}invoke name="', NAME, '">', _parameters(prefix, typed=typed))


def _function(*, trimmed: bool) -> Pattern:
    """`<function=f> <parameter=a>1</parameter> ... </function>`."""
    parameters = Parameters("<parameter=", (">",), ("</parameter>",), "</function>", trimmed=trimmed)
    return ("<function=", NAME, ">", parameters)


def _keys(suffix: str = "", before: Pattern = ()) -> Pattern:
    """`f <arg_key>a</arg_key> <arg_value>1</arg_value> ... </tool_call>`."""
    mid = (f"</arg_key{suffix}>", SPACES, f"<arg_value{suffix}>")
    return (NAME, *before, Parameters(f"<arg_key{suffix}>", mid, (f"</arg_value{suffix}>",), f"</tool_call{suffix}>"))


DEEPSEEK_CALLS = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
DEEPSEEK_CALL, DEEPSEEK_NEXT, DEEPSEEK_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", (SPACES, "<｜tool▁call▁end｜>")
FENCED = (WORD, DEEPSEEK_NEXT, NAME, SPACES, "```json", SPACES, Arguments(), SPACES, "```", *DEEPSEEK_END)
PLAIN = (NAME, DEEPSEEK_NEXT, Arguments(), *DEEPSEEK_END)
DEEPSEEK_R1 = _in(DEEPSEEK_CALLS[0], (DEEPSEEK_CALL, *FENCED), DEEPSEEK_CALLS[1])
DEEPSEEK_V3 = _in(DEEPSEEK_CALLS[0], (DEEPSEEK_CALL, *PLAIN), DEEPSEEK_CALLS[1])
HARMONY_BODY = (SPACES, Maybe(("<|constrain|>",)), WORD, SPACES, "<|message|>", Arguments(), Maybe(("<|call|>",)))
HARMONY_TO = (" to=", Maybe(("functions.",)), NAME)
KIMI_ID = Identity((Maybe(("functions.",)), NAME, ":", WORD))
KIMI_CALL = ("<|tool_call_begin|>", SPACES, KIMI_ID, SPACES, "<|tool_call_argument_begin|>", Arguments(), SPACES)
K3_PARAMETERS = Parameters(
    '<|open|>argument key="', ('"<|sep|>',), ("<|close|>argument<|sep|>",), "<|close|>call<|sep|>", '" type="'
)
M3 = "]<]minimax[>["
M3_PARAMETERS = Parameters(f"{M3}<", (">",), (f"{M3}</{{key}}>",), f"{M3}</invoke>", nested=M3)
MINICPM = Parameters('<param name="', ('">', Maybe(("<![CDATA[",))), ("]]></param>", "</param>"), "</function>")
MISTRAL_LIST = _list(("[TOOL_CALLS]",), form=CallObject(late_id=True))
MISTRAL_CALL = Calls(
    ("[TOOL_CALLS]",), (SPACES, NAME, Maybe(("[CALL_ID]", Identity((WORD,)))), SPACES, "[ARGS]", Arguments())
)
MUSE = (SPACES, *_invoke("atem:")), (SPACES, "</atem:function_calls>")
SOLAR = ("<|tool_call:begin|>", Identity((WORD,)), "<|tool_call:name|>", NAME, "<|tool_call:args|>", Arguments())
HERMES = _in("<tool_call>", (OBJECT,), "</tool_call>")

TABLE: tuple[Row, ...] = (
    Row(
        "harmony",
        (("<|channel|>", "<|message|>", "functions."),),
        (
            Calls((), ("<|channel|>", WORD, *HARMONY_TO, *HARMONY_BODY)),
            Calls((), (*HARMONY_TO, SPACES, "<|channel|>", WORD, *HARMONY_BODY)),
        ),
        ("<|channel|>analysis<|message|>", "<|end|>"),
        (
            "<|start|>assistant", "<|channel|>final<|message|>", "<|channel|>final <|constrain|>json<|message|>",
            "<|channel|>commentary<|message|>", "<|end|>", "<|return|>",
        ),
    ),
    Row(
        "muse",
        (("<atem:function_calls>",),),
        (
            Calls((" to=", WORD, "<|message|>", SPACES, "<atem:function_calls>"), *MUSE),
            Calls(("<atem:function_calls>",), *MUSE),
        ),
        (" to=self<|message|>", "<|eom|>"),
        ("<|start|>assistant", " to=user<|message|>", "<|eom|>", "<|eot|>"),
    ),
    Row(
        "kimi-k3",
        (("<|open|>", "<|sep|>", "argument"),),
        (
            _in(
                "<|open|>tools<|sep|>",
                ('<|open|>call tool="', NAME, '" index="', WORD, '"<|sep|>', K3_PARAMETERS),
                "<|close|>tools<|sep|>",
            ),
        ),
        ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
        ("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>", "<|end_of_msg|>"),
    ),
    Row(
        "solar",
        (("<|tool_call:begin|>",),),
        (_in("<|tool_calls|>", (*SOLAR, SPACES, "<|tool_call:end|>"), "<|calls|>"),),
        ("<|think|>", "<|end|>"),
        ("<|begin|>assistant", "<|content|>", "<|end|>"),
    ),
    Row("gemma", (("<|tool_call>",),), (_in("<|tool_call>", ("call:", NAME, Arguments(GEMMA)), "<tool_call|>"),)),
    Row(
        "mistral",
        (("[TOOL_CALLS]", "[ARGS]"),),
        (MISTRAL_CALL, MISTRAL_LIST),
    ),
    Row("mistral-list", (("[TOOL_CALLS]",),), (MISTRAL_LIST, MISTRAL_CALL)),
    Row(
        "kimi",
        (("<|tool_call_argument_begin|>",),),
        (_in("<|tool_calls_section_begin|>", (*KIMI_CALL, "<|tool_call_end|>"), "<|tool_calls_section_end|>"),),
    ),
    Row(
        "dsml",
        (("｜DSML｜", "tool_calls"), ("｜DSML｜", "function_calls")),
        tuple(
            _in(f"<｜DSML｜{word}>", _invoke("｜DSML｜", '" string="'), f"</｜DSML｜{word}>")
            for word in ("tool_calls", "function_calls")
        ),
    ),
    Row("deepseek-r1", ((DEEPSEEK_CALL, "```json"),), (DEEPSEEK_R1, DEEPSEEK_V3)),
    Row("deepseek", ((DEEPSEEK_CALL,),), (DEEPSEEK_V3, DEEPSEEK_R1)),
    Row(
        "cohere",
        (("<|START_ACTION|>",),),
        (_list(("<|START_ACTION|>",), (SPACES, "<|END_ACTION|>"), COHERE),),
        silent=("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
    ),
    Row(
        "command-r",
        (('"tool_name"', "Action:"),),
        (_list(("Action:", SPACES, "```json"), (SPACES, "```"), COHERE),),
    ),
    Row(
        "apertus",
        (("<|tools_prefix|>",),),
        (_list(("<|tools_prefix|>",), (SPACES, "<|tools_suffix|>"), CallObject(keyed=True)),),
    ),
    Row(
        "lfm",
        (("<|tool_call_start|>",), ("<|tool_list_start|>",), ("List of tools: [",)),
        (
            Calls(
                ("<|tool_call_start|>", SPACES, "["),
                (SPACES, NAME, "(", Keywords()),
                (SPACES, "]", SPACES, "<|tool_call_end|>"),
                (SPACES, ","),
            ),
            _list(("<|tool_call_start|>",), (SPACES, "<|tool_call_end|>")),
        ),
    ),
    Row("gigachat", (("<|function_call|>",),), (Calls(("<|function_call|>",), (SPACES, STRICT)),)),
    Row(
        "gigachat-role",
        (("function call", "<|role_sep|>"),),
        (
            Calls(("<|message_sep|>", SPACES, "function call<|role_sep|>"), (SPACES, STRICT)),
            Calls(("function call<|role_sep|>",), (SPACES, STRICT)),
        ),
    ),
    Row(
        "minimax-m3",
        ((M3, "<invoke name="),),
        (_in(f"{M3}<tool_call>", (f'{M3}<invoke name="', NAME, '">', M3_PARAMETERS), f"{M3}</tool_call>"),),
    ),
    Row(
        "minimax",
        (("<minimax:tool_call>",),),
        (_in("<minimax:tool_call>", _invoke(), "</minimax:tool_call>"),),
    ),
    Row(
        "seed",
        (("<seed:tool_call>",),),
        (_in("<seed:tool_call>", _function(trimmed=False), "</seed:tool_call>"),),
    ),
    Row(
        "hunyuan",
        (("<tool_sep", ":opensource"),),
        (
            _in(
                "<tool_calls:opensource>",
                ("<tool_call:opensource>", *_keys(":opensource", ("<tool_sep:opensource>",))),
                "</tool_calls:opensource>",
            ),
        ),
        ("<think:opensource>", "</think:opensource>"),
    ),
    Row("glm", (("<arg_key>",),), (Calls(("<tool_call>",), (SPACES, *_keys())),)),
    Row(
        "qwen-coder",
        (("<function=", "<parameter="),),
        (
            _in("<tool_call>", _function(trimmed=True), "</tool_call>"),
            Calls((), _function(trimmed=True), (Maybe((SPACES, "</tool_call>")),)),
        ),
    ),
    Row("minicpm", (('<function name="', "<param name="),), (Calls((), ('<function name="', NAME, '">', MINICPM)),)),
    Row("functionary", (("<function=", "</function>"),), (Calls((), ("<function=", NAME, ">", Arguments(), "</function>")),)),
    Row(
        "functionary-v3.2",
        ((">>>all",),),
        (
            Calls((), (NAME, "\n", Arguments()), first=True),
            Calls((), (">>>", NAME, "\n", Arguments())),
        ),
        silent=(">>>all\n",),
        leads=("all\n",),
    ),
    Row("granite", (("<|tool_call|>",),), (_list(("<|tool_call|>",)),), silent=("<response>", "</response>")),
    Row("nemotron", (("<TOOLCALL>",),), (_list(("<TOOLCALL>",), (SPACES, "</TOOLCALL>")),)),
    Row(
        "apriel",
        (("<tool_calls>[",),),
        (_list(("<tool_calls>",), (SPACES, "</tool_calls>")),),
        silent=("[END FINAL RESPONSE]",),
    ),
    Row("minimax-m1", (("<tool_calls>",),), (_in("<tool_calls>", (OBJECT,), "</tool_calls>"),)),
    Row("firefunction", (("functools[",),), (_list(("functools",), form=STRICT),)),
    Row("hermes", (("<tool_call>",),), (HERMES,)),
    Row(
        "llama",
        (('"parameters":', "<|python_tag|>"), ('{"name": ', '"parameters": ', "<|eot_id|>")),
        (
            Calls((), (STRICT,), first=True),
            Calls((";", SPACES), (STRICT,), first=True),
            Calls(("<|python_tag|>",), (SPACES, STRICT)),
            Calls(("<|python_tag|>",), (SPACES, NAME, ".call(", Keywords())),
        ),
    ),
)  # fmt: skip
