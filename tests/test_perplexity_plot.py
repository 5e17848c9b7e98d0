"""The picture of a perplexity run: drawn where matplotlib is, a clear error where it is not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from gguf_tools import refusal

from mixkv.engine.evaluate.divergence import Quality
from mixkv.engine.evaluate.perplexity import PerplexityRow
from mixkv.engine.evaluate.plot import check_plot, plot_rows
from mixkv.kernels.errors import ConfigError


def row(kv: str, kld: float, mib: float) -> PerplexityRow:
    quality = Quality(900, 40.0, 1.0, 1.0, 0.001, kld, kld / 9, kld / 2, kld * 8, kld * 30, 0.99)
    depth = tuple((1024.0 + 64 * i, kld * (1 + i / 16)) for i in range(16))
    return PerplexityRow(kv, 2048, 3, quality, int(mib * 2**20), int(mib * 2**20), 5.0, 900.0, depth)


ROWS = [row("f16", 0, 8), row("q8_0", 5e-6, 4.25), row("mixed:hot=64,sink=4", 1e-4, 2.5), row("q4_0", 1.2e-3, 2.25)]


def test_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib, an extra, is not installed")
    from matplotlib import image

    path = tmp_path / "quality.png"
    plot_rows(path, ROWS, "a test")
    pixels = image.imread(path)[..., :3]
    assert pixels.shape[0] > 400 and pixels.shape[1] > 1000
    colours = {tuple(pixel) for pixel in (pixels[::1, ::1].reshape(-1, 3) * 255).round().astype(int).tolist()}
    assert {(0, 114, 178), (213, 94, 0), (0, 158, 115)} <= colours  # one for each cache but f16, which is no point
    assert (204, 121, 167) not in colours


def test_nothing_but_exact_caches(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib, an extra, is not installed")
    plot_rows(tmp_path / "empty.svg", ROWS[:1], "nothing to see")
    assert "<svg" in (tmp_path / "empty.svg").read_text()


def test_refused_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ".png" in refusal(ConfigError, lambda: check_plot(tmp_path / "picture.jpeg2"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "mixkv[plot]" in refusal(ConfigError, lambda: check_plot(tmp_path / "picture.png"))


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib, an extra, is not installed")
    with pytest.raises(ConfigError, match="nowhere"):
        plot_rows(tmp_path / "nowhere" / "picture.png", ROWS, "a test")
