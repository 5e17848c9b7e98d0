#include "attn_run.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "errors.h"

namespace mixkv {
namespace {

constexpr int rows_per_block = 64;                // query rows that share the unpacking of a tile
constexpr int64_t max_partial_bytes = 64 << 20;   // beyond this, decoding does not split over chunks
constexpr float neg_inf = -std::numeric_limits<float>::infinity(), most = std::numeric_limits<float>::max();

struct QueryRange {  // queries [first, stop) with one KV head
    int64_t first, stop;
    int kv_head;
};

struct KeyRange {  // positions of one chunk
    int64_t start, stop;
};

// What a tile is for some consecutive queries of a block.
struct Run {
    int q0, q1, t0, t1;
    bool hot;
};

// Scratch of a block: row-wise scores and masks, query-wise spans.
struct BlockScratch {
    float *x, *bias, *distance;
    int *first, *stop;
    Run* runs;
    uint8_t* readers;
    uint8_t* values[2];  // where values are part of keys: [cold, hot], four V tiles of this block each
    bool laid_out[2][tiles_per_block];
    bool alike;  // every query sees all 64 keys, each tile in one form: one run per tile
};

class Attention {
public:
    Attention(Backend& on, const AttnProblem& p);

    // In the order of these calls. n_pieces: (range, chunk) pairs, each about the same work.
    size_t n_pieces() const { return ranges_.size() * chunks_.size(); }
    // A task for each piece where whole ranges were too few tasks of `total` pieces, and the arena then has room for them.
    void choose(size_t total, int64_t& partial);
    int n_tasks() const { return int(split_ ? n_pieces() : ranges_.size()); }
    size_t shared_bytes() const;
    void prepare_split(Arena& shared);
    void run_task(int task, int thread) { split_ ? run_piece(task, thread) : run_whole(ranges_[size_t(task)], thread); }

private:
    int group() const { return p_.n_heads / p_.n_kv_heads; }
    int rows(const QueryRange& r) const { return int(r.stop - r.first) * group(); }
    int64_t first_key(int64_t query) const {
        return p_.window > 0 ? std::max<int64_t>(0, p_.pos + query - p_.window + 1) : 0;
    }
    int64_t stop_key(int64_t query) const { return p_.causal ? p_.pos + query + 1 : p_.n_keys; }
    int64_t hot_from(int64_t query) const { return p_.hot_from ? p_.hot_from[query] : p_.n_keys; }

    // whether the range's first query reads the tile at `base` in the hot form
    bool is_hot(const QueryRange& r, int64_t base) const { return base < p_.sink_tokens || base >= hot_from(r.first); }

    size_t query_bytes(int n_rows) const;
    size_t state_bytes(int n_rows) const;
    QueryRows take_queries(Arena& arena, int n_rows) const;
    StateRows take_state(Arena& arena, int n_rows) const;
    static void clear(const StateRows& s, int n_rows);

    void prepare(const QueryRange& r, const QueryRows& q) const;
    bool plan_block(const QueryRange& r, int64_t base, int64_t limit, BlockScratch& b) const;
    int plan_tile(const QueryRange& r, const BlockScratch& b, int64_t base, int tile) const;
    const uint8_t* tile_at(Side side, int64_t position, int head, bool hot) const;
    void add_scores(const QueryRange& r, const QueryRows& q, int64_t base, const BlockScratch& b) const;
    CacheType type_of_values(bool hot) const {
        return p_.v_in_k ? value_type(p_.format.form(side_k, hot)) : p_.format.form(side_v, hot);
    }
    size_t bytes_of_values(bool hot) const {  // of a V tile that is made of keys
        return p_.v_in_k ? size_t(round_up_int(int(tile_bytes(type_of_values(hot), side_v, p_.head_dim_v)), 64)) : 0;
    }
    const uint8_t* value_tile(BlockScratch& b, int64_t base, int tile, int head, bool hot) const;
    void add_values(const QueryRange& r, int64_t base, BlockScratch& b, const StateRows& state) const;
    void rotate_back(float* out) const;
    void attend_chunk(const QueryRange& r, const QueryRows& q, const KeyRange& keys, Arena& arena,
                      const StateRows& state) const;
    size_t chunk_bytes(int n_rows) const;
    void load_state(const QueryRange& r, const StateRows& s) const;
    void store_result(const QueryRange& r, const StateRows& s) const;
    void run_whole(const QueryRange& r, int thread) const;
    void run_piece(int task, int thread);

