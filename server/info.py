"""What the server says of itself and its model, and llama-server's small helpers."""

from __future__ import annotations

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from mixkv.server.body import Fields, Json, read_json
from mixkv.server.chat import chat_arguments
from mixkv.server.errors import ApiError, JsonResponse
from mixkv.server.service import Service


async def health(service: Service, request: Request) -> JsonResponse:
    return JsonResponse({"status": "ok"})


async def models(service: Service, request: Request) -> JsonResponse:
    """The one model that there is."""
    return JsonResponse({"object": "list", "data": [_model(service)]})


async def model(service: Service, request: Request) -> JsonResponse:
    if request.path_params["name"] != service.settings.alias:
        raise ApiError(404, f"there is one model here: {service.settings.alias}", code="model_not_found")
    return JsonResponse(_model(service))


def _model(service: Service) -> Json:
    config, llm = service.llm.config, service.llm
    meta = {
        "n_vocab": config.n_vocab, "n_ctx_train": config.n_ctx_train, "n_embd": config.n_embd, "n_ctx": llm.n_ctx,
        "size": sum(info.n_bytes for info in llm.gguf.tensors.values()),
    }  # fmt: skip
    return {
        "id": service.settings.alias, "object": "model", "created": service.started, "owned_by": "mixkv",
        "max_model_len": llm.n_ctx, "meta": meta,
    }  # fmt: skip


async def props(service: Service, request: Request) -> JsonResponse:
    """llama-server's /props, as far as there is something to say."""
    llm, tokenizer = service.llm, service.llm.tokenizer
    params = service.settings.sampling

    def text(token: int | None) -> str:
        return "" if token is None else service.token_text(token)

    body: Json = {
        "default_generation_settings": {
            "n_ctx": llm.n_ctx,
            "params": {
                "temperature": params.temperature, "top_k": params.top_k, "top_p": params.top_p, "min_p": params.min_p,
                "n_predict": -1 if params.max_tokens is None else params.max_tokens,
            },
        },
        "total_slots": llm.n_parallel, "model_alias": service.settings.alias, "model_path": llm.path.name,
        "modalities": {"vision": False, "audio": False}, "build_info": service.fingerprint,
        "bos_token": text(tokenizer.bos_id), "eos_token": text(tokenizer.eos_id),
    }  # fmt: skip
    return JsonResponse(body)


async def metrics(service: Service, request: Request) -> Response:
    if not service.settings.metrics:
        raise ApiError(501, "this server was started without --metrics", type="not_supported_error")
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def tokenize(service: Service, request: Request) -> JsonResponse:
    """llama-server's: `content`, `add_special`, `parse_special`, `with_pieces`."""
    fields = Fields(await read_json(request, service.settings.max_body))
    content = fields.text("content")
    if content is None:
        raise ApiError(400, "content is missing: give a text", param="content")
    add, parse = fields.bool("add_special"), fields.bool("parse_special", True)
    encode = service.llm.tokenizer.encode
    ids = await run_in_threadpool(lambda: encode(content, add_special=add, add_eos=False, parse_special=parse))
    if not fields.bool("with_pieces"):
        return JsonResponse({"tokens": ids})
    return JsonResponse({"tokens": [{"id": i, "piece": _piece(service.llm.tokenizer.piece(i))} for i in ids]})


def _piece(piece: bytes) -> str | list[int]:
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return list(piece)


async def detokenize(service: Service, request: Request) -> JsonResponse:
    """llama-server's: `tokens` to `content`."""
    fields = Fields(await read_json(request, service.settings.max_body))
    tokens: list[Any] | None = fields.list("tokens")
    if tokens is None or not all(type(token) is int for token in tokens):
        raise ApiError(400, "tokens must be a list of token ids", param="tokens")
    decode = service.llm.tokenizer.decode
    return JsonResponse({"content": await run_in_threadpool(lambda: decode(tokens, skip_special=False))})


async def apply_template(service: Service, request: Request) -> JsonResponse:
    """llama-server's: a conversation to its `prompt`."""
    fields = Fields(await read_json(request, service.settings.max_body))
    arguments = chat_arguments(fields)
    del arguments["response_format"]
    if arguments.pop("tool_choice") == "none":
        arguments["tools"] = None
    prompt = await run_in_threadpool(
        lambda: service.llm.apply_chat_template(
            **arguments, chat_template=service.chat_template,
            add_generation_prompt=fields.bool("add_generation_prompt", not arguments["continue_final_message"]),
        )
    )  # fmt: skip
    return JsonResponse({"prompt": prompt})
