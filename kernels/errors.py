"""Every exception that mixkv raises on purpose. Ground floor: imports nothing.

Each message says what was wrong, where, and what to do. `assert` is for our own bugs only.
"""


class MixkvError(Exception):
    """Base of all errors of this package; the command line prints it in one line and exits with 1."""


class ConfigError(MixkvError, ValueError):
    """A setting, flag or keyword has a value that cannot be used; the message names the bad value."""


class GGUFError(MixkvError, ValueError):
    """A model file is damaged, unsupported or contradicts itself."""


class HubError(MixkvError):
    """A model of the hub cannot be had: no such name, no network, no room for it, or it arrived damaged."""


class TokenizerError(MixkvError, ValueError):
    """The vocabulary of a model file cannot be used, or text cannot be encoded with it."""


class InputError(MixkvError, ValueError):
    """A prompt or token id that cannot be run: empty, out of range, of the wrong type."""


class TemplateError(MixkvError, ValueError):
    """A chat template cannot be read, fails, takes too much, or refuses the messages it was given."""


class ContextFullError(MixkvError):
    """The sequence does not fit into the context; nothing was written to the cache."""


class PromptTooLongError(InputError, ContextFullError):
    """A prompt has more tokens (`n_prompt_tokens`) than the context holds (`n_ctx`)."""

    def __init__(self, n_prompt_tokens: int, n_ctx: int) -> None:
        super().__init__(
            f"the prompt has {n_prompt_tokens} tokens, but the context holds {n_ctx}: "
            "load with a larger n_ctx, or shorten the prompt"
        )
        self.n_prompt_tokens, self.n_ctx = n_prompt_tokens, n_ctx

    def __reduce__(self) -> tuple[type, tuple[int, int]]:
        return PromptTooLongError, (self.n_prompt_tokens, self.n_ctx)


class SessionError(MixkvError, ValueError):
    """A session file is damaged or belongs to another model or cache; nothing was restored."""


class OutOfMemoryError(MixkvError, MemoryError):
    """There is not the memory: for the plan (weights + cache + scratch), or in the middle of a kernel.

    Catch MemoryError to have NumPy's own as well.
    """


class NoMatch(MixkvError):
    """A reply's text is not, or no longer, what a format of calls looks like; caught where replies are read."""


class MixkvWarning(UserWarning):
    """Something in a file was replaced by a default; results may differ from what the file's maker meant."""
