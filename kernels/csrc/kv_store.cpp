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

int64_t tiles_for(int64_t positions) { return (positions + tile_tokens - 1) / tile_tokens; }

// f(i, piece) for every piece of every i, as one job.
template <class F>
void for_each(Backend& on, const std::vector<int>& pieces, F&& f, bool alone = false) {
    int n = 0;
    for (int p : pieces) n += p;
    auto task = [&](int t, int) {
        size_t i = 0;
        for (; t >= pieces[i]; ++i) t -= pieces[i];
        f(i, t);
    };
    if (!alone) return on.parallel_for(n, task);
    for (int t = 0; t < n; ++t) task(t, 0);
}

struct RowBuffer {  // one row as floats (zero-padded for the kernels) and as bytes
    alignas(64) float values[max_head_dim];
    uint8_t bytes[max_head_dim * 4];
};

}  // namespace

KVStore::KVStore(std::shared_ptr<Backend> backend, std::shared_ptr<PagePool> pool,
                 const std::vector<LayerFormat>& formats, int64_t n_kv_heads, int64_t head_dim_k, int64_t head_dim_v,
                 int64_t n_ctx, int64_t sink_tokens, int64_t hot_tiles, bool v_in_k)
    : backend_(std::move(backend)), pool_(std::move(pool)), n_kv_heads_(int(n_kv_heads)),
      head_dim_k_(int(head_dim_k)), head_dim_v_(int(head_dim_v)), n_ctx_(n_ctx), sinks_(sink_tokens),
      hot_tiles_(hot_tiles), v_in_k_(v_in_k) {
    if (n_kv_heads < 1 || n_kv_heads > (1 << 20) || head_dim_k < 1 || head_dim_v < 1 ||
        std::max(head_dim_k, head_dim_v) > max_head_dim)
        throw ConfigError("a KV cache takes n_kv_heads >= 1 and head_dim 1.." + std::to_string(max_head_dim) +
                          ", not n_kv_heads " + std::to_string(n_kv_heads) + ", head_dim_k " +
                          std::to_string(head_dim_k) + ", head_dim_v " + std::to_string(head_dim_v));
    if (n_ctx < 1 || sink_tokens < 0 || hot_tiles < 1 || n_ctx > (int64_t(1) << 40) || hot_tiles > (int64_t(1) << 36))
        throw ConfigError("a KV cache needs n_ctx >= 1, sink_tokens >= 0 and hot_tiles >= 1, not " +
                          std::to_string(n_ctx) + ", " + std::to_string(sink_tokens) + ", " + std::to_string(hot_tiles));
    if (v_in_k && head_dim_v > head_dim_k)
        throw ConfigError("values of " + std::to_string(head_dim_v) + " numbers are no part of keys of " +
                          std::to_string(head_dim_k));
    const int64_t sink_tiles = tiles_for(std::min(sink_tokens, n_ctx));
    const int64_t cold_tiles = tiles_for(std::max<int64_t>(0, n_ctx - sink_tokens));
    for (const LayerFormat& f : formats) {
        if (v_in_k && f.rotate_k && head_dim_v % (head_dim_k & -head_dim_k) != 0)
            throw ConfigError("keys of " + std::to_string(head_dim_k) + " numbers cannot be rotated, " +
                              std::to_string(head_dim_v) + " of which are values");
        const size_t hot_k = tile_bytes(f.hot_k, side_k, width(side_k)), hot_v = tile_bytes(f.hot_v, side_v, width(side_v));
        const size_t cold_k = tile_bytes(f.type_k, side_k, width(side_k));
        const size_t cold_v = tile_bytes(f.type_v, side_v, width(side_v));
        const bool alike = f.type_k == f.hot_k && (v_in_k || f.type_v == f.hot_v);
        const bool one_form = alike && hot_tiles >= cold_tiles;
        layers_.push_back({f, one_form, TileArea(sink_tiles, n_kv_heads_, hot_k, hot_v),
                           TileArea(hot_tiles, n_kv_heads_, hot_k, hot_v),
                           TileArea(one_form ? 0 : cold_tiles, n_kv_heads_, cold_k, cold_v)});
    }
}

