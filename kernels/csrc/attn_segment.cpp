// Attention over a segment given as rows: a few chunks at a time are laid out as tiles, in their own type, and run
// through the same kernels as the cache. Never more than piece_keys positions are held twice, none dequantized.
#include <algorithm>
#include <vector>

#include "attn_run.h"

namespace mixkv {
namespace {

constexpr int64_t piece_keys = 16 * chunk_keys;

// Tiles of keys [start, stop), counted from 0 in the area; lanes past the end keep older rows and are never read.
void lay_out(Backend& on, const TileArea& area, const AttnProblem& p, const SegmentRows& rows, Side side, int64_t start,
             int64_t stop) {
    const int dim = side == side_k ? p.head_dim_k : p.head_dim_v;
    const size_t size = row_bytes(rows.type, dim);
    on.parallel_for(int((stop - start + chunk_keys - 1) / chunk_keys) * p.n_kv_heads, [&](int task, int) {
        const int head = task % p.n_kv_heads;
        const int64_t first = int64_t(task / p.n_kv_heads) * chunk_keys;
        for (int64_t j = first; j < std::min(first + chunk_keys, stop - start); ++j)
            put_row(rows.type, side, dim, area.at(side, j / tile_tokens, head), int(j % tile_tokens),
                    rows.bytes + size_t((start + j) * p.n_kv_heads + head) * size);
    });
}

void reserve_all(PagePool& pool, TileArea& area, bool poison) {
    std::vector<ChunkOrder> chunks;
    area.want(0, area.n_tiles() * tile_tokens, chunks);
    std::vector<PageOrder> pages(chunks.size(), {area.page_bytes()});
    pool.take(pages, poison);
    for (size_t i = 0; i < chunks.size(); ++i) area.put(chunks[i].chunk, pages[i].page);
}

}  // namespace

void attend_segment(Backend& on, AttnProblem p, const SegmentRows& k, const SegmentRows& v) {
    const int64_t n_keys = p.n_keys;
    const float* mask = p.mask;
    const int64_t tiles = (std::min(n_keys, piece_keys) + tile_tokens - 1) / tile_tokens;
    PagePool pool(-1);
    TileArea area(tiles, p.n_kv_heads, tile_bytes(k.type, side_k, p.head_dim_k),
                  tile_bytes(v.type, side_v, p.head_dim_v));
    reserve_all(pool, area, on.attention.poison);
    p.cold = &area;
    p.format.type_k = k.type, p.format.type_v = v.type;
    for (int64_t start = 0; start < n_keys; start += piece_keys) {
        const int64_t stop = std::min(start + piece_keys, n_keys);
        lay_out(on, area, p, k, side_k, start, stop);
        lay_out(on, area, p, v, side_v, start, stop);
        p.n_keys = stop - start;
        p.mask = mask ? mask + start : nullptr;
        run_attention(on, {p});
    }
}

}  // namespace mixkv
