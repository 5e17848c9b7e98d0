#include "recurrent.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace mixkv {
namespace {

constexpr int block_tokens = 16;

// Floats from one token's convolved inputs to the next one's. Channels are mostly a multiple of pages: rows so far apart
// share a few sets of the caches, and a scan that comes back to a head's keys for its next strip found none of them.
int64_t pitch_of(int channels) { return channels + 16; }

template <class F>
void for_blocks(Backend& on, int n, F&& f) {
    on.parallel_for((n + block_tokens - 1) / block_tokens,
                    [&](int task, int) { f(task * block_tokens, std::min(n, (task + 1) * block_tokens)); });
}

// The last inputs of a convolution, for the next tokens: rows of x, and where there are too few, of `before`.
void keep_inputs(const Taps& taps, const float* x, int64_t ldx, int n, const float* before, float* after) {
    const int kept = taps.conv.kernel - 1;
    const size_t channels = size_t(taps.conv.channels);
    for (int j = 0; j < kept; ++j) {
        const int row = n - kept + j;
        const float* from = row < 0 ? before + size_t(row + kept) * channels : x + row * ldx;
        std::memcpy(after + size_t(j) * channels, from, channels * sizeof(float));
    }
}

float softplus(float x) {
    const double v = x;
    return float(std::max(v, 0.0) + std::log1p(std::exp(-std::abs(v))));
}

// A strip of columns of a head is a task.
template <class F>
void for_strips(Backend& on, int n_heads, int head_dim, int n_in, F&& f) {
    const int strips = (head_dim + scan_strip - 1) / scan_strip;
    const size_t each = size_t(n_in) * scan_strip;
    float* scratch = on.of_threads.get<float>(each * size_t(on.pool.n_threads()));
    on.parallel_for(n_heads * strips, [&](int task, int thread) {
        const int head = task / strips, col = task % strips * scan_strip;
        f(head, col, std::min(scan_strip, head_dim - col), scratch + each * size_t(thread));
    });
}

}  // namespace

Taps::Taps(const float* w, const float* bias, int channels, int kernel)
    : weight(size_t(channels) * size_t(kernel)), conv{nullptr, bias, kernel, channels} {
    for (int c = 0; c < channels; ++c)
        for (int j = 0; j < kernel; ++j) weight[size_t(j) * size_t(channels) + size_t(c)] = w[size_t(c) * size_t(kernel) + size_t(j)];
}

void Mamba2::run(Backend& on, const float* packed, int n, const float* const before[2], float* const after[2],
                 float* y) const {
    const int in = inner(), bc = n_groups * d_state, channels = taps.conv.channels;
    const int64_t ldp = width();
    const Convolution conv = taps.view();
    const int64_t pitch = pitch_of(channels);
    float* mixed = on.by_token.get<float>(size_t(n) * size_t(pitch + 2 * n_heads));
    float *decay = mixed + n * pitch, *step = decay + size_t(n) * size_t(n_heads);
    for_blocks(on, n, [&](int t0, int t1) {
        on.recurrent.convolve(&conv, packed + in, ldp, before[0], t0, t1, 1, mixed, pitch);
        for (int t = t0; t < t1; ++t)
            for (int h = 0; h < n_heads; ++h) {
                const size_t at = size_t(t) * size_t(n_heads) + size_t(h);
                step[at] = softplus(packed[t * ldp + in + channels + h] + dt_bias[size_t(h)]);
                decay[at] = float(std::exp(double(step[at]) * double(a[size_t(h)])));
            }
    });
    keep_inputs(taps, packed + in, ldp, n, before[0], after[0]);
    for_strips(on, n_heads, head_dim, d_state, [&](int h, int col, int cols, float* strip) {
        const int group = h / (n_heads / n_groups);
        const size_t state = size_t(h) * size_t(d_state) * size_t(head_dim) + size_t(col);
        const float* b = mixed + in + group * d_state;
        const Scan s{b, b + bc, mixed + h * head_dim + col, decay + h, step + h, pitch, pitch, in, n_heads,
                     before[1] + state, after[1] + state, strip, y + h * head_dim + col, n, d_state, head_dim, cols,
                     d[size_t(h)]};
        on.recurrent.scan_mamba(&s);
    });
    const Activation silu{};
    for_blocks(on, n, [&](int t0, int t1) {
        float* gated = mixed + t0 * pitch;  // what stood there was read by the scan
        for (int t = t0; t < t1; ++t) {
            float* row = y + int64_t(t) * in;
            std::copy_n(packed + t * ldp, in, gated);
            on.linear.activate(&silu, gated, row, in);
            if (!normed) {
                std::copy_n(gated, in, row);
                continue;
            }
            const int piece = in / n_groups;
            for (int g = 0; g < n_groups; ++g) {
                Norm of_group = norm;
                of_group.gain += g * piece;
                on.linear.norm(gated + g * piece, &of_group, 1, piece, row + g * piece);
            }
        }
    });
}

