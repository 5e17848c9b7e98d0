"""What single families do otherwise (Gemma's user-defined tokens, Phi-3's white space), and what unknown kinds get."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from gguf_tools import write_gguf
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_vocabs import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, bpe_metadata, spm_metadata, tokenizer_of

from mixkv.engine.tokenizer import Tokenizer, load_tokenizer
from mixkv.engine.tokenizer.spm import SPMTokenizer
from mixkv.kernels.errors import MixkvWarning, TokenizerError
from mixkv.models.gguf import open_gguf

GEMMA_USER_DEFINED = ["[multimodal]", *("\n" * i for i in range(1, 6)), "\u2581\u2581", "\u2581" * 3, "\u2581" * 4,
                      "\t", "\t\t", "<h1>", "</h1>", "<s>", "</s>"]  # fmt: skip
GEMMA_CONTROL = ["<start_of_turn>", "<end_of_turn>"]
Trained = tuple[sentencepiece.SentencePieceProcessor, Tokenizer]


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A vocabulary trained by sentencepiece with Gemma's settings, and what we make of it as a file has it."""
    text = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()), model_writer=model, model_type="bpe", vocab_size=900,
        byte_fallback=True, split_digits=True, add_dummy_prefix=False, remove_extra_whitespaces=False,
        normalization_rule_name="identity", pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>",
        eos_piece="<eos>", bos_piece="<bos>", user_defined_symbols=GEMMA_USER_DEFINED,
        control_symbols=GEMMA_CONTROL, minloglevel=2, num_threads=1,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    tokens, types = [], []
    for i in range(len(processor)):
        piece = processor.id_to_piece(i)
        user_defined = piece in GEMMA_USER_DEFINED
        tokens.append(piece.replace("\u2581", " ") if user_defined else piece)
        types.append(
            CONTROL if processor.is_control(i) else UNKNOWN if processor.is_unknown(i) else BYTE if processor.is_byte(i)
            else USER_DEFINED if user_defined else NORMAL
        )  # fmt: skip
    scores = np.array([processor.get_score(i) for i in range(len(processor))], np.float32)
    metadata = spm_metadata(
        tokens=tokens, token_type=np.array(types, np.int32), scores=scores, bos_token_id=2, eos_token_id=1,
        unknown_token_id=3, add_space_prefix=False,
    )  # fmt: skip
    return processor, tokenizer_of(tmp_path_factory.mktemp("gemma"), metadata)


PIECES = ["the", " the", "cache", " ", "  ", "     ", "\n", "\n\n\n", "\n" * 7, "\t\t\t", "<h1>", "</s>", "<s", "12",
          "4-bit", "\u00e9", "\u4e2d", "\U0001f600", "<0x41>", "<end_of_turn>", "\r\n", "x"]  # fmt: skip


@given(text=st.lists(st.sampled_from(PIECES), max_size=20).map("".join) | st.text(max_size=30))
def test_gemma_encodes_like_sentencepiece(gemma: Trained, text: str) -> None:
    """Runs of spaces and line ends are user-defined tokens, and no space is put in front of anything."""
    processor, tokenizer = gemma
    text = text.replace("\u2581", "").replace("\0", "")
    ids = tokenizer.encode(text, add_special=False)
    assert ids == processor.encode(text) and tokenizer.decode(ids) == text
    assert tokenizer.encode(text) == [2, *ids]


def test_pieces_of_any_length_reach_sentencepiece_with_their_scores(tmp_path: Path) -> None:
    """Most pieces are written by a short way, which has room for lengths below 128 alone."""
    base = spm_metadata()
    tokens = [*base["tokenizer.ggml.tokens"], *("x" * n for n in range(1, 300)), "y" * 1000]  # type: ignore[misc]
    added = len(tokens) - 291
    types = np.append(base["tokenizer.ggml.token_type"], [NORMAL] * added).astype(np.int32)  # type: ignore[call-overload]
    scores = -np.arange(len(tokens), dtype=np.float32) / 7
    tokenizer = tokenizer_of(tmp_path, spm_metadata(tokens=tokens, token_type=types, scores=scores))
    assert isinstance(tokenizer, SPMTokenizer)
    for i in range(291, len(tokens)):
        assert tokenizer._processor.IdToPiece(i) == tokens[i] and tokenizer._processor.GetScore(i) == scores[i]
    assert tokenizer.decode(tokenizer.encode("x" * 1000)) == " " + "x" * 1000


def test_gemma_parses_turns(gemma: Trained) -> None:
    _, tokenizer = gemma
    start, end = map(tokenizer.token_to_id, GEMMA_CONTROL)
    ids = tokenizer.encode("<start_of_turn>user\nthe cache<end_of_turn>\n", parse_special=True)
    newline, user, words = (tokenizer.encode(text, add_special=False) for text in ("\n", "user", "the cache"))
    assert ids == [2, start, *user, *newline, *words, end, *newline]
    assert tokenizer.eog_ids == {1, end}


