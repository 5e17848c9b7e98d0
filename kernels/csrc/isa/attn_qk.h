// Scores: x[r][t] = q_r . k_t for one tile of 16 keys, one kernel per cache type (layouts: kv_format.h).
//
// A float tile multiplies dimension by dimension into four chains (dims 0 4 8 .., 1 5 9 .., ...), summed in a fixed
// tree. A quantized tile takes exact integer dot products of its codes with the two int8 parts of the query, per block
// of 32 dims, then one multiply-add per block with the scales: identical integers on every instruction set. For q4_0
// they stay below 2^24 and convert exactly.
#pragma once

#include "attn_ops.h"
#include "attn_simd.h"

namespace mixkv::MIXKV_ISA {

#if defined(__AVX512F__)
constexpr int qk_float_rows = 6, qk_int_rows = 8;
#else
constexpr int qk_float_rows = 1, qk_int_rows = 1;  // too few registers for more
#endif
#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr bool q8_signed = true;  // its kernel takes q8_0 codes as signed numbers: there is no zero point to subtract
#else
constexpr bool q8_signed = false;
#endif

static inline V load_k(const float* p) { return vload(p); }
static inline V load_k(const uint16_t* p) { return vload_half(p); }

template <int R, class T>
static inline void qk_float_tile(const QueryRows& q, int r0, const T* tile, float* x) {
    V acc[R][4];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < 4; ++c) acc[r][c] = vset(0.0f);
    const float* row = q.q + size_t(r0) * q.pitch;
    for (int d = 0; d < q.head_dim; d += 4)
        for (int c = 0; c < 4; ++c) {
            const V k = load_k(tile + (d + c) * tile_tokens);
            for (int r = 0; r < R; ++r) acc[r][c] = vfma(vset(row[r * q.pitch + d + c]), k, acc[r][c]);
        }
    for (int r = 0; r < R; ++r)
        vstore(x + r * block_keys, vadd(vadd(acc[r][0], acc[r][1]), vadd(acc[r][2], acc[r][3])));
}

template <class T>
static void qk_float(const QueryRows& q, int r0, int r1, const uint8_t* tile, float* x) {
    const T* k = reinterpret_cast<const T*>(tile);
    int r = r0;
    x += size_t(r0) * block_keys;
    for (; r + qk_float_rows <= r1; r += qk_float_rows, x += qk_float_rows * block_keys)
        qk_float_tile<qk_float_rows>(q, r, k, x);
    if constexpr (qk_float_rows > 4)
        for (; r + 4 <= r1; r += 4, x += 4 * block_keys) qk_float_tile<4>(q, r, k, x);
    for (; r < r1; ++r, x += block_keys) qk_float_tile<1>(q, r, k, x);
}

// Four consecutive int8 of a query as one word, for all lanes.
static inline int32_t four_bytes(const int8_t* p) {
    int32_t w;
    memcpy(&w, p, 4);
    return w;
}

#if defined(__AVX512VNNI__)

template <int R>
struct Dots {  // integer dot products of R rows with 16 tokens, high and low parts
    __m512i hi[R], lo[R];
    inline void clear() {
        for (int r = 0; r < R; ++r) hi[r] = lo[r] = _mm512_setzero_si512();
    }
    inline void add(__m512i k, const int8_t* q_hi, const int8_t* q_lo, size_t pitch) {
        for (int r = 0; r < R; ++r) {
            hi[r] = _mm512_dpbusd_epi32(hi[r], k, _mm512_set1_epi32(four_bytes(q_hi + r * pitch)));
            lo[r] = _mm512_dpbusd_epi32(lo[r], k, _mm512_set1_epi32(four_bytes(q_lo + r * pitch)));
        }
    }
    inline V total(int r, int32_t offset) const {
        const __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(hi[r], 8), lo[r]);
        return _mm512_cvtepi32_ps(_mm512_add_epi32(sum, _mm512_set1_epi32(offset)));
    }
};

// All codes of block b of a tile against dims 32 b ... of R rows.
template <CacheType type, int R>
static inline void block_dots(Dots<R>& dots, const uint8_t* codes, const int8_t* hi, const int8_t* lo, size_t pitch) {
    dots.clear();
    if constexpr (type == cache_q8_0) {
        for (int j = 0; j < 8; ++j)
            dots.add(_mm512_loadu_si512(codes + j * 64), hi + 4 * j, lo + 4 * j, pitch);
    } else {
        const __m512i nibble = _mm512_set1_epi8(15);
        for (int j = 0; j < 4; ++j) {
            const __m512i two = _mm512_loadu_si512(codes + j * 64);
            dots.add(_mm512_and_si512(two, nibble), hi + 4 * j, lo + 4 * j, pitch);
            dots.add(_mm512_and_si512(_mm512_srli_epi16(two, 4), nibble), hi + 16 + 4 * j, lo + 16 + 4 * j, pitch);
        }
    }
}

#elif defined(__AVX2__)

template <int R>
struct Dots {
    __m256i hi[2], lo[2];  // R is 1; two halves of 8 tokens
    inline V total(int, int32_t offset) const {
        V out;
        auto half = [&](int h) {
            const __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(hi[h], 8), lo[h]);
            return _mm256_cvtepi32_ps(_mm256_add_epi32(sum, _mm256_set1_epi32(offset)));
        };
        out.a = half(0);
        out.b = half(1);
        return out;
    }
};

