"""`mixkv chat`: plain turns, "User: ..." and "Assistant:", on one growing sequence of tokens.

Know before you change this room: a turn's tokens go behind those of the answer before it, just as they were sampled,
so that the cache holds all but the new turn. Text is tokenized again only where an answer was cut within a token.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from mixkv.cli import settings
from mixkv.cli.accepted import AcceptedFlags, RefusedFlags, notes, refuse
from mixkv.cli.flags import with_flags
from mixkv.cli.grammar_options import GrammarFlags
from mixkv.cli.machine import MachineFlags
from mixkv.cli.options import CacheFlags, ModelFlags, OutputFlags, PromptFlags, TurnFlags
from mixkv.cli.overrides import OverrideFlags
from mixkv.cli.sampling_options import ChainFlags, SamplingFlags
from mixkv.cli.session import Opening, open_llm, show_statistics
from mixkv.cli.terminal import DONE, Report, Terminal, fail, harmless
from mixkv.cli.text import STDIN, own_prompt, with_system
from mixkv.engine.sampling import SamplingParams
from mixkv.kernels.errors import ConfigError, InputError, MixkvError

if TYPE_CHECKING:
    from mixkv.engine.generation import Generation
    from mixkv.engine.llm import LLM

USER, ASSISTANT = "User:", "Assistant:"
MARK = "> "


@with_flags
def chat(
    model: ModelFlags, prompt: PromptFlags, turns: TurnFlags, cache: CacheFlags, sampling: SamplingFlags,
    chain: ChainFlags, grammar: GrammarFlags, output: OutputFlags, machine: MachineFlags, changes: OverrideFlags,
    accepted: AcceptedFlags, refused: RefusedFlags,
) -> int:  # fmt: skip
    """Talk to a model in plain turns; -p or -f is the first one. Answers go to stdout and nothing else does.

    Ctrl-C stops an answer, Ctrl-D or /exit leaves, /clear forgets what was said.
    """
    refuse(refused)
    settings.check_output(output)
    params = settings.sampling_params(
        sampling, cache, escape=prompt.escape, chain=chain, special=output.special, grammar=grammar
    )
    opening = Opening(model, changes, machine, settings.cache_config(cache))
    terminal = Terminal(quiet=output.quiet, verbose=output.verbose, perf=output.perf)
    for note in notes(accepted, model):
        terminal.note(note)
    return converse(prompt, turns, opening, params, terminal)


def converse(
    prompt: PromptFlags, turns: TurnFlags, opening: Opening, params: SamplingParams, terminal: Terminal
) -> int:
    """Read turns until the end, or one, and answer each."""
    if prompt.file == STDIN:
        raise ConfigError("-f - is the standard input, which a chat reads its turns from: leave it out")
    first = own_prompt(prompt)
    llm = open_llm(opening, terminal)
    talk = Conversation(llm, with_system(prompt, ""), params, parse_special=prompt.parse_special is True)
    for turn in _turns(first):
        if turn == "/clear":
            talk.clear()
            continue
        if not turn.strip():
            continue
        try:
            _answer(talk, turn, terminal)
        except ConfigError:  # not of this turn: the flags do not fit the model
            raise
        except MixkvError as error:  # this turn is lost, what was said before is not
            if turns.single_turn:
                raise
            fail(error)
        if turns.single_turn:
            break
    if talk.last is not None:
        show_statistics(talk.last.stats, llm, terminal)
    return DONE


def _answer(talk: Conversation, turn: str, terminal: Terminal) -> None:
    """Print the answer as it comes. Ctrl-C ends it, and it counts as said so far."""
    at_terminal, begun = sys.stdout.isatty(), False
    pieces: Generator[str, None, None] | None = None
    try:
        with terminal.progress("reading") as report:
            pieces = talk.ask(turn, report)
            text = next(pieces)
        while True:
            text = text if begun else text.lstrip()  # the model's own space after the colon
            begun = begun or bool(text)
            sys.stdout.write(harmless(text) if at_terminal else text)
            sys.stdout.flush()
            text = next(pieces)
    except (StopIteration, KeyboardInterrupt):
        if pieces is not None:
            pieces.close()
    except MixkvError:
        if begun:
            sys.stdout.write("\n")
            sys.stdout.flush()
        raise
    sys.stdout.write("\n")
    sys.stdout.flush()


def _turns(first: str | None) -> Iterator[str]:
    """The user's turns, to Ctrl-D, the end of the pipe or /exit."""
    if first:
        yield first
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        import readline  # noqa: F401  # gives input() its line editing
    while True:
        try:
            turn = _line(at_terminal)
        except KeyboardInterrupt:
            if not at_terminal:
                raise
            print("\n(Ctrl-D or /exit leaves)", file=sys.stderr)
            continue
        if turn is None or turn.strip() in ("/exit", "/quit"):
            return
        yield turn


