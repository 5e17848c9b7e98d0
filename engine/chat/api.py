"""The methods of an LLM that hold conversations: chat, chat_stream, apply_chat_template."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from mixkv.engine.decode import Processor
from mixkv.engine.generation import Generation
from mixkv.engine.loaded import Loaded
from mixkv.engine.sampling import SamplingParams
from mixkv.engine.sequence import Progress

if TYPE_CHECKING:
    from mixkv.engine.chat.constrain import ToolChoice
    from mixkv.engine.chat.messages import Message
    from mixkv.engine.chat.reply import ChatCompletion
    from mixkv.engine.chat.stream import ChatStream

Tools = Sequence[Mapping[str, Any]]


class ChatMethods(ABC):
    """What LLM inherits from here."""

    @property
    @abstractmethod
    def _shared(self) -> Loaded: ...

    @abstractmethod
    def _generation(
        self, prompt: list[int], parse_special: bool, progress: Progress | None, params: SamplingParams | None,
        options: dict[str, Any], processors: Sequence[Processor] = (), exact: bool = False,
        starts_after: str | None = None,
    ) -> Generation: ...  # fmt: skip

    @abstractmethod
    def _cached_tokens(self) -> list[list[int]]:
        """The tokens of every sequence."""

    @property
    def chat_template_names(self) -> list[str]:
        """The chat templates of the model's file; its main one is "default". Empty: chats are plain turns."""
        return self._shared.chat_templates.of_file

    def chat(
        self, messages: Sequence[Message], *, tools: Tools | None = None, tool_choice: ToolChoice | None = None,
        response_format: Mapping[str, Any] | None = None, enable_thinking: bool | None = None,
        chat_template: str | Path | None = None, chat_template_kwargs: Mapping[str, Any] | None = None,
        continue_final_message: bool = False, thinking_budget: int | None = None, params: SamplingParams | None = None,
        progress: Progress | None = None, processors: Sequence[Processor] = (), **sampling: Any,
    ) -> ChatCompletion:  # fmt: skip
        """Reply to a conversation: a ChatCompletion with `message` (content, reasoning, tool_calls), `finish_reason`
        ("stop", "length", "tool_calls", "interrupted"), `usage` and `stats`.

        messages: dicts with role ("system", "user", "assistant", "tool", ...) and content, as OpenAI's API has them;
        replies (`ChatMessage`) may stand among them as they are. tools: functions as JSON schemas. tool_choice: "auto",
        "none", "required" or a tool's name. response_format: {"type": "json_object"}, or {"type": "json_schema",
        "json_schema": {"schema": ...}}; it holds from where thinking has ended. enable_thinking: None leaves it to the
        template. chat_template: instead of the file's own, a name (docs/chat.md), a template's text or a Path.
        chat_template_kwargs: further variables of the template. continue_final_message: go on with the last message,
        an assistant's; what is returned is what came to it. thinking_budget: tokens after which thinking is closed.
        sampling: fields of SamplingParams, on top of `params`.

        Turns that go on from each other compute what is new alone (`usage.cached_tokens` says what was there).
        InputError for wrong messages, TemplateError where the template fails or refuses them.
        """
        return self.chat_stream(
            messages, tools=tools, tool_choice=tool_choice, response_format=response_format,
            enable_thinking=enable_thinking, chat_template=chat_template, chat_template_kwargs=chat_template_kwargs,
            continue_final_message=continue_final_message, thinking_budget=thinking_budget, params=params,
            progress=progress, processors=processors, **sampling,
        ).completion()  # fmt: skip

    def chat_stream(
        self, messages: Sequence[Message], *, tools: Tools | None = None, tool_choice: ToolChoice | None = None,
        response_format: Mapping[str, Any] | None = None, enable_thinking: bool | None = None,
        chat_template: str | Path | None = None, chat_template_kwargs: Mapping[str, Any] | None = None,
        continue_final_message: bool = False, thinking_budget: int | None = None, params: SamplingParams | None = None,
        progress: Progress | None = None, processors: Sequence[Processor] = (), **sampling: Any,
    ) -> ChatStream:  # fmt: skip
        """Like `chat`, but an iterator of ChatDeltas: what came to content, reasoning and tool_calls. It also has
        `message`, `finish_reason`, `usage`, `stats` and `close`."""
        from mixkv.engine.chat.run import start  # only who chats needs it

        return start(
            self, messages, tools=tools, tool_choice=tool_choice, response_format=response_format,
            enable_thinking=enable_thinking, chat_template=chat_template, chat_template_kwargs=chat_template_kwargs,
            continue_final_message=continue_final_message, params=SamplingParams.on_top_of(params, sampling),
            progress=progress, processors=processors, thinking_budget=thinking_budget,
        )  # fmt: skip

    @overload
    def apply_chat_template(
        self, messages: Sequence[Message], *, tools: Tools | None = ..., tokenize: Literal[False] = ...,
        add_generation_prompt: bool = ..., continue_final_message: bool = ..., enable_thinking: bool | None = ...,
        chat_template: str | Path | None = ..., chat_template_kwargs: Mapping[str, Any] | None = ...,
    ) -> str: ...  # fmt: skip

    @overload
    def apply_chat_template(
        self, messages: Sequence[Message], *, tools: Tools | None = ..., tokenize: Literal[True],
        add_generation_prompt: bool = ..., continue_final_message: bool = ..., enable_thinking: bool | None = ...,
        chat_template: str | Path | None = ..., chat_template_kwargs: Mapping[str, Any] | None = ...,
    ) -> list[int]: ...  # fmt: skip

    def apply_chat_template(
        self, messages: Sequence[Message], *, tools: Tools | None = None, tokenize: bool = False,
        add_generation_prompt: bool = True, continue_final_message: bool = False, enable_thinking: bool | None = None,
        chat_template: str | Path | None = None, chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> str | list[int]:  # fmt: skip
        """The conversation as `chat` gives it to the model: its text, or for tokenize its ids, with one BOS where the
        model has one. add_generation_prompt: with what asks for a reply. The other arguments are those of `chat`."""
        template = self._shared.chat_templates.choose(chat_template, tools=bool(tools))
        rendered = template.render(
            messages, tools=tools, add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message, enable_thinking=enable_thinking,
            variables=chat_template_kwargs,
        )  # fmt: skip
        return template.encode(rendered) if tokenize else rendered.text
