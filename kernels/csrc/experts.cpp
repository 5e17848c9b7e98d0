// See experts.h.
#include "experts.h"

#include <cstring>

namespace mixkv {
namespace {

void copy_tile(const QuantX& from, const int* pairs, int pairs_per_row, int n, const QuantX& to, int tile) {
    const size_t width = size_t(to.width), first = size_t(tile) * size_t(to.blocks) * width;
    const int used = std::min(n - tile * to.width, to.width);
    for (int b = 0; b < to.blocks; ++b) {
        const size_t at = first + size_t(b) * width;
        for (int r = 0; r < used; ++r) {
            const size_t row = size_t(pairs[tile * to.width + r] / pairs_per_row);
            const size_t cell = row * size_t(from.blocks) + size_t(b);
            std::memcpy(to.q + 32 * (at + size_t(r)), from.q + 32 * cell, 32);
            to.d[at + size_t(r)] = from.d[cell];
            to.sum[2 * at + size_t(r)] = from.sum[2 * cell];
            to.sum[2 * at + width + size_t(r)] = from.sum[2 * cell + 1];
        }
        for (size_t r = size_t(used); r < width; ++r) {
            std::memset(to.q + 32 * (at + r), 0, 32);
            to.d[at + r] = 0;
            to.sum[2 * at + r] = to.sum[2 * at + width + r] = 0;
        }
    }
}

}  // namespace

void Sorting::sort(const int32_t* chosen, int n_pairs, int n_experts) {
    next_.assign(size_t(n_experts), 0);
    for (int i = 0; i < n_pairs; ++i) ++next_[size_t(chosen[i])];
    shares.clear();
    int first = 0;
    for (int e = 0; e < n_experts; ++e) {
        const int count = next_[size_t(e)];
        next_[size_t(e)] = first;
        if (count > 0) shares.push_back({e, first, count});
        first += count;
    }
    place.resize(size_t(n_pairs));
    pair.resize(size_t(n_pairs));
    for (int i = 0; i < n_pairs; ++i) {
        const int at = next_[size_t(chosen[i])]++;
        place[size_t(i)] = at;
        pair[size_t(at)] = i;
    }
}

void lay_out(const Sorting& sorting, int cols, bool quantized, bool dense, ActivationMemory& mem,
             std::vector<Activations>& rows) {
    const size_t n = sorting.pair.size(), blocks = size_t(cols / block_cols);
    QuantX all{};
    float* floats = nullptr;
    if (quantized) {
        const size_t cells = 2 * n * blocks;  // the most that tiles can hold: one of 16 rows for 9
        all.q = mem.q.get<int8_t>(cells * block_cols);
        all.d = mem.d.get<float>(cells);
        all.sum = mem.sum.get<int32_t>(2 * cells);
    }
    if (dense) floats = mem.norm.get<float>(n * size_t(cols));
    rows.resize(sorting.shares.size());
    size_t cell = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
        const Share& share = sorting.shares[i];
        Activations& a = rows[i] = Activations{};
        a.n = share.count;
        a.cols = cols;
        a.quantized = quantized;
        a.ldx = cols;
        if (quantized) {
            const int width = tile_width(share.count);
            a.codes = {all.q + cell * block_cols, all.d + cell, all.sum + 2 * cell, share.count, width, int(blocks)};
            cell += size_t(ceil_div(share.count, width)) * size_t(width) * blocks;
        }
        if (dense) a.x = floats + size_t(share.first) * size_t(cols);
    }
}

void gather(Backend& on, const Sorting& sorting, const Activations& source, bool dense, int pairs_per_row,
            ActivationMemory& mem, std::vector<Activations>& rows) {
    lay_out(sorting, source.cols, source.quantized, dense, mem, rows);
    const QuantX& codes = source.codes;
    bool all_single = true;
    for (size_t i = 0; i < rows.size(); ++i) {
        const Share& share = sorting.shares[i];
        if (share.count > 1) {
            all_single = false;
            continue;
        }
        const size_t row = size_t(sorting.pair[size_t(share.first)] / pairs_per_row);
        const size_t cell = row * size_t(codes.blocks);
        if (source.quantized)
            rows[i].codes = {codes.q + cell * block_cols, codes.d + cell, codes.sum + 2 * cell, 1, 1, codes.blocks};
        if (dense) rows[i].x = source.x + int64_t(row) * source.ldx;
    }
    if (all_single) return;
    constexpr int per_task = 16;  // rows; tiles lie in no task but one, as 16 is a multiple of their widths
    int most = 0;
    for (const Share& share : sorting.shares) most = std::max(most, ceil_div(share.count, per_task));
    on.parallel_for(int(rows.size()) * most, [&](int task, int) {
        const size_t i = size_t(task / most);
        const Share& share = sorting.shares[i];
        const int t0 = task % most * per_task, t1 = std::min(share.count, t0 + per_task);
        if (share.count == 1 || t0 >= t1) return;
        const int* pairs = sorting.pair.data() + share.first;
        const Activations& to = rows[i];
        if (source.quantized) {
            const int width = to.codes.width;
            for (int tile = t0 / width; tile * width < t1; ++tile)
                copy_tile(codes, pairs, pairs_per_row, share.count, to.codes, tile);
        }
        for (int t = t0; dense && t < t1; ++t)
            std::memcpy(const_cast<float*>(to.x) + int64_t(t) * to.ldx,
                        source.x + int64_t(pairs[t] / pairs_per_row) * source.ldx, size_t(source.cols) * sizeof(float));
    });
}

void ExpertTasks::cut(const Sorting& sorting, const Experts& experts, int group0, int group1) {
    const Weight& w = experts.matrices();
    group0_ = group0;
    group1_ = group1;
    most_rows_ = most_cells_ = 0;
    cuts_.clear();
    firsts_.assign(1, 0);
    for (const Share& share : sorting.shares) {
        Cut c;
        c.rows = share.count;
        c.tokens = token_chunk(w, share.count);
        c.groups = share.count > 16 ? panel_groups : group_chunk(w, share.count);
        c.group_tasks = ceil_div(group1 - group0, c.groups);
        cuts_.push_back(c);
        firsts_.push_back(firsts_.back() + c.group_tasks * ceil_div(share.count, c.tokens));
        const int rows = std::min(c.rows, c.tokens);
        most_rows_ = std::max(most_rows_, rows);
        most_cells_ = std::max(most_cells_, rows * c.groups * group_rows);
    }
}

ExpertTasks::Piece ExpertTasks::piece(int task) const {
    const int share = int(std::upper_bound(firsts_.begin(), firsts_.end(), task) - firsts_.begin()) - 1;
    const Cut& c = cuts_[size_t(share)];
    const int i = task - firsts_[size_t(share)];
    const int t0 = i / c.group_tasks * c.tokens, g0 = group0_ + i % c.group_tasks * c.groups;
    return {share, g0, std::min(group1_, g0 + c.groups), t0, std::min(c.rows, t0 + c.tokens)};
}

}  // namespace mixkv
