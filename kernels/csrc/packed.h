// How weights lie in memory, for the glue (which packs) and the kernels (which read). C headers only, for isa sources.
//
// A weight (rows, cols) is cut into groups of 16 rows, and four groups make a panel; the last panel is padded with zero
// rows. Quantized types are cut along cols into blocks of 32 and have two planes, each with its panels in order;
// inside a panel: [block][4 groups]. So one token's product reads four rows of registers from one stream of memory.
//
//   q  one block = 32 columns x 16 rows at `bits` bits = 64 * bits bytes. "Quad j" of a block
//      are columns 4j..4j+3 of all 16 rows: 64 bytes, byte 4*row + (col % 4), the operand order of VNNI and AMX.
//        8 bits: line j is quad j                4 bits: line i holds quad i (low nibbles) and quad 4+i (high nibbles)
//        2 bits: line i, bit pair p is quad 4i+p (i = 0, 1)                          1 bit:  bit j is quad j
//        5 = 4 + 1, 6 = 4 + 2, 3 = 2 + 1 bits: the planes of the low bits, then of the high bits
//      Codes are unsigned; the number is code - zero (or table[code] - zero for the IQ4 types).
//   s  scales, 16 rows side by side:
//        plain      per block: d (16 x fp16)                        number * d
//        plain_min  per block: d, m (16 x fp16 each)                code * d + m
//        super      per 8 blocks: d (16 x fp16), then [8 * subs][16] int8 c:        number * (d * c)
//        super_min  per 8 blocks: d, dmin (16 x fp16 each), then [8][16] uint8 c, [8][16] uint8 e: code (d c) - dmin e
//        super_min4 per 8 blocks: d, dmin, then [16][16] bytes with c in the low, e in the high nibble; subs = 2
//      subs = 2: a scale for each half block of 16 columns (quads 0-3, quads 4-7).
//
// Float types (F32, F16, BF16) have the plane q only, a panel is [col][4 groups][16 rows]. F64 becomes F32 when
// packed.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace mixkv {

enum Scales { scales_none, scales_plain, scales_plain_min, scales_super, scales_super_min, scales_super_min4 };

// X(name, ggml_type, raw block columns, raw block bytes, bits, zero, table?, subs, scales)
#define MIXKV_QUANT_FORMATS(X)                                 \
    X(Q4_0, 2, 32, 18, 4, 8, 0, 1, scales_plain)               \
    X(Q4_1, 3, 32, 20, 4, 0, 0, 1, scales_plain_min)           \
    X(Q5_0, 6, 32, 22, 5, 16, 0, 1, scales_plain)              \
    X(Q5_1, 7, 32, 24, 5, 0, 0, 1, scales_plain_min)           \
    X(Q8_0, 8, 32, 34, 8, 128, 0, 1, scales_plain)             \
    X(Q2_K, 10, 256, 84, 2, 0, 0, 2, scales_super_min4)        \
    X(Q3_K, 11, 256, 110, 3, 4, 0, 2, scales_super)            \
    X(Q4_K, 12, 256, 144, 4, 0, 0, 1, scales_super_min)        \
    X(Q5_K, 13, 256, 176, 5, 0, 0, 1, scales_super_min)        \
    X(Q6_K, 14, 256, 210, 6, 32, 0, 2, scales_super)           \
    X(IQ4_NL, 20, 32, 18, 4, 128, 1, 1, scales_plain)          \
    X(IQ4_XS, 23, 256, 136, 4, 128, 1, 1, scales_super)

// X(name, ggml_type, bytes)
#define MIXKV_FLOAT_FORMATS(X) X(F32, 0, 4) X(F16, 1, 2) X(BF16, 30, 2)

enum Format : int {
#define MIXKV_ENUM(name, ...) fmt_##name,
    MIXKV_QUANT_FORMATS(MIXKV_ENUM) n_quant_formats,
    fmt_before_float = n_quant_formats - 1,
    MIXKV_FLOAT_FORMATS(MIXKV_ENUM) n_formats
#undef MIXKV_ENUM
};

constexpr int group_rows = 16;   // rows that lie interleaved
constexpr int panel_groups = 4;  // groups whose blocks alternate
constexpr int block_cols = 32;   // columns of a block, in weights and in quantized activations

// The 16 values of the IQ4 types, with 128 added.
constexpr uint8_t iq4_table[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

constexpr int quant_block_bytes(int bits) { return 64 * bits; }
constexpr int scale_unit_blocks(Scales s) { return s >= scales_super ? 8 : 1; }  // blocks that share a scale unit
constexpr int scale_unit_bytes(Scales s, int subs) {
    return s == scales_plain ? 32 : s == scales_plain_min ? 64 : s == scales_super ? 32 + 128 * subs : 64 + 256;
}

// A packed weight as the kernels see it.
struct Packed {
    const uint8_t* q;
    const uint8_t* s;
    size_t q_panel, s_panel;  // bytes of one panel in each plane
    int rows, cols;
    Format format;

    // The first block (scale unit) of a group; the next one of the same group is 4 blocks (units) further.
    const uint8_t* q_of(int group, size_t block_bytes) const {
        return q + size_t(group / panel_groups) * q_panel + size_t(group % panel_groups) * block_bytes;
    }
    const uint8_t* s_of(int group, size_t unit_bytes) const {
        return s + size_t(group / panel_groups) * s_panel + size_t(group % panel_groups) * unit_bytes;
    }
};

}  // namespace mixkv
