"""What a file's keys `expert_*` say of its routed feed-forwards, checked."""

from __future__ import annotations

from typing import Literal

from mixkv.kernels.parts import SILU, Activation, Routing
from mixkv.models.config import Hyper
from mixkv.models.layers import Routed

GATINGS: dict[int, Literal["softmax", "sigmoid", "softmax of chosen"]] = {
    1: "softmax", 2: "sigmoid", 3: "softmax of chosen",
}  # fmt: skip
"""`expert_gating_func` of a file."""
MAX_EXPERTS = 4096


def read_routed(
    hyper: Hyper, *, gating: Literal["softmax", "sigmoid", "softmax of chosen"] | None, normalize: bool | None,
    gating_default: int | None = None, shared_gate: bool = False, on_input: bool = False,
    activation: Activation = SILU, gated: bool = True,
) -> Routed:  # fmt: skip
    """gating, normalize: what the family does whatever the file says; None: as the file says (`expert_gating_func`, by
    default gating_default; `expert_weights_norm`, by default not)."""
    n_experts = hyper.size("expert_count", most=MAX_EXPERTS)
    n_used = hyper.size("expert_used_count", most=MAX_EXPERTS)
    if n_used > n_experts:
        raise hyper.fail("expert_used_count", f"is {n_used}, but there are {n_experts} experts")
    if gating is None:
        number = hyper.size("expert_gating_func", gating_default, least=0, most=1 << 31)
        if number == 0 and gating_default is not None:
            number = gating_default
        if number not in GATINGS:
            raise hyper.fail("expert_gating_func", f"is {number}: 1 (softmax), 2 (sigmoid) and 3 are known")
        gating = GATINGS[number]
    if normalize is None:
        normalize = hyper.gguf.bool(hyper.key("expert_weights_norm"), False)
    n_groups = hyper.size("expert_group_count", 1, least=0, most=MAX_EXPERTS) or 1
    n_groups_used = hyper.size("expert_group_used_count", n_groups, least=0, most=MAX_EXPERTS) or n_groups
    if n_experts % n_groups or n_groups_used > n_groups:
        raise hyper.fail("expert_group_count", f"{n_groups} (used: {n_groups_used}) do not divide {n_experts} experts")
    if n_groups > 1 and n_used > n_experts // n_groups * n_groups_used:
        raise hyper.fail("expert_used_count", f"is {n_used}, more than {n_groups_used} groups have experts")
    n_ff = hyper.size("expert_feed_forward_length", 0, least=0) or hyper.of_every_layer("feed_forward_length")
    n_shared = hyper.size("expert_shared_feed_forward_length", 0, least=0) or n_ff * hyper.size(
        "expert_shared_count", 0, least=0, most=1024
    )
    return Routed(
        n_ff,
        Routing(
            n_experts, n_used, gating, normalize, hyper.number("expert_weights_scale", 0.0) or 1.0, n_groups,
            n_groups_used, on_input,
        ),
        n_shared, shared_gate, activation, gated,
    )  # fmt: skip
