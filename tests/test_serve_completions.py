"""POST /v1/completions gives what LLM.generate gives; and the pages about the server and its model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the server's packages are not installed")

from serve_tools import GREEDY, HI, answer, events, serving

import mixkv

PATH = "/v1/completions"
TEXTS = ["Once upon a time", "The sea"]


@pytest.fixture(scope="module")
def llm() -> Iterator[mixkv.LLM]:
    with mixkv.load(n_ctx=512, n_parallel=2) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def client(llm: mixkv.LLM) -> Iterator[Any]:
    with serving(llm) as served:
        yield served


def test_texts_and_ids_go_on_as_generate_says(client: Any, llm: mixkv.LLM) -> None:
    """Every form of a prompt, and choices in the order of the prompts."""
    wanted = [llm.generate(text, **GREEDY).text for text in TEXTS]
    ids = [llm.tokenize(text) for text in TEXTS]
    for prompt in (TEXTS, ids):
        body = answer(client, PATH, prompt=prompt, **GREEDY)
        assert [(c["index"], c["text"], c["finish_reason"]) for c in body["choices"]] == [
            (0, wanted[0], "length"), (1, wanted[1], "length"),
        ]  # fmt: skip
        assert body["usage"]["prompt_tokens"] == sum(len(each) for each in ids)
    for one in (TEXTS[0], ids[0]):
        assert answer(client, PATH, prompt=one, **GREEDY)["choices"][0]["text"] == wanted[0]
    echoed = answer(client, PATH, prompt=TEXTS[0], echo=True, **GREEDY)
    assert echoed["choices"][0]["text"] == TEXTS[0] + wanted[0]
    assert answer(client, PATH, prompt=TEXTS[0], echo=True, max_tokens=0)["choices"][0]["text"] == TEXTS[0]


def test_a_stream_adds_up_to_the_whole(client: Any) -> None:
    """Pieces of several texts come between each other; log probabilities and offsets are the same."""
    asked: dict[str, Any] = {"prompt": TEXTS, "seed": 3, "max_tokens": 12, "n": 2, "logprobs": 2}
    whole = answer(client, PATH, **asked)["choices"]
    *chunks, usage, done = events(client, PATH, **asked, stream_options={"include_usage": True})
    assert done == "[DONE]" and usage["choices"] == [] and usage["usage"]["completion_tokens"] == 48
    found: list[dict[str, Any]] = [{"index": i, "text": "", "logprobs": None, "finish_reason": None} for i in range(4)]
    for chunk in chunks:
        (piece,) = chunk["choices"]
        one = found[piece["index"]]
        one["text"] += piece["text"]
        one["finish_reason"] = one["finish_reason"] or piece["finish_reason"]
        if piece["logprobs"]:
            before = one["logprobs"] or {name: [] for name in piece["logprobs"]}
            one["logprobs"] = {name: before[name] + more for name, more in piece["logprobs"].items()}
    assert found == whole
    assert whole[0]["logprobs"]["text_offset"][0] == 0 and len(whole[0]["logprobs"]["tokens"]) == 12


def test_a_stop_is_not_part_of_the_text(client: Any, llm: mixkv.LLM) -> None:
    wanted = llm.generate(TEXTS[0], temperature=0, stop=[","])
    (choice,) = answer(client, PATH, prompt=TEXTS[0], temperature=0, stop=",")["choices"]
    assert (choice["text"], choice["finish_reason"]) == (wanted.text, "stop")


def test_pages_about_the_server(client: Any, llm: mixkv.LLM) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == ("demo", "model", 512)
    assert model["meta"]["n_ctx_train"] == llm.config.n_ctx_train
    assert client.get("/v1/models/demo").json() == model
    props = client.get("/props").json()
    assert (props["total_slots"], props["default_generation_settings"]["n_ctx"]) == (2, 512)
    assert "/" not in props["model_path"], "where files lie is nobody's business"


def test_llama_servers_helpers(client: Any, llm: mixkv.LLM) -> None:
    ids = answer(client, "/tokenize", content="Hällo <s>")["tokens"]
    assert ids == llm.tokenizer.encode("Hällo <s>", add_special=False, parse_special=True)
    assert answer(client, "/tokenize", content="x", add_special=True)["tokens"][0] == llm.tokenizer.bos_id
    pieces = answer(client, "/tokenize", content="Hällo", with_pieces=True)["tokens"]
    assert [195] in [piece["piece"] for piece in pieces], "a byte that is no character by itself"
    assert answer(client, "/detokenize", tokens=ids)["content"] == llm.tokenizer.decode(ids, skip_special=False)
    assert answer(client, "/apply-template", messages=HI)["prompt"] == llm.apply_chat_template(HI)


def test_metrics_count(llm: mixkv.LLM) -> None:
    """Tokens and answers, with paths that are ours alone: whoever asks for others must not fill the memory."""
    with serving(llm) as client:
        answer(client, PATH, prompt=TEXTS[0], **GREEDY)
        client.get("/nowhere/1")
        client.get("/nowhere/2")
        text = client.get("/metrics").text
        assert "mixkv_generated_tokens_total 12.0" in text
        assert f"mixkv_prompt_tokens_total {len(llm.tokenize(TEXTS[0]))}.0" in text
        assert f'mixkv_requests_total{{path="{PATH}",status="200"}} 1.0' in text
        assert 'mixkv_requests_total{path="other",status="404"} 2.0' in text and "nowhere" not in text
        assert "mixkv_generations_running 0.0" in text and "mixkv_generations_waiting 0.0" in text
    with serving(llm, metrics=False) as client:
        assert client.get("/metrics").status_code == 501
