"""The formats of replies, a line each. A new one is a line here and one in `tests/reply_cases.py`."""

# ruff: noqa: RUF001

from __future__ import annotations

from dataclasses import dataclass

from mixkv.engine.chat import forms
from mixkv.engine.chat.patterns import DIGITS, NAME, SPACES, WORD, Arguments, CallObject, Calls, Keywords, Maybe
from mixkv.engine.chat.values import GEMMA

Tags = tuple[str, str]


@dataclass(frozen=True)
class Row:
    """A line of the table. marks: sets of texts, all of one of which stand in a template of this format; calls: what
    the model is trained to write first, then what else is understood; thinking: where the format has its own; silent,
    leads, again: as ReplyFormat has them."""

    name: str
    marks: tuple[tuple[str, ...], ...]
    calls: tuple[Calls, ...]
    thinking: Tags | None = None
    silent: tuple[str, ...] = ()
    leads: tuple[str, ...] = ()
    again: str = ""


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
"""What opens and closes thoughts, where formats of calls do not say. The first that a template shows counts."""

TABLE: tuple[Row, ...] = (
    Row(
        "harmony",
        (("<|channel|>", "<|message|>", "functions."),),
        (
            Calls((), ("<|channel|>", forms.HARMONY_CHANNEL, *forms.HARMONY_TO, *forms.HARMONY_BODY)),
            Calls((), (*forms.HARMONY_TO, SPACES, "<|channel|>", forms.HARMONY_CHANNEL, *forms.HARMONY_BODY)),
        ),
        ("<|channel|>analysis<|message|>", "<|end|>"),
        (
            "<|start|>assistant",
            "<|channel|>final<|message|>",
            "<|channel|>final <|constrain|>json<|message|>",
            "<|channel|>commentary<|message|>",
            "<|end|>",
            "<|return|>",
        ),
        again="<|start|>assistant",
    ),
    Row(
        "muse",
        (("<atem:function_calls>",),),
        (
            Calls((" to=", WORD, "<|message|>", SPACES, "<atem:function_calls>"), *forms.MUSE),
            Calls(("<atem:function_calls>",), *forms.MUSE),
        ),
        (" to=self<|message|>", "<|eom|>"),
        ("<|start|>assistant", " to=user<|message|>", "<|eom|>", "<|eot|>"),
        again="<|start|>assistant",
    ),
    Row(
        "kimi-k3",
        (("<|open|>", "<|sep|>", "argument"),),
        (
            forms.wrapped(
                "<|open|>tools<|sep|>",
                ('<|open|>call tool="', NAME, '" index="', DIGITS, '"<|sep|>', forms.K3_PARAMETERS),
                "<|close|>tools<|sep|>",
            ),
        ),
        ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
        ("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>", "<|end_of_msg|>"),
    ),
    Row(
        "solar",
        (("<|tool_call:begin|>",),),
        (forms.wrapped("<|tool_calls|>", (*forms.SOLAR, SPACES, "<|tool_call:end|>"), "<|calls|>"),),
        ("<|think|>", "<|end|>"),
        ("<|begin|>assistant", "<|content|>", "<|end|>"),
        again="<|begin|>assistant",
    ),
    Row(
        "gemma",
        (("<|tool_call>",),),
        (forms.wrapped("<|tool_call>", ("call:", NAME, Arguments(GEMMA)), "<tool_call|>"),),
    ),
    Row(
        "mistral",
        (("[TOOL_CALLS]", "[ARGS]"),),
        (forms.MISTRAL_CALL, forms.MISTRAL_LIST),
    ),
    Row("mistral-list", (("[TOOL_CALLS]",),), (forms.MISTRAL_LIST, forms.MISTRAL_CALL)),
    Row(
        "kimi",
        (("<|tool_call_argument_begin|>",),),
        (
            forms.wrapped(
                "<|tool_calls_section_begin|>", (*forms.KIMI_CALL, "<|tool_call_end|>"), "<|tool_calls_section_end|>"
            ),
            Calls((), (*forms.KIMI_CALL, "<|tool_call_end|>")),
        ),
    ),
    Row(
        "dsml",
        (("｜DSML｜", "tool_calls"), ("｜DSML｜", "function_calls")),
        tuple(
            forms.wrapped(f"<｜DSML｜{word}>", forms.invoke("｜DSML｜", '" string="'), f"</｜DSML｜{word}>")
            for word in ("tool_calls", "function_calls")
        ),
    ),
    Row(
        "deepseek-r1", ((forms.DEEPSEEK_CALL, "```json"),), (forms.DEEPSEEK_R1, forms.DEEPSEEK_V3, *forms.DEEPSEEK_BARE)
    ),
    Row("deepseek", ((forms.DEEPSEEK_CALL,),), (forms.DEEPSEEK_V3, forms.DEEPSEEK_R1, *forms.DEEPSEEK_BARE)),
    Row(
        "cohere",
        (("<|START_ACTION|>",),),
        (forms.listed(("<|START_ACTION|>",), (SPACES, "<|END_ACTION|>"), forms.COHERE),),
        silent=("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
    ),
    Row(
        "command-r",
        (('"tool_name"', "Action:"),),
        (forms.listed(("Action:", SPACES, "```json"), (SPACES, "```"), forms.COMMAND_R),),
    ),
    Row(
        "apertus",
        (("<|tools_prefix|>",),),
        (forms.listed(("<|tools_prefix|>",), (SPACES, "<|tools_suffix|>"), CallObject(keyed=True)),),
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
            forms.listed(("<|tool_call_start|>",), (SPACES, "<|tool_call_end|>")),
        ),
    ),
    Row("gigachat", (("<|function_call|>",),), (Calls(("<|function_call|>",), (SPACES, forms.STRICT)),)),
    Row(
        "gigachat-role",
        (("function call", "<|role_sep|>"),),
        (
            Calls(("<|message_sep|>", SPACES, "function call<|role_sep|>"), (SPACES, forms.STRICT)),
            Calls(("function call<|role_sep|>",), (SPACES, forms.STRICT)),
        ),
    ),
    Row(
        "minimax-m3",
        ((forms.M3, "<invoke name="),),
        (
            forms.wrapped(
                f"{forms.M3}<tool_call>",
                (f'{forms.M3}<invoke name="', NAME, '">', forms.M3_PARAMETERS),
                f"{forms.M3}</tool_call>",
            ),
        ),
    ),
    Row(
        "minimax",
        (("<minimax:tool_call>",),),
        (forms.wrapped("<minimax:tool_call>", forms.invoke(), "</minimax:tool_call>"),),
    ),
    Row(
        "seed",
        (("<seed:tool_call>",),),
        (forms.wrapped("<seed:tool_call>", forms.function("</seed:tool_call>", trimmed=False), "</seed:tool_call>"),),
    ),
    Row(
        "hunyuan",
        (("<tool_sep", ":opensource"),),
        (
            forms.wrapped(
                "<tool_calls:opensource>",
                ("<tool_call:opensource>", *forms.arg_keys(":opensource", ("<tool_sep:opensource>",))),
                "</tool_calls:opensource>",
            ),
        ),
        ("<think:opensource>", "</think:opensource>"),
    ),
    Row("glm", (("<arg_key>",),), (Calls(("<tool_call>",), (SPACES, *forms.arg_keys())),)),
    Row(
        "qwen-coder",
        (("<function=", "<parameter="),),
        (
            forms.wrapped("<tool_call>", forms.function("</tool_call>", trimmed=True), "</tool_call>"),
            Calls((), forms.function("</tool_call>", trimmed=True), (Maybe((SPACES, "</tool_call>")),)),
        ),
    ),
    Row(
        "minicpm",
        (('<function name="', "<param name="),),
        (Calls((), ('<function name="', NAME, '">', forms.MINICPM)),),
    ),
    Row(
        "functionary",
        (("<function=", "</function>"),),
        (Calls((), ("<function=", NAME, ">", Arguments(), "</function>")),),
    ),
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
    Row("granite", (("<|tool_call|>",),), (forms.listed(("<|tool_call|>",)),), silent=("<response>", "</response>")),
    Row("nemotron", (("<TOOLCALL>",),), (forms.listed(("<TOOLCALL>",), (SPACES, "</TOOLCALL>")),)),
    Row(
        "apriel",
        (("<tool_calls>[",),),
        (forms.listed(("<tool_calls>",), (SPACES, "</tool_calls>")),),
        silent=("[END FINAL RESPONSE]",),
    ),
    Row("minimax-m1", (("<tool_calls>",),), (forms.wrapped("<tool_calls>", (forms.OBJECT,), "</tool_calls>"),)),
    Row("firefunction", (("functools[",),), (forms.listed(("functools",), form=forms.STRICT),)),
    Row(
        "hermes",
        (("<tool_call>",),),
        (
            forms.HERMES,
            forms.listed(("<tool_call>",), (SPACES, "</tool_call>")),
            # what Qwen2.5-Coder writes instead, more often than not
            forms.wrapped("<tools>", (forms.STRICT,), "</tools>"),
            Calls(("```json",), (SPACES, forms.STRICT), (SPACES, "```"), first=True),
            Calls((), (forms.STRICT,), first=True),
        ),
    ),
    Row(
        "llama",
        (('"parameters":', "<|python_tag|>"), ('{"name": ', '"parameters": ', "<|eot_id|>")),
        (
            Calls((), (forms.LLAMA,), first=True),
            Calls((";", SPACES), (forms.LLAMA,), first=True),
            Calls(("<|python_tag|>",), (SPACES, forms.LLAMA)),
            Calls(("<|python_tag|>",), (SPACES, NAME, ".call(", Keywords())),
        ),
    ),
)
