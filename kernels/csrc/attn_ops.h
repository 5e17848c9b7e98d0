// The function table of the attention kernels, one instance per instruction set (the pattern is explained in ops.h).
//
// Attention runs on blocks of 64 keys (four tiles) and a few rows; a row is one query of one query head, all of the
// same KV head, ordered query by query. For each block: qk per tile -> scores x; softmax -> x becomes weights, the
// row's state (m, s, acc) is rescaled; pv per tile -> acc. Which tile is read in which form, and which keys a row may
// see, the driver says (attn_run.cpp).
//
// Determinism: what a kernel computes for one row must not depend on the other rows or on how many there are, and keys
// outside [t0, t1) must be as good as absent. Then the result for a query depends on its position and on the data only.
// Only plain types cross this border; the isa sources see no std templates.
#pragma once

#include "isa_tables.h"
#include "kv_format.h"

namespace mixkv {

constexpr int block_keys = 64;
constexpr int tiles_per_block = block_keys / tile_tokens;

// Queries made ready for the kernels. Row r has pitch = padded_dim(head_dim) floats at q, divided by a factor of its
// own: a score is scale[r] * (q_r . k). Where K is quantized the factor makes q_r integral to within rounding, and
// codes has the integers as two int8 each, base * hi + lo, block by block: 32 hi, then 32 lo. offset is -zero *
// sum(base * hi + lo) for K codes with this zero point.
struct QueryRows {
    int n_rows, head_dim, pitch, blocks;
    float* q;         // [n_rows][pitch]
    int8_t* codes;    // [n_rows][blocks][64]
    float* scale;     // [n_rows]
    int32_t* offset;  // [n_rows][blocks]
};

static inline int padded_dim(int head_dim) { return round_up_int(head_dim, 32); }
// Rows that row buffers have room for: matrix units work on 16 rows and may fill what is beyond the last with anything.
static inline int padded_rows(int n_rows) { return n_rows > 16 ? round_up_int(n_rows, 16) : n_rows; }

// Running state of some rows: m is a reference, times log2(e), that no score so far exceeds by more than the slack
// given to softmax; weights are 2^(score * log2(e) - m), s is kept in 16 lanes whose sum counts; acc has `pitch` floats
// a row.
struct StateRows {
    float *m, *s, *acc;
    int pitch;
};

struct SoftmaxArgs {
    int n_queries, group;           // rows = n_queries * group
    const int *first, *stop;        // per query: the keys of this block that it may see, 0 <= first <= stop <= 64
    float softcap;                  // 0: none
    const float* slopes;            // per head of the group, or null
    const float* bias;              // [n_queries][64], added (times slope), or null
    const float* distance;          // per query: position of key 0 minus that of the query, for ALiBi where bias is null
    const float* scale;             // per row: QueryRows::scale
    float slack;                    // how far (in base 2) scores may exceed the reference before it is raised
    float* x;                       // [rows][64]: q . k in, weights out; entries outside first..stop become 0
    StateRows state;
};

// A block of values for the matrix form of pv: all rows and four tiles at once.
struct ValueBlock {
    const float* x;                 // [rows][64] weights
    int n_queries, group, head_dim;
    const uint8_t* tiles[tiles_per_block];  // null: nobody reads this one
    const uint8_t* readers;         // per query: bit t is set if it reads tile t
    StateRows state;
};

// The type of values that are part of keys of a type.
static inline CacheType value_type(CacheType type_k) { return is_float_type(type_k) ? cache_f32 : type_k; }

struct AttnOps {
    // row (padded_dim floats, zero-padded) times the normalised Walsh-Hadamard matrix, in place
    void (*hadamard)(float* row, int head_dim);
    // float32 row -> GGML bytes and back; the padded part of a quantized row is written as zeros
    void (*encode_row)(CacheType type, const float* row, int head_dim, uint8_t* bytes);
    void (*decode_row)(CacheType type, const uint8_t* bytes, int head_dim, float* row);
    // from float rows in `q`: codes, offset and the division by the factor, for this type of K; scale = factor * by
    void (*split_queries)(const QueryRows& q, CacheType type_k, float by);

    // around the calls below for one set of rows on one thread: sets matrix units up and gives them back
    void (*enter)(int n_rows);
    void (*leave)();
    // x[r][0..16) = q_r . k_t for rows r0..r1 of the block
    void (*qk[n_cache_types])(const QueryRows& q, int r0, int r1, const uint8_t* tile, float* x);
    // where not null: the same numbers for all rows and the four tiles of a block at once
    void (*qk_block[n_cache_types])(const QueryRows& q, const uint8_t* const* tiles, float* x);
    void (*softmax)(const SoftmaxArgs& args);
    // acc[r] += sum over t in t0..t1 of x[r][t] v_t, t rising
    void (*pv[n_cache_types])(const float* x, int r0, int r1, const uint8_t* tile, int head_dim, int t0, int t1,
                              const StateRows& state);
    // where not null: the same numbers for all rows and the four tiles of a block at once
    void (*pv_block[n_cache_types])(const float* x, int n_rows, const uint8_t* const* tiles, int head_dim,
                                    const StateRows& state);
    // where not null: takes the place of both for cold tiles of the type, with an order of summation of its own
    void (*pv_matrix[n_cache_types])(const ValueBlock& block);
    // the first `dims` numbers of each key of a K tile as a V tile of type value_type(); what is beyond them in the last
    // block of codes is of the same keys
    void (*values_of_keys[n_cache_types])(const uint8_t* tile, int head_dim, int dims, uint8_t* values);
    // a := a merged with b, row by row (kv-cache.md section 6)
    void (*merge)(int n_rows, int head_dim, const StateRows& a, const StateRows& b);
    float (*sum_lanes)(const float* s);  // the sum of 16 lanes
    // out = acc / s, 0 where s = 0; `out` has padded_dim floats
    void (*finalize_row)(const float* acc, float s, int head_dim, float* out);
};

constexpr float log2_e = 1.44269504f, ln_2 = 0.693147181f;

MIXKV_DECLARE_TABLES(AttnOps, attn_table)

}  // namespace mixkv
