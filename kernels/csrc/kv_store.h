// KVStore: where keys and values lie. The NumPy twin is kernels/store.py, the contract stands in docs/architecture.md.
//
// Per layer three areas of tiles (kv_format.h): sinks (hot form, positions j < S), a ring of recent tiles (hot form,
// tile i in slot i % hot_tiles) and cold tiles for the whole context, reserved lazily. Where the ring has a slot for every
// tile and both forms are written alike, there is one form: the ring is the cold area too. The store knows no policy: what
// is quantized when, and who reads which form, arrives as numbers. It knows what it holds, and refuses to read the rest.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "backend.h"
#include "kv_format.h"
#include "memory.h"

namespace mixkv {

// Tiles in the order that attention reads them: [chunk][KV head][block of 64 positions][4 K tiles][4 V tiles], so one
// (chunk, head) is one stretch of memory. A chunk has 2^shift tiles: 32 in a long area, 4 in a short one. Tile i lies in
// slot i % n_tiles; `add` and `holds` know which tile a slot holds, and which of its 16 positions.
class TileArea {
public:
    TileArea() = default;
    TileArea(int64_t n_tiles, int n_heads, size_t k_bytes, size_t v_bytes);

    uint8_t* at(Side side, int64_t tile, int head) const {
        const int64_t within = tile & ((int64_t(1) << shift_) - 1);
        const size_t block = (size_t(tile >> shift_) * size_t(n_heads_) + size_t(head)) * blocks_ + size_t(within >> 2);
        const size_t at = block * 4 * (k_bytes_ + v_bytes_);
        return memory_.data() + at + (side == side_k ? size_t(within & 3) * k_bytes_
                                                     : 4 * k_bytes_ + size_t(within & 3) * v_bytes_);
    }
    int64_t n_tiles() const { return n_tiles_; }
    void add(int64_t start, int64_t stop);          // positions [start, stop) of the area hold data from now on
    bool holds(int64_t start, int64_t stop) const;  // whether all of them do
    TileArea copy() const;

private:
    struct Slot {
        int64_t tile_plus_1;  // 0: none
        uint32_t positions;   // bit i: position i of the tile
    };
    Slot& slot(int64_t tile) const { return slots_.as<Slot>()[tile % n_tiles_]; }
    bool whole(int64_t tile) const { return slot(tile).tile_plus_1 == tile + 1 && slot(tile).positions == 0xffff; }

    int64_t n_tiles_ = 0, used_ = 0, whole_ = 0;  // slots [0, used_) hold data, tiles [0, whole_) are there in full
    int shift_ = 2, n_heads_ = 0;
    size_t blocks_ = 1, k_bytes_ = 0, v_bytes_ = 0;
    Buffer memory_, slots_;
};

struct LayerFormat {
    CacheType type_k, type_v, hot_k, hot_v;
    bool rotate_k, rotate_v;
    bool q4_unbiased = false;  // the rule for Q4_0's scales
    CacheType cold(Side side) const { return side == side_k ? type_k : type_v; }
    CacheType hot(Side side) const { return side == side_k ? hot_k : hot_v; }
    bool one_form() const { return type_k == hot_k && type_v == hot_v; }
};

struct Layer {
    LayerFormat format;
    bool one_form;  // what is hot is cold: `cold` has no tiles
    TileArea sinks, ring, cold;
    const TileArea& cold_area() const { return one_form ? ring : cold; }
    TileArea& cold_area() { return one_form ? ring : cold; }
};

struct AttendArgs {
    float scale, softcap, max_bias;
    int64_t window;
};

// Every method but the constructor runs in the backend's turn. The binding has checked layers, shapes and the order of
// positions; what depends on what is stored is checked here, and throws InputError.
class KVStore {
public:
    // Throws ConfigError for shapes that the kernels cannot serve, OutOfMemoryError where the system refuses.
    KVStore(std::shared_ptr<Backend> backend, const std::vector<LayerFormat>& formats, int64_t n_kv_heads,
            int64_t head_dim_k, int64_t head_dim_v, int64_t n_ctx, int64_t sink_tokens, int64_t hot_tiles);
    KVStore(const KVStore& other);

    Backend& backend() const { return *backend_; }
    int n_layers() const { return int(layers_.size()); }
    int n_kv_heads() const { return n_kv_heads_; }
    int head_dim(Side side) const { return side == side_k ? head_dim_k_ : head_dim_v_; }
    int64_t n_ctx() const { return n_ctx_; }
    int64_t sink_tokens() const { return sinks_; }
    const LayerFormat& format(int layer) const { return layers_[size_t(layer)].format; }

    // k, v: n rows of n_kv_heads x head_dim floats for positions pos ...
    void write(int layer, const float* k, const float* v, int64_t n, int64_t pos);
    void quantize(int layer, int64_t start, int64_t stop);   // whole tiles, hot form -> cold form
    void rehydrate(int layer, int64_t start, int64_t stop);  // whole tiles, cold form -> hot form
    // q: n x n_heads x head_dim_k floats at pos ...; out: n x n_heads x head_dim_v
    void attend(int layer, const float* q, int64_t n, int n_heads, int64_t pos, const int64_t* hot_from,
                const AttendArgs& args, float* out);

    // Rows as bytes [position][head][row_bytes] of the hot (or cold) type.
    void get_rows(int layer, bool cold, int64_t start, int64_t stop, uint8_t* k, uint8_t* v) const;
    void set_rows(int layer, bool cold, int64_t start, int64_t stop, const uint8_t* k, const uint8_t* v);

private:
    uint8_t* hot_tile(const Layer& layer, Side side, int64_t position, int head, int& lane) const;
    uint8_t* cold_tile(const Layer& layer, Side side, int64_t position, int head, int& lane) const;
    void add_hot(Layer& layer, int64_t start, int64_t stop) const;
    void need_hot(const Layer& layer, int64_t start, int64_t stop, const char* what) const;
    void need_cold(const Layer& layer, int64_t start, int64_t stop, const char* what) const;
    void check_ring(int64_t start, int64_t stop, const char* what) const;
    void write_head(const Layer& layer, Side side, int head, const float* rows, int64_t n, int64_t pos);
    void convert(int layer, int64_t start, int64_t stop, bool to_cold);

    std::shared_ptr<Backend> backend_;
    std::vector<Layer> layers_;
    int n_kv_heads_, head_dim_k_, head_dim_v_;
    int64_t n_ctx_, sinks_, hot_tiles_;
};

constexpr int max_head_dim = 1024;

}  // namespace mixkv
