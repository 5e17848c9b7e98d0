// Routing of tokens to experts, and the feed-forward that is made of them (kernels/contract.py: RoutedFFN).
#pragma once

#include <cstdint>
#include <optional>

#include "experts.h"
#include "layers.h"

namespace mixkv {

enum class Gating { softmax, sigmoid, softmax_of_chosen };

// kernels/parts.py: Routing.
struct Routing {
    int n_experts = 0, n_used = 0, n_groups = 1, n_groups_used = 1;
    Gating gating = Gating::softmax;
    bool normalize = true, on_input = false;
    float scale = 1.0f;

    size_t n_work() const { return size_t(n_experts) + size_t(n_groups); }  // floats that route() needs
};

// One token's experts and their weights (n_used each) from the router's products p (n_experts). bias (n_experts) may be
// null; work: n_work floats.
void route(const Routing& routing, const float* p, const float* bias, int32_t* chosen, float* weights, float* work);

struct RoutedFFN {
    const Weight* router = nullptr;
    const Experts *gate = nullptr, *up = nullptr, *down = nullptr;                // gate may be null
    const float *router_bias = nullptr, *selection_bias = nullptr;               // (n_experts), or null
    const float *gate_bias = nullptr, *up_bias = nullptr, *down_bias = nullptr;  // (n_experts, rows), or null
    const float* down_scale = nullptr;                                           // (n_experts), or null
    std::optional<Norm> norm, router_norm;
    Routing routing;
    Activation activation;
    Ending end;

    // Scratch memory, in float32 numbers: at most n_used (dim + n_ff) + 2 dim + n_experts + 4 n_used for each token, of so
    // many tokens as are sorted together, and what experts give of so many rows of `down` as that has room for (64 of them
    // at least). Weights on the input of float experts: n_used dim more.
    static constexpr int most_tokens = 1024;
    static constexpr int64_t parts_numbers = 2 << 20;

    // x (n, dim); residual (n, dim) or null
    void run(Backend& on, const float* x, int n, const float* residual, float* out) const;
};

}  // namespace mixkv
