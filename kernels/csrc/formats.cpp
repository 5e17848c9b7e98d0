// See formats.h. Plain loops: packing runs once per load, in threads; Q4_0 and Q8_0 have a faster way in weight.cpp.
#include "formats.h"

#include <cmath>

namespace mixkv {
namespace {

const FormatInfo infos[] = {
#define MIXKV_INFO(name, type, cols, bytes, bits, zero, fraction, table, subs, scales) \
    {#name, type, cols, bytes, bits, zero, fraction, table, subs, scales},
    MIXKV_QUANT_FORMATS(MIXKV_INFO)
#undef MIXKV_INFO
#define MIXKV_INFO(name, type, bytes) {#name, type, 1, bytes, 0, 0, 0, no_table, 0, scales_none},
        MIXKV_FLOAT_FORMATS(MIXKV_INFO)
#undef MIXKV_INFO
};

// codes[k] of columns k and k + 16 in the low and high nibbles of byte k
void split_nibbles(const uint8_t* p, uint8_t* codes) {
    for (int k = 0; k < 16; ++k) codes[k] = p[k] & 15, codes[k + 16] = p[k] >> 4;
}
void add_bits5(const uint8_t* qh, uint8_t* codes) {
    uint32_t bits;
    std::memcpy(&bits, qh, 4);
    for (int k = 0; k < 32; ++k) codes[k] |= uint8_t((bits >> k & 1) << 4);
}
// Digit n of the five of base 3 that a byte of TQ1_0 is a fraction of: 256 / 243 of what they are behind the point.
uint8_t ternary_digit(uint8_t byte, int n) {
    static const uint8_t powers[5] = {1, 3, 9, 27, 81};
    return uint8_t(uint8_t(byte * powers[n]) * 3 >> 8);
}
// Columns 0 to 159 are five digits of 32 bytes, the next 80 of 16 bytes, the last 16 four digits of 4 bytes.
void ternary_codes(const uint8_t* raw, int i, uint8_t* codes) {
    for (int k = 0; k < 32 && i < 5; ++k) codes[k] = ternary_digit(raw[k], i);
    for (int n = 2 * (i - 5); i >= 5 && n < 2 * (i - 4); ++n, codes += 16)
        for (int k = 0; k < 16; ++k)
            codes[k] = n < 5 ? ternary_digit(raw[32 + k], n) : ternary_digit(raw[48 + k % 4], k / 4);
}
// Low or high nibbles of the 32 bytes that blocks 2p and 2p + 1 share
void shared_nibbles(const uint8_t* qs, int i, uint8_t* codes) {
    const uint8_t* p = qs + 32 * (i / 2);
    for (int k = 0; k < 32; ++k) codes[k] = p[k] >> (4 * (i & 1)) & 15;
}
// The 6-bit scale and minimum of block i in the 12 bytes of Q4_K and Q5_K
void k_scale_min(const uint8_t* s, int i, uint8_t* c, uint8_t* e) {
    if (i < 4) {
        *c = s[i] & 63;
        *e = s[i + 4] & 63;
    } else {
        *c = uint8_t((s[i + 4] & 15) | (s[i - 4] >> 6 << 4));
        *e = uint8_t((s[i + 4] >> 4) | (s[i] >> 6 << 4));
    }
}
void put_half(uint8_t* unit, int r, const uint8_t* h) { std::memcpy(unit + 2 * r, h, 2); }
uint8_t odd(int n) { return uint8_t(2 * n + 1); }
uint16_t get_half(const uint8_t* unit, int r) {
    uint16_t h;
    std::memcpy(&h, unit + 2 * r, 2);
    return h;
}

}  // namespace

const FormatInfo& format_info(Format f) { return infos[f]; }

int format_of_ggml(int ggml_type) {
    for (int f = 0; f < n_formats; ++f)
        if (infos[f].ggml_type == ggml_type) return f;
    return -1;
}

void raw_codes(Format f, const uint8_t* raw, int i, uint8_t codes[block_cols]) {
    switch (f) {
        case fmt_Q4_0:
        case fmt_IQ4_NL: split_nibbles(raw + 2, codes); break;
        case fmt_Q4_1: split_nibbles(raw + 4, codes); break;
        case fmt_Q5_0: split_nibbles(raw + 6, codes), add_bits5(raw + 2, codes); break;
        case fmt_Q5_1: split_nibbles(raw + 8, codes), add_bits5(raw + 4, codes); break;
        case fmt_Q8_0:
            for (int k = 0; k < 32; ++k) codes[k] = raw[2 + k] ^ 0x80;
            break;
        case fmt_IQ4_XS: split_nibbles(raw + 8 + 16 * i, codes); break;
        case fmt_Q4_K: shared_nibbles(raw + 16, i, codes); break;
        case fmt_Q5_K:
            shared_nibbles(raw + 48, i, codes);
            for (int k = 0; k < 32; ++k) codes[k] |= uint8_t((raw[16 + k] >> i & 1) << 4);
            break;
        case fmt_Q6_K: {  // halves of 128 columns; inside, blocks 0 and 2, 1 and 3 share bytes of low nibbles
            const uint8_t *ql = raw + 64 * (i / 4) + 32 * (i % 2), *qh = raw + 128 + 32 * (i / 4);
            for (int k = 0; k < 32; ++k)
                codes[k] = uint8_t((ql[k] >> (4 * (i % 4 / 2)) & 15) | (qh[k] >> (2 * (i % 4)) & 3) << 4);
            break;
        }
        case fmt_Q2_K:
            for (int k = 0; k < 32; ++k) codes[k] = raw[16 + 32 * (i / 4) + k] >> (2 * (i % 4)) & 3;
            break;
        case fmt_Q3_K:
            for (int k = 0; k < 32; ++k)
                codes[k] = uint8_t((raw[32 + 32 * (i / 4) + k] >> (2 * (i % 4)) & 3) | (raw[k] >> i & 1) << 2);
            break;
        case fmt_MXFP4: split_nibbles(raw + 1, codes); break;
        case fmt_NVFP4:  // quarters of 16 columns, whose columns k and k + 8 share a byte
            for (int k = 0; k < 32; ++k) codes[k] = raw[4 + 16 * i + k / 16 * 8 + k % 8] >> (k / 8 % 2 * 4) & 15;
            break;
        case fmt_TQ1_0: ternary_codes(raw, i, codes); break;
        case fmt_TQ2_0:
            for (int k = 0; k < 32; ++k) codes[k] = raw[32 * (i / 4) + k] >> (2 * (i % 4)) & 3;
            break;
        case fmt_Q1_0:
            for (int k = 0; k < 4; ++k) {
                const uint64_t v = bits_to_bytes(raw[2 + 4 * i + k]) << 1;
                std::memcpy(codes + 8 * k, &v, 8);
            }
            break;
        default: codebook_codes(f, raw, i, codes); break;
    }
}

void put_scales(Format f, const uint8_t* raw, int r, uint8_t* unit) {
    uint8_t* c = unit + 32;  // scales_super: [sub-block][16] int8
    switch (f) {
        case fmt_Q4_0:
        case fmt_Q5_0:
        case fmt_Q8_0:
        case fmt_IQ4_NL:
        case fmt_Q1_0: put_half(unit, r, raw); break;
        case fmt_Q4_1:
        case fmt_Q5_1: put_half(unit, r, raw), put_half(unit + 32, r, raw + 2); break;
        case fmt_Q4_K:
        case fmt_Q5_K:
            put_half(unit, r, raw), put_half(unit + 32, r, raw + 2);
            for (int i = 0; i < 8; ++i) k_scale_min(raw + 4, i, unit + 64 + 16 * i + r, unit + 192 + 16 * i + r);
            break;
        case fmt_Q2_K:
            put_half(unit, r, raw + 80), put_half(unit + 32, r, raw + 82);
            for (int i = 0; i < 16; ++i) unit[64 + 16 * i + r] = raw[i];
            break;
        case fmt_Q6_K:
            put_half(unit, r, raw + 208);
            for (int i = 0; i < 16; ++i) c[16 * i + r] = raw[192 + i];
            break;
        case fmt_Q3_K:  // 16 six-bit scales: low nibbles in bytes 0..7, high pairs in bytes 8..11
            put_half(unit, r, raw + 108);
            for (int i = 0; i < 16; ++i) {
                const int low = raw[96 + i % 8] >> (4 * (i / 8)) & 15, high = raw[104 + i % 4] >> (2 * (i / 4)) & 3;
                c[16 * i + r] = uint8_t((low | high << 4) - 32);
            }
            break;
        case fmt_IQ4_XS: {
            put_half(unit, r, raw);
            for (int i = 0; i < 8; ++i) {
                const int low = raw[4 + i / 2] >> (4 * (i & 1)) & 15, high = (raw[2] | raw[3] << 8) >> (2 * i) & 3;
                c[16 * i + r] = uint8_t((low | high << 4) - 32);
            }
            break;
        }
        case fmt_MXFP4: unit[r] = raw[0]; break;
        case fmt_NVFP4:  // GGML takes NaN (0x7F) for zero, and no notice of the sign
            for (int i = 0; i < 4; ++i) unit[16 * i + r] = raw[i] == 0x7f ? 0 : raw[i] & 0x7f;
            break;
        case fmt_TQ1_0: put_half(unit, r, raw + 52); break;
        case fmt_TQ2_0: put_half(unit, r, raw + 64); break;
        // The codebook types have odd c in steps of 1/2^fraction: d * (0.5 + n) * 0.25 is d * (2n + 1) / 8.
        case fmt_IQ3_XXS:
        case fmt_IQ2_XXS:
            put_half(unit, r, raw);
            for (int i = 0; i < 8; ++i) c[16 * i + r] = odd(raw[f == fmt_IQ3_XXS ? 69 + 4 * i : 9 + 8 * i] >> 4);
            break;
        case fmt_IQ3_S:
            put_half(unit, r, raw);
            for (int i = 0; i < 8; ++i) c[16 * i + r] = odd(raw[106 + i / 2] >> (4 * (i % 2)) & 15);
            break;
        case fmt_IQ2_XS:
        case fmt_IQ2_S:
            put_half(unit, r, raw);
            for (int i = 0; i < 16; ++i)
                c[16 * i + r] = odd(raw[(f == fmt_IQ2_XS ? 66 : 74) + i / 2] >> (4 * (i % 2)) & 15);
            break;
        case fmt_IQ1_S:
            put_half(unit, r, raw);
            for (int i = 0; i < 8; ++i) c[16 * i + r] = odd(raw[34 + 2 * i + 1] >> 4 & 7);
            break;
        case fmt_IQ1_M: {  // four words of four scales each; their highest nibbles are d
            uint16_t word[4], d = 0;
            std::memcpy(word, raw + 48, 8);
            for (int i = 0; i < 4; ++i) d |= uint16_t(word[i] >> 12 << (4 * i));
            std::memcpy(unit + 2 * r, &d, 2);
            for (int i = 0; i < 16; ++i) c[16 * i + r] = odd(word[i / 4] >> (3 * (i % 4)) & 7);
            break;
        }
        default: break;
    }
}

void get_scales(Format f, const uint8_t* unit, int i, int h, int r, float* d, float* m) {
    const FormatInfo& info = infos[f];
    const int sub = i * info.subs + h;
    *m = 0.0f;
    if (info.scales == scales_e8m0) {
        *d = std::ldexp(1.0f, int(unit[r]) - 128);
        return;
    }
    if (info.scales == scales_e4m3) {
        *d = half_to_float(uint16_t(unit[16 * sub + r] << 7)) * 128.0f;
        return;
    }
    const float base = half_to_float(get_half(unit, r)) / float(1 << info.fraction);
    *d = base;
    if (info.scales == scales_plain_min) *m = half_to_float(get_half(unit + 32, r));
    if (info.scales == scales_super) *d = base * float(int8_t(unit[32 + 16 * sub + r]));
    if (info.scales == scales_super_min) {
        *d = base * float(unit[64 + 16 * i + r]);
        *m = -half_to_float(get_half(unit + 32, r)) * float(unit[192 + 16 * i + r]);
    }
    if (info.scales == scales_super_min4) {
        const uint8_t both = unit[64 + 16 * sub + r];
        *d = base * float(both & 15);
        *m = -half_to_float(get_half(unit + 32, r)) * float(both >> 4);
    }
}

}  // namespace mixkv
