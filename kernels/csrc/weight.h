// A weight matrix in the kernels' layout (packed.h), and the code that knows GGML's block formats: packing from raw
// bytes and reading rows back.
#pragma once

#include <cstdint>

#include "backend.h"
#include "memory.h"
#include "packed.h"

namespace mixkv {

class Weight {
public:
    // raw: rows x row_bytes in GGML's format `ggml_type`, cols numbers a row. exact: multiply float32 activations.
    // Throws GGUFError for types and sizes that cannot be. Runs in the backend's turn, and remembers nothing of it: any
    // backend can multiply by it.
    Weight(Backend& on, const uint8_t* raw, size_t row_bytes, int rows, int cols, int ggml_type, bool exact)
        : Weight(on, raw, 0, row_bytes, 1, rows, cols, ggml_type, exact) {}

    // `count` such matrices in one piece of memory, their raw bytes matrix_bytes apart; each begins with a panel.
    Weight(Backend& on, const uint8_t* raw, size_t matrix_bytes, size_t row_bytes, int count, int rows, int cols,
           int ggml_type, bool exact);

    // What a weight of this size takes once it is packed. GGUFError for a type that cannot be.
    static size_t packed_bytes(int ggml_type, int64_t rows, int64_t cols);

    // Row `row` as float32, bit for bit GGML's dequantization.
    void read_row(int row, float* out) const;

    const Packed& packed() const { return packed_; }  // the first matrix
    Packed packed(int matrix) const {
        Packed p = packed_;
        p.q += size_t(matrix) * size_t(panels()) * p.q_panel;
        p.s += size_t(matrix) * size_t(panels()) * p.s_panel;
        return p;
    }
    int rows() const { return packed_.rows; }
    int cols() const { return packed_.cols; }
    int groups() const { return (packed_.rows + group_rows - 1) / group_rows; }
    int ggml_type() const { return ggml_type_; }
    size_t nbytes() const { return memory_.size(); }
    int panels() const { return (groups() + panel_groups - 1) / panel_groups; }
    size_t panel_bytes() const { return packed_.q_panel + packed_.s_panel; }
    bool is_float() const { return packed_.format >= n_quant_formats; }
    bool float_activations() const { return exact_ || is_float(); }

private:
    Buffer memory_;
    Packed packed_{};
    int ggml_type_;
    bool exact_;
};

}  // namespace mixkv
