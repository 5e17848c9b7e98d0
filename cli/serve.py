"""`mixkv serve`: a model over HTTP, to clients of OpenAI's, Anthropic's and llama-server's interfaces."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mixkv.cli import settings
from mixkv.cli.accepted import SWITCH, idle, notes
from mixkv.cli.flags import flag, with_flags
from mixkv.cli.hub import HubFlags
from mixkv.cli.machine import MachineFlags
from mixkv.cli.options import CacheFlags, ModelFlags
from mixkv.cli.overrides import OverrideFlags
from mixkv.cli.sampling_options import ChainFlags, SamplingFlags
from mixkv.cli.session import Opening, open_llm
from mixkv.cli.terminal import DONE, Terminal
from mixkv.kernels.errors import ConfigError, MixkvWarning

SERVER = "Server"
NEEDED = ("starlette", "uvicorn", "prometheus_client")
MIB = 1 << 20


@dataclass(frozen=True)
class ServeFlags:
    """Where it listens, who is let in, how much at once."""

    host: str = flag("--host", panel=SERVER, value="127.0.0.1", metavar="ADDRESS", help="Address to listen on",
                     default="127.0.0.1")  # fmt: skip
    port: int = flag("--port", panel=SERVER, value=8080, help="Port; 0: a free one", default="8080")
    api_key: list[str] | None = flag(  # noqa: RUF009  # a new list is made for each run
        "--api-key", panel=SERVER, metavar="KEY",
        help="Let in who has it; may be repeated, or with commas between. Other users of the machine see command lines",
        default="MIXKV_API_KEY",
    )  # fmt: skip
    api_key_file: str | None = flag("--api-key-file", panel=SERVER, metavar="FILE", help="Keys, one a line")
    no_api_key: bool = flag(
        "--no-api-key", panel=SERVER, value=False, help="Let everybody in who reaches an address beyond this machine"
    )
    alias: str | None = flag("-a", "--alias", panel=SERVER, metavar="NAME", help="The model's name", default="its file")
    n_parallel: int = flag("-np", "--parallel", panel=SERVER, value=4, help="Sequences at once, each of -c tokens",
                           default="4")  # fmt: skip
    kv_memory: int | None = flag("--kv-memory", panel=SERVER, metavar="MIB", help="MiB for all caches together")
    queue: int = flag("--queue", panel=SERVER, value=64, help="Generations that may wait", default="64")
    max_body: int = flag("--max-body", panel=SERVER, value=32, metavar="MIB", help="MiB of a request", default="32")
    drain_seconds: int = flag(
        "--drain-seconds", panel=SERVER, value=30, help="SIGTERM: what runs may go on for so long", default="30"
    )
    chat_template: str | None = flag(
        "--chat-template", panel=SERVER, metavar="NAME", help="Built-in template by its name", default="the model's"
    )
    chat_template_file: str | None = flag("--chat-template-file", panel=SERVER, metavar="FILE", help="... from a file")
    metrics: bool = flag("--metrics/--no-metrics", panel=SERVER, value=True, help="GET /metrics", default="on")
    quiet: bool = flag("-q", "--quiet", "--log-disable", panel=SERVER, value=False, help="Errors alone on stderr")


@dataclass(frozen=True)
class IdleFlags:
    """Of llama-server, without effect."""

    flash_attn: str | None = idle(
        "-fa", "--flash-attn", because="attention is always flash attention here", metavar="[on|off|auto]",
        quiet=("on", "auto", "1", "true", "enabled"), pattern=SWITCH,
    )  # fmt: skip
    gpu_layers: str | None = idle(
        "-ngl", "--gpu-layers", "--n-gpu-layers", because="all layers run on the CPU", metavar="N|auto|all",
        quiet=("auto", "0"), pattern=r"-?[0-9]+|auto|all",
    )  # fmt: skip
    jinja: bool | None = idle("--jinja/--no-jinja", because="templates are always used", quiet=(True,))
    mmap: bool | None = idle("--mmap/--no-mmap", because="model files are mapped, packed and let go", quiet=(True,))
    batching: bool | None = idle(
        "-cb/-nocb", "--cont-batching/--no-cont-batching", because="sequences are always computed together",
        quiet=(True,),
    )  # fmt: skip
    webui: bool | None = idle("--webui/--no-webui", because="there is no web page", quiet=(False,))
    warmup: bool | None = idle("--warmup/--no-warmup", because="there is none", quiet=(False,))
    threads_batch: int | None = idle("-tb", "--threads-batch", because="the prompt takes the threads of -t")
    ubatch: int | None = idle("-ub", "--ubatch-size", because="-b says how many prompt tokens are computed at a time")


@with_flags
def serve(
    model: ModelFlags, hub: HubFlags, flags: ServeFlags, cache: CacheFlags, sampling: SamplingFlags, chain: ChainFlags,
    machine: MachineFlags, changes: OverrideFlags, accepted: IdleFlags,
) -> int:  # fmt: skip
    """Serve a model over HTTP: OpenAI's /v1/chat/completions and /v1/completions, Anthropic's /v1/messages.

    SIGTERM and Ctrl-C end it. Flags of sampling are what requests do not say.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(f"mixkv serve needs {', '.join(missing)}: pip install 'mixkv[server]'")
    from mixkv.server.launch import address, is_loopback, listen
    from mixkv.server.launch import serve as run
    from mixkv.server.settings import ServerSettings

    _check(flags)
    keys = _keys(flags)
    if not keys and not flags.no_api_key and not is_loopback(flags.host):
        raise ConfigError(
            f"--host {flags.host} can be reached from other machines: give --api-key or --api-key-file, or say that "
            "everybody may use it with --no-api-key"
        )
    params = settings.sampling_params(sampling, cache, escape=True, chain=chain)
    opening = Opening(
        model, hub, changes, machine, settings.cache_config(cache), flags.n_parallel,
        None if flags.kv_memory is None else flags.kv_memory * MIB,
    )  # fmt: skip
    terminal = Terminal(quiet=flags.quiet)
    for note in notes(accepted, model):
        terminal.note(note)
    listening = listen(flags.host, flags.port)  # taken before a large model is read for nothing
    try:
        llm = open_llm(opening, terminal)
        template = Path(flags.chat_template_file) if flags.chat_template_file else flags.chat_template
        llm.apply_chat_template([{"role": "user", "content": "Hello"}], chat_template=template)
        # it would quote what somebody has sent
        warnings.filterwarnings("ignore", "the vocabulary has no token", MixkvWarning)
        hosts = ("*",) if flags.no_api_key else (flags.host,)
        chosen = ServerSettings(
            flags.alias or llm.path.stem, keys, params, flags.queue, flags.max_body * MIB, metrics=flags.metrics,
            hosts=hosts,
        )  # fmt: skip
        with llm:
            run(
                llm, listening, chosen, chat_template=template, drain_seconds=flags.drain_seconds,
                ready=lambda: terminal.note(f"{chosen.alias} at {address(listening)}"),
            )  # fmt: skip
    finally:
        listening.close()
    return DONE


