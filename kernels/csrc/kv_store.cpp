// Rows move between forms as GGML bytes (put_row, get_row) or as float32 (encode_row, decode_row): four functions that
// know the formats; everything here is where and when. Attention itself is attn_run.cpp.
#include "kv_store.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "attn_run.h"
#include "errors.h"

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
    slots_ = Buffer(size_t(n_tiles) * sizeof(Slot));
}

void TileArea::add(int64_t start, int64_t stop) {
    if (start >= stop) return;
    const int64_t first = start / tile_tokens, last = (stop - 1) / tile_tokens;
    for (int64_t tile = first; tile <= last; ++tile) {
        const int from = tile == first ? int(start % tile_tokens) : 0;
        const int to = tile == last ? int((stop - 1) % tile_tokens) + 1 : tile_tokens;
        Slot& s = slot(tile);
        if (s.tile_plus_1 != tile + 1) {
            s = {tile + 1, 0};
            whole_ = std::min(whole_, tile % n_tiles_);
        }
        s.positions |= (1u << to) - (1u << from);
    }
    used_ = last >= n_tiles_ ? n_tiles_ : std::max(used_, last + 1);
    while (whole_ < n_tiles_ && whole(whole_)) ++whole_;
}

bool TileArea::holds(int64_t start, int64_t stop) const {
    if (start >= stop) return true;
    const int64_t last = (stop - 1) / tile_tokens;
    if (last >= n_tiles_ + start / tile_tokens) return false;
    for (int64_t tile = std::max(start / tile_tokens, whole_); tile <= last; ++tile) {
        const int from = std::max<int>(0, int(std::min<int64_t>(start - tile * tile_tokens, tile_tokens)));
        const int to = int(std::min<int64_t>(stop - tile * tile_tokens, tile_tokens));
        const uint32_t wanted = (1u << to) - (1u << from);
        if (slot(tile).tile_plus_1 != tile + 1 || (slot(tile).positions & wanted) != wanted) return false;
    }
    return true;
}

// Copies whole chunks up to the last one in use, so that what was never written stays unreserved in the twin too.
TileArea TileArea::copy() const {
    TileArea twin(n_tiles_, n_heads_, k_bytes_, v_bytes_);
    const size_t chunks = size_t((used_ + (int64_t(1) << shift_) - 1) >> shift_);
    const size_t bytes = chunks * size_t(n_heads_) * blocks_ * 4 * (k_bytes_ + v_bytes_);
    if (bytes) memcpy(twin.memory_.data(), memory_.data(), bytes);
    if (used_) memcpy(twin.slots_.data(), slots_.data(), size_t(used_) * sizeof(Slot));
    twin.used_ = used_, twin.whole_ = whole_;
    return twin;
}

