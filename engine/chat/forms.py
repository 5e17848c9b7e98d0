"""The parts that formats of calls are made of."""

# ruff: noqa: RUF001

from __future__ import annotations

from mixkv.engine.chat.patterns import (
    DIGITS,
    NAME,
    SPACES,
    WORD,
    Arguments,
    CallObject,
    Calls,
    Identity,
    Maybe,
    OneOf,
    Parameters,
    Pattern,
)

OBJECT = CallObject()
STRICT = CallObject(lenient=False)
LLAMA = CallObject(arguments=("parameters", "arguments"), lenient=False)
COMMAND_R = CallObject("tool_name", ("parameters",), lenient=False)
COHERE = CallObject("tool_name", ("parameters",), "tool_call_id", early_id=True, lenient=False)


def wrapped(begin: str, call: Pattern, end: str, between: Pattern = (SPACES,)) -> Calls:
    """Calls between two tags."""
    return Calls((begin,), (SPACES, *call), (SPACES, end), between)


def listed(begin: Pattern, end: Pattern = (), form: CallObject = OBJECT) -> Calls:
    """Calls in a JSON list."""
    return Calls((*begin, SPACES, "["), (SPACES, form), (SPACES, "]", *end), (SPACES, ","))


def parameters(prefix: str = "", last: str = "invoke", typed: str | None = None) -> Parameters:
    """`<parameter name="a">1</parameter> ... </invoke>`, each tag with a prefix."""
    close = f"</{prefix}parameter>"
    return Parameters(f'<{prefix}parameter name="', ('">',), (close,), f"</{prefix}{last}>", typed)


def invoke(prefix: str = "", typed: str | None = None) -> Pattern:
    return (f'<{prefix}invoke name="', NAME, '">', parameters(prefix, typed=typed))


def function(outer: str, *, trimmed: bool) -> Pattern:
    """`<function=f> <parameter=a>1</parameter> ... </function>`. outer: what stands after it."""
    return (
        "<function=",
        NAME,
        ">",
        Parameters("<parameter=", (">",), ("</parameter>",), "</function>", trimmed=trimmed, outer=outer),
    )


def arg_keys(suffix: str = "", before: Pattern = ()) -> Pattern:
    """`f <arg_key>a</arg_key> <arg_value>1</arg_value> ... </tool_call>`."""
    mid = (f"</arg_key{suffix}>", SPACES, f"<arg_value{suffix}>")
    return (NAME, *before, Parameters(f"<arg_key{suffix}>", mid, (f"</arg_value{suffix}>",), f"</tool_call{suffix}>"))


DEEPSEEK_CALLS = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
DEEPSEEK_CALL, DEEPSEEK_NEXT, DEEPSEEK_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", (SPACES, "<｜tool▁call▁end｜>")
FENCED = ("function", DEEPSEEK_NEXT, NAME, SPACES, "```json", SPACES, Arguments(), SPACES, "```", *DEEPSEEK_END)
PLAIN = (NAME, DEEPSEEK_NEXT, Arguments(), *DEEPSEEK_END)
DEEPSEEK_R1 = wrapped(DEEPSEEK_CALLS[0], (DEEPSEEK_CALL, *FENCED), DEEPSEEK_CALLS[1])
DEEPSEEK_V3 = wrapped(DEEPSEEK_CALLS[0], (DEEPSEEK_CALL, *PLAIN), DEEPSEEK_CALLS[1])
DEEPSEEK_BARE = (Calls((), (DEEPSEEK_CALL, *PLAIN)), Calls((), (DEEPSEEK_CALL, *FENCED)))
HARMONY_CHANNEL = OneOf(("commentary", "analysis"))
HARMONY_BODY = (
    SPACES,
    Maybe(("<|constrain|>",)),
    OneOf(("json", "code", "")),
    SPACES,
    "<|message|>",
    Arguments(),
    Maybe(("<|call|>",)),
)
HARMONY_TO = (" to=", Maybe(("functions.",)), NAME)
KIMI_ID = Identity((Maybe(("functions.",)), NAME, ":", DIGITS))
KIMI_CALL = ("<|tool_call_begin|>", SPACES, KIMI_ID, SPACES, "<|tool_call_argument_begin|>", Arguments(), SPACES)
K3_PARAMETERS = Parameters(
    '<|open|>argument key="', ('"<|sep|>',), ("<|close|>argument<|sep|>",), "<|close|>call<|sep|>", '" type="'
)
M3 = "]<]minimax[>["
M3_PARAMETERS = Parameters(f"{M3}<", (">",), (f"{M3}</{{key}}>",), f"{M3}</invoke>", nested=M3)
MINICPM = Parameters('<param name="', ('">', Maybe(("<![CDATA[",))), ("]]></param>", "</param>"), "</function>")
MISTRAL_LIST = listed(("[TOOL_CALLS]",), form=CallObject(late_id=True))
MISTRAL_CALL = Calls(
    ("[TOOL_CALLS]",), (SPACES, NAME, Maybe(("[CALL_ID]", Identity((WORD,)))), SPACES, "[ARGS]", Arguments())
)
MUSE = (SPACES, *invoke("atem:")), (SPACES, "</atem:function_calls>")
SOLAR = ("<|tool_call:begin|>", Identity((WORD,)), "<|tool_call:name|>", NAME, "<|tool_call:args|>", Arguments())
HERMES = wrapped("<tool_call>", (OBJECT,), "</tool_call>")
