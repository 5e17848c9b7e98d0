"""An LLM over HTTP, to clients of OpenAI's, Anthropic's and llama-server's interfaces (docs/serving.md).

Know before you change this room: it translates. What a request means is said by the engine's own dataclasses, whose
checks are the checks of a request; nothing about generating is decided here. The event loop never computes: each choice
of an answer is a generation on a thread of its own (work.py), and as many run at once as the LLM has sequences. Nothing
of prompts or answers, and no key, is written anywhere.
"""
