// TileArea: where the tiles of one layer's sinks, ring or cold positions lie, and which of them are there.
//
// Tiles stand in the order that attention reads them: [chunk][KV head][block of 64 positions][4 K tiles][4 V tiles], so one
// (chunk, head) is one stretch of memory. A chunk has 2^shift tiles, 32 in a long area, 4 in a short one, and is a page
// (pages.h), which is there from the first time that something is written to it. Tile i lies in slot i % n_tiles.
//
// Positions count from the area's first one.
#pragma once

#include <cstdint>
#include <vector>

#include "kv_format.h"
#include "pages.h"

namespace mixkv {

class TileArea;

// A page that an area is to have for its chunk: a fresh one, or its own copy of a shared one.
struct ChunkOrder {
    TileArea* area;
    int64_t chunk;
};

class TileArea {
public:
    TileArea() = default;
    TileArea(int64_t n_tiles, int n_heads, size_t k_bytes, size_t v_bytes);  // bytes of a tile

    uint8_t* at(Side side, int64_t tile, int head) const {
        const int64_t within = tile & ((int64_t(1) << shift_) - 1);
        const size_t block = size_t(head) * blocks_ + size_t(within >> 2);
        const size_t at = block * 4 * (k_bytes_ + v_bytes_);
        return entries()[tile >> shift_].data + at + (side == side_k ? size_t(within & 3) * k_bytes_
                                                                     : 4 * k_bytes_ + size_t(within & 3) * v_bytes_);
    }
    int64_t n_tiles() const { return n_tiles_; }
    size_t page_bytes() const { return size_t(n_heads_) * blocks_ * 4 * (k_bytes_ + v_bytes_); }

    void add(int64_t start, int64_t stop);          // positions [start, stop) hold data from now on
    bool holds(int64_t start, int64_t stop) const;  // whether all of them do
    void forget(int64_t stop);                      // positions from `stop` on hold none any more
    void forget_before(int64_t start);              // nor do those before `start`

    // The rest with the pool's mutex held, but for `put`.

    // Orders for what lacks to write positions [start, stop).
    void want(int64_t start, int64_t stop, std::vector<ChunkOrder>& orders);
    // The chunk's page is this one from now on, with the contents of the one it had; returns that, to be given back.
    Page* put(int64_t chunk, Page* page);
    void give_unused(PagePool& pool);  // pages in which no position holds data
    void give_all(PagePool& pool);
    TileArea copy() const;  // shares all pages
    void list_pages(std::vector<const Page*>& pages) const;

private:
    struct Entry {
        uint8_t* data;  // page->data
        Page* page;
    };
    struct Slot {
        int64_t tile_plus_1;  // 0: none
        uint32_t positions;   // bit i: position i of the tile
    };
    Entry* entries() const { return table_.as<Entry>(); }
    Slot& slot(int64_t tile) const { return slots_.as<Slot>()[tile % n_tiles_]; }
    bool whole(int64_t tile) const { return slot(tile).tile_plus_1 == tile + 1 && slot(tile).positions == 0xffff; }
    void want_chunks(int64_t first, int64_t last, std::vector<ChunkOrder>& orders);

    // slots [0, used_) may hold data, tiles [0, whole_) are there in full, chunks [0, chunks_) may have a page
    int64_t n_tiles_ = 0, used_ = 0, whole_ = 0, chunks_ = 0;
    int shift_ = 2, n_heads_ = 0;
    size_t blocks_ = 1, k_bytes_ = 0, v_bytes_ = 0;
    Buffer table_, slots_;
};

}  // namespace mixkv