KVStore::KVStore(const KVStore& other)
    : backend_(other.backend_), pool_(other.pool_), n_kv_heads_(other.n_kv_heads_), head_dim_k_(other.head_dim_k_),
      head_dim_v_(other.head_dim_v_), n_ctx_(other.n_ctx_), sinks_(other.sinks_), hot_tiles_(other.hot_tiles_),
      v_in_k_(other.v_in_k_) {
    std::lock_guard lock(pool_->mutex);
    try {
        for (const Layer& l : other.layers_) {
            layers_.push_back({l.format, l.one_form, {}, {}, {}});
            layers_.back().sinks = l.sinks.copy();
            layers_.back().ring = l.ring.copy();
            layers_.back().cold = l.cold.copy();
        }
    } catch (...) {
        give_pages();
        throw;
    }
}

KVStore::~KVStore() {
    std::lock_guard lock(pool_->mutex);
    give_pages();
}

void KVStore::give_pages() noexcept {
    for (Layer& l : layers_)
        for (TileArea* area : {&l.sinks, &l.ring, &l.cold}) area->give_all(*pool_);
}

void KVStore::reserve(const Spans& spans) {
    reserve_layers(0, layers_.size(), spans);
}

void KVStore::reserve_layers(size_t first, size_t stop, const Spans& s) {
    std::vector<ChunkOrder> chunks;
    std::vector<PageOrder> pages;
    {
        std::lock_guard lock(pool_->mutex);
        for (size_t i = first; i < stop; ++i) {
            Layer& l = layers_[i];
            l.sinks.want(s.hot_start, std::min(s.hot_stop, sinks_), chunks);
            l.ring.want(std::max(s.hot_start, sinks_) - sinks_, s.hot_stop - sinks_, chunks);
            if (!l.one_form) l.cold.want(s.cold_start - sinks_, s.cold_stop - sinks_, chunks);
        }
        if (chunks.empty()) return;
        for (const ChunkOrder& c : chunks) pages.push_back({c.area->page_bytes()});
        pool_->take(pages, backend_->attention.poison);
    }
    backend_->parallel_for(int(chunks.size()), [&](int i, int) {
        pages[size_t(i)].page = chunks[size_t(i)].area->put(chunks[size_t(i)].chunk, pages[size_t(i)].page);
    });
    std::lock_guard lock(pool_->mutex);
    for (const PageOrder& old : pages)
        if (old.page) pool_->give(old.page);
}

void KVStore::trim(int64_t hot_stop, int64_t cold_stop) {
    std::lock_guard lock(pool_->mutex);
    for (Layer& l : layers_) {
        l.sinks.forget(hot_stop);
        l.ring.forget(hot_stop - sinks_);
        l.cold.forget(cold_stop - sinks_);
        for (TileArea* area : {&l.sinks, &l.ring, &l.cold}) area->give_unused(*pool_);
    }
}

std::unique_ptr<KVStore> KVStore::copy_ring(int64_t start, int64_t stop) const {
    auto twin = std::make_unique<KVStore>(*this);
    std::lock_guard lock(pool_->mutex);
    for (Layer& l : twin->layers_) {
        l.sinks.forget(0), l.cold.forget(0);
        l.ring.forget(l.one_form ? 0 : std::max<int64_t>(0, stop - sinks_));
        l.ring.forget_before(start - sinks_);
        for (TileArea* area : {&l.sinks, &l.ring, &l.cold}) area->give_unused(*pool_);
    }
    return twin;
}

void KVStore::take_ring(const KVStore& other) {
    KVStore twin(other);  // whose end gives the old pages back
    for (size_t i = 0; i < layers_.size(); ++i)
        if (!layers_[i].one_form) std::swap(layers_[i].ring, twin.layers_[i].ring);
}

bool KVStore::same_kind(const KVStore& other) const {
    if (pool_ != other.pool_ || layers_.size() != other.layers_.size() || n_kv_heads_ != other.n_kv_heads_ ||
        head_dim_k_ != other.head_dim_k_ || head_dim_v_ != other.head_dim_v_ || sinks_ != other.sinks_ ||
        hot_tiles_ != other.hot_tiles_ || n_ctx_ != other.n_ctx_ || v_in_k_ != other.v_in_k_)
        return false;
    for (size_t i = 0; i < layers_.size(); ++i)
        if (layers_[i].one_form != other.layers_[i].one_form ||
            layers_[i].format.hot_k != other.layers_[i].format.hot_k ||
            layers_[i].format.hot_v != other.layers_[i].format.hot_v)
            return false;
    return true;
}