    Arena& reserve(Arena& arena, size_t bytes) const {
        arena.reserve(bytes, on_.attention.poison);
        return arena;
    }
    Arena& arena_of(int thread, size_t bytes) const { return reserve(on_.attention.of_thread[size_t(thread)], bytes); }

    Backend& on_;
    const AttnProblem& p_;
    const AttnOps& ops_;
    std::vector<QueryRange> ranges_;
    std::vector<KeyRange> chunks_;
    int max_rows_ = 0;

    bool split_ = false;  // and then, by range and by (range, chunk):
    std::vector<QueryRows> queries_;
    std::vector<StateRows> parts_;
    std::unique_ptr<std::atomic<size_t>[]> done_;
};

Attention::Attention(Backend& on, const AttnProblem& p) : on_(on), p_(p), ops_(on.attn) {
    const int64_t per_range = std::max(1, rows_per_block / group());
    for (int h = 0; h < p.n_kv_heads; ++h)
        for (int64_t i = 0; i < p.n_queries;) {
            ranges_.push_back({i, std::min(i + per_range, p.n_queries), h});
            max_rows_ = std::max(max_rows_, rows(ranges_.back()));
            i = ranges_.back().stop;
        }
    const int64_t first = first_key(0), stop = stop_key(p.n_queries - 1), sinks = std::min(p.sink_tokens, stop);
    for (int64_t j = first / chunk_keys * chunk_keys; j < sinks; j += chunk_keys)
        chunks_.push_back({j, std::min(j + chunk_keys, sinks)});
    const int64_t skipped = std::max<int64_t>(0, first - p.sink_tokens) / chunk_keys * chunk_keys;
    for (int64_t j = p.sink_tokens + skipped; j < stop; j += chunk_keys)
        chunks_.push_back({j, std::min(j + chunk_keys, stop)});
}

size_t Attention::query_bytes(int n_rows) const {
    const size_t n = size_t(padded_rows(n_rows)), blocks = n * size_t(n_blocks(p_.head_dim_k));
    return blocks * (32 * 4 + 64 + 4) + n * 4 + 4 * 64;
}
size_t Attention::state_bytes(int n_rows) const {
    return size_t(padded_rows(n_rows)) * (size_t(padded_dim(p_.head_dim_v)) + 17) * 4 + 3 * 64;
}
size_t Attention::chunk_bytes(int n_rows) const {
    const size_t n = size_t(padded_rows(n_rows));  // at least as many as queries
    return n * block_keys * 4 * 2 + n * (3 * sizeof(int) + sizeof(Run) + 1) +
           tiles_per_block * (bytes_of_values(false) + bytes_of_values(true)) + 9 * 64;
}

QueryRows Attention::take_queries(Arena& arena, int n_rows) const {
    QueryRows q;
    q.n_rows = n_rows, q.head_dim = p_.head_dim_k, q.pitch = padded_dim(p_.head_dim_k), q.blocks = q.pitch / 32;
    const size_t n = size_t(padded_rows(n_rows)), blocks = n * size_t(q.blocks);
    q.q = arena.take<float>(blocks * 32);
    q.codes = arena.take<int8_t>(blocks * 64);
    q.scale = arena.take<float>(n);
    q.offset = arena.take<int32_t>(blocks);
    return q;
}

StateRows Attention::take_state(Arena& arena, int n_rows) const {
    StateRows s;
    const size_t n = size_t(padded_rows(n_rows));
    s.pitch = padded_dim(p_.head_dim_v);
    s.m = arena.take<float>(n);
    s.s = arena.take<float>(n * 16);
    s.acc = arena.take<float>(n * size_t(s.pitch));
    return s;
}

void Attention::clear(const StateRows& s, int n_rows) {
    std::fill_n(s.m, n_rows, neg_inf);
    std::fill_n(s.s, n_rows * 16, 0.0f);
    std::fill_n(s.acc, size_t(n_rows) * size_t(s.pitch), 0.0f);
}

// Scaled, rotated and (for quantized keys) split queries, row = query * group + head of the group.
void Attention::prepare(const QueryRange& r, const QueryRows& q) const {
    float* row = q.q;
    const size_t dim = size_t(p_.head_dim_k);
    for (int64_t i = r.first; i < r.stop; ++i)
        for (int g = 0; g < group(); ++g, row += q.pitch) {
            const float* from = p_.q + (size_t(i) * size_t(p_.n_heads) + size_t(r.kv_head * group() + g)) * dim;
            std::copy_n(from, dim, row);
            std::fill(row + dim, row + q.pitch, 0.0f);
            if (p_.rotate_q) ops_.hadamard(row, p_.head_dim_k);
        }
    // the kernels want scores in base 2; where something is still to be added to them, they convert afterwards
    const bool plain = !p_.mask && !p_.slopes && p_.softcap <= 0.0f;
    ops_.split_queries(q, p_.format.type_k, plain ? p_.scale * log2_e : p_.scale);
}

const uint8_t* Attention::tile_at(Side side, int64_t position, int head, bool hot) const {
    if (position < p_.sink_tokens) return p_.sinks->at(side, position / tile_tokens, head);
    const int64_t tile = (position - p_.sink_tokens) / tile_tokens;
    return hot ? p_.ring->at(side, tile % p_.ring->n_tiles(), head) : p_.cold->at(side, tile, head);
}

// The runs of queries that read this tile of the block at `base` alike; queries that see none of it are left out.
int Attention::plan_tile(const QueryRange& r, const BlockScratch& b, int64_t base, int tile) const {
    const int from = tile * tile_tokens, to = from + tile_tokens;
    if (b.alike) {
        b.runs[0] = {0, int(r.stop - r.first), 0, tile_tokens, is_hot(r, base)};
        return 1;
    }
    int n = 0;
    for (int i = 0; i < int(r.stop - r.first); ++i) {
        const int t0 = std::max(b.first[i], from) - from, t1 = std::min(b.stop[i], to) - from;
        if (t0 >= t1) continue;
        const bool hot = base < p_.sink_tokens || base + from >= hot_from(r.first + i);
        Run& last = b.runs[n ? n - 1 : 0];
        if (n && last.q1 == i && last.t0 == t0 && last.t1 == t1 && last.hot == hot)
            last.q1 = i + 1;
        else
            b.runs[n++] = {i, i + 1, t0, t1, hot};
    }
    return n;
}

// Which keys of the block at `base` each query sees; false if none sees any.
bool Attention::plan_block(const QueryRange& r, int64_t base, int64_t limit, BlockScratch& b) const {
    bool any = false, all = true;
    int64_t least = hot_from(r.first), most = least;
    for (int i = 0; i < int(r.stop - r.first); ++i) {
        const int64_t query = r.first + i, to = std::min(stop_key(query), limit) - base;
        b.first[i] = int(std::clamp<int64_t>(first_key(query) - base, 0, block_keys));
        b.stop[i] = int(std::clamp<int64_t>(to, 0, block_keys));
        b.distance[i] = float(base - p_.pos - query);
        any |= b.first[i] < b.stop[i];
        all &= b.first[i] == 0 && b.stop[i] == block_keys;
        least = std::min(least, hot_from(query));
        most = std::max(most, hot_from(query));
    }
    b.alike = all && (base < p_.sink_tokens || base + block_keys <= least || base >= most);
    if (any && p_.mask)
        for (int64_t i = 0; i < r.stop - r.first; ++i) {
            const int64_t keys = std::min<int64_t>(block_keys, limit - base);
            float* bias = b.bias + i * block_keys;
            std::fill(std::copy_n(p_.mask + (r.first + i) * p_.mask_pitch + base, keys, bias), bias + block_keys, 0.0f);
        }
    return any;
}

void Attention::add_scores(const QueryRange& r, const QueryRows& q, int64_t base, const BlockScratch& b) const {
    if (b.alike) {
        const bool hot = is_hot(r, base);
        const auto whole = ops_.qk_block[hot ? p_.format.hot_k : p_.format.type_k];
        const uint8_t* tiles[tiles_per_block];
        for (int t = 0; t < tiles_per_block; ++t) tiles[t] = tile_at(side_k, base + t * tile_tokens, r.kv_head, hot);
        if (whole) return whole(q, tiles, b.x);
    }
    for (int t = 0; t < tiles_per_block; ++t) {
        const int n_runs = plan_tile(r, b, base, t);
        for (const Run* run = b.runs; run < b.runs + n_runs; ++run) {
            const CacheType type = run->hot ? p_.format.hot_k : p_.format.type_k;
            const uint8_t* tile = tile_at(side_k, base + t * tile_tokens, r.kv_head, run->hot);
            ops_.qk[type](q, run->q0 * group(), run->q1 * group(), tile, b.x + t * tile_tokens);
        }
    }
}

// A V tile of the block at `base`; where values are part of keys, laid out when it is first asked for.
const uint8_t* Attention::value_tile(BlockScratch& b, int64_t base, int tile, int head, bool hot) const {
    const int64_t position = base + tile * tile_tokens;
    if (!p_.v_in_k) return tile_at(side_v, position, head, hot);
    uint8_t* values = b.values[hot] + size_t(tile) * bytes_of_values(hot);
    if (!b.laid_out[hot][tile])
        ops_.values_of_keys[p_.format.form(side_k, hot)](tile_at(side_k, position, head, hot), p_.head_dim_k,
                                                         p_.head_dim_v, values);
    b.laid_out[hot][tile] = true;
    return values;
}

void Attention::add_values(const QueryRange& r, int64_t base, BlockScratch& b, const StateRows& state) const {
    const auto matrix = ops_.pv_matrix[type_of_values(false)];
    memset(b.laid_out, 0, sizeof b.laid_out);
    ValueBlock block{b.x, int(r.stop - r.first), group(), p_.head_dim_v, {}, b.readers, state};
    if (b.alike) {
        const bool hot = is_hot(r, base);
        for (int t = 0; t < tiles_per_block; ++t)
            block.tiles[t] = value_tile(b, base, t, r.kv_head, hot);
        if (matrix && !hot) {
            std::fill_n(b.readers, block.n_queries, uint8_t((1 << tiles_per_block) - 1));
            return matrix(block);
        }
        const CacheType type = type_of_values(hot);
        // few rows lose more by the larger scratch than they gain, where unpacking is cheap
        const auto whole = is_float_type(type) && rows(r) <= 8 ? nullptr : ops_.pv_block[type];
        if (whole) return whole(b.x, rows(r), block.tiles, p_.head_dim_v, state);
    }
    bool any_cold = false;
    std::fill_n(b.readers, block.n_queries, uint8_t(0));
    for (int pass = 0; pass < (matrix ? 2 : 1); ++pass) {  // with matrix units: cold tiles together, then hot ones
        for (int t = 0; t < tiles_per_block; ++t) {
            const int n_runs = plan_tile(r, b, base, t);
            for (const Run* run = b.runs; run < b.runs + n_runs; ++run) {
                const uint8_t* tile = value_tile(b, base, t, r.kv_head, run->hot);
                if (matrix && pass == 0 && !run->hot) {
                    block.tiles[t] = tile;
                    any_cold = true;
                    for (int i = run->q0; i < run->q1; ++i) b.readers[i] |= uint8_t(1 << t);
                } else if (!matrix || (pass == 1 && run->hot)) {
                    const CacheType type = type_of_values(run->hot);
                    ops_.pv[type](b.x + t * tile_tokens, run->q0 * group(), run->q1 * group(), tile, p_.head_dim_v,
                                  run->t0, run->t1, state);
                }
            }
        }
        if (any_cold && pass == 0) matrix(block);
    }
}

void Attention::attend_chunk(const QueryRange& r, const QueryRows& q, const KeyRange& keys, Arena& arena,
                             const StateRows& state) const {
    const size_t n = size_t(r.stop - r.first);
    const int g = group();
    BlockScratch b;
    b.x = arena.take<float>(size_t(padded_rows(rows(r))) * block_keys);
    b.bias = arena.take<float>(n * block_keys);
    b.distance = arena.take<float>(n);
    b.first = arena.take<int>(n);
    b.stop = arena.take<int>(n);
    b.runs = arena.take<Run>(n);
    b.readers = arena.take<uint8_t>(n);
    for (const bool hot : {false, true}) b.values[hot] = arena.take<uint8_t>(tiles_per_block * bytes_of_values(hot));
    const float* slopes = p_.slopes ? p_.slopes + r.kv_head * g : nullptr;
    // rescaling a state for every small rise of the maximum costs more than weights that may reach 2^8; but a state
    // that is handed out has the true maximum as its m
    const float slack = p_.out ? 8.0f : 0.0f;
    clear(state, rows(r));
    ops_.enter(rows(r));
    for (int64_t base = keys.start; base < keys.stop; base += block_keys) {
        if (!plan_block(r, base, keys.stop, b)) continue;
        add_scores(r, q, base, b);
        ops_.softmax({int(n), g, b.first, b.stop, p_.softcap, slopes, p_.mask ? b.bias : nullptr, b.distance, q.scale,
                      slack, b.x,
                      state});
        add_values(r, base, b, state);
    }
    ops_.leave();
}

// The state that the caller brought, or that of the heads' learned sinks, or an empty one: once for each row, whatever its
// work is cut into.
void Attention::load_state(const QueryRange& r, const StateRows& s) const {
    clear(s, rows(r));
    if (p_.out && !p_.sink_logits) return;
    int row = 0;
    for (int64_t i = r.first; i < r.stop; ++i)
        for (int g = 0; g < group(); ++g, ++row) {
            const int head = r.kv_head * group() + g;
            if (p_.out) {
                const float logit = p_.sink_logits[head], m = logit * log2_e;
                s.m[row] = std::isinf(m) && std::isfinite(logit) ? std::copysign(most, m) : m;
                s.s[row * 16] = logit != logit ? logit : 1.0f;  // NaN stays, even before keys that count for nothing
                continue;
            }
            const size_t at = size_t(i) * size_t(p_.n_heads) + size_t(head);
            s.m[row] = p_.m[at] * log2_e;
            s.s[row * 16] = p_.s[at];
            std::copy_n(p_.acc + at * size_t(p_.head_dim_v), p_.head_dim_v, s.acc + size_t(row) * size_t(s.pitch));
        }
}

// Out of the space that values were rotated into: where they are part of keys, in blocks of the keys' width, which
// divides them.
void Attention::rotate_back(float* out) const {
    if (!p_.v_in_k) return ops_.hadamard(out, p_.head_dim_v);
    const int width = p_.head_dim_k & -p_.head_dim_k, step = std::max(width, 16);
    for (int i = 0; i < p_.head_dim_v; i += step) ops_.hadamard(out + i, width);
}

void Attention::store_result(const QueryRange& r, const StateRows& s) const {
    int row = 0;
    alignas(64) float out[max_head_dim];
    for (int64_t i = r.first; i < r.stop; ++i)
        for (int g = 0; g < group(); ++g, ++row) {
            const size_t at = size_t(i) * size_t(p_.n_heads) + size_t(r.kv_head * group() + g);
            const float* acc = s.acc + size_t(row) * size_t(s.pitch);
            const float sum = ops_.sum_lanes(s.s + row * 16);
            if (p_.out) {
                ops_.finalize_row(acc, sum, p_.head_dim_v, out);
                if (p_.rotate_out) rotate_back(out);
                std::copy_n(out, p_.head_dim_v, p_.out + at * size_t(p_.head_dim_v));
            } else {
                p_.m[at] = s.m[row] * ln_2;
                p_.s[at] = sum;
                std::copy_n(acc, p_.head_dim_v, p_.acc + at * size_t(p_.head_dim_v));
            }
        }
}

// Prefill: one task does all chunks of a range of queries.
void Attention::run_whole(const QueryRange& r, int thread) const {
    const int n = rows(r);
    Arena& arena = arena_of(thread, query_bytes(n) + 2 * state_bytes(n) + chunk_bytes(n));
    const QueryRows q = take_queries(arena, n);
    const StateRows total = take_state(arena, n), part = take_state(arena, n);
    prepare(r, q);
    load_state(r, total);
    const size_t rest = arena.mark();
    for (const KeyRange& keys : chunks_) {
        if (keys.start >= stop_key(r.stop - 1) || keys.stop <= first_key(r.first)) continue;
        arena.rewind(rest);
        attend_chunk(r, q, keys, arena, part);
        ops_.merge(n, p_.head_dim_v, total, part);
    }
    store_result(r, total);
}

// Decoding: one task per chunk and range; whoever finishes a range's last chunk merges them all, in order.
void Attention::choose(size_t total, int64_t& partial) {
    const int64_t bytes = int64_t(n_pieces() * state_bytes(max_rows_));
    split_ = chunks_.size() > 1 && total < chunks_.size() * 4 * size_t(on_.pool.n_threads()) &&
             partial + bytes <= max_partial_bytes;
    if (split_) partial += bytes;
}

size_t Attention::shared_bytes() const {
    return split_ ? ranges_.size() * query_bytes(max_rows_) + n_pieces() * state_bytes(max_rows_) : 0;
}

void Attention::prepare_split(Arena& shared) {
    if (!split_) return;
    for (const QueryRange& r : ranges_) {
        queries_.push_back(take_queries(shared, rows(r)));
        prepare(r, queries_.back());
        for (size_t c = 0; c < chunks_.size(); ++c) parts_.push_back(take_state(shared, rows(r)));
    }
    done_.reset(new std::atomic<size_t>[ranges_.size()]());
}

void Attention::run_piece(int task, int thread) {
    const size_t c = size_t(task) / ranges_.size(), range = size_t(task) % ranges_.size(), n_chunks = chunks_.size();
    const QueryRange& r = ranges_[range];
    Arena& arena = arena_of(thread, chunk_bytes(rows(r)) + state_bytes(rows(r)));
    attend_chunk(r, queries_[range], chunks_[c], arena, parts_[range * n_chunks + c]);
    if (done_[range].fetch_add(1, std::memory_order_acq_rel) + 1 < n_chunks) return;
    reserve(arena, state_bytes(rows(r)));
    const StateRows total = take_state(arena, rows(r));
    load_state(r, total);
    for (size_t i = 0; i < n_chunks; ++i) ops_.merge(rows(r), p_.head_dim_v, total, parts_[range * n_chunks + i]);
    store_result(r, total);
}

}  // namespace

void run_attention(Backend& on, const std::vector<AttnProblem>& problems) {
    std::vector<Attention> parts;
    parts.reserve(problems.size());
    size_t total = 0, bytes = 0;
    for (const AttnProblem& p : problems) total += parts.emplace_back(on, p).n_pieces();
    int64_t partial = 0;
    int n_tasks = 0;
    for (Attention& a : parts) {
        a.choose(total, partial);
        bytes += a.shared_bytes();
        n_tasks += a.n_tasks();
    }
    if (bytes) on.attention.shared.reserve(bytes, on.attention.poison);
    for (Attention& a : parts) a.prepare_split(on.attention.shared);
    on.parallel_for(n_tasks, [&](int task, int thread) {
        size_t i = 0;
        for (; task >= parts[i].n_tasks(); ++i) task -= parts[i].n_tasks();
        parts[i].run_task(task, thread);
    });
}

}  // namespace mixkv