def _line(at_terminal: bool) -> str | None:
    if at_terminal and sys.stdout.isatty():
        try:
            return input(MARK)
        except EOFError:
            print()
            return None
    if at_terminal:  # the answers go elsewhere, and so must not the mark
        print(MARK, end="", file=sys.stderr, flush=True)
    line = sys.stdin.buffer.readline()
    return line.decode("utf-8", "replace").rstrip("\r\n") if line else None


class Conversation:
    """The tokens of what was said. `last` is the generation of the newest answer."""

    def __init__(self, llm: LLM, system: str, params: SamplingParams, *, parse_special: bool) -> None:
        self.llm, self.system, self.parse_special = llm, system, parse_special
        self.params = replace(params, stop=(*params.stop, f"\n{USER}"))
        self.last: Generation | None = None
        self.clear()

    def clear(self) -> None:
        """Forget everything but the system prompt."""
        self.ids: list[int] = []
        self._rest = ""  # text of the last answer whose tokens were not kept

    def ask(self, turn: str, progress: Report | None = None) -> Generator[str, None, None]:
        """The answer in pieces. MixkvError, and nothing said, if it fails: the turn no longer fits, for example."""
        text = f"{USER} {turn}\n{ASSISTANT}"
        ids = self.ids + self._continuation(f"{self._rest}\n{text}") if self.ids else self._opening(text)
        if len(ids) >= self.llm.n_ctx:
            raise InputError(
                f"the conversation would have {len(ids)} tokens, but the context holds {self.llm.n_ctx}: "
                "/clear starts over, a larger -c holds more"
            )
        generation = self.llm.stream(ids, params=self.params, progress=progress)
        try:
            for chunk in generation:
                yield chunk.text
        except (GeneratorExit, KeyboardInterrupt):  # Ctrl-C: what was said so far counts
            self._keep(ids, generation)
            raise
        self._keep(ids, generation)

    def _opening(self, text: str) -> list[int]:
        return self.llm.tokenizer.encode(self.system + text, add_eos=False, parse_special=self.parse_special)

    def _continuation(self, text: str) -> list[int]:
        """Ids of text that goes on: without the BOS and the space that tokenizers put in front of a beginning."""
        encode = self.llm.tokenizer.encode
        before = encode("\n", add_special=False)
        both = encode("\n" + text, add_special=False, parse_special=self.parse_special)
        if both[: len(before)] == before:
            return both[len(before) :]
        return encode(text, add_special=False, parse_special=self.parse_special)

    def _keep(self, ids: list[int], generation: Generation) -> None:
        """Take the sampled tokens whose bytes are in the answer; what is beyond the last of them is kept as text."""
        tokenizer, said, silent = self.llm.tokenizer, generation.text.encode(), self.params.skip_special_tokens
        if generation.end_token is not None and not silent:  # it was shown, but it is no part of what was said
            said = said.removesuffix(tokenizer.piece(generation.end_token))
        kept, length = 0, 0
        for token in generation.tokens:
            piece = b"" if silent and tokenizer.is_control(token) else tokenizer.piece(token)
            if said[length : length + len(piece)] != piece:
                break
            kept, length = kept + 1, length + len(piece)
        self.last = generation
        self.ids = ids + generation.tokens[:kept]
        self._rest = said[length:].decode("utf-8", "replace")
