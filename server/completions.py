"""POST /v1/completions: texts that go on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

from starlette.requests import Request

from mixkv.engine.results import TokenLogprob
from mixkv.server.body import Fields, Json, read_json
from mixkv.server.chat import MAX_LOGPROBS, model_named, refuse, stream_of, wants_usage
from mixkv.server.errors import ApiError, JsonResponse
from mixkv.server.events import EventStream, Whole
from mixkv.server.sampling import choices, sampling_params
from mixkv.server.service import Begun, Ended, Piece, Service, Usage, finite, timings
from mixkv.server.work import Work

MAX_PROMPTS = 256


async def completions(service: Service, request: Request) -> Whole | EventStream:
    """Each prompt's text, or `n` of them, whole or as they come."""
    fields = Fields(await read_json(request, service.settings.max_body))
    works, n, with_logprobs = _works(service, fields)
    if not fields.bool("stream"):
        return Whole(lambda: _whole(service, works, n, with_logprobs))
    return stream_of(service, _events(service, works, n, with_logprobs, wants_usage(fields)))


def _works(service: Service, fields: Fields) -> tuple[list[Work], int, bool]:
    """The choices to compute, how many a prompt has, and whether log probabilities are shown."""
    model_named(fields)
    refuse(fields, "suffix")
    prompts = _prompts(fields.any("prompt"))
    top = fields.any("logprobs")
    top = {True: 0, False: None}[top] if isinstance(top, bool) else fields.integer("logprobs", None, 0, MAX_LOGPROBS)
    echo = fields.bool("echo")
    if echo and top is not None:
        raise ApiError(400, "echo together with logprobs is not supported yet: leave one out", param="echo")
    each = choices(fields, sampling_params(fields, service.settings.sampling, logprobs=top, least=0))
    if (fields.integer("best_of", len(each), 1, 2**62) or 1) != len(each):
        raise ApiError(400, "best_of is not supported: leave it out, or give what n is", param="best_of")
    if len(prompts) * len(each) > MAX_PROMPTS:
        raise ApiError(400, f"n choices of each prompt are more than {MAX_PROMPTS}", param="n")
    works = [service.text_work(prompt, params, echo=echo) for prompt in prompts for params in each]
    return works, len(each), top is not None


def _prompts(given: Any) -> list[str | list[int]]:
    """Texts or ids, one prompt or a list of them. Ids are checked by the engine."""
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and given and all(type(item) is int for item in given):
        return [_ids(given)]
    if isinstance(given, list) and 0 < len(given) <= MAX_PROMPTS:
        if all(isinstance(item, str) for item in given):
            return list(given)
        if all(isinstance(item, list) and item and all(type(i) is int for i in item) for item in given):
            return [_ids(item) for item in given]
    raise ApiError(
        400, f"prompt must be a text, a list of token ids, or a list of up to {MAX_PROMPTS} of these", param="prompt"
    )


def _ids(ids: list[int]) -> list[int]:
    if any(not 0 <= i < 2**31 for i in ids):
        raise ApiError(400, "prompt has a token id that no vocabulary has", param="prompt")
    return ids


class Logprobs:
    """Log probabilities in the older form; offsets count characters of the choice's text."""

    def __init__(self, service: Service, offset: int = 0) -> None:
        self._service, self._offset = service, offset

    def of(self, entries: Iterable[TokenLogprob]) -> Json:
        tokens, values, tops, offsets = [], [], [], []
        for entry in entries:
            text = self._service.token_text(entry.token)
            tokens.append(text)
            values.append(finite(entry.logprob))
            tops.append({self._service.token_text(token): finite(value) for token, value in entry.top} or None)
            offsets.append(self._offset)
            self._offset += len(text)
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


async def _whole(service: Service, works: list[Work], n: int, with_logprobs: bool) -> JsonResponse:
    usage, found, counted, echoes, last = Usage(), {}, set(), {}, None
    async for index, item in service.workers.start(works).items():
        if isinstance(item, Begun):
            echoes[index] = item.echo
        elif isinstance(item, Ended):
            usage.add(item.stats, prompt=index // n not in counted)
            counted.add(index // n)
            logprobs = Logprobs(service).of(item.logprobs) if with_logprobs else None
            found[index] = _choice(index, echoes[index] + item.message, item.finish_reason, logprobs)
            last = item
    assert last is not None
    body = service.head("cmpl", "text_completion")
    body |= {"choices": [found[i] for i in sorted(found)], "usage": usage.openai(), "timings": timings(last.stats)}
    return JsonResponse(body)


def _choice(index: int, text: str, reason: str | None, logprobs: Json | None) -> Json:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


async def _events(
    service: Service, works: list[Work], n: int, with_logprobs: bool, with_usage: bool
) -> AsyncIterator[Json]:  # fmt: skip
    head = service.head("cmpl", "text_completion")
    nothing: Json = {"usage": None} if with_usage else {}
    usage, counted = Usage(), set()
    forms = [Logprobs(service) for _ in works]
    answer = service.workers.start(works)
    try:
        async for index, item in answer.items():
            if isinstance(item, Begun):
                yield {**head, "choices": [_choice(index, item.echo, None, None)], **nothing}
            elif isinstance(item, Piece):
                logprobs = forms[index].of(item.logprobs) if with_logprobs and item.logprobs else None
                if item.delta.text or logprobs:
                    yield {**head, "choices": [_choice(index, item.delta.text, None, logprobs)], **nothing}
            elif isinstance(item, Ended):
                usage.add(item.stats, prompt=index // n not in counted)
                counted.add(index // n)
                choice = _choice(index, "", item.finish_reason, None)
                yield {**head, "choices": [choice], **nothing, "timings": timings(item.stats)}
        if with_usage:
            yield {**head, "choices": [], "usage": usage.openai()}
    finally:
        answer.close()
