"""Many prompts on one LLM, computed together: completions in order, or chunks as they come."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Ids
from dataclasses import replace
from typing import Any

from mixkv.engine.generation import Generation
from mixkv.engine.results import Chunk, Completion, GenerationStats
from mixkv.engine.sampling import SamplingParams
from mixkv.engine.scheduler import Scheduler
from mixkv.engine.sequence import Progress
from mixkv.engine.slots import Slots
from mixkv.kernels.errors import ConfigError, InputError, MixkvError


def each_prompts_params(
    prompts: object, params: SamplingParams | Ids[SamplingParams] | None, options: dict[str, Any]
) -> list[SamplingParams]:
    """The settings of each prompt: params is one for all, or a list as long as the prompts; options stand on top.

    InputError for what is not a list of prompts, ConfigError for params that do not fit it.
    """
    if not isinstance(prompts, list | tuple) or not prompts:
        raise InputError("prompts must be a list of at least one prompt, each a text or a list of token ids")
    SamplingParams.from_options(options)
    if params is None or isinstance(params, SamplingParams):
        params = [params or SamplingParams()] * len(prompts)
    if not isinstance(params, list | tuple) or not all(isinstance(p, SamplingParams) for p in params):
        raise ConfigError("params must be SamplingParams, or a list of them, one for each prompt")
    if len(params) != len(prompts):
        raise ConfigError(f"{len(params)} params for {len(prompts)} prompts: give one for all, or one for each")
    return [replace(p, **options) for p in params]


class BatchRun:
    """Generations that run together; in the place of a prompt that could not begin stands its error."""

    def __init__(
        self, runs: list[Generation | MixkvError], scheduler: Scheduler, slots: Slots, load_seconds: float
    ) -> None:
        self._runs, self._scheduler, self._slots, self._load_seconds = runs, scheduler, slots, load_seconds
        self._generations = [run for run in runs if isinstance(run, Generation)]
        slots.together([g.job for g in self._generations])

    def completions(self, progress: Progress | None) -> list[Completion]:
        """See `LLM.generate_batch`."""
        jobs, total, told = [g.job for g in self._generations], len(self._runs), -1

        def report() -> None:
            nonlocal told
            done = total - sum(not job.done for job in jobs)
            if progress is not None and done > told:
                told = done
                progress(done, total)

        try:
            report()
            self._scheduler.run([job for job in jobs if not job.done], report)
        except KeyboardInterrupt:
            self._scheduler.cancel(*jobs)
        return [self._completion(run) for run in self._runs]

    def stream(self) -> Iterator[tuple[int, Chunk]]:
        """See `LLM.stream_batch`."""
        left: dict[int, Generation] = {}
        for i, run in enumerate(self._runs):
            if isinstance(run, Generation):
                left[i] = run
            else:
                yield i, _failed(run)
        jobs = [g.job for g in self._generations]
        self._scheduler.add(*[job for job in jobs if not job.done])
        try:
            while left:
                for i, generation in list(left.items()):
                    for chunk in generation.take_chunks():
                        if chunk.finish_reason is not None:
                            del left[i]
                        yield i, chunk
                if left and not any(g.job.done for g in left.values()):
                    self._scheduler.advance([g.job for g in left.values()])
        finally:
            self._scheduler.cancel(*jobs)

    def _completion(self, run: Generation | MixkvError) -> Completion:
        if isinstance(run, Generation):
            return run.completion_or_error()
        stats = GenerationStats(self._load_seconds, 0, 0, 0.0, 0, 0.0, None, self._slots.in_hand.cache.stats())
        return Completion("", [], "error", None, stats, error=run)


def _failed(error: MixkvError) -> Chunk:
    return Chunk("", finish_reason="error", error=error)
