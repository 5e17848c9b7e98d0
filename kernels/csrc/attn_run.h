// Attention over stored tiles: the driver of the kernels in attn_ops.h, shared by KVStore::attend and attend_segment.
//
// The result for a query is bit-identical however the queries are batched and however many threads run, because
// everything that decides the order of float operations hangs on absolute positions:
// - keys are cut into chunks of chunk_keys positions, counted from 0 for sinks and from S for the rest; a chunk is
//   done in blocks of 64 keys, and each chunk starts from an empty state;
// - chunk states are merged one by one in rising order, in decoding (a task per chunk) as in prefill (a task per block
//   of queries, which walks all chunks), and whatever else is in the job;
// - a chunk or block in which a query sees no key leaves its state untouched.
#pragma once

#include <cstdint>
#include <vector>

#include "backend.h"
#include "kv_store.h"

namespace mixkv {

constexpr int chunk_keys = 512;  // and what a page of a long area holds (tile_area.cpp)

struct AttnProblem {
    int64_t n_queries = 0;
    int n_heads = 0, n_kv_heads = 0, head_dim_k = 0, head_dim_v = 0;
    const float* q = nullptr;  // [n_queries][n_heads][head_dim_k]
    float scale = 1.0f;
    bool rotate_q = false, rotate_out = false;
    bool v_in_k = false;  // values are the first head_dim_v numbers of keys: areas and formats have no V

    // Keys. Position j < sink_tokens lies in sinks; later ones in the ring (j >= hot_from[i]) or in cold. Without
    // hot_from everything is cold.
    const TileArea *sinks = nullptr, *ring = nullptr, *cold = nullptr;
    LayerFormat format{};
    int64_t sink_tokens = 0;
    const int64_t* hot_from = nullptr;  // [n_queries]
    int64_t pos = 0, n_keys = 0, window = 0;
    bool causal = false;  // query i stands at pos + i and sees no later key; else it sees keys 0 .. n_keys - 1

    float softcap = 0.0f;
    const float* slopes = nullptr;  // [n_heads]
    const float* sink_logits = nullptr;  // [n_heads]: what the state starts from, where results are finalized
    const float* mask = nullptr;    // [n_queries][mask_pitch], added (times slope)
    int64_t mask_pitch = 0;

    float* out = nullptr;                               // [n_queries][n_heads][head_dim_v]: finalized; or, where null,
    float *m = nullptr, *s = nullptr, *acc = nullptr;   // the state to continue, in place
};

// All problems as one job.
void run_attention(Backend& on, const std::vector<AttnProblem>& problems);

// The public operator's core (kernels/attention.py): m, s, acc after one more segment. Rows are bytes of the named
// type, [n_keys][n_kv_heads][row_bytes]; problem has the queries, shapes, mask and state, n_keys included.
struct SegmentRows {
    CacheType type;
    const uint8_t* bytes;
};
void attend_segment(Backend& on, AttnProblem problem, const SegmentRows& k, const SegmentRows& v);

}  // namespace mixkv
