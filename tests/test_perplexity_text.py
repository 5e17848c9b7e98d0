"""Text files as windows: the same ids in pieces as in one go, clear errors, memory that does not grow."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gguf_tools import refusal
from prose import PROSE

from mixkv.engine.evaluate import windows
from mixkv.engine.evaluate.windows import TextWindows, text_pieces, token_pieces
from mixkv.engine.load import demo_model
from mixkv.engine.tokenizer import Tokenizer, load_tokenizer
from mixkv.kernels.errors import InputError
from mixkv.models.gguf import open_gguf

TEXTS = {
    "paragraphs": PROSE,
    "line ends of Windows": PROSE.replace("\n", "\r\n"),
    "one long line": PROSE.replace("\n", " "),
    "blank lines, indents, spaces": "def f(x):\n    return  x\n\n\n" * 30 + "end.\n\n  \n\tThe end\n",
    "several scripts": "Äpfel und Öl, naïve café — déjà vu\n안녕하세요\n日本語の文章です\nfin 🙂🙂\n" * 8,
}


def tokenizers(shared: Path | None) -> list[Tokenizer]:
    files = [demo_model()]
    if shared is not None:
        files += [shared / "data" / "vocab" / f"ggml-vocab-{name}.gguf" for name in ("llama-bpe", "qwen2", "gpt-2")]
    found = []
    for file in files:
        with open_gguf(file) as gguf:
            found.append(load_tokenizer(gguf))
    return found


def check_pieces(path: Path, text: str, found: list[Tokenizer]) -> None:
    path.write_bytes(text.encode())
    assert "".join(text_pieces(path)) == text
    for tokenizer in found:
        assert [i for ids in token_pieces(path, tokenizer) for i in ids] == tokenizer.encode(text, add_special=False)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("chars", [40, 333])
def test_pieces_have_the_ids_of_the_whole(
    name: str, chars: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "PIECE_CHARS", chars)
    check_pieces(tmp_path / "text", TEXTS[name], tokenizers(None))
    assert len(list(text_pieces(tmp_path / "text"))) > 2  # the text really was cut


def test_pieces_with_other_tokenizers(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tokenizers(shared)
    for chars in (40, 333):
        monkeypatch.setattr(windows, "PIECE_CHARS", chars)
        for text in TEXTS.values():
            check_pieces(tmp_path / "text", text, found)


def test_a_text_without_any_gap_is_cut_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "PIECE_CHARS", 50)
    (tmp_path / "text").write_text("x" * 1001)
    assert [len(piece) for piece in text_pieces(tmp_path / "text")] == [200] * 5 + [1]


def test_windows_begin_with_bos_and_leave_the_rest_out(tmp_path: Path) -> None:
    (tokenizer,) = tokenizers(None)
    path = tmp_path / "text"
    path.write_text(PROSE)
    ids = tokenizer.encode(PROSE)
    assert ids[0] == tokenizer.bos_id
    found = TextWindows.of(path, tokenizer, 100)
    assert len(found) == len(ids) // 100 >= 5
    for i, window in enumerate(found):
        assert window.dtype == np.int32 and window[0] == tokenizer.bos_id
        assert window[1:].tolist() == ids[100 * i + 1 : 100 * i + 100]
    few = TextWindows.of(path, tokenizer, 100, most=2)
    assert [w.tolist() for w in few] == [w.tolist() for w in found][:2]
    assert few.digest != found.digest


def test_a_text_shorter_than_a_window_says_both_lengths(tmp_path: Path) -> None:
    (tokenizer,) = tokenizers(None)
    path = tmp_path / "short.txt"
    path.write_text("It was a dark night.")
    n = len(tokenizer.encode("It was a dark night."))
    assert TextWindows.of(path, tokenizer, n).count == 1
    message = refusal(InputError, lambda: TextWindows.of(path, tokenizer, n + 1))
    assert "short.txt" in message and f"{n} tokens" in message and f"window of {n + 1}" in message
    path.write_text("")
    assert "fewer than one window of 8" in refusal(InputError, lambda: TextWindows.of(path, tokenizer, 8))


def test_unreadable_texts(tmp_path: Path) -> None:
    (tokenizer,) = tokenizers(None)
    (tmp_path / "binary").write_bytes(b"plain text and then \xff\xfe\x00")
    for path, word in ((tmp_path / "binary", "UTF-8"), (tmp_path / "none", "No such file"), (tmp_path, "directory")):
        assert word in refusal(InputError, lambda path=path: TextWindows.of(path, tokenizer, 4))


def test_memory_does_not_grow_with_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "PIECE_CHARS", 4096)  # far less than the text, as for a long one
    (tokenizer,) = tokenizers(None)
    path = tmp_path / "text"

    def peak(copies: int) -> int:
        path.write_text(PROSE * copies)
        tokenizer.encode(PROSE)
        tracemalloc.start()
        count = sum(1 for _ in TextWindows.of(path, tokenizer, 512))
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count >= copies
        return peak_bytes

    assert peak(60) < 1.2 * peak(10)
