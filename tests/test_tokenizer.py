"""Ids and texts, against llama.cpp: its own test vectors, the golden prompts, and small vocabularies.

The ids of the small vocabularies were written down from llama.cpp (of llama-cpp-python 0.3.36) on the same files.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_vocabs import bpe_metadata, spm_metadata, tokenizer_of

from mixkv.engine.tokenizer import Tokenizer, load_tokenizer
from mixkv.kernels.errors import InputError
from mixkv.models.gguf import open_gguf

DEMO = Path(__file__).resolve().parents[1] / "models" / "data" / "mixkv-demo-Q8_0.gguf"
VECTORS = ["gpt-2", "llama-bpe", "llama-spm", "qwen2", "starcoder"]
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cn"]), max_size=40)


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer_of(tmp_path_factory.mktemp("spm"), spm_metadata())


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer_of(tmp_path_factory.mktemp("bpe"), bpe_metadata())


@pytest.mark.parametrize("name", VECTORS)
def test_vectors_of_llama_cpp(shared: Path, name: str) -> None:
    path = shared / "data" / "vocab" / f"ggml-vocab-{name}.gguf"
    texts = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    expected = [[int(i) for i in line.split()] for line in Path(f"{path}.out").read_text().split("\n")]
    assert len(texts) == len(expected) == 47
    with open_gguf(path) as gguf:
        tokenizer = load_tokenizer(gguf)
    prefix = " " if name == "llama-spm" else ""
    for text, ids in zip(texts, expected, strict=True):
        assert tokenizer.encode(text, add_special=False) == ids
        assert tokenizer.decode(ids) == (prefix + text if text else "")


@pytest.mark.parametrize(
    ("golden", "model"),
    [("stories260K", "data/stories260K-f32.gguf"), ("demo", "models/mixkv-demo-Q8_0.gguf")],
)
def test_golden_prompts(shared: Path, golden: str, model: str) -> None:
    with open_gguf(shared / model) as gguf:
        tokenizer = load_tokenizer(gguf)
    for case in json.loads((shared / "golden" / f"{golden}.json").read_text()):
        assert tokenizer.encode(case["prompt"]) == case["ids"]
        assert tokenizer.decode(case["greedy"]) == case["text"]


def test_shipped_model() -> None:
    with open_gguf(DEMO) as gguf:
        tokenizer = load_tokenizer(gguf)
    text = "Once upon a time, in a small house by the sea,"
    ids = [1, 4064, 1795, 678, 262, 584, 4035, 297, 262, 1350, 779, 419, 266, 2144, 4035]
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == text
    assert (tokenizer.n_vocab, tokenizer.bos_id, tokenizer.eos_id) == (4096, 1, 2)
    assert tokenizer.eog_ids == {2}
    newline = tokenizer.token_to_id("\n")
    assert newline == 3 and tokenizer.encode("\n\n", add_special=False) == [3, 3]


SPM_CASES = {
    "hello world": [287, 289, 270, 267],
    "": [],
    "  hello": [290, 287],  # the space in front makes three: one pair, and one that goes with the word
    "hello\nhello": [287, 259, 287],  # a space goes in front again after a user-defined token
    "<tool>hello": [260, 287],
    "hello<tool>rest<tool>er": [287, 261, 263, 268, 279, 273, 260, 263, 268, 272],  # the longer token wins
    "<tool><tool>r": [260, 261],
    "hell<tool": [286, 276, 273, 271, 271, 270],
    "\u00e9": [263, 198, 172],
    "\n\n ": [259, 259, 290],
    "a\u2581b": [263, 264, 263, 265],
    "<|im_end|>": [263, 276, 127, 108, 112, 98, 268, 113, 267, 127, 277],
    "<unk>": [263, 276, 120, 113, 110, 277],
}
SPM_PARSED = {
    "<|im_end|>": [262],
    "hello<|im_end|>hello": [287, 262, 287],
    "<s>hello</s>": [1, 287, 2],
    "<unk>": [0],
}
BPE_CASES = {
    "hello world": [259, 263, 264],
    "": [],
    "  hello": [32, 260],
    "hello\nhello": [259, 10, 259],
    "<tool>hello": [270, 259],
    "hello<tool>rest<tool>er": [259, 271, 101, 115, 116, 270, 101, 114],
    "<|im_end|>": [265, 105, 109, 95, 101, 110, 100, 266],
    "\u00e9": [195, 169],
}
BPE_PARSED = {"<|im_end|>": [269], "hello<|im_end|>hello": [259, 269, 259], "<|endoftext|>hello": [268, 259]}


@pytest.mark.parametrize("text", SPM_CASES)
def test_spm_ids(spm: Tokenizer, text: str) -> None:
    assert spm.encode(text, add_special=False) == SPM_CASES[text]
    assert spm.encode(text) == [1, *SPM_CASES[text]]


@pytest.mark.parametrize("text", BPE_CASES)
def test_bpe_ids(bpe: Tokenizer, text: str) -> None:
    assert bpe.encode(text) == bpe.encode(text, add_special=False) == BPE_CASES[text]


def test_user_text_becomes_a_special_token_only_when_asked(spm: Tokenizer, bpe: Tokenizer) -> None:
    for tokenizer, cases in ((spm, SPM_PARSED), (bpe, BPE_PARSED)):
        for text, ids in cases.items():
            assert tokenizer.encode(text, add_special=False, parse_special=True) == ids
            assert not any(map(tokenizer.is_control, tokenizer.encode(text, add_special=False)))


def test_flags_of_the_file_decide_what_is_added(tmp_path: Path) -> None:
    both = tokenizer_of(tmp_path, spm_metadata(add_bos_token=False, add_eos_token=True))
    assert both.encode("hello") == [287, 2]
    bare = tokenizer_of(tmp_path, spm_metadata(add_space_prefix=False))
    assert bare.encode("hello\nhello") == [1, 285, 271, 259, 285, 271]
    bpe = tokenizer_of(tmp_path, bpe_metadata(add_bos_token=True))
    assert bpe.encode("hello") == [268, 259]


def test_pre_tokenizer_decides_bos_where_the_file_is_silent(tmp_path: Path) -> None:
    assert tokenizer_of(tmp_path, bpe_metadata(pre="llama-bpe")).encode("hello") == [268, 259]
    assert tokenizer_of(tmp_path, bpe_metadata(pre="qwen2")).encode("hello") == [259]
    no_bos = tokenizer_of(tmp_path, bpe_metadata(pre="chatglm-bpe", bos_token_id=None, add_bos_token=True))
    assert no_bos.bos_id is None and no_bos.encode("hello") == [259]


def test_ids_of_special_tokens_where_the_file_is_silent(tmp_path: Path) -> None:
    """Old SPM files name no BOS: no token stood in front and the model answered nonsense. The ids are llama.cpp's."""
    names = ("bos_token_id", "eos_token_id", "unknown_token_id")
    for dropped in (names[:1], names):
        for value in (None, 0xFFFFFFFF):
            spm = tokenizer_of(tmp_path, spm_metadata(**dict.fromkeys(dropped, value)))
            assert (spm.bos_id, spm.eos_id) == (1, 2) and spm.eog_ids == {2, 262} and spm.encode("hello") == [1, 287]
    bpe = tokenizer_of(tmp_path, bpe_metadata(bos_token_id=None, eos_token_id=None, pre="llama-bpe"))
    assert (bpe.bos_id, bpe.eos_id) == (11, 11) and bpe.eog_ids == {11, 268, 269}
    assert bpe.encode("hello") == [11, 259] and not bpe.is_control(11)


