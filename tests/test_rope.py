"""RoPE's frequencies as numbers, worked out by hand from the papers' formulas, and as functions of a file's keys.

A small rotation makes the numbers round: 8 dimensions and base 10,000 give pairs the frequencies 1, 0.1, 0.01, 0.001.
Over 64 positions they turn 10.19, 1.019, 0.1019 and 0.0102 times (64 f / 2 pi), which is what YaRN asks.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from float_forward import spec_of
from tiny_models import Tiny

from mixkv.models.gguf import open_gguf
from mixkv.models.registry import read_config
from mixkv.models.rope import RopeConfig

PLAIN = RopeConfig(n_rot=8)
LINEAR = RopeConfig(n_rot=8, scaling="linear", factor=4.0, n_ctx_orig=64)
YARN = RopeConfig(n_rot=8, scaling="yarn", factor=4.0, n_ctx_orig=64)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (PLAIN, [1, 0.1, 0.01, 0.001]),
        (replace(PLAIN, freq_base=16.0), [1, 0.5, 0.25, 0.125]),
        (LINEAR, [0.25, 0.025, 0.0025, 0.00025]),
        # 32 turns: before the first pair, so the line starts there; one turn: at 1.008, so it ends at pair 2
        (YARN, [1, (0.1 + 0.025) / 2, 0.0025, 0.00025]),
        # 0.1 turns: at 2.008, the line ends at pair 3, a third at a time
        (replace(YARN, beta_slow=0.1), [1, 0.1 - 0.075 / 3, 0.01 - 0.0075 * 2 / 3, 0.00025]),
        # 1.01 turns: at 1.004, so the line starts at pair 1, and ends at 2
        (replace(YARN, beta_fast=1.01), [1, 0.1, 0.0025, 0.00025]),
        # start and end in the same place: a step between pairs 0 and 1
        (replace(YARN, beta_slow=12.0), [1, 0.025, 0.0025, 0.00025]),
        # half of what is left alone is interpolated as well
        (replace(YARN, ext_factor=0.5), [0.625, 0.1 / 4 + 0.025 * 3 / 4, 0.0025, 0.00025]),
        # so long a context that even the slowest pair turns more than 32 times: nothing is interpolated
        (replace(YARN, n_ctx_orig=1 << 20), [1, 0.1, 0.01, 0.001]),
        # one turn lies past pair 7, the last there could be: the line, from 4.58 down to 4, ends at 7, not beyond
        (replace(YARN, n_rot=16, freq_base=16.0, n_ctx_orig=1024),
         [16.0 ** (-i / 8) * (1 - 0.75 * min(max((i - 4) / 11, 0), 1)) for i in range(8)]),
    ],
)  # fmt: skip
def test_frequencies_worked_out_by_hand(config: RopeConfig, wanted: list[float]) -> None:
    """Frequencies that are a little wrong garble a text only far into it, where nobody compares logits."""
    got = config.inv_freq()
    assert got.dtype == np.float32 and got.shape == (config.n_rot // 2,)
    np.testing.assert_allclose(got, wanted, rtol=2e-7)


def test_factors_of_a_file_divide_frequencies_before_any_scaling() -> None:
    """`rope_freqs.weight` is a divisor (Llama 3.1): multiplied, or left out of a scaling, the text falls apart."""
    factors = np.array([1, 2, 4, 8], np.float32)
    np.testing.assert_allclose(PLAIN.inv_freq(factors), [1, 0.05, 0.0025, 0.000125], rtol=2e-7)
    np.testing.assert_allclose(LINEAR.inv_freq(factors), [0.25, 0.0125, 0.000625, 0.00003125], rtol=2e-7)
    np.testing.assert_allclose(YARN.inv_freq(factors), [1, 0.03125, 0.000625, 0.00003125], rtol=2e-7)


def test_the_factor_on_cos_and_sin() -> None:
    """YaRN's temperature is 1 + 0.1 ln factor, natural logarithm; a file's attn_factor multiplies it."""
    assert PLAIN.magnitude == LINEAR.magnitude == 1
    assert YARN.magnitude == pytest.approx(1.13862943611)
    assert replace(YARN, factor=math.e, attn_factor=0.5).magnitude == pytest.approx(0.55)
    assert replace(LINEAR, attn_factor=0.5).magnitude == 0.5


KEYS: dict[str, tuple[dict[str, object], RopeConfig]] = {
    "none": ({}, RopeConfig(32, n_ctx_orig=512)),
    "base, partial": ({"freq_base": 5e5, "dimension_count": 24}, RopeConfig(24, 5e5, n_ctx_orig=512)),
    "linear": (
        {"scaling.type": "linear", "scaling.factor": 4.0},
        RopeConfig(32, scaling="linear", factor=4.0, n_ctx_orig=512),
    ),
    "scale_linear": ({"scale_linear": 4.0}, RopeConfig(32, scaling="linear", factor=4.0, n_ctx_orig=512)),
    "both": (
        {"scale_linear": 4.0, "scaling.type": "linear", "scaling.factor": 2.0},
        RopeConfig(32, scaling="linear", factor=2.0, n_ctx_orig=512),
    ),
    "none in words": ({"scaling.type": "none", "scaling.factor": 4.0}, RopeConfig(32, n_ctx_orig=512)),
    "yarn": (
        {"scaling.type": "yarn", "scaling.factor": 8.0},
        RopeConfig(32, scaling="yarn", factor=8.0, n_ctx_orig=512),
    ),
    "all of yarn": (
        {
            "scaling.type": "yarn", "scaling.factor": 8.0, "scaling.original_context_length": 64,
            "scaling.attn_factor": 0.75, "scaling.yarn_beta_fast": 16.0, "scaling.yarn_beta_slow": 0.5,
            "scaling.yarn_ext_factor": 0.25,
        },
        RopeConfig(32, 10000.0, "yarn", 8.0, 64, 0.75, 16.0, 0.5, 0.25),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KEYS)
def test_what_a_file_says_is_what_turns(tmp_path: Path, name: str) -> None:
    """A key read under a wrong name falls back to its default without a word; the frequencies are the oracle's."""
    keys, wanted = KEYS[name]
    path = Tiny(rope=keys).write(tmp_path / "model.gguf")
    config = read_config(open_gguf(path)).attentions[0].rope
    assert config is not None
    got, same = config.inv_freq(), wanted.inv_freq()
    oracle = spec_of(path).layers[0].rotation
    np.testing.assert_array_equal(got, same)
    assert config.magnitude == wanted.magnitude
    np.testing.assert_allclose(got, oracle.freq, rtol=1e-6)
    assert config.magnitude == pytest.approx(oracle.magnitude)