KVStore::KVStore(std::shared_ptr<Backend> backend, const std::vector<LayerFormat>& formats, int64_t n_kv_heads,
                 int64_t head_dim_k, int64_t head_dim_v, int64_t n_ctx, int64_t sink_tokens, int64_t hot_tiles)
    : backend_(std::move(backend)), n_kv_heads_(int(n_kv_heads)), head_dim_k_(int(head_dim_k)),
      head_dim_v_(int(head_dim_v)), n_ctx_(n_ctx), sinks_(sink_tokens), hot_tiles_(hot_tiles) {
    if (n_kv_heads < 1 || n_kv_heads > (1 << 20) || head_dim_k < 1 || head_dim_v < 1 ||
        std::max(head_dim_k, head_dim_v) > max_head_dim)
        throw ConfigError("a KV cache takes n_kv_heads >= 1 and head_dim 1.." + std::to_string(max_head_dim) +
                          ", not n_kv_heads " + std::to_string(n_kv_heads) + ", head_dim_k " +
                          std::to_string(head_dim_k) + ", head_dim_v " + std::to_string(head_dim_v));
    if (n_ctx < 1 || sink_tokens < 0 || hot_tiles < 1 || n_ctx > (int64_t(1) << 40) || hot_tiles > (int64_t(1) << 36))
        throw ConfigError("a KV cache needs n_ctx >= 1, sink_tokens >= 0 and hot_tiles >= 1, not " +
                          std::to_string(n_ctx) + ", " + std::to_string(sink_tokens) + ", " + std::to_string(hot_tiles));
    const int64_t sink_tiles = tiles_for(std::min(sink_tokens, n_ctx));
    const int64_t cold_tiles = tiles_for(std::max<int64_t>(0, n_ctx - sink_tokens));
    for (const LayerFormat& f : formats) {
        const size_t hot_k = tile_bytes(f.hot_k, side_k, head_dim_k_), hot_v = tile_bytes(f.hot_v, side_v, head_dim_v_);
        const size_t cold_k = tile_bytes(f.type_k, side_k, head_dim_k_);
        const size_t cold_v = tile_bytes(f.type_v, side_v, head_dim_v_);
        const bool one_form = f.one_form() && hot_tiles >= cold_tiles;
        layers_.push_back({f, one_form, TileArea(sink_tiles, n_kv_heads_, hot_k, hot_v),
                           TileArea(hot_tiles, n_kv_heads_, hot_k, hot_v),
                           TileArea(one_form ? 0 : cold_tiles, n_kv_heads_, cold_k, cold_v)});
    }
}

KVStore::KVStore(const KVStore& other)
    : backend_(other.backend_), n_kv_heads_(other.n_kv_heads_), head_dim_k_(other.head_dim_k_),
      head_dim_v_(other.head_dim_v_), n_ctx_(other.n_ctx_), sinks_(other.sinks_), hot_tiles_(other.hot_tiles_) {
    for (const Layer& l : other.layers_)
        layers_.push_back({l.format, l.one_form, l.sinks.copy(), l.ring.copy(), l.cold.copy()});
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
    return layer.cold_area().at(side, (position - sinks_) / tile_tokens, head);
}

void KVStore::add_hot(Layer& layer, int64_t start, int64_t stop) const {
    layer.sinks.add(start, std::min(stop, sinks_));
    layer.ring.add(std::max(start, sinks_) - sinks_, stop - sinks_);
}

// A longer run of positions than the ring has room for would overwrite its own beginning.
void KVStore::check_ring(int64_t start, int64_t stop, const char* what) const {
    const int64_t first = (std::max(start, sinks_) - sinks_) / tile_tokens;
    if (stop > sinks_ && tiles_for(stop - sinks_) - first > hot_tiles_)
        throw InputError(std::string("KVStore.") + what + ": positions [" + std::to_string(start) + ", " +
                         std::to_string(stop) + ") are more than a ring of " + std::to_string(hot_tiles_) +
                         " tiles holds");
}

void KVStore::need_hot(const Layer& layer, int64_t start, int64_t stop, const char* what) const {
    const int64_t from = std::max(start, sinks_) - sinks_;
    if (!layer.sinks.holds(start, std::min(stop, sinks_)) || !layer.ring.holds(from, stop - sinks_))
        throw InputError(std::string("KVStore.") + what + ": positions [" + std::to_string(start) + ", " +
                         std::to_string(stop) + ") are not all there in the hot form");
}

void KVStore::need_cold(const Layer& layer, int64_t start, int64_t stop, const char* what) const {
    if (!layer.cold_area().holds(start - sinks_, stop - sinks_))
        throw InputError(std::string("KVStore.") + what + ": positions [" + std::to_string(start) + ", " +
                         std::to_string(stop) + ") are not all there in the cold form");
}

