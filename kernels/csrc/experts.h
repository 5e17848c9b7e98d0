// Packed experts, and what products by many of them in one go need: which rows each of them reads (Sorting), those rows
// side by side (lay_out, gather), and the tasks of a parallel region over all of them (ExpertTasks).
//
// A row of activations that goes to an expert is a pair (token, slot); sorted by expert, all rows of one lie together, so
// that its weights are read once. Rows are in tiles of their own share, whose width follows from how many there are: the
// kernels' results do not depend on it (ops.h), so a token's bits depend on that token alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "backend.h"
#include "linear.h"
#include "weight.h"

namespace mixkv {

// Matrices (rows, cols) of n experts in one piece of memory, each beginning with a panel.
class Experts {
public:
    // raw: n x rows x row_bytes, experts expert_bytes apart; the rest as Weight's.
    Experts(Backend& on, const uint8_t* raw, size_t expert_bytes, size_t row_bytes, int n, int rows, int cols,
            int ggml_type, bool exact)
        : all_(on, raw, expert_bytes, row_bytes, n, rows, cols, ggml_type, exact), n_(n) {}

    const Weight& matrices() const { return all_; }
    // Where groups from `group` on, the first of a panel, lie of that expert.
    Next at(int expert, int group) const {
        const Packed p = all_.packed(expert);
        const size_t panel = size_t(group / panel_groups);
        return {p.q + panel * p.q_panel, p.s + panel * p.s_panel};
    }
    int n() const { return n_; }
    int rows() const { return all_.rows(); }
    int cols() const { return all_.cols(); }
    int ggml_type() const { return all_.ggml_type(); }
    size_t nbytes() const { return all_.nbytes(); }

private:
    Weight all_;
    int n_;
};

// One expert's rows: places first .. first + count of the sorted ones.
struct Share {
    int expert, first, count;
};

// Pairs (token, slot), numbered token * n_used + slot, by expert; those of one expert in their own order.
struct Sorting {
    std::vector<Share> shares;  // of experts that have rows, by number
    std::vector<int> place;     // of each pair among the sorted ones
    std::vector<int> pair;      // at each place

    void sort(const int32_t* chosen, int n_pairs, int n_experts);

private:
    std::vector<int> next_;
};

// Gives each share's rows a place in `mem`, in `rows` (one Activations per share), for somebody to write: as codes, as
// floats, or both.
void lay_out(const Sorting& sorting, int cols, bool quantized, bool dense, ActivationMemory& mem,
             std::vector<Activations>& rows);

// The shares' rows, from `source`: row r is that of pairs r * pairs_per_row to (r + 1) * pairs_per_row. Its codes are in
// tiles of width 1; dense: its floats are wanted, too. A share of one row reads it where it is.
void gather(Backend& on, const Sorting& sorting, const Activations& source, bool dense, int pairs_per_row,
            ActivationMemory& mem, std::vector<Activations>& rows);

// A parallel region over groups [group0, group1) of all shares' experts, in pieces as linear.cpp cuts them.
class ExpertTasks {
public:
    struct Piece {
        int share, g0, g1, t0, t1;
    };

    // experts: whose shape decides; where two are multiplied in one task, the other has the same.
    void cut(const Sorting& sorting, const Experts& experts, int group0, int group1);
    int count() const { return firsts_.empty() ? 0 : firsts_.back(); }
    int most_rows() const { return most_rows_; }  // of a piece
    int most_cells() const { return most_cells_; }  // of a piece's result: rows x 16 (g1 - g0)
    Piece piece(int task) const;

private:
    struct Cut {
        int rows, tokens, groups, group_tasks;
    };
    std::vector<Cut> cuts_;
    std::vector<int> firsts_;
    int group0_ = 0, group1_ = 0, most_rows_ = 0, most_cells_ = 0;
};

}  // namespace mixkv