def test_a_vocabulary_without_the_default_ids_has_no_such_tokens(tmp_path: Path) -> None:
    silent = dict.fromkeys(("bos_token_id", "eos_token_id", "unknown_token_id"))
    lists = {"tokens": ["a", "\u2581"], "token_type": np.ones(2, np.int32), "scores": np.zeros(2, np.float32)}
    small = tokenizer_of(tmp_path, spm_metadata(**lists, **silent))
    assert (small.bos_id, small.eos_id, small.eog_ids) == (1, None, frozenset())


def test_end_of_generation(spm: Tokenizer, bpe: Tokenizer, tmp_path: Path) -> None:
    assert spm.eog_ids == {2, 262}
    assert bpe.eog_ids == {268, 269}
    named = tokenizer_of(tmp_path, spm_metadata(eot_token_id=290))
    assert named.eog_ids == {2, 262, 290}
    for name in ("fim_pad_token_id", "fim_rep_token_id", "fim_sep_token_id", "eom_token_id"):
        assert tokenizer_of(tmp_path, spm_metadata(**{name: 290})).eog_ids == {2, 262, 290}
    for name in ("fim_pre_token_id", "fim_suf_token_id", "fim_mid_token_id", "prefix_token_id"):
        assert tokenizer_of(tmp_path, spm_metadata(**{name: 290})).eog_ids == {2, 262}
    harmony = [*spm_metadata()["tokenizer.ggml.tokens"][:-3], "<|return|>", "<|call|>", "<|end|>"]  # type: ignore[index]
    # there <|end|> closes one message of an answer, not the answer
    assert tokenizer_of(tmp_path, spm_metadata(tokens=harmony)).eog_ids == {2, 262, 288, 289}
    solar = [*harmony[:-3], "<|flush|>", "<|call|>", "<|end|>"]
    assert tokenizer_of(tmp_path, spm_metadata(tokens=solar, eot_token_id=290)).eog_ids == {2, 262, 288, 289}


