// The pieces of a layer that are fused into one call each (kernels/contract.py says what they compute), on plain pointers
// and in the turn of the backend they are given.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "linear.h"

namespace mixkv {

// The norm of rows x (n, dim) into y, which may be x.
inline void apply_norm(const Backend& on, const Norm& norm, const float* x, int n, int dim, float* y) {
    on.linear.norm(x, &norm, n, dim, y);
}
inline const Norm* pointer(const std::optional<Norm>& norm) { return norm ? &*norm : nullptr; }

// How what a layer adds ends: residual + scale * out_norm(y).
struct Ending {
    std::optional<Norm> out_norm;
    float scale = 1.0f;
};
// The ending of rows y (n, dim), in place; residual (n, dim) or null.
void end_rows(Backend& on, const Ending& end, float* y, int n, int dim, const float* residual);
// The ending of w a + bias, of which token t counts by_token[t] times (null: once); out (n, rows).
void multiply_and_end(Backend& on, const Activations& a, const Weight& w, const float* bias, const float* by_token,
                      const Ending& end, const float* residual, float* out);

// A norm of each head of a row, (heads, dim), with steps from one head's gain and bias to the next's; of a whole row
// there is one head.
struct HeadNorm {
    Norm norm;
    int heads = 0, dim = 0, gain_step = 0, bias_step = 0;
    void apply(const Ops& ops, float* row) const;
};

struct Rotation {
    std::vector<float> inv_freq;
    bool interleaved = false;
    double scale = 1.0;
};

struct Temperature {
    double slope;
    int64_t length, offset;
    float at(int64_t position) const;
};

struct QKV {
    const Weight *q = nullptr, *k = nullptr, *v = nullptr, *gate = nullptr;  // all but q may be null
    const float *bq = nullptr, *bk = nullptr, *bv = nullptr;                  // and these
    std::optional<Norm> norm;
    std::optional<HeadNorm> q_norm, k_norm, v_norm;
    bool norms_last = false;
    Rotation rotation;  // nothing where it has no frequencies
    std::optional<Temperature> temperature;
    int n_heads = 0, n_kv_heads = 0, head_dim = 0;
    int value_cols() const { return v ? v->rows() : k->rows(); }
    // x (n, dim) at positions (n); q (n, n_heads head_dim), k, v (n, n_kv_heads .) and gate where their weights are
    void run(Backend& on, const float* x, int n, const int64_t* positions, float* q_out, float* k_out, float* v_out,
             float* gate_out) const;
};

struct FFN {
    const Weight *gate = nullptr, *up = nullptr, *down = nullptr;                        // gate may be null
    const float *gate_bias = nullptr, *up_bias = nullptr, *down_bias = nullptr;          // and these
    const float* token_gate = nullptr;                                                  // and this
    std::optional<Norm> norm;
    Activation activation;
    Ending end;
    // x (n, dim); residual (n, dim) or null
    void run(Backend& on, const float* x, int n, const float* residual, float* out) const;
};

}  // namespace mixkv
