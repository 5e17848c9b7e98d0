"""Constrained output: JSON schema, regular expression, or grammar (Lark, GBNF) says which tokens may come next.

Know before you change this room: `llguidance` (extra `mixkv[grammar]`) parses; here is what it needs, and what is made
of its masks. `source.py` turns settings into its grammar, `gbnf.py` and `lark.py` llama.cpp's notation into Lark,
`vocabulary.py` builds its view of a vocabulary once for each LLM, `constraint.py` is the `Processor` of one generation.
It is imported when a generation is constrained, not before.
"""