def test_a_token_that_the_file_names_takes_the_place_of_one_known_by_its_text(tmp_path: Path) -> None:
    """As in llama.cpp: `<PAD>` ended generations of a model whose file names another token for padding."""
    tokens = [*spm_metadata()["tokenizer.ggml.tokens"][:-2], "<PAD>", "<MID>"]  # type: ignore[index]
    known = tokenizer_of(tmp_path, spm_metadata(tokens=tokens))
    assert known.eog_ids == {2, 262, 289} and known.is_control(289) and known.is_control(290)
    keys = {"fim_pad_token_id": 280, "fim_mid_token_id": 281}
    named = tokenizer_of(tmp_path, spm_metadata(tokens=tokens, **keys))
    assert named.eog_ids == {2, 262, 280} and not any(named.is_control(i) for i in (280, 281, 289, 290))


def test_control_looking_tokens_are_control_tokens_whatever_the_file_says(tmp_path: Path) -> None:
    types = bpe_metadata()["tokenizer.ggml.token_type"].copy()  # type: ignore[attr-defined]
    types[269] = 1  # <|im_end|> as an ordinary token
    tokenizer = tokenizer_of(tmp_path, bpe_metadata(token_type=types))
    assert tokenizer.is_control(269) and tokenizer.decode([269, 259]) == "hello"


@given(text=TEXT)
def test_spm_round_trip(spm: Tokenizer, text: str) -> None:
    """Up to the space in front (here also after each user-defined token) and U+2581, which means a space."""
    ids = spm.encode(text)
    expected = "".join(" " + part if part not in ("", "\n") else part for part in _split_lines(text))
    assert spm.decode(ids) == expected.replace("\u2581", " ")


@given(text=TEXT)
def test_bpe_round_trip(bpe: Tokenizer, text: str) -> None:
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text
    assert b"".join(bpe.piece(i) for i in ids) == text.encode()


@given(parts=st.lists(st.sampled_from(["<tool>", "<tool>r", "\n", "<|im_end|>", "hello", "r", " ", "<", "\u00e9"])))
def test_round_trip_with_special_tokens(bpe: Tokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    for parse_special in (False, True):
        assert bpe.decode(bpe.encode(text, parse_special=parse_special), skip_special=False) == text


@pytest.mark.parametrize("text", ["", "he", " hello", "<tool>r he", "<|im_end|>", "\u00e9</s>"])
def test_text_that_goes_on_is_that_text_and_no_more(spm: Tokenizer, bpe: Tokenizer, text: str) -> None:
    """Put behind other text, a BOS, a space in front, or a control token made of a user's text would change it."""
    for tokenizer in (spm, bpe):
        ids = tokenizer.encode_on(text)
        assert tokenizer.decode(ids) == text and not any(map(tokenizer.is_control, ids))


def test_lone_surrogates_are_replaced(spm: Tokenizer, bpe: Tokenizer) -> None:
    """Python's command line and JSON can hold half a surrogate pair, which has no UTF-8 form."""
    assert bpe.decode(bpe.encode("a\ud800b")) == "a\ufffdb"
    assert spm.decode(spm.encode("a\ud800b")) == " a\ufffdb"
    assert bpe.decode(bpe.encode("\ud83d\ude00")) == "\U0001f600"


def test_what_tokens_print(spm: Tokenizer, bpe: Tokenizer) -> None:
    shown = {0: b"<unk>", 1: b"<s>", 3: b"\x00", 258: b"\xff", 259: b"\n", 285: b"hell", 287: b" hello"}
    assert {i: spm.piece(i) for i in shown} == shown
    shown = {0: b"\x00", 10: b"\n", 255: b"\xff", 259: b"hello", 260: b" hello", 269: b"<|im_end|>", 270: b"<tool>"}
    assert {i: bpe.piece(i) for i in shown} == shown
    assert spm.pieces == [spm.piece(i) for i in range(spm.n_vocab)]
    assert spm.decode([1, 287, 2]) == " hello" and spm.decode([1, 287, 2], skip_special=False) == "<s> hello</s>"
    assert (spm.token_to_id("<|im_end|>"), spm.token_to_id("no such token")) == (262, None)


@pytest.mark.parametrize("token_id", [-1, 291, 2**31])
def test_ids_outside_the_vocabulary(spm: Tokenizer, token_id: int) -> None:
    for use in (spm.piece, lambda i: spm.decode([i])):
        with pytest.raises(InputError, match=f"token id {token_id} is outside the vocabulary \\(0 .. 290\\)"):
            use(token_id)


def _split_lines(text: str) -> list[str]:
    parts = [piece for line in text.split("\n") for piece in (line, "\n")]
    return parts[:-1]
