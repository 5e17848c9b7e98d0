// KVStore: where keys and values lie. The NumPy twin is kernels/store.py, the contract stands in docs/architecture.md.
//
// Per layer three areas of tiles (tile_area.h): sinks (hot form, positions j < S), a ring of recent tiles (hot form,
// tile i in slot i % hot_tiles) and cold tiles for the whole context. Where the ring has a slot for every tile and both
// forms are written alike, there is one form: the ring is the cold area too. The store knows no policy: what is quantized
// when, and who reads which form, arrives as numbers. It knows what it holds, and refuses to read the rest.
//
// v_in_k: values are the first head_dim_v numbers of keys, and not kept by themselves (multi-head latent attention). There
// is no V then: its rows have no numbers, its formats mean nothing.
//
// Areas are tables of pages (pages.h), which copies share. Before anything is written its pages are there and this store's
// own (`reserve`); if the pool has no more, nothing has changed.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "backend.h"
#include "kv_format.h"
#include "pages.h"
#include "tile_area.h"

namespace mixkv {

struct LayerFormat {
    CacheType type_k, type_v, hot_k, hot_v;
    bool rotate_k, rotate_v;
    bool q4_unbiased = false;  // the rule for Q4_0's scales
    CacheType cold(Side side) const { return side == side_k ? type_k : type_v; }
    CacheType hot(Side side) const { return side == side_k ? hot_k : hot_v; }
    CacheType form(Side side, bool is_hot) const { return is_hot ? hot(side) : cold(side); }
};

struct Layer {
    LayerFormat format;
    bool one_form;  // what is hot is cold: `cold` has no tiles
    TileArea sinks, ring, cold;
    const TileArea& cold_area() const { return one_form ? ring : cold; }
};

// What is about to be written: positions [hot_start, hot_stop) in the hot form, [cold_start, cold_stop) in the cold one.
struct Spans {
    int64_t hot_start = 0, hot_stop = 0, cold_start = 0, cold_stop = 0;
};

struct AttendArgs {
    float scale, softcap, max_bias;
    int64_t window;
    const float* sink_logits;  // [n_heads] or null
};

// What one sequence's step does in a layer. q: n x n_heads x head_dim_k floats at pos ..., k, v: n x n_kv_heads x head_dim;
// tiles [cold_from, cold_to) turn cold before the queries read; out: n x n_heads x head_dim_v.
class KVStore;
struct StepOrder {
    KVStore* store = nullptr;
    int64_t pos = 0, n = 0, cold_from = 0, cold_to = 0;
    const float *q = nullptr, *k = nullptr, *v = nullptr;
    const int64_t* hot_from = nullptr;
    float* out = nullptr;
};
using StepOrders = std::vector<StepOrder>;

// Every method but the constructor runs in the backend's turn. The binding has checked layers, shapes and the order of
// positions; what depends on what is stored is checked here, and throws InputError.
class KVStore {
public:
    // Throws ConfigError for shapes that the kernels cannot serve, OutOfMemoryError where the system refuses.
    KVStore(std::shared_ptr<Backend> backend, std::shared_ptr<PagePool> pool, const std::vector<LayerFormat>& formats,
            int64_t n_kv_heads, int64_t head_dim_k, int64_t head_dim_v, int64_t n_ctx, int64_t sink_tokens,
            int64_t hot_tiles, bool v_in_k);
    KVStore(const KVStore& other);  // shares all pages
    ~KVStore();

    Backend& backend() const { return *backend_; }
    int n_layers() const { return int(layers_.size()); }
    int n_kv_heads() const { return n_kv_heads_; }
    int head_dim(Side side) const { return side == side_k ? head_dim_k_ : head_dim_v_; }
    int width(Side side) const { return side == side_v && v_in_k_ ? 0 : head_dim(side); }  // numbers that are kept
    int64_t n_ctx() const { return n_ctx_; }
    int64_t sink_tokens() const { return sinks_; }
    const LayerFormat& format(int layer) const { return layers_[size_t(layer)].format; }

    // All layers: the pages that these positions take, or OutOfMemoryError and nothing has changed.
    void reserve(const Spans& spans);
    // All layers: forget positions from these ends on in either form, and give back the pages that are left empty.
    void trim(int64_t hot_stop, int64_t cold_stop);

    // The rings as they are, with positions [start, stop) alone, in a store of its own that shares their pages; nothing of
    // layers of one form, whose ring overwrites nothing.
    std::unique_ptr<KVStore> copy_ring(int64_t start, int64_t stop) const;
    // The rings become those of a store that was made by copy_ring; nothing is copied, and no page is needed.
    void take_ring(const KVStore& other);
    bool same_kind(const KVStore& other) const;  // of the same sizes, formats and pool
    std::vector<std::pair<const Page*, size_t>> ring_pages() const;  // and their bytes

    // One layer of several sequences on one backend; whatever is together in a call, the bits are the same. A step is
    // reserve, write, quantize, attend. No store may be there twice.
    static void step(Backend& on, int layer, const StepOrders& orders, int n_heads, const AttendArgs& args);
    static void write(Backend& on, int layer, const StepOrders& orders);     // k, v at pos ...
    static void quantize(Backend& on, int layer, const StepOrders& orders);  // [cold_from, cold_to): hot -> cold form
    static void attend(Backend& on, int layer, const StepOrders& orders, int n_heads, const AttendArgs& args);
    void rehydrate(int layer, int64_t start, int64_t stop);  // whole tiles, cold form -> hot form

    // Rows as bytes [position][head][row_bytes] of the hot (or cold) type.
    void get_rows(int layer, bool cold, int64_t start, int64_t stop, uint8_t* k, uint8_t* v) const;
    void set_rows(int layer, bool cold, int64_t start, int64_t stop, const uint8_t* k, const uint8_t* v);

private:
    uint8_t* hot_tile(const Layer& layer, Side side, int64_t position, int head, int& lane) const;
    uint8_t* cold_tile(const Layer& layer, Side side, int64_t position, int head, int& lane) const;
    void give_pages() noexcept;
    void reserve_layers(size_t first, size_t stop, const Spans& spans);
    void reserve_layer(int layer, const Spans& spans) { reserve_layers(size_t(layer), size_t(layer) + 1, spans); }
    void add_hot(Layer& layer, int64_t start, int64_t stop) const;
    void need_hot(const Layer& layer, int64_t start, int64_t stop, const char* what) const;
    void need_cold(const Layer& layer, int64_t start, int64_t stop, const char* what) const;
    void check_ring(int64_t start, int64_t stop, const char* what) const;
    void write_head(const Layer& layer, Side side, int head, const float* rows, int64_t n, int64_t pos);
    void convert_tile(const Layer& layer, int head, int64_t start, bool to_cold) const;

    std::shared_ptr<Backend> backend_;
    std::shared_ptr<PagePool> pool_;
    std::vector<Layer> layers_;
    int n_kv_heads_, head_dim_k_, head_dim_v_;
    int64_t n_ctx_, sinks_, hot_tiles_;
    bool v_in_k_;
};

constexpr int max_head_dim = 1024;

}  // namespace mixkv
