// Rows in and out of tiles: byte moves only, no arithmetic on values but for Q4_0's scales. Layouts: kv_format.h.
#include "kv_format.h"

#include <math.h>

namespace mixkv {
namespace {

// A scale of row block b, lane `lane`: tiles keep them in one plane behind the codes.
uint8_t* scale_at(CacheType type, int head_dim, uint8_t* tile, int b, int lane) {
    return tile + tile_code_bytes(type, head_dim) + size_t(b * tile_tokens + lane) * 2;
}

template <class Int>
void put_k_float(int head_dim, uint8_t* tile, int lane, const uint8_t* row) {
    for (int d = 0; d < head_dim; ++d)
        memcpy(tile + size_t(d * tile_tokens + lane) * sizeof(Int), row + size_t(d) * sizeof(Int), sizeof(Int));
    for (int d = head_dim; d < round_up_int(head_dim, 4); ++d)  // pages may hold anything; products read these, too
        memset(tile + size_t(d * tile_tokens + lane) * sizeof(Int), 0, sizeof(Int));
}

template <class Int>
void get_k_float(int head_dim, const uint8_t* tile, int lane, uint8_t* row) {
    for (int d = 0; d < head_dim; ++d)
        memcpy(row + size_t(d) * sizeof(Int), tile + size_t(d * tile_tokens + lane) * sizeof(Int), sizeof(Int));
}

// Where the four codes (q4_0: bytes) j of block b lie for one token of a K tile.
uint8_t* k_codes(CacheType type, uint8_t* tile, int b, int j, int lane) {
    const int words = type == cache_q8_0 ? 8 : 4;
    return tile + size_t(((b * words + j) * tile_tokens + lane) * 4);
}

uint8_t* v_word(uint8_t* tile, int b, int dim, int lane) {  // the uint32 of a q4_0 V tile
    return tile + size_t(((b * 2 + dim / 16) * 2 + lane / 8) * 16 + dim % 16) * 4;
}

void put_block(CacheType type, Side side, uint8_t* tile, int b, int lane, const uint8_t* codes) {
    if (side == side_k && type == cache_q4_0) {
        for (int j = 0; j < 4; ++j) memcpy(k_codes(type, tile, b, j, lane), codes + 4 * j, 4);
    } else if (side == side_k) {
        for (int j = 0; j < 8; ++j) {
            uint32_t word;
            memcpy(&word, codes + 4 * j, 4);
            word ^= 0x80808080u;  // int8 -> uint8 with zero at 128
            memcpy(k_codes(type, tile, b, j, lane), &word, 4);
        }
    } else if (type == cache_q8_0) {
        memcpy(tile + size_t(b * tile_tokens + lane) * 32, codes, 32);
    } else {
        const int shift = 4 * v_nibble(lane % 8);
        for (int dim = 0; dim < 32; ++dim) {
            const uint32_t code = dim < 16 ? codes[dim] & 15u : uint32_t(codes[dim - 16] >> 4);
            uint32_t word;
            memcpy(&word, v_word(tile, b, dim, lane), 4);
            word = (word & ~(15u << shift)) | code << shift;
            memcpy(v_word(tile, b, dim, lane), &word, 4);
        }
    }
}

void get_block(CacheType type, Side side, uint8_t* tile, int b, int lane, uint8_t* codes) {
    if (side == side_k && type == cache_q4_0) {
        for (int j = 0; j < 4; ++j) memcpy(codes + 4 * j, k_codes(type, tile, b, j, lane), 4);
    } else if (side == side_k) {
        for (int j = 0; j < 8; ++j) {
            uint32_t word;
            memcpy(&word, k_codes(type, tile, b, j, lane), 4);
            word ^= 0x80808080u;
            memcpy(codes + 4 * j, &word, 4);
        }
    } else if (type == cache_q8_0) {
        memcpy(codes, tile + size_t(b * tile_tokens + lane) * 32, 32);
    } else {
        const int shift = 4 * v_nibble(lane % 8);
        for (int i = 0; i < 16; ++i) {
            uint32_t low, high;
            memcpy(&low, v_word(tile, b, i, lane), 4);
            memcpy(&high, v_word(tile, b, i + 16, lane), 4);
            codes[i] = uint8_t((low >> shift & 15) | (high >> shift & 15) << 4);
        }
    }
}

// The sum of a block by halving, 16 + 16, 8 + 8 ...: the order of the NumPy twin. Overwrites the block.
float halving_sum(float* x) {
    for (int half = block_dims / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) x[i] += x[i + half];
    return x[0];
}

}  // namespace

void unbias_q4_0(const float* row, int head_dim, uint8_t* bytes) {
    for (int b = 0; b < n_blocks(head_dim); ++b, row += block_dims, bytes += 18) {
        float squares[block_dims], along[block_dims];
        for (int i = 0; i < block_dims / 2; ++i) {
            along[i] = row[i] * float((bytes[2 + i] & 15) - 8);
            along[i + 16] = row[i + 16] * float((bytes[2 + i] >> 4) - 8);
        }
        for (int i = 0; i < block_dims; ++i) squares[i] = row[i] * row[i];
        const float above = halving_sum(squares), below = halving_sum(along);
        const float d = below == 0.0f ? 0.0f : above / below;
        if (!(fabsf(d) < 65520.0f)) continue;  // no finite FP16 number: the plain scale stays
        const uint16_t half = float_to_half(d);
        memcpy(bytes, &half, 2);
    }
}

void put_row(CacheType type, Side side, int head_dim, uint8_t* tile, int lane, const uint8_t* row) {
    if (is_float_type(type)) {
        const size_t size = type == cache_f32 ? 4 : 2;
        if (side == side_v)
            memcpy(tile + size_t(lane) * round_up_int(head_dim, 16) * size, row, size_t(head_dim) * size);
        else if (size == 4)
            put_k_float<uint32_t>(head_dim, tile, lane, row);
        else
            put_k_float<uint16_t>(head_dim, tile, lane, row);
        return;
    }
    const size_t block = type == cache_q8_0 ? 34 : 18;
    for (int b = 0; b < n_blocks(head_dim); ++b, row += block) {
        memcpy(scale_at(type, head_dim, tile, b, lane), row, 2);
        put_block(type, side, tile, b, lane, row + 2);
    }
}

void get_row(CacheType type, Side side, int head_dim, const uint8_t* tile, int lane, uint8_t* row) {
    auto* from = const_cast<uint8_t*>(tile);  // read only; the address helpers are shared with put_row
    if (is_float_type(type)) {
        const size_t size = type == cache_f32 ? 4 : 2;
        if (side == side_v)
            memcpy(row, from + size_t(lane) * round_up_int(head_dim, 16) * size, size_t(head_dim) * size);
        else if (size == 4)
            get_k_float<uint32_t>(head_dim, from, lane, row);
        else
            get_k_float<uint16_t>(head_dim, from, lane, row);
        return;
    }
    const size_t block = type == cache_q8_0 ? 34 : 18;
    for (int b = 0; b < n_blocks(head_dim); ++b, row += block) {
        memcpy(row, scale_at(type, head_dim, from, b, lane), 2);
        get_block(type, side, from, b, lane, row + 2);
    }
}

}  // namespace mixkv
