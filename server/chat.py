"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request

from mixkv.engine.chat.reply import ChatDelta, ChatMessage
from mixkv.server.body import Fields, Json, kind, read_json
from mixkv.server.errors import ApiError, JsonResponse, api_error, to_json
from mixkv.server.events import EventStream, Whole
from mixkv.server.sampling import choices, sampling_params
from mixkv.server.service import Begun, Ended, Piece, Service, Usage, timings
from mixkv.server.work import Work

MAX_LOGPROBS = 20
DONE = b"data: [DONE]\n\n"


async def chat_completions(service: Service, request: Request) -> Whole | EventStream:
    """A reply, or several, whole or as it comes."""
    fields = Fields(await read_json(request, service.settings.max_body))
    works, with_logprobs = _works(service, fields)
    if not fields.bool("stream"):
        return Whole(lambda: _whole(service, works, with_logprobs))
    return stream_of(service, _events(service, works, with_logprobs, wants_usage(fields)))


def stream_of(service: Service, events: AsyncIterator[Json]) -> EventStream:
    """Objects as events, and [DONE] behind them."""

    async def pieces() -> AsyncIterator[bytes]:
        try:
            async for event in events:
                yield data(event)
        finally:
            await events.aclose()  # type: ignore[attr-defined]
        yield DONE

    def failed(error: BaseException) -> bytes:
        return data(api_error(error).body()) + DONE

    return EventStream(pieces(), failed, ping_seconds=service.settings.ping_seconds)


def data(event: Json) -> bytes:
    return b"data: " + to_json(event) + b"\n\n"


def wants_usage(fields: Fields) -> bool:
    """stream_options.include_usage."""
    return Fields(fields.object("stream_options") or {}).bool("include_usage")


def model_named(fields: Fields) -> None:
    """There is one model: any name is its, as long as it is a name."""
    fields.text("model")


def refuse(fields: Fields, *names: str) -> None:
    """What would change the answer and cannot be had is no request to be answered without it."""
    for name in names:
        if fields.any(name):
            raise ApiError(400, f"{name} is not supported: leave it out", param=name)


def _works(service: Service, fields: Fields) -> tuple[list[Work], bool]:
    """The choices to compute, and whether log probabilities are shown."""
    model_named(fields)
    refuse(fields, "functions", "function_call", "audio", "chat_template", "web_search_options")
    if fields.any("modalities") not in (None, ["text"]):
        raise ApiError(400, 'modalities must be ["text"]', param="modalities")
    wanted = fields.bool("logprobs")
    top = fields.integer("top_logprobs", None, 0, MAX_LOGPROBS)
    if top is not None and not wanted:
        raise ApiError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    params = sampling_params(fields, service.settings.sampling, logprobs=(top or 0) if wanted else None)
    arguments = chat_arguments(fields)
    return [service.chat_work(arguments, each) for each in choices(fields, params)], wanted


def chat_arguments(fields: Fields) -> Json:
    """The arguments of LLM.chat but those of sampling. What messages and tools hold, the engine checks."""
    if "messages" not in fields:
        raise ApiError(400, "messages is missing: give a list", param="messages")
    variables = dict(fields.object("chat_template_kwargs") or {})
    thinking = variables.pop("enable_thinking", None)
    if thinking is not None and not isinstance(thinking, bool):
        raise ApiError(400, f"enable_thinking must be a boolean, not {kind(thinking)}", param="chat_template_kwargs")
    effort = fields.text("reasoning_effort")
    if effort is not None:
        variables.setdefault("reasoning_effort", effort)
        if effort == "none" and thinking is None:
            thinking = False
    choice = fields.any("tool_choice")
    if choice is not None and not isinstance(choice, str | dict):
        raise ApiError(400, f"tool_choice must be a string or an object, not {kind(choice)}", param="tool_choice")
    tools = fields.list("tools")
    return {
        "messages": fields.list("messages"), "tools": tools, "tool_choice": choice,
        "response_format": fields.object("response_format"), "enable_thinking": thinking,
        "chat_template_kwargs": variables or None,
        "continue_final_message": fields.bool("continue_final_message"),
    }  # fmt: skip


async def _whole(service: Service, works: list[Work], with_logprobs: bool) -> JsonResponse:
    usage, last = Usage(), None
    found: dict[int, Json] = {}
    async for index, item in service.workers.start(works).items():
        if isinstance(item, Ended):
            usage.add(item.stats, prompt=not found)
            found[index], last = _choice(service, index, item, with_logprobs), item
    assert last is not None
    body = service.head("chatcmpl", "chat.completion")
    body |= {"choices": [found[i] for i in sorted(found)], "usage": usage.openai(), "timings": timings(last.stats)}
    return JsonResponse(body)


def _choice(service: Service, index: int, ended: Ended, with_logprobs: bool) -> Json:
    logprobs = {"content": service.content_logprobs(ended.logprobs), "refusal": None} if with_logprobs else None
    return {
        "index": index, "message": message_json(ended.message), "logprobs": logprobs,
        "finish_reason": ended.finish_reason,
    }  # fmt: skip


def message_json(message: ChatMessage) -> Json:
    """A reply as OpenAI's API has it, with `reasoning_content` where something was thought."""
    out: Json = {"role": message.role, "content": message.content, "refusal": None}
    if message.reasoning is not None:
        out["reasoning_content"] = message.reasoning
    if message.tool_calls:
        out["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return out


async def _events(
    service: Service, works: list[Work], with_logprobs: bool, with_usage: bool
) -> AsyncIterator[Json]:  # fmt: skip
    head = service.head("chatcmpl", "chat.completion.chunk")
    nothing: Json = {"usage": None} if with_usage else {}
    usage, ended = Usage(), 0

    def chunk(index: int, delta: Json, reason: str | None = None, logprobs: Any = None, **more: Any) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {**head, "choices": [choice], **nothing, **more}

    answer = service.workers.start(works)
    try:
        async for index, item in answer.items():
            if isinstance(item, Begun):
                yield chunk(index, {"role": "assistant", "content": ""})
            elif isinstance(item, Piece):
                delta = delta_json(item.delta)
                logprobs = None
                if with_logprobs and item.logprobs:
                    logprobs = {"content": service.content_logprobs(item.logprobs), "refusal": None}
                if delta or logprobs:
                    yield chunk(index, delta, logprobs=logprobs)
            elif isinstance(item, Ended):
                usage.add(item.stats, prompt=not ended)
                ended += 1
                yield chunk(index, {}, item.finish_reason, timings=timings(item.stats))
        if with_usage:
            yield {**head, "choices": [], "usage": usage.openai()}
    finally:
        answer.close()


def delta_json(delta: ChatDelta) -> Json:
    """A piece of a reply; {} where there is nothing in it but its end."""
    out: Json = {}
    if delta.content:
        out["content"] = delta.content
    if delta.reasoning:
        out["reasoning_content"] = delta.reasoning
    if delta.tool_calls:
        out["tool_calls"] = [
            {"index": call.index}
            | ({"id": call.id, "type": "function"} if call.id is not None else {})
            | {"function": ({"name": call.name} if call.name is not None else {}) | {"arguments": call.arguments}}
            for call in delta.tool_calls
        ]
    return out
