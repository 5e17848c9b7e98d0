"""Whose session it is: another model's is refused, the same model's is taken wherever its file lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_tools import write_gguf
from model_changes import OTHERS, SAME, base_model, written

import mixkv
from mixkv.engine.evaluate import PerplexityRun, TextWindows, parse_variants
from mixkv.kernels.errors import SessionError

IDS = list(range(5, 65))


def loaded(path: Path, **options: Any) -> mixkv.LLM:
    return mixkv.load(path, n_threads=1, n_ctx=128, **options)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the model as it is, 60 tokens."""
    folder = tmp_path_factory.mktemp("base")
    llm = loaded(written(folder / "base.gguf"))
    llm.logits(IDS)
    llm.save_session(folder / "s")
    return folder / "s"


@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.parametrize("convert", [False, True])
def test_another_model_is_refused(session: Path, tmp_path: Path, case: str, convert: bool) -> None:
    """Files with the same tensors and another RoPE, published side by side, took each other's sessions and wrote on in
    nonsense; so did a fine-tune whose tensors begin as the original's."""
    llm = loaded(written(tmp_path / "other.gguf", OTHERS[case]))
    llm.logits(IDS[:20])
    before = llm.tokens, llm.cache.stats()
    with pytest.raises(SessionError, match="belongs to another model") as caught:
        llm.load_session(session, convert=convert)
    assert llm.sequence.model.fingerprint in str(caught.value) and "\n" not in str(caught.value)
    assert (llm.tokens, llm.cache.stats()) == before


@pytest.mark.parametrize("case", SAME)
def test_the_same_model_is_taken(session: Path, tmp_path: Path, case: str) -> None:
    """A chat template that was mended, or a copy under another name, must not cost people their sessions."""
    assert loaded(written(tmp_path / "renamed.gguf", SAME[case])).load_session(session) == len(IDS)


def test_a_split_file_is_the_same_model(session: Path, tmp_path: Path) -> None:
    metadata, tensors = base_model()
    names = list(tensors)
    for i, part in enumerate((names[:5], names[5:])):
        split = {"split.no": np.uint16(i), "split.count": np.uint16(2), "split.tensors.count": np.int32(len(names))}
        keys = (metadata if i == 0 else {}) | split
        write_gguf(tmp_path / f"m-0000{i + 1}-of-00002.gguf", keys, {name: tensors[name] for name in part})
    assert loaded(tmp_path / "m-00001-of-00002.gguf").load_session(session) == len(IDS)


@pytest.mark.parametrize("options", [{"exact": True}, {"dense": True}, {"n_batch": 7}])
def test_how_it_is_computed_is_no_part_of_it(session: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """Rows that were computed with other rounding continue well, also on another machine."""
    assert loaded(written(tmp_path / "m.gguf"), **options).load_session(session) == len(IDS)


def test_a_measurement_of_another_model_is_not_resumed(tmp_path: Path) -> None:
    """Resume files of `mixkv perplexity` name the model in the same way."""
    text, state = tmp_path / "text", tmp_path / "state"
    text.write_text("the old man and the sea. " * 20)

    def measure(path: Path) -> PerplexityRun:
        llm = loaded(path)
        return PerplexityRun(llm, TextWindows.of(text, llm.tokenizer, 32, most=1), parse_variants("q8_0"), resume=state)

    measure(written(tmp_path / "m.gguf")).run()
    assert measure(written(tmp_path / "copy.gguf")).done.n_windows == 1
    with pytest.raises(SessionError, match="its model is"):
        measure(written(tmp_path / "m.gguf", OTHERS["eps"]))


def test_overridden_metadata_is_another_model_where_it_says_something_else(session: Path, tmp_path: Path) -> None:
    """RoPE's base by hand, or another special token: the rows of the session are not those that it would compute."""
    path = written(tmp_path / "same.gguf")
    base = loaded(path).config.attentions[0].rope.freq_base
    for overrides in ({"{arch}.rope.freq_base": base + 1}, {"tokenizer.ggml.add_bos_token": False}):
        with pytest.raises(SessionError, match="another model"):
            loaded(path, overrides=overrides).load_session(session)
    assert loaded(path, overrides={"{arch}.rope.freq_base": base}).load_session(session) == len(IDS)
