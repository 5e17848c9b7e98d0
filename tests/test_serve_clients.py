"""The clients of OpenAI and Anthropic themselves, where they are installed, against a server on a socket."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("starlette", reason="the server's packages are not installed")

from serve_tools import Process

KEY = "k"


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with Process("-c", "512", "-np", "2", "--api-key", KEY) as process:
        yield process


def test_openais_client(server: Process) -> None:
    openai = pytest.importorskip("openai", reason="openai is not installed")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)
    asked = {"model": "any", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6, "temperature": 0}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=1)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert "".join(pieces) == whole.choices[0].message.content and len(whole.choices[0].logprobs.content) == 6
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 6
    texts = client.completions.create(model="any", prompt=["a", "b"], max_tokens=3, logprobs=1)
    assert [choice.index for choice in texts.choices] == [0, 1]
    assert client.models.list().data[0].max_model_len == 512
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**asked | {"messages": [{"role": "user", "content": "word " * 5000}]})
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="any", input="x")


def test_anthropics_client(server: Process) -> None:
    anthropic = pytest.importorskip("anthropic", reason="anthropic is not installed")
    client = anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0)
    prompt = {"model": "any", "messages": [{"role": "user", "content": "Hi"}], "system": "Be brief."}
    asked = {**prompt, "max_tokens": 6, "extra_body": {"temperature": 0}}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
        final = stream.get_final_message()
    assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", 6)
    count = client.messages.count_tokens(**prompt).input_tokens
    assert count == whole.usage.input_tokens + whole.usage.cache_read_input_tokens
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(**prompt, max_tokens=0)
    with pytest.raises(anthropic.AuthenticationError):
        client.with_options(api_key="wrong").messages.count_tokens(**prompt)
