"""What `mixkv inspect` says of a model's replies: how calls of tools and thoughts are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixkv.models.gguf import GGUFFile


def chat_table(gguf: GGUFFile) -> dict[str, str | None]:
    """The format of calls that the file's chat template shows, and what opens and closes thoughts; None where there are
    none, "plain" and None without a template."""
    from mixkv.engine.chat.formats import ReplyFormat

    template = gguf.metadata.get("tokenizer.chat_template")
    found = ReplyFormat.of_template(template if isinstance(template, str) else "")
    return {"tool_calls": found.name, "thinking": " ... ".join(found.thinking) if found.thinking else None}
