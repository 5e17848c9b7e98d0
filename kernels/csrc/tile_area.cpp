#include "tile_area.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "errors.h"

namespace mixkv {
namespace {

constexpr int block_shift = 2;  // 4 tiles = 64 positions: a block of attention
constexpr int chunk_shift = 5;  // 32 tiles = 512 positions: a chunk of attention (attn_run.h)

// Long areas are laid out by chunks, so that memory is read in long stretches; a short one would take pages of which it
// needs a part.
int shift_for(int64_t n_tiles) { return n_tiles >= 4 << chunk_shift ? chunk_shift : block_shift; }

}  // namespace

TileArea::TileArea(int64_t n_tiles, int n_heads, size_t k_bytes, size_t v_bytes)
    : n_tiles_(n_tiles), shift_(shift_for(n_tiles)), n_heads_(n_heads), blocks_((size_t(1) << shift_) / 4),
      k_bytes_(k_bytes), v_bytes_(v_bytes) {
    const int64_t chunks = (n_tiles + (int64_t(1) << shift_) - 1) >> shift_;
    const double bytes = double(chunks) * double(n_heads) * double(blocks_) * 4.0 * double(k_bytes + v_bytes);
    if (bytes > 1e15) throw OutOfMemoryError("a KV cache of " + std::to_string(bytes) + " bytes a layer; lower n_ctx");
    table_ = Buffer(size_t(chunks) * sizeof(Entry));
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

void TileArea::forget(int64_t stop) {
    for (int64_t i = 0; i < used_; ++i) {
        Slot& s = slot(i);
        const int64_t keep = stop - (s.tile_plus_1 - 1) * tile_tokens;
        if (s.tile_plus_1 == 0 || keep >= tile_tokens) continue;
        s.positions &= keep > 0 ? (1u << keep) - 1 : 0;
        if (s.positions == 0) s.tile_plus_1 = 0;
        whole_ = std::min(whole_, i);
    }
    while (used_ > 0 && slot(used_ - 1).tile_plus_1 == 0) --used_;
}

void TileArea::forget_before(int64_t start) {
    for (int64_t i = 0; i < used_; ++i) {
        Slot& s = slot(i);
        const int64_t lost = start - (s.tile_plus_1 - 1) * tile_tokens;
        if (s.tile_plus_1 == 0 || lost <= 0) continue;
        s.positions &= lost < tile_tokens ? ~((1u << lost) - 1) : 0;
        if (s.positions == 0) s.tile_plus_1 = 0;
        whole_ = std::min(whole_, i);
    }
    while (used_ > 0 && slot(used_ - 1).tile_plus_1 == 0) --used_;
}

void TileArea::want_chunks(int64_t first, int64_t last, std::vector<ChunkOrder>& orders) {
    for (int64_t chunk = first; chunk <= last; ++chunk)
        if (const Page* page = entries()[chunk].page; !page || page->refs > 1) orders.push_back({this, chunk});
    chunks_ = std::max(chunks_, last + 1);
}

void TileArea::want(int64_t start, int64_t stop, std::vector<ChunkOrder>& orders) {
    if (start >= stop) return;
    const int64_t first = start / tile_tokens, last = (stop - 1) / tile_tokens, end = (n_tiles_ - 1) >> shift_;
    const int64_t from = first % n_tiles_ >> shift_, to = last % n_tiles_ >> shift_;
    if (last - first + 1 >= n_tiles_) return want_chunks(0, end, orders);
    if (first % n_tiles_ <= last % n_tiles_) return want_chunks(from, to, orders);
    want_chunks(0, to, orders);  // around the end of a ring
    want_chunks(std::max(from, to + 1), end, orders);
}

Page* TileArea::put(int64_t chunk, Page* page) {
    Page* const old = entries()[chunk].page;
    if (old) memcpy(page->data, old->data, page_bytes());
    entries()[chunk] = {page->data, page};
    return old;
}

void TileArea::give_unused(PagePool& pool) {
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
        Entry& entry = entries()[chunk];
        if (!entry.page) continue;
        const int64_t first = chunk << shift_, last = std::min((chunk + 1) << shift_, used_);
        bool used = false;
        for (int64_t i = first; i < last && !used; ++i) used = slot(i).tile_plus_1 != 0;
        if (!used) pool.give(entry.page), entry = {nullptr, nullptr};
    }
    while (chunks_ > 0 && !entries()[chunks_ - 1].page) --chunks_;
}

void TileArea::give_all(PagePool& pool) {
    for (int64_t chunk = 0; chunk < chunks_; ++chunk)
        if (Page* page = entries()[chunk].page) pool.give(page);
    chunks_ = 0;
}

void TileArea::list_pages(std::vector<const Page*>& pages) const {
    for (int64_t chunk = 0; chunk < chunks_; ++chunk)
        if (const Page* page = entries()[chunk].page) pages.push_back(page);
}

TileArea TileArea::copy() const {
    TileArea twin(n_tiles_, n_heads_, k_bytes_, v_bytes_);
    for (int64_t chunk = 0; chunk < chunks_; ++chunk)
        if (Page* page = (twin.entries()[chunk] = entries()[chunk]).page) ++page->refs;
    if (used_) memcpy(twin.slots_.data(), slots_.data(), size_t(used_) * sizeof(Slot));
    twin.used_ = used_, twin.whole_ = whole_, twin.chunks_ = chunks_;
    return twin;
}

}  // namespace mixkv
