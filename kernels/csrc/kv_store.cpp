// Rows move between forms as GGML bytes (put_row, get_row) or as float32 (encode_row, decode_row): four functions that
// know the formats; everything here is where and when. Attention itself is attn_run.cpp.
#include "kv_store.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "attn_ops.h"
#include "attn_run.h"
#include "errors.h"
#include "pool.h"

namespace mixkv {
namespace {

constexpr int block_shift = 2;  // 4 tiles = 64 positions: a block of attention
constexpr int chunk_shift = 5;  // 32 tiles = 512 positions: a chunk of attention (attn_run.h)
static_assert(tile_tokens << chunk_shift == chunk_keys);

// Long areas are laid out by chunks, so that memory is read in long stretches; a short one would lie scattered over pages
// that it does not need.
int shift_for(int64_t n_tiles) { return n_tiles >= 4 << chunk_shift ? chunk_shift : block_shift; }

int64_t tiles_for(int64_t positions) { return (positions + tile_tokens - 1) / tile_tokens; }

struct RowBuffer {  // one row as floats (zero-padded for the kernels) and as bytes
    alignas(64) float values[max_head_dim];
    uint8_t bytes[max_head_dim * 4];
};

}  // namespace

TileArea::TileArea(int64_t n_tiles, int n_heads, size_t k_bytes, size_t v_bytes)
    : n_tiles_(n_tiles), shift_(shift_for(n_tiles)), n_heads_(n_heads), blocks_((size_t(1) << shift_) / 4),
      k_bytes_(k_bytes), v_bytes_(v_bytes) {
    const int64_t chunks = (n_tiles + (int64_t(1) << shift_) - 1) >> shift_;
    const double bytes = double(chunks) * double(n_heads) * double(blocks_) * 4.0 * double(k_bytes + v_bytes);
    if (bytes > 1e15) throw OutOfMemoryError("a KV cache of " + std::to_string(bytes) + " bytes a layer; lower n_ctx");
    memory_ = Buffer(size_t(chunks) * size_t(n_heads) * blocks_ * 4 * (k_bytes + v_bytes));
}

// Copies whole chunks up to the last one in use, so that what was never written stays unreserved in the twin too.
TileArea TileArea::copy() const {
    TileArea twin(n_tiles_, n_heads_, k_bytes_, v_bytes_);
    const size_t chunks = size_t((used_ + (int64_t(1) << shift_) - 1) >> shift_);
    const size_t bytes = chunks * size_t(n_heads_) * blocks_ * 4 * (k_bytes_ + v_bytes_);
    if (bytes) memcpy(twin.memory_.data(), memory_.data(), bytes);
    twin.used_ = used_;
    return twin;
}

KVStore::KVStore(const std::vector<LayerFormat>& formats, int n_kv_heads, int head_dim_k, int head_dim_v,
                 int64_t n_ctx, int64_t sink_tokens, int64_t hot_tiles)
    : n_kv_heads_(n_kv_heads), head_dim_k_(head_dim_k), head_dim_v_(head_dim_v), n_ctx_(n_ctx), sinks_(sink_tokens),
      hot_tiles_(hot_tiles) {
    if (n_kv_heads < 1 || head_dim_k < 1 || head_dim_v < 1 || std::max(head_dim_k, head_dim_v) > max_head_dim)
        throw ConfigError("the native KV cache takes n_kv_heads >= 1 and head_dim 1.." + std::to_string(max_head_dim) +
                          ", not n_kv_heads " + std::to_string(n_kv_heads) + ", head_dim_k " +
                          std::to_string(head_dim_k) + ", head_dim_v " + std::to_string(head_dim_v));
    if (n_ctx < 1 || sink_tokens < 0 || hot_tiles < 0 || n_ctx > (int64_t(1) << 40) || hot_tiles > (int64_t(1) << 36))
        throw ConfigError("a KV cache needs n_ctx >= 1, sink_tokens >= 0 and hot_tiles >= 0, not " +
                          std::to_string(n_ctx) + ", " + std::to_string(sink_tokens) + ", " + std::to_string(hot_tiles));
    const int64_t sink_tiles = tiles_for(std::min(sink_tokens, n_ctx));
    const int64_t cold_tiles = tiles_for(std::max<int64_t>(0, n_ctx - sink_tokens));
    for (const LayerFormat& f : formats) {
        const size_t hot_k = tile_bytes(f.hot_k, side_k, head_dim_k), hot_v = tile_bytes(f.hot_v, side_v, head_dim_v);
        const size_t cold_k = tile_bytes(f.type_k, side_k, head_dim_k);
        const size_t cold_v = tile_bytes(f.type_v, side_v, head_dim_v);
        layers_.push_back({f, TileArea(sink_tiles, n_kv_heads, hot_k, hot_v),
                           TileArea(hot_tiles, n_kv_heads, hot_k, hot_v),
                           TileArea(cold_tiles, n_kv_heads, cold_k, cold_v)});
    }
}

KVStore::KVStore(const KVStore& other)
    : n_kv_heads_(other.n_kv_heads_), head_dim_k_(other.head_dim_k_), head_dim_v_(other.head_dim_v_),
      n_ctx_(other.n_ctx_), sinks_(other.sinks_), hot_tiles_(other.hot_tiles_) {
    for (const Layer& l : other.layers_)
        layers_.push_back({l.format, l.sinks.copy(), l.ring.copy(), l.cold.copy()});
}

uint8_t* KVStore::hot_tile(const Layer& layer, Side side, int64_t position, int head, int& lane) const {
    if (position < sinks_) {
        lane = int(position % tile_tokens);
        return layer.sinks.at(side, position / tile_tokens, head);
    }
    lane = int((position - sinks_) % tile_tokens);
    return layer.ring.at(side, (position - sinks_) / tile_tokens % hot_tiles_, head);
}

uint8_t* KVStore::cold_tile(const Layer& layer, Side side, int64_t position, int head, int& lane) const {
    lane = int((position - sinks_) % tile_tokens);
    return layer.cold.at(side, (position - sinks_) / tile_tokens, head);
}

// Checks that hot rows of [start, stop) exist and notes which tiles are in use.
void KVStore::touch_hot(Layer& layer, int64_t start, int64_t stop) {
    MIXKV_CHECK(0 <= start && start <= stop && stop <= n_ctx_);
    if (start < sinks_) layer.sinks.touch(tiles_for(std::min(stop, sinks_)));
    if (stop <= sinks_) return;
    MIXKV_CHECK(hot_tiles_ > 0);
    const int64_t first = (std::max(start, sinks_) - sinks_) / tile_tokens, end = tiles_for(stop - sinks_);
    MIXKV_CHECK(end - first <= hot_tiles_);  // a longer run would overwrite its own beginning
    layer.ring.touch(end <= hot_tiles_ ? end : hot_tiles_);
}

void KVStore::write_head(const Layer& layer, Side side, int head, const float* rows, int64_t n, int64_t pos) {
    const AttnOps& ops = attn_ops();
    const int dim = head_dim(side);
    const CacheType type = layer.format.hot(side);
    const bool rotate = side == side_k ? layer.format.rotate_k : layer.format.rotate_v;
    RowBuffer row;
    memset(row.values, 0, size_t(padded_dim(dim)) * sizeof(float));
    for (int64_t i = 0; i < n; ++i) {
        memcpy(row.values, rows + (i * n_kv_heads_ + head) * dim, size_t(dim) * sizeof(float));
        if (rotate) ops.hadamard(row.values, dim);
        ops.encode_row(type, row.values, dim, row.bytes);
        int lane;
        uint8_t* tile = hot_tile(layer, side, pos + i, head, lane);
        put_row(type, side, dim, tile, lane, row.bytes);
    }
}

void KVStore::write(int layer, const float* k, const float* v, int64_t n, int64_t pos) {
    if (n == 0) return;
    Layer& l = layers_[size_t(layer)];
    touch_hot(l, pos, pos + n);
    auto head = [&](int h, int) {
        write_head(l, side_k, h, k, n, pos);
        write_head(l, side_v, h, v, n, pos);
    };
    if (n * n_kv_heads_ < 64) {  // not worth waking anybody
        for (int h = 0; h < n_kv_heads_; ++h) head(h, 0);
    } else {
        parallel_for(n_kv_heads_, head);
    }
}

// Tiles [start, stop) of every head from one form to the other, by way of float32.
void KVStore::convert(int layer, int64_t start, int64_t stop, bool to_cold) {
    if (start >= stop) return;
    Layer& l = layers_[size_t(layer)];
    MIXKV_CHECK(start >= sinks_ && (start - sinks_) % tile_tokens == 0 && (stop - start) % tile_tokens == 0);
    MIXKV_CHECK(tiles_for(stop - sinks_) <= l.cold.n_tiles() && (stop - start) / tile_tokens <= hot_tiles_);
    l.cold.touch(tiles_for(stop - sinks_));
    if (!to_cold) touch_hot(l, start, std::min(stop, n_ctx_));
    auto one = [&](int task, int) {
        const int head = task % n_kv_heads_;
        const int64_t tile_start = start + int64_t(task / n_kv_heads_) * tile_tokens;
        const AttnOps& ops = attn_ops();
        RowBuffer row;
        for (Side side : {side_k, side_v}) {
            const int dim = head_dim(side);
            int unused;
            uint8_t* hot = hot_tile(l, side, tile_start, head, unused);
            uint8_t* cold = cold_tile(l, side, tile_start, head, unused);
            const CacheType from = to_cold ? l.format.hot(side) : l.format.cold(side);
            const CacheType to = to_cold ? l.format.cold(side) : l.format.hot(side);
            for (int lane = 0; lane < tile_tokens; ++lane) {
                get_row(from, side, dim, to_cold ? hot : cold, lane, row.bytes);
                ops.decode_row(from, row.bytes, dim, row.values);
                ops.encode_row(to, row.values, dim, row.bytes);
                if (to == cache_q4_0 && l.format.q4_unbiased) unbias_q4_0(row.values, dim, row.bytes);
                put_row(to, side, dim, to_cold ? cold : hot, lane, row.bytes);
            }
        }
    };
    parallel_for(int((stop - start) / tile_tokens) * n_kv_heads_, one);
}

void KVStore::quantize(int layer, int64_t start, int64_t stop) { convert(layer, start, stop, true); }
void KVStore::rehydrate(int layer, int64_t start, int64_t stop) { convert(layer, start, stop, false); }

void KVStore::get_rows(int layer, bool cold, int64_t start, int64_t stop, uint8_t* k, uint8_t* v) const {
    const Layer& l = layers_[size_t(layer)];
    for (Side side : {side_k, side_v}) {
        const CacheType type = cold ? l.format.cold(side) : l.format.hot(side);
        const size_t size = row_bytes(type, head_dim(side));
        uint8_t* to = side == side_k ? k : v;
        for (int64_t j = start; j < stop; ++j)
            for (int h = 0; h < n_kv_heads_; ++h, to += size) {
                int lane;
                const uint8_t* tile = cold ? cold_tile(l, side, j, h, lane) : hot_tile(l, side, j, h, lane);
                get_row(type, side, head_dim(side), tile, lane, to);
            }
    }
}

void KVStore::set_rows(int layer, bool cold, int64_t start, int64_t stop, const uint8_t* k, const uint8_t* v) {
    if (start >= stop) return;
    Layer& l = layers_[size_t(layer)];
    if (cold)
        l.cold.touch(tiles_for(stop - sinks_));
    else
        touch_hot(l, start, stop);
    for (Side side : {side_k, side_v}) {
        const CacheType type = cold ? l.format.cold(side) : l.format.hot(side);
        const size_t size = row_bytes(type, head_dim(side));
        const uint8_t* from = side == side_k ? k : v;
        for (int64_t j = start; j < stop; ++j)
            for (int h = 0; h < n_kv_heads_; ++h, from += size) {
                int lane;
                uint8_t* tile = cold ? cold_tile(l, side, j, h, lane) : hot_tile(l, side, j, h, lane);
                put_row(type, side, head_dim(side), tile, lane, from);
            }
    }
}

// ALiBi's slope of each head (Press et al. 2022), any number of heads; see kernels/state.py.
std::vector<float> alibi_slopes(int n_heads, float max_bias) {
    int n = 1;
    while (2 * n <= n_heads) n *= 2;
    std::vector<float> slopes;
    for (int h = 0; h < n_heads; ++h) {
        const double power = h < n ? double(h + 1) / n : (2.0 * (h - n) + 1) / (2.0 * n);
        slopes.push_back(float(std::exp2(-double(max_bias) * power)));
    }
    return slopes;
}

void KVStore::attend(int layer, const float* q, int64_t n, int n_heads, int64_t pos, const int64_t* hot_from,
                     const AttendArgs& args, float* out) {
    const Layer& l = layers_[size_t(layer)];
    AttnProblem p;
    p.n_queries = n, p.n_heads = n_heads, p.n_kv_heads = n_kv_heads_;
    p.head_dim_k = head_dim_k_, p.head_dim_v = head_dim_v_;
    p.q = q, p.scale = args.scale, p.rotate_q = l.format.rotate_k, p.rotate_out = l.format.rotate_v;
    p.sinks = &l.sinks, p.ring = &l.ring, p.cold = &l.cold, p.format = l.format;
    p.sink_tokens = sinks_, p.hot_from = hot_from, p.pos = pos, p.causal = true, p.n_keys = pos + n;
    p.window = args.window, p.softcap = args.softcap;
    std::vector<float> slopes;
    if (args.max_bias > 0.0f) slopes = alibi_slopes(n_heads, args.max_bias), p.slopes = slopes.data();
    p.out = out;
    run_attention(p);
}

}  // namespace mixkv
