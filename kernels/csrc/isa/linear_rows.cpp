// What happens to rows of activations between the products: norm, rounding to int8, rotation.
#include <float.h>
#include <math.h>

#include "linear_tables.h"
#include "simd.h"

namespace mixkv::MIXKV_ISA {

// The sum of a row's numbers, or of their squares, in 64 lanes.
template <bool squares>
MIXKV_INLINE F16 more(F16 v, F16 sum) {
    return squares ? fma16(v, v, sum) : add(v, sum);
}
template <bool squares>
MIXKV_INLINE float total(const float* x, int dim) {
    F16 s[4] = {set16(0.0f), set16(0.0f), set16(0.0f), set16(0.0f)};
    int i = 0;
    for (; i + 64 <= dim; i += 64)
        MIXKV_UNROLL
        for (int c = 0; c < 4; ++c) s[c] = more<squares>(load16(x + i + 16 * c), s[c]);
    for (; i < dim; i += 16) s[0] = more<squares>(load16_n(x + i, dim - i < 16 ? dim - i : 16), s[0]);
    return reduce_add(add(add(s[0], s[1]), add(s[2], s[3])));
}

void norm(const float* x, const Norm* norm, int n, int dim, float* y) {
    const float *gain = norm->gain, *bias = norm->bias;
    for (int t = 0; t < n; ++t, x += dim, y += dim) {
        const float* from = x;
        if (norm->centred) {
            const F16 mean = set16(total<false>(x, dim) / float(dim));
            for (int i = 0; i < dim; i += 16) {
                const int left = dim - i < 16 ? dim - i : 16;
                store16_n(y + i, sub(load16_n(x + i, left), mean), left);
            }
            from = y;
        }
        const F16 r = set16(1.0f / sqrtf(total<true>(from, dim) / float(dim) + norm->eps));
        int i = 0;
        for (; i + 16 <= dim; i += 16) {
            F16 v = mul(load16(from + i), r);
            if (gain) v = mul(v, load16(gain + i));
            if (bias) v = add(v, load16(bias + i));
            store16(y + i, v);
        }
        if (i < dim) {
            const int left = dim - i;
            F16 v = mul(load16_n(from + i, left), r);
            if (gain) v = mul(v, load16_n(gain + i, left));
            if (bias) v = add(v, load16_n(bias + i, left));
            store16_n(y + i, v, left);
        }
    }
}

// The smallest scale: below it 1 / d would not be finite, and such a block is zero for all purposes.
static const float tiny = 1e-36f;

static void quantize_block(const float* x, int8_t* q, float* d_out, int32_t* sum, int width) {
    const F16 a = load16(x), b = load16(x + 16);
    const int32_t bits = reduce_max_i32(max_i32(abs_bits(a), abs_bits(b)));  // as integers, NaN is above all numbers
    float amax;
    memcpy(&amax, &bits, 4);
    float d = amax / 127.0f, inverse = 0.0f;
    if (d < tiny)
        d = 0.0f;
    else
        inverse = 1.0f / d;
    *d_out = d;  // NaN or infinity in a block makes d NaN or infinite, and with it every result that uses the block
    if (!(d <= FLT_MAX)) {
        memset(q, 0, 32);
        sum[0] = sum[width] = 0;
        return;
    }
    const F16 scale = set16(inverse);
    const I16 qa = round16(mul(a, scale)), qb = round16(mul(b, scale));
    store_i8(q, qa);
    store_i8(q + 16, qb);
    sum[0] = reduce_add_i32(qa);
    sum[width] = reduce_add_i32(qb);
}

void quantize(const float* x, int64_t ldx, const QuantX* out, int t0, int t1, int b0, int b1) {
    const int width = out->width;
    const int end = t1 == out->n ? (t1 + width - 1) / width * width : t1;  // the last tile's missing rows become zeros
    for (int t = t0; t < end; ++t) {
        const size_t tile = size_t(t / width) * size_t(out->blocks) * size_t(width);
        for (int b = b0; b < b1; ++b) {
            const size_t block = tile + size_t(b) * size_t(width), row = size_t(t % width);
            int8_t* q = out->q + 32 * (block + row);
            int32_t* sum = out->sum + 2 * block + row;
            if (t < t1) {
                quantize_block(x + (t - t0) * ldx + (b - b0) * block_cols, q, out->d + block + row, sum, width);
            } else {
                memset(q, 0, block_cols);
                out->d[block + row] = 0.0f;
                sum[0] = sum[width] = 0;
            }
        }
    }
}

void rope(float* x, const float* cos, const float* sin, int half, int interleaved) {
    if (interleaved) {
        for (int i = 0; i < half; ++i) {
            const float a = x[2 * i], b = x[2 * i + 1];
            x[2 * i] = a * cos[i] - b * sin[i];
            x[2 * i + 1] = a * sin[i] + b * cos[i];
        }
    } else {
        float* y = x + half;
        for (int i = 0; i < half; ++i) {
            const float a = x[i], b = y[i];
            x[i] = a * cos[i] - b * sin[i];
            y[i] = a * sin[i] + b * cos[i];
        }
    }
}

}  // namespace mixkv::MIXKV_ISA
