"""Measuring what a cache costs in quality: perplexity and KL divergence, greedy divergence, recall.

Know before you change this room: everything is measured against the plain FP16 cache of the same model, on the same
tokens. `divergence.py` is the arithmetic, `windows.py` the text, `variants.py` the list of caches, `subject.py` the
model, `perplexity.py` the measurement of a text, `resume.py` what survives a kill, `generation.py` and `recall.py`
the checks on generated text, `plot.py` the pictures.
"""

from mixkv.engine.evaluate.generation import DivergenceRow, greedy_divergence
from mixkv.engine.evaluate.perplexity import PerplexityRow, PerplexityRun
from mixkv.engine.evaluate.recall import RecallRow, needle_recall
from mixkv.engine.evaluate.subject import load_subject
from mixkv.engine.evaluate.variants import Variant, parse_variants
from mixkv.engine.evaluate.windows import TextWindows

__all__ = [
    "DivergenceRow",
    "PerplexityRow",
    "PerplexityRun",
    "RecallRow",
    "TextWindows",
    "Variant",
    "greedy_divergence",
    "load_subject",
    "needle_recall",
    "parse_variants",
]