def _check(flags: ServeFlags) -> None:
    for value, name, low, high in (
        (flags.port, "--port", 0, 65535), (flags.queue, "--queue", 0, 1 << 20), (flags.max_body, "--max-body", 1, 4096),
        (flags.drain_seconds, "--drain-seconds", 0, 86400), (flags.n_parallel, "-np", 1, 1024),
    ):  # fmt: skip
        if not low <= value <= high:
            raise ConfigError(f"{name} {value}: give a number from {low} to {high}")
    if flags.chat_template and flags.chat_template_file:
        raise ConfigError("--chat-template and --chat-template-file both name a template: give one of them")


def _keys(flags: ServeFlags) -> tuple[str, ...]:
    """All keys. They stand in no message."""
    if flags.no_api_key and (flags.api_key or flags.api_key_file):
        raise ConfigError("--no-api-key contradicts --api-key and --api-key-file: give one of them")
    if flags.no_api_key:
        return ()
    given = flags.api_key or ([os.environ["MIXKV_API_KEY"]] if os.environ.get("MIXKV_API_KEY") else [])
    keys = [key.strip() for text in given for key in text.split(",")]
    if given and not all(keys):
        raise ConfigError("--api-key is empty: give a key, or leave it out")
    if flags.api_key_file:
        try:
            lines = Path(flags.api_key_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            said = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise ConfigError(f"--api-key-file {flags.api_key_file}: {said}") from None
        of_file = [line.strip() for line in lines if line.strip()]
        if not of_file:
            raise ConfigError(f"--api-key-file {flags.api_key_file}: there is no key in it")
        keys += of_file
    try:
        "".join(keys).encode()
    except UnicodeEncodeError:
        raise ConfigError("a key is not UTF-8 text") from None
    return tuple(keys)