std::vector<std::pair<const Page*, size_t>> KVStore::ring_pages() const {
    std::vector<std::pair<const Page*, size_t>> found;
    std::vector<const Page*> pages;
    for (const Layer& l : layers_) {
        pages.clear();
        l.ring.list_pages(pages);
        for (const Page* page : pages) found.emplace_back(page, l.ring.page_bytes());
    }
    return found;
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
    const int dim = width(side);
    if (dim == 0) return;
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

void KVStore::write(Backend& on, int layer, const StepOrders& orders) {
    std::vector<int> heads;
    int64_t rows = 0;
    for (const StepOrder& o : orders) {
        if (o.n > 0) {
            o.store->check_ring(o.pos, o.pos + o.n, "write");
            o.store->reserve_layer(layer, {o.pos, o.pos + o.n});
            o.store->add_hot(o.store->layers_[size_t(layer)], o.pos, o.pos + o.n);
        }
        heads.push_back(o.n > 0 ? o.store->n_kv_heads_ : 0);
        rows += o.n * heads.back();
    }
    auto one = [&](size_t i, int head) {
        const StepOrder& o = orders[i];
        const Layer& l = o.store->layers_[size_t(layer)];
        o.store->write_head(l, side_k, head, o.k, o.n, o.pos);
        o.store->write_head(l, side_v, head, o.v, o.n, o.pos);
    };
    for_each(on, heads, one, rows < 64);  // few are not worth waking anybody
}

// The tile at position `start` from one form to the other, by way of float32.
void KVStore::convert_tile(const Layer& l, int head, int64_t start, bool to_cold) const {
    const AttnOps& ops = backend_->attn;
    RowBuffer row;
    for (Side side : {side_k, side_v}) {
        const int dim = width(side);
        if (dim == 0) continue;
        int unused;
        uint8_t* hot = hot_tile(l, side, start, head, unused);
        uint8_t* cold = cold_tile(l, side, start, head, unused);
        const CacheType from = l.format.form(side, to_cold), to = l.format.form(side, !to_cold);
        for (int lane = 0; lane < tile_tokens; ++lane) {
            get_row(from, side, dim, to_cold ? hot : cold, lane, row.bytes);
            ops.decode_row(from, row.bytes, dim, row.values);
            ops.encode_row(to, row.values, dim, row.bytes);
            if (to == cache_q4_0 && l.format.q4_unbiased) unbias_q4_0(row.values, dim, row.bytes);
            put_row(to, side, dim, to_cold ? cold : hot, lane, row.bytes);
        }
    }
}

void KVStore::quantize(Backend& on, int layer, const StepOrders& orders) {
    std::vector<int> pieces;  // tiles of all heads
    for (const StepOrder& o : orders) {
        KVStore& s = *o.store;
        Layer& l = s.layers_[size_t(layer)];
        pieces.push_back(0);
        if (o.cold_from >= o.cold_to) continue;
        MIXKV_CHECK(o.cold_from >= s.sinks_ && o.cold_to <= s.n_ctx_ && (o.cold_to - o.cold_from) % tile_tokens == 0);
        s.need_hot(l, o.cold_from, o.cold_to, "quantize");
        if (l.one_form) continue;
        s.reserve_layer(layer, {0, 0, o.cold_from, o.cold_to});
        l.cold.add(o.cold_from - s.sinks_, o.cold_to - s.sinks_);
        pieces.back() = int((o.cold_to - o.cold_from) / tile_tokens) * s.n_kv_heads_;
    }
    for_each(on, pieces, [&](size_t i, int piece) {
        const KVStore& s = *orders[i].store;
        const int64_t start = orders[i].cold_from + int64_t(piece / s.n_kv_heads_) * tile_tokens;
        s.convert_tile(s.layers_[size_t(layer)], piece % s.n_kv_heads_, start, true);
    });
}

void KVStore::rehydrate(int layer, int64_t start, int64_t stop) {
    if (start >= stop) return;
    Layer& l = layers_[size_t(layer)];
    check_ring(start, stop, "rehydrate");
    need_cold(l, start, stop, "rehydrate");
    if (l.one_form) return;
    reserve_layer(layer, {start, stop});
    add_hot(l, start, stop);
    backend_->parallel_for(int((stop - start) / tile_tokens) * n_kv_heads_, [&](int piece, int) {
        convert_tile(l, piece % n_kv_heads_, start + int64_t(piece / n_kv_heads_) * tile_tokens, false);
    });
}

void KVStore::get_rows(int layer, bool cold, int64_t start, int64_t stop, uint8_t* k, uint8_t* v) const {
    const Layer& l = layers_[size_t(layer)];
    if (start >= stop) return;
    if (cold)
        need_cold(l, start, stop, "get_cold");
    else
        need_hot(l, start, stop, "get_hot");
    for (Side side : {side_k, side_v}) {
        const CacheType type = l.format.form(side, !cold);
        const int dim = width(side);
        if (dim == 0) continue;
        const size_t size = row_bytes(type, dim);
        uint8_t* to = side == side_k ? k : v;
        for (int64_t j = start; j < stop; ++j)
            for (int h = 0; h < n_kv_heads_; ++h, to += size) {
                int lane;
                const uint8_t* tile = cold ? cold_tile(l, side, j, h, lane) : hot_tile(l, side, j, h, lane);
                get_row(type, side, dim, tile, lane, to);
            }
    }
}

void KVStore::set_rows(int layer, bool cold, int64_t start, int64_t stop, const uint8_t* k, const uint8_t* v) {
    if (start >= stop) return;
    Layer& l = layers_[size_t(layer)];
    if (!cold || l.one_form) {
        check_ring(start, stop, cold ? "set_cold" : "set_hot");
        reserve_layer(layer, {start, stop});
        add_hot(l, start, stop);
    } else {
        reserve_layer(layer, {0, 0, start, stop});
        l.cold.add(start - sinks_, stop - sinks_);
    }
    for (Side side : {side_k, side_v}) {
        const CacheType type = l.format.form(side, !cold);
        const int dim = width(side);
        if (dim == 0) continue;
        const size_t size = row_bytes(type, dim);
        const uint8_t* from = side == side_k ? k : v;
        for (int64_t j = start; j < stop; ++j)
            for (int h = 0; h < n_kv_heads_; ++h, from += size) {
                int lane;
                uint8_t* tile = cold ? cold_tile(l, side, j, h, lane) : hot_tile(l, side, j, h, lane);
                put_row(type, side, dim, tile, lane, from);
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

void KVStore::attend(Backend& on, int layer, const StepOrders& orders, int n_heads, const AttendArgs& args) {
    std::vector<float> slopes;
    if (args.max_bias > 0.0f) slopes = alibi_slopes(n_heads, args.max_bias);
    std::vector<AttnProblem> problems;
    for (const StepOrder& o : orders) {
        if (o.n == 0) continue;
        const KVStore& s = *o.store;
        const Layer& l = s.layers_[size_t(layer)];
        // what all queries together read: sinks, cold tiles up to the last query's hot ones, hot ones from the first's on
        const int64_t stop = o.pos + o.n, first = args.window > 0 ? std::max<int64_t>(0, o.pos - args.window + 1) : 0;
        const int64_t past_sinks = std::max(first, s.sinks_);
        const auto [least, most] = std::minmax_element(o.hot_from, o.hot_from + o.n);
        s.need_hot(l, first, std::min(stop, s.sinks_), "attend");
        s.need_cold(l, past_sinks, std::min(stop, *most), "attend");
        s.need_hot(l, std::max(past_sinks, *least), stop, "attend");
        AttnProblem& p = problems.emplace_back();
        p.n_queries = o.n, p.n_heads = n_heads, p.n_kv_heads = s.n_kv_heads_;
        p.head_dim_k = s.head_dim_k_, p.head_dim_v = s.head_dim_v_;
        p.q = o.q, p.scale = args.scale, p.rotate_q = l.format.rotate_k, p.v_in_k = s.v_in_k_;
        p.rotate_out = s.v_in_k_ ? l.format.rotate_k : l.format.rotate_v;
        p.sinks = &l.sinks, p.ring = &l.ring, p.cold = &l.cold_area(), p.format = l.format;
        p.sink_tokens = s.sinks_, p.hot_from = o.hot_from, p.pos = o.pos, p.causal = true, p.n_keys = stop;
        p.window = args.window, p.softcap = args.softcap;
        p.slopes = slopes.empty() ? nullptr : slopes.data();
        p.sink_logits = args.sink_logits;
        p.out = o.out;
    }
    run_attention(on, problems);
}

void KVStore::step(Backend& on, int layer, const StepOrders& orders, int n_heads, const AttendArgs& args) {
    for (const StepOrder& o : orders) {
        if (o.n > 0) o.store->check_ring(o.pos, o.pos + o.n, "step");
        o.store->reserve_layer(layer, {o.pos, o.pos + o.n, o.cold_from, o.cold_to});
    }
    write(on, layer, orders);
    quantize(on, layer, orders);
    attend(on, layer, orders, n_heads, args);
}

}  // namespace mixkv
