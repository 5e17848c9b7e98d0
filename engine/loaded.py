"""Loaded: a model with all that its handles (llm.py) share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from mixkv.engine.cache_config import CachePlan, KVCacheConfig
from mixkv.engine.scheduler import Scheduler
from mixkv.engine.sequence import Sequence
from mixkv.engine.state.cache import KVCache
from mixkv.engine.tokenizer.base import Tokenizer
from mixkv.kernels.contract import PagePool
from mixkv.models.config import ModelConfig
from mixkv.models.gguf import GGUFFile
from mixkv.models.key_sample import HeadStatistics

if TYPE_CHECKING:
    from mixkv.engine.chat.library import ChatTemplates
    from mixkv.engine.grammar.constraint import Constraint
    from mixkv.engine.grammar.vocabulary import GrammarVocabulary
    from mixkv.engine.sampling import SamplingParams


@dataclass(frozen=True)
class Loaded:
    """What all handles on one loaded model share."""

    gguf: GGUFFile
    scheduler: Scheduler
    tokenizer: Tokenizer
    cache_config: KVCacheConfig
    plan: CachePlan
    heads: HeadStatistics
    n_ctx: int
    prefix_reuse: str
    pool: PagePool
    load_seconds: float

    @cached_property
    def chat_templates(self) -> ChatTemplates:
        """The chat templates that this model can use."""
        from mixkv.engine.chat.library import ChatTemplates

        return ChatTemplates(self.gguf, self.tokenizer)

    @cached_property
    def grammar_vocabulary(self) -> GrammarVocabulary:
        """What constrained generations share; it builds itself for the first of them."""
        from mixkv.engine.grammar.vocabulary import GrammarVocabulary

        return GrammarVocabulary(self.tokenizer)

    @property
    def config(self) -> ModelConfig:
        return self.scheduler.model.config

    def constraint(self, params: SamplingParams, starts_after: str | None) -> tuple[Constraint, ...]:
        """What holds a generation to its json_schema, regex or grammar; nothing where there is none. ConfigError for
        one that is wrong, and without the package that reads them."""
        if params.constraint is None:
            return ()
        from mixkv.engine.grammar.constraint import constraint_of  # only those who ask for it need its package

        return (constraint_of(params, self.grammar_vocabulary, self.scheduler.model.backend, starts_after),)

    def new_sequence(self, plan: CachePlan | None = None, n_ctx: int | None = None) -> Sequence:
        """An empty sequence."""
        n_ctx = n_ctx or self.n_ctx
        cache = KVCache(
            self.config,
            plan or self.plan,
            self.scheduler.model.backend,
            n_ctx=n_ctx,
            chunk=min(self.scheduler.n_batch, n_ctx),
            pool=self.pool,
        )
        return Sequence(self.scheduler, cache)