void DeltaNet::run(Backend& on, const float* qkv, const float* z, const float* alpha, const float* beta, int n,
                   const float* const before[2], float* const after[2], float* y) const {
    const int channels = taps.conv.channels, keys = n_k_heads * head_dim, out = n_heads * head_dim;
    const Convolution conv = taps.view();
    const int64_t pitch = pitch_of(channels);
    float* mixed = on.by_token.get<float>(size_t(n) * size_t(pitch + 2 * n_heads));
    float *decay = mixed + n * pitch, *step = decay + size_t(n) * size_t(n_heads);
    const float query_scale = float(1 / std::sqrt(double(head_dim)));
    for_blocks(on, n, [&](int t0, int t1) {
        on.recurrent.convolve(&conv, qkv, channels, before[0], t0, t1, 1, mixed, pitch);
        for (int t = t0; t < t1; ++t) {
            float* row = mixed + t * pitch;
            for (int h = 0; h < n_k_heads; ++h) {
                on.recurrent.unit(row + h * head_dim, head_dim, eps, query_scale);
                on.recurrent.unit(row + keys + h * head_dim, head_dim, eps, 1.0f);
            }
            for (int h = 0; h < n_heads; ++h) {
                const size_t at = size_t(t) * size_t(n_heads) + size_t(h);
                decay[at] = float(std::exp(double(a[size_t(h)]) * double(softplus(alpha[at] + dt_bias[size_t(h)]))));
                step[at] = float(1 / (1 + std::exp(-double(beta[at]))));
            }
        }
    });
    keep_inputs(taps, qkv, channels, n, before[0], after[0]);
    for_strips(on, n_heads, head_dim, head_dim, [&](int h, int col, int cols, float* strip) {
        const int key = tiled ? h % n_k_heads : h / (n_heads / n_k_heads);
        const size_t state = size_t(h) * size_t(head_dim) * size_t(head_dim) + size_t(col);
        const Scan s{mixed + keys + key * head_dim, mixed + key * head_dim, mixed + 2 * keys + h * head_dim + col, decay + h,
                     step + h, pitch, pitch, out, n_heads, before[1] + state, after[1] + state, strip,
                     y + h * head_dim + col, n, head_dim, head_dim, cols, 0.0f};
        on.recurrent.scan_delta(&s);
    });
    const Activation silu{};
    for_blocks(on, n, [&](int t0, int t1) {
        float* gate = mixed + t0 * pitch;  // what stood there was read by the scan
        for (int t = t0; t < t1; ++t) {
            float* row = y + int64_t(t) * out;
            on.linear.norm(row, &norm, n_heads, head_dim, row);
            std::copy_n(z + int64_t(t) * out, out, gate);
            on.linear.activate(&silu, gate, row, out);
            std::copy_n(gate, out, row);
        }
    });
}

void ShortConv::run(Backend& on, const float* bcx, int n, const float* before, float* after, float* y) const {
    const int dim = taps.conv.channels;
    const Convolution conv = taps.view();
    float* inputs = on.by_token.get<float>(size_t(n) * size_t(dim));
    for_blocks(on, n, [&](int t0, int t1) {
        for (int t = t0; t < t1; ++t) {
            const float* row = bcx + int64_t(t) * 3 * dim;
            on.recurrent.multiply(row, row + 2 * dim, dim, inputs + int64_t(t) * dim);
        }
    });
    for_blocks(on, n, [&](int t0, int t1) {
        on.recurrent.convolve(&conv, inputs, dim, before, t0, t1, 0, y, dim);
        for (int t = t0; t < t1; ++t) {
            float* row = y + int64_t(t) * dim;
            on.recurrent.multiply(bcx + int64_t(t) * 3 * dim + dim, row, dim, row);
        }
    });
    keep_inputs(taps, inputs, dim, n, before, after);
}

}  // namespace mixkv
