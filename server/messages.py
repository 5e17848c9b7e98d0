"""POST /v1/messages and /v1/messages/count_tokens: chats in Anthropic's form."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Iterator

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from mixkv.engine.chat.reply import ChatDelta, ChatMessage
from mixkv.server.anthropic import chat_arguments
from mixkv.server.body import Fields, Json, read_json
from mixkv.server.chat import model_named
from mixkv.server.errors import ApiError, JsonResponse, api_error, to_json
from mixkv.server.events import EventStream, Whole
from mixkv.server.sampling import sampling_params
from mixkv.server.service import Begun, Ended, Piece, Service
from mixkv.server.work import Work

_SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "seed", "min_p")
_EMPTY = {"thinking": {"thinking": "", "signature": ""}, "text": {"text": ""}}


async def messages(service: Service, request: Request) -> Whole | EventStream:
    """A reply, whole or as it comes."""
    fields = Fields(await read_json(request, service.settings.max_body))
    model_named(fields)
    if "max_tokens" not in fields:
        raise ApiError(400, "max_tokens is missing", param="max_tokens")
    stop = fields.list("stop_sequences") or []
    asked = {name: fields.any(name) for name in _SAMPLING} | {"stop": stop}
    work = service.chat_work(chat_arguments(fields), sampling_params(Fields(asked), service.settings.sampling))
    if not fields.bool("stream"):
        return Whole(lambda: _whole(service, work, stop), anthropic=True)
    return EventStream(
        _events(service, work, stop), lambda error: event("error", api_error(error).body(anthropic=True)),
        ping_seconds=service.settings.ping_seconds, anthropic=True, ping=event("ping", {"type": "ping"}),
    )  # fmt: skip


async def count_tokens(service: Service, request: Request) -> JsonResponse:
    """The prompt's length."""
    fields = Fields(await read_json(request, service.settings.max_body))
    model_named(fields)
    arguments = chat_arguments(fields)
    if arguments.pop("tool_choice") == "none":
        arguments["tools"] = None
    ids = await run_in_threadpool(
        lambda: service.llm.apply_chat_template(**arguments, tokenize=True, chat_template=service.chat_template)
    )
    return JsonResponse({"input_tokens": len(ids)})


def event(name: str, body: Json) -> bytes:
    return f"event: {name}\ndata: ".encode() + to_json(body) + b"\n\n"


def _head(service: Service) -> Json:
    return {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": service.settings.alias}


def _usage(ended: Ended) -> Json:
    cached = ended.stats.reused_tokens
    return {
        "input_tokens": ended.stats.prompt_tokens - cached, "output_tokens": ended.stats.generated_tokens,
        "cache_read_input_tokens": cached, "cache_creation_input_tokens": 0,
    }  # fmt: skip


def _end(ended: Ended, stop: list[str]) -> Json:
    """stop_reason and stop_sequence."""
    if ended.finish_reason == "stop" and ended.stop in stop:
        return {"stop_reason": "stop_sequence", "stop_sequence": ended.stop}
    reason = {"length": "max_tokens", "tool_calls": "tool_use"}.get(ended.finish_reason, "end_turn")
    return {"stop_reason": reason, "stop_sequence": None}


async def _whole(service: Service, work: Work, stop: list[str]) -> JsonResponse:
    ended = None
    async for _, item in service.workers.start([work]).items():
        if isinstance(item, Ended):
            ended = item
    assert ended is not None
    body = {**_head(service), "content": list(_blocks(ended.message)), **_end(ended, stop), "usage": _usage(ended)}
    return JsonResponse(body)


def _blocks(message: ChatMessage) -> Iterator[Json]:
    if message.reasoning is not None:
        yield {"type": "thinking", "thinking": message.reasoning, "signature": ""}
    if message.content:
        yield {"type": "text", "text": message.content}
    for call in message.tool_calls:
        try:
            arguments = json.loads(call.arguments)
        except ValueError:  # the reply ended within them
            arguments = {}
        yield {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments}


async def _events(service: Service, work: Work, stop: list[str]) -> AsyncIterator[bytes]:
    blocks = _OpenBlock()
    answer = service.workers.start([work])
    try:
        async for _, item in answer.items():
            if isinstance(item, Begun):
                usage = {"input_tokens": item.n, "output_tokens": 0}
                whole = {**_head(service), "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
                yield event("message_start", {"type": "message_start", "message": whole})
            elif isinstance(item, Piece):
                for name, body in blocks.take(item.delta):
                    yield event(name, body)
            elif isinstance(item, Ended):
                for name, body in blocks.close():
                    yield event(name, body)
                end = {"type": "message_delta", "delta": _end(item, stop), "usage": _usage(item)}
                yield event("message_delta", end)
                yield event("message_stop", {"type": "message_stop"})
    finally:
        answer.close()


class _OpenBlock:
    """From deltas to the events of blocks, one of which is open at a time."""

    def __init__(self) -> None:
        self._n, self._open = 0, ""

    def take(self, delta: ChatDelta) -> Iterator[tuple[str, Json]]:
        if delta.reasoning:
            yield from self._into("thinking", {"type": "thinking", **_EMPTY["thinking"]})
            yield self._delta({"type": "thinking_delta", "thinking": delta.reasoning})
        if delta.content:
            yield from self._into("text", {"type": "text", **_EMPTY["text"]})
            yield self._delta({"type": "text_delta", "text": delta.content})
        for call in delta.tool_calls:
            if call.name is not None:
                block: Json = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
                yield from self._into(f"call {call.index}", block)
            if call.arguments:
                yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})

    def close(self) -> Iterator[tuple[str, Json]]:
        if self._open:
            if self._open == "thinking":
                yield self._delta({"type": "signature_delta", "signature": ""})
            yield "content_block_stop", {"type": "content_block_stop", "index": self._n}
            self._n, self._open = self._n + 1, ""

    def _into(self, name: str, block: Json) -> Iterator[tuple[str, Json]]:
        if name != self._open:
            yield from self.close()
            self._open = name
            yield "content_block_start", {"type": "content_block_start", "index": self._n, "content_block": block}

    def _delta(self, delta: Json) -> tuple[str, Json]:
        return "content_block_delta", {"type": "content_block_delta", "index": self._n, "delta": delta}
