"""Microsoft's Phi: fused projections, partial rotation."""

from __future__ import annotations

from mixkv.kernels.parts import Activation
from mixkv.models.decoder import Decoder


class Phi2(Decoder):
    """Phi-1, 1.5, 2: LayerNorm, attention and feed-forward side by side, biases everywhere."""

    architecture = "phi2"
    models = "Phi-1.5, Phi-2"
    features = "LayerNorm, parallel blocks, biases, GELU, partial rotation"
    norm = "layer"
    norms = "parallel"
    activation = Activation("gelu")
    gated = False


class Phi3(Decoder):
    """Phi-3, 3.5, 4 and mini: long and short rotation factors. The window that old files name is not used: llama.cpp
    does not either, and the models were checked without it."""

    architecture = "phi3"
    models = "Phi-3, Phi-3.5, Phi-4, Phi-4-mini"
    features = "fused projections, rotation factors by context (LongRoPE), partial rotation"


FAMILIES = (Phi3, Phi2)