void KVStore::write_head(const Layer& layer, Side side, int head, const float* rows, int64_t n, int64_t pos) {
    const AttnOps& ops = backend_->attn;
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
    check_ring(pos, pos + n, "write");
    add_hot(l, pos, pos + n);
    auto head = [&](int h, int) {
        write_head(l, side_k, h, k, n, pos);
        write_head(l, side_v, h, v, n, pos);
    };
    if (n * n_kv_heads_ < 64) {  // not worth waking anybody
        for (int h = 0; h < n_kv_heads_; ++h) head(h, 0);
    } else {
        backend_->parallel_for(n_kv_heads_, head);
    }
}

// Tiles [start, stop) of every head from one form to the other, by way of float32.
void KVStore::convert(int layer, int64_t start, int64_t stop, bool to_cold) {
    if (start >= stop) return;
    Layer& l = layers_[size_t(layer)];
    MIXKV_CHECK(start >= sinks_ && (start - sinks_) % tile_tokens == 0 && (stop - start) % tile_tokens == 0);
    MIXKV_CHECK(stop <= n_ctx_);
    if (to_cold) {
        need_hot(l, start, stop, "quantize");
    } else {
        check_ring(start, stop, "rehydrate");
        need_cold(l, start, stop, "rehydrate");
    }
    if (l.one_form) return;
    if (to_cold)
        l.cold.add(start - sinks_, stop - sinks_);
    else
        add_hot(l, start, stop);
    auto one = [&](int task, int) {
        const int head = task % n_kv_heads_;
        const int64_t tile_start = start + int64_t(task / n_kv_heads_) * tile_tokens;
        const AttnOps& ops = backend_->attn;
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
    backend_->parallel_for(int((stop - start) / tile_tokens) * n_kv_heads_, one);
}

void KVStore::quantize(int layer, int64_t start, int64_t stop) { convert(layer, start, stop, true); }
void KVStore::rehydrate(int layer, int64_t start, int64_t stop) { convert(layer, start, stop, false); }

void KVStore::get_rows(int layer, bool cold, int64_t start, int64_t stop, uint8_t* k, uint8_t* v) const {
    const Layer& l = layers_[size_t(layer)];
    if (start >= stop) return;
    if (cold)
        need_cold(l, start, stop, "get_cold");
    else
        need_hot(l, start, stop, "get_hot");
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
    if (!cold || l.one_form) {
        check_ring(start, stop, cold ? "set_cold" : "set_hot");
        add_hot(l, start, stop);
    } else {
        l.cold.add(start - sinks_, stop - sinks_);
    }
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
    if (n == 0) return;
    // what all queries together read: sinks, cold tiles up to the last query's hot ones, hot ones from the first's on
    const int64_t stop = pos + n, first = args.window > 0 ? std::max<int64_t>(0, pos - args.window + 1) : 0;
    const int64_t past_sinks = std::max(first, sinks_);
    const auto [least, most] = std::minmax_element(hot_from, hot_from + n);
    need_hot(l, first, std::min(stop, sinks_), "attend");
    need_cold(l, past_sinks, std::min(stop, *most), "attend");
    need_hot(l, std::max(past_sinks, *least), stop, "attend");
    AttnProblem p;
    p.n_queries = n, p.n_heads = n_heads, p.n_kv_heads = n_kv_heads_;
    p.head_dim_k = head_dim_k_, p.head_dim_v = head_dim_v_;
    p.q = q, p.scale = args.scale, p.rotate_q = l.format.rotate_k, p.rotate_out = l.format.rotate_v;
    p.sinks = &l.sinks, p.ring = &l.ring, p.cold = &l.cold_area(), p.format = l.format;
    p.sink_tokens = sinks_, p.hot_from = hot_from, p.pos = pos, p.causal = true, p.n_keys = pos + n;
    p.window = args.window, p.softcap = args.softcap;
    std::vector<float> slopes;
    if (args.max_bias > 0.0f) slopes = alibi_slopes(n_heads, args.max_bias), p.slopes = slopes.data();
    p.out = out;
    run_attention(*backend_, p);
}

}  // namespace mixkv
