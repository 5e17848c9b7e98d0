// Functions of single numbers: a feed-forward's activation, gates, scales and caps.
#include "linear_tables.h"
#include "simd.h"

namespace mixkv::MIXKV_ISA {

// f(p[i], i, count) for 16 numbers at a time, in place; the last may be fewer.
template <class F>
MIXKV_INLINE void for_each16(float* p, int n, F f) {
    int i = 0;
    for (; i + 16 <= n; i += 16) store16(p + i, f(load16(p + i), i, 16));
    if (i < n) store16_n(p + i, f(load16_n(p + i, n - i), i, n - i), n - i);
}
MIXKV_INLINE F16 load(const float* p, int count) { return count == 16 ? load16(p) : load16_n(p, count); }

// x sigmoid(by)
MIXKV_INLINE F16 times_sigmoid(F16 x, F16 by) {
    return div16(x, add(set16(1.0f), exp16(sub(set16(0.0f), by))));
}

// f(g) u
template <class F>
MIXKV_INLINE void activate_with(float* g, const float* u, int n, F f) {
    if (u)
        for_each16(g, n, [&](F16 v, int i, int count) { return mul(f(v), load(u + i, count)); });
    else
        for_each16(g, n, [&](F16 v, int, int) { return f(v); });
}

static void silu(float* g, const float* u, int n) {
    activate_with(g, u, n, [](F16 v) { return times_sigmoid(v, v); });
}

static void gelu(float* g, const float* u, int n) {  // (1 + tanh x) / 2 = sigmoid(2 x)
    activate_with(g, u, n, [](F16 v) {
        const F16 cube = mul(mul(mul(v, v), v), set16(0.044715f));
        return times_sigmoid(v, mul(set16(2.0f * 0.7978845608028654f), add(v, cube)));
    });
}

static void relu2(float* g, const float* u, int n) {
    activate_with(g, u, n, [](F16 v) {
        const F16 above = max16(set16(0.0f), v);  // this way round NaN stays (see clamp16)
        return mul(above, above);
    });
}

static void swiglu_oai(float* g, const float* u, int n, float alpha, float limit) {
    const F16 one = set16(1.0f), a = set16(alpha);
    auto one_more = [&](int i, int count) { return add(clamp16(u ? load(u + i, count) : one, -limit, limit), one); };
    for_each16(g, n, [&](F16 v, int i, int count) {
        v = min16(set16(limit), v);
        return mul(times_sigmoid(v, mul(a, v)), one_more(i, count));
    });
}

static void xielu(float* g, const float* u, int n, const float* numbers) {
    const F16 up = set16(numbers[0]), down = set16(numbers[1]), beta = set16(numbers[2]), eps = set16(numbers[3]);
    activate_with(g, u, n, [&](F16 v) {
        const F16 above = mul(mul(up, v), v), below = mul(down, sub(expm1_16(min16(eps, v)), v));
        return add(where_positive(v, above, below), mul(beta, v));
    });
}

void activate(const Activation* a, float* g, const float* u, int n) {
    switch (a->kind) {
        case act_silu: return silu(g, u, n);
        case act_gelu: return gelu(g, u, n);
        case act_relu2: return relu2(g, u, n);
        case act_swiglu_oai: return swiglu_oai(g, u, n, a->numbers[0], a->numbers[1]);
        default: return xielu(g, u, n, a->numbers);
    }
}

void gate(const float* h, const float* gate, int n, float* y) {
    int i = 0;
    for (; i + 16 <= n; i += 16) store16(y + i, times_sigmoid(load16(h + i), load16(gate + i)));
    if (i < n) store16_n(y + i, times_sigmoid(load16_n(h + i, n - i), load16_n(gate + i, n - i)), n - i);
}

float token_gate(const float* h, const float* w, int n) {
    F16 sum = set16(0.0f);
    for (int i = 0; i < n; i += 16) {
        const int count = n - i < 16 ? n - i : 16;
        sum = fma16(load(h + i, count), load(w + i, count), sum);
    }
    float out[16];
    store16(out, times_sigmoid(set16(1.0f), set16(reduce_add(sum))));
    return out[0];
}

void scale(float* y, float factor, const float* residual, int n) {
    const F16 by = set16(factor);
    if (residual)
        for_each16(y, n, [&](F16 v, int i, int count) { return add(mul(v, by), load(residual + i, count)); });
    else
        for_each16(y, n, [&](F16 v, int, int) { return mul(v, by); });
}

void cap(float* y, float cap, int n) {  // tanh x = e / (e + 2), e = e^2x - 1
    const F16 c = set16(cap), two = set16(2.0f);
    for_each16(y, n, [&](F16 v, int, int) {
        const F16 e = expm1_16(mul(two, div16(v, c)));
        return mul(c, div16(e, add(e, two)));
    });
}

}  // namespace mixkv::MIXKV_ISA
