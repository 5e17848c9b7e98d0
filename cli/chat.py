"""`mixkv chat`: turns with a model, in its own template's format.

Know before you change this room: what a conversation is and which of its turns count, chat_session.py says; a turn's
prompt is rendered and encoded anew, and the engine finds what of it is in the cache. Beside stdout, where answers go,
all is on stderr.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mixkv.cli import settings
from mixkv.cli.accepted import AcceptedFlags, RefusedFlags, notes, refuse
from mixkv.cli.chat_options import ChatFlags, ChatSettings, chat_settings
from mixkv.cli.flags import with_flags
from mixkv.cli.grammar_options import GrammarFlags
from mixkv.cli.hub import HubFlags
from mixkv.cli.machine import MachineFlags
from mixkv.cli.options import CacheFlags, ModelFlags, OutputFlags, PromptFlags, TurnFlags
from mixkv.cli.overrides import OverrideFlags
from mixkv.cli.sampling_options import ChainFlags, SamplingFlags
from mixkv.cli.session import Opening, open_llm, show_statistics
from mixkv.cli.terminal import DONE, Terminal, fail
from mixkv.cli.text import STDIN, own_prompt, system_prompt
from mixkv.engine.sampling import SamplingParams
from mixkv.kernels.errors import ConfigError, MixkvError

if TYPE_CHECKING:
    from mixkv.engine.llm import LLM


@with_flags
def chat(
    model: ModelFlags, hub: HubFlags, prompt: PromptFlags, turns: TurnFlags, chat: ChatFlags, cache: CacheFlags,
    sampling: SamplingFlags, chain: ChainFlags, grammar: GrammarFlags, output: OutputFlags, machine: MachineFlags,
    changes: OverrideFlags, accepted: AcceptedFlags, refused: RefusedFlags,
) -> int:  # fmt: skip
    """Talk to a model; -p or -f is the first turn. Answers go to stdout and nothing else does.

    Ctrl-C stops an answer, Ctrl-D or /exit leaves, /help shows what else there is.
    """
    refuse(refused)
    settings.check_output(output)
    params = settings.sampling_params(
        sampling, cache, escape=prompt.escape, chain=chain, special=output.special, grammar=grammar
    )
    chosen = chat_settings(chat)
    check(prompt)
    opening = Opening(model, hub, changes, machine, settings.cache_config(cache))
    terminal = Terminal(quiet=output.quiet, verbose=output.verbose, perf=output.perf)
    for note in notes(accepted, model):
        terminal.note(note)
    return converse(open_llm(opening, terminal), prompt, turns, chosen, params, terminal)


def check(prompt: PromptFlags) -> None:
    """ConfigError for flags of the prompt that a chat has no room for."""
    if prompt.file == STDIN:
        raise ConfigError("-f - is the standard input, which a chat reads its turns from: leave it out")
    if prompt.parse_special:
        raise ConfigError("--parse-special is not for a chat, whose messages are text: leave it out")


def has_template(llm: LLM, chosen: ChatSettings) -> bool:
    """Whether a chat has a template of the file's or the user's."""
    return chosen.template is not None or bool(llm.chat_template_names)


def converse(
    llm: LLM, prompt: PromptFlags, turns: TurnFlags, chosen: ChatSettings, params: SamplingParams, terminal: Terminal
) -> int:  # fmt: skip
    """Read turns until the end, or one, and answer each."""
    from mixkv.cli.chat_commands import LEAVE, Commands
    from mixkv.cli.chat_input import Input
    from mixkv.cli.chat_session import Conversation, Session
    from mixkv.cli.chat_view import View

    if not has_template(llm, chosen):
        terminal.say('the model has no chat template: turns are plain ("User:", "Assistant:"); see --chat-template')
    if not params.skip_special_tokens:
        terminal.note("-sp has no effect in a chat: special tokens are what replies are taken apart by")
    talk = Conversation(llm, chosen, params, system_prompt(prompt))
    session = Session(talk, View(chosen), Input(terminal, simple=chosen.simple), terminal)
    commands = Commands(session)
    talk.check()
    for turn in session.input.turns(own_prompt(prompt)):
        if turn.strip() in [f"/{word}" for word in LEAVE]:
            break
        if not turn.strip():
            continue
        try:
            if commands.run(turn):
                continue
            session.ask(turn)
            commands.said()
        except ConfigError:  # not of this turn: the flags do not fit the model
            raise
        except MixkvError as error:  # this turn is lost, what was said before is not
            if turns.single_turn:
                raise
            fail(error)
        if turns.single_turn:
            break
    if talk.last is not None:
        show_statistics(talk.last[0], llm, terminal)
    return DONE
