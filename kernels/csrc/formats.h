// GGML's block formats: how 32 columns of one row become codes and scales, and where they go in the packed planes.
// Layouts follow the GGUF specification and the `gguf` package's quants.py, which the tests compare with bit for bit.
#pragma once

#include <cstdint>
#include <cstring>

#include "kv_format.h"  // half_to_float
#include "packed.h"

namespace mixkv {

struct FormatInfo {
    const char* name;
    int ggml_type, raw_cols, raw_bytes;  // of one raw block of one row
    int bits, zero, fraction;
    Table table;
    int subs;
    Scales scales;

    int blocks() const { return raw_cols / block_cols; }  // of a raw block, and of a scale unit
    int unit_bytes() const { return scale_unit_bytes(scales, blocks(), subs); }
};
const FormatInfo& format_info(Format f);
int format_of_ggml(int ggml_type);  // Format, or -1

// Bit k of the lowest byte as byte k: 0 or 1.
inline uint64_t bits_to_bytes(int bits) {
    const uint64_t one_in_each = (uint64_t(bits & 255) * 0x0101010101010101u) & 0x8040201008040201u;
    return (one_in_each + 0x7f7f7f7f7f7f7f7fu) >> 7 & 0x0101010101010101u;
}

// Codes of block `i` (32 columns) inside the raw block at `raw`; table codes are indices.
void raw_codes(Format f, const uint8_t* raw, int i, uint8_t codes[block_cols]);
// The same for the types that have a codebook (codebooks.h).
void codebook_codes(Format f, const uint8_t* raw, int i, uint8_t codes[block_cols]);
// Writes the scales of row `r` (0..15) of one raw block into the scale unit at `unit`.
void put_scales(Format f, const uint8_t* raw, int r, uint8_t* unit);

// The scale and minimum of half `h` of block `i` in the unit, row r: the number is d * (code - zero) + m.
void get_scales(Format f, const uint8_t* unit, int i, int h, int r, float* d, float* m);

}  // namespace mixkv