// q4_0: codes <= 15, so 8 products of pairs (each at most 2 * 15 * 127) add up within int16. q8_0: the codes' signs go
// to the query, since unsigned 255 * 127 would saturate; each product is widened at once.
template <CacheType type, int R>
static inline void block_dots(Dots<R>& dots, const uint8_t* codes, const int8_t* hi, const int8_t* lo, size_t) {
    const __m256i ones = _mm256_set1_epi16(1), nibble = _mm256_set1_epi8(15), flip = _mm256_set1_epi8(-128);
    for (int h = 0; h < 2; ++h) {
        __m256i sum_hi = _mm256_setzero_si256(), sum_lo = sum_hi;
        for (int j = 0; j < (type == cache_q8_0 ? 8 : 4); ++j) {
            const __m256i k = _mm256_loadu_si256((const __m256i*)(codes + j * 64 + h * 32));
            const __m256i q_hi = _mm256_set1_epi32(four_bytes(hi + 4 * j)), q_lo = _mm256_set1_epi32(four_bytes(lo + 4 * j));
            if constexpr (type == cache_q8_0) {
                const __m256i s = _mm256_xor_si256(k, flip), a = _mm256_abs_epi8(s);
                auto wide = [&](__m256i q) { return _mm256_madd_epi16(_mm256_maddubs_epi16(a, _mm256_sign_epi8(q, s)), ones); };
                sum_hi = _mm256_add_epi32(sum_hi, wide(q_hi));
                sum_lo = _mm256_add_epi32(sum_lo, wide(q_lo));
            } else {
                const __m256i low = _mm256_and_si256(k, nibble), high = _mm256_and_si256(_mm256_srli_epi16(k, 4), nibble);
                const __m256i u_hi = _mm256_set1_epi32(four_bytes(hi + 16 + 4 * j));
                const __m256i u_lo = _mm256_set1_epi32(four_bytes(lo + 16 + 4 * j));
                sum_hi = _mm256_add_epi16(sum_hi, _mm256_maddubs_epi16(low, q_hi));
                sum_hi = _mm256_add_epi16(sum_hi, _mm256_maddubs_epi16(high, u_hi));
                sum_lo = _mm256_add_epi16(sum_lo, _mm256_maddubs_epi16(low, q_lo));
                sum_lo = _mm256_add_epi16(sum_lo, _mm256_maddubs_epi16(high, u_lo));
            }
        }
        dots.hi[h] = type == cache_q8_0 ? sum_hi : _mm256_madd_epi16(sum_hi, ones);
        dots.lo[h] = type == cache_q8_0 ? sum_lo : _mm256_madd_epi16(sum_lo, ones);
    }
}

#else

template <int R>
struct Dots {
    int32_t sum[16];
    inline V total(int, int32_t offset) const {
        I out;
        for (int t = 0; t < 16; ++t) out.v[t] = sum[t] + offset;
        return vfrom_int(out);
    }
};

template <CacheType type, int R>
static inline void block_dots(Dots<R>& dots, const uint8_t* codes, const int8_t* hi, const int8_t* lo, size_t) {
    for (int t = 0; t < 16; ++t) dots.sum[t] = 0;
    for (int i = 0; i < block_dims; ++i) {
        const bool high = type == cache_q4_0 && i >= 16;
        const uint8_t* row = codes + (high ? i - 16 : i) / 4 * 64 + i % 4;
        const int32_t q = hi[i] * 256 + lo[i];
        for (int t = 0; t < 16; ++t) {
            const int code = type == cache_q8_0 ? row[t * 4] : high ? row[t * 4] >> 4 : row[t * 4] & 15;
            dots.sum[t] += code * q;
        }
    }
}

#endif

template <CacheType type, int R>
static inline void qk_int_tile(const QueryRows& q, int r0, const uint8_t* tile, float* x) {
    const size_t pitch = size_t(q.blocks) * block_dims, block_bytes = type == cache_q8_0 ? 512 : 256;
    const auto* scales = reinterpret_cast<const uint16_t*>(tile + q.blocks * block_bytes);
    V score[R];
    for (int r = 0; r < R; ++r) score[r] = vset(0.0f);
    for (int b = 0; b < q.blocks; ++b) {
        Dots<R> dots;
        const size_t at = r0 * pitch + size_t(b) * block_dims;
        block_dots<type>(dots, tile + b * block_bytes, q.hi + at, q.lo + at, pitch);
        const V d = vload_half(scales + b * tile_tokens);
        for (int r = 0; r < R; ++r) {
            const int i = (r0 + r) * q.blocks + b;
            const int32_t offset = type == cache_q8_0 && q8_signed ? 0 : q.offset[i];
            score[r] = vfma(vmul(dots.total(r, offset), vset(q.scale[i])), d, score[r]);
        }
    }
    for (int r = 0; r < R; ++r) vstore(x + r * block_keys, score[r]);
}

template <CacheType type>
static void qk_int(const QueryRows& q, int r0, int r1, const uint8_t* tile, float* x) {
    int r = r0;
    x += size_t(r0) * block_keys;
    for (; r + qk_int_rows <= r1; r += qk_int_rows, x += qk_int_rows * block_keys)
        qk_int_tile<type, qk_int_rows>(q, r, tile, x);
    if constexpr (qk_int_rows > 4)
        for (; r + 4 <= r1; r += 4, x += 4 * block_keys) qk_int_tile<type, 4>(q, r, tile, x);
    for (; r < r1; ++r, x += block_keys) qk_int_tile<type, 1>(q, r, tile, x);
}

}  // namespace mixkv::MIXKV_ISA