def test_a_tag_of_html_does_not_end_an_answer(gemma: Trained, tmp_path: Path) -> None:
    """Gemma's vocabulary holds `</s>` beside `</h1>`: a struck-out word ended the answer, its tag was not printed."""
    _, tokenizer = gemma
    tag = tokenizer.token_to_id("</s>")
    assert tag is not None and tag not in tokenizer.eog_ids and not tokenizer.is_control(tag)
    assert tokenizer.decode(tokenizer.encode("<s>x</s>y")) == "<s>x</s>y"
    types = spm_metadata()["tokenizer.ggml.token_type"].copy()  # type: ignore[attr-defined]
    types[2] = USER_DEFINED
    named = tokenizer_of(tmp_path, spm_metadata(token_type=types))  # there it is EOS
    assert 2 in named.eog_ids and named.is_control(2)
    tokens = [*spm_metadata()["tokenizer.ggml.tokens"][:-1], "<|tool_response>"]  # type: ignore[index]
    types[2] = NORMAL
    gemma4 = tokenizer_of(tmp_path, spm_metadata(tokens=tokens, token_type=types, eos_token_id=262))
    assert gemma4.eog_ids == {262, 290} and not gemma4.is_control(2)


def phi3(folder: Path, **changes: object) -> Tokenizer:
    metadata = spm_metadata(add_space_prefix=False, **changes)
    with open_gguf(write_gguf(folder / "v.gguf", metadata | {"general.architecture": "phi3"}, {})) as gguf:
        return load_tokenizer(gguf)


def test_phi3_takes_white_space_behind_special_tokens_away(tmp_path: Path) -> None:
    """Its template writes a line end behind every role, which the model never saw: `rstrip` of its tokens."""
    tokenizer = phi3(tmp_path)
    hello = tokenizer.encode("hello", add_special=False)
    for text in ("<|im_end|>hello", "<|im_end|>\nhello", "<|im_end|> \t\r\n hello", "<|im_end|>\n"):
        expected = hello if "hello" in text else []
        assert tokenizer.encode(text, add_special=False, parse_special=True) == [262, *expected]
    assert tokenizer.encode("hello</s> <|im_end|>\n", parse_special=True) == [1, *hello, 2, 262]
    assert tokenizer.encode("<s> hello", parse_special=True)[:2] == [1, 1]  # `<s>` keeps it
    assert tokenizer.encode("<s> hello", parse_special=True)[2:] == tokenizer.encode(" hello", add_special=False)
    assert tokenizer.encode("<tool> hello", add_special=False) == [260, *hello]
    text = "<|im_end|>\nhello"
    assert tokenizer.decode(tokenizer.encode(text)) == text  # a user's text is text


def test_phi4_and_others_keep_it(tmp_path: Path) -> None:
    plain = tokenizer_of(tmp_path, spm_metadata(add_space_prefix=False))
    assert plain.encode("<|im_end|> hello", parse_special=True)[2:] == plain.encode(" hello", add_special=False)
    metadata = bpe_metadata() | {"general.architecture": "phi3"}
    phi4 = tokenizer_of(tmp_path, metadata)
    assert phi4.encode("<|im_end|> hello", parse_special=True) == [269, *phi4.encode(" hello")]


def test_glm5_has_no_bos_by_default(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, bpe_metadata(pre="glm5", bos_token_id=None, add_bos_token=True))
    assert tokenizer.bos_id is None and tokenizer.encode("hello") == [259]


@pytest.mark.parametrize(
    ("model", "kind"),
    [("t5", "Unigram (UGM)"), ("bert", "WordPiece (WPM)"), ("rwkv", "RWKV"), ("plamo2", "PLaMo 2"),
     ("hybriddna", "DNA"), ("whitespace", "white space"), ("no_vocab", "without a vocabulary"), ("tiktoken", "")],
)  # fmt: skip
def test_other_kinds_are_refused_by_name(tmp_path: Path, model: str, kind: str) -> None:
    """`unknown tokenizer 't5'` did not say that this is another method and no damage."""
    with pytest.raises(TokenizerError) as caught:
        tokenizer_of(tmp_path, spm_metadata(model=model))
    message = str(caught.value)
    assert message.startswith(f"unknown tokenizer {model!r} (tokenizer.ggml.model") and kind in message
    assert "llama (SPM), gpt2 (BPE) and gemma4" in message and "use a model with" in message


@pytest.mark.parametrize(
    ("pre", "perhaps"), [("qwen3.5", "perhaps 'qwen35'"), ("gpt4o", "perhaps 'gpt-4o'"), ("zzz", "docs/metadata.md")]
)
def test_the_warning_for_an_unknown_pre_tokenizer_says_what_to_do(tmp_path: Path, pre: str, perhaps: str) -> None:
    """It said only that answers may be worse."""
    with pytest.warns(MixkvWarning, match="override tokenizer.ggml.pre") as caught:
        tokenizer_of(tmp_path, bpe_metadata(pre=pre))
    message = str(caught[0].message)
    assert len(caught) == 1 and perhaps in message and "convert the model again" in message and len(message) < 500
