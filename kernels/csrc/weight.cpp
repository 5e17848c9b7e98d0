// Packing: each task packs a few panels of 64 rows straight from the raw bytes (a read-only mmap is fine), touching the
// destination pages first itself. Nothing else is allocated.
#include "weight.h"

#include <algorithm>
#include <string>

#include "errors.h"
#include "formats.h"

namespace mixkv {
namespace {

constexpr int ggml_f64 = 28;

// Writes one block of 16 rows: codes[row][col] into the bit planes of packed.h.
void put_codes(int bits, const uint8_t codes[group_rows][block_cols], uint8_t* q) {
    uint8_t quad[8][64];
    for (int j = 0; j < 8; ++j)
        for (int r = 0; r < group_rows; ++r) std::memcpy(quad[j] + 4 * r, codes[r] + 4 * j, 4);
    auto nibbles = [&](uint8_t* out) {
        for (int i = 0; i < 4; ++i)
            for (int p = 0; p < 64; ++p) out[64 * i + p] = uint8_t((quad[i][p] & 15) | quad[4 + i][p] << 4);
    };
    auto pairs = [&](uint8_t* out, int shift) {
        for (int i = 0; i < 2; ++i)
            for (int p = 0; p < 64; ++p) {
                int v = 0;
                for (int k = 0; k < 4; ++k) v |= (quad[4 * i + k][p] >> shift & 3) << (2 * k);
                out[64 * i + p] = uint8_t(v);
            }
    };
    auto single = [&](uint8_t* out, int shift) {
        for (int p = 0; p < 64; ++p) {
            int v = 0;
            for (int j = 0; j < 8; ++j) v |= (quad[j][p] >> shift & 1) << j;
            out[p] = uint8_t(v);
        }
    };
    switch (bits) {
        case 8: std::memcpy(q, quad, 512); break;
        case 4: nibbles(q); break;
        case 5: nibbles(q), single(q + 256, 4); break;
        case 6: nibbles(q), pairs(q + 256, 4); break;
        case 2: pairs(q, 0); break;
        case 3: pairs(q, 0), single(q + 128, 2); break;
        case 1: single(q, 1); break;
    }
}

// The inverse for one number.
int get_code(int bits, const uint8_t* q, int r, int col) {
    const int j = col / 4, p = 4 * r + col % 4;
    const int nibble = q[64 * (j % 4) + p] >> (4 * (j / 4)) & 15, pair = 2 * (j % 4);
    switch (bits) {
        case 8: return q[64 * j + p];
        case 4: return nibble;
        case 5: return nibble | (q[256 + p] >> j & 1) << 4;
        case 6: return nibble | (q[256 + 64 * (j / 4) + p] >> pair & 3) << 4;
        case 2: return q[64 * (j / 4) + p] >> pair & 3;
        case 1: return (q[p] >> j & 1) << 1;
        default: return (q[64 * (j / 4) + p] >> pair & 3) | (q[128 + p] >> j & 1) << 2;
    }
}

// Q4_0, IQ4_NL and MXFP4 keep columns k and k + 16 in one byte, as our nibble lines do: packing is copying 4 bytes a
// line. Q8_0 needs only the sign bit flipped. `words` is a constant so that nothing is left but loads and stores: this is
// most of the time that loading takes.
template <int words, uint32_t flip, int scale_bytes>
void pack_words(const uint8_t* const rows[group_rows], size_t offset, uint8_t* q, uint8_t* s) {
    static const uint8_t zeros[scale_bytes + 4 * words] = {};
    for (int r = 0; r < group_rows; ++r) {
        const uint8_t* raw = rows[r] ? rows[r] + offset : zeros;
        std::memcpy(s + scale_bytes * r, raw, scale_bytes);
        for (int i = 0; i < words; ++i) {
            uint32_t v;
            std::memcpy(&v, raw + scale_bytes + 4 * i, 4);
            v ^= flip;
            std::memcpy(q + 64 * i + 4 * r, &v, 4);
        }
    }
}

void pack_quant_group(const Packed& w, const uint8_t* const rows[group_rows], uint8_t* q, uint8_t* s) {
    const Format f = w.format;
    const FormatInfo& info = format_info(f);
    const int units = w.cols / info.raw_cols, blocks = info.blocks(), unit_bytes = info.unit_bytes();
    const auto fast = f == fmt_Q8_0                      ? pack_words<8, 0x80808080u, 2>
                      : f == fmt_Q4_0 || f == fmt_IQ4_NL ? pack_words<4, 0, 2>
                      : f == fmt_MXFP4                   ? pack_words<4, 0, 1>
                                                         : nullptr;
    for (int u = 0; u < units; ++u, s += panel_groups * unit_bytes) {
        const size_t offset = size_t(u) * size_t(info.raw_bytes);
        if (fast) {
            fast(rows, offset, q, s);
            q += panel_groups * quant_block_bytes(info.bits);
            continue;
        }
        for (int r = 0; r < group_rows; ++r)
            if (rows[r]) put_scales(f, rows[r] + offset, r, s);
        for (int i = 0; i < blocks; ++i, q += panel_groups * quant_block_bytes(info.bits)) {
            uint8_t codes[group_rows][block_cols] = {};
            for (int r = 0; r < group_rows; ++r)
                if (rows[r]) raw_codes(f, rows[r] + offset, i, codes[r]);
            put_codes(info.bits, codes, q);
        }
    }
}

template <class T>
void interleave(const uint8_t* const rows[group_rows], int cols, T* out) {
    for (int r = 0; r < group_rows; ++r) {
        const T* in = reinterpret_cast<const T*>(rows[r]);
        for (int k = 0; k < cols; ++k) {
            T v = 0;
            if (in) std::memcpy(&v, in + k, sizeof v);  // raw bytes need not be aligned
            out[k * group_rows * panel_groups + r] = v;
        }
    }
}
void interleave_f64(const uint8_t* const rows[group_rows], int cols, float* out) {
    for (int r = 0; r < group_rows; ++r)
        for (int k = 0; k < cols; ++k) {
            double v = 0;
            if (rows[r]) std::memcpy(&v, rows[r] + 8 * size_t(k), 8);
            out[k * group_rows * panel_groups + r] = float(v);
        }
}

[[noreturn]] void bad_type(int ggml_type) {
    std::string known;
    for (int f = 0; f < n_formats; ++f) known += std::string(format_info(Format(f)).name) + ", ";
    throw GGUFError("weights of GGML type " + std::to_string(ggml_type) +
                    " are not supported; convert the model to one of " + known + "F64");
}

constexpr int64_t panel_rows = int64_t(group_rows) * panel_groups;

// Where a weight of `cols` columns has its numbers: bytes of a block of 16 rows (a column of them, for float types), of
// a scale unit, and of a panel in each plane.
struct Layout {
    Format format;
    size_t raw_bytes;  // of one block of one row in the file
    size_t q_block, unit, q_panel, s_panel;
};
Layout layout_of(int ggml_type, int64_t cols) {
    const bool f64 = ggml_type == ggml_f64;
    const int format = f64 ? int(fmt_F32) : format_of_ggml(ggml_type);
    if (format < 0) bad_type(ggml_type);
    const FormatInfo& info = format_info(Format(format));
    const size_t bytes = size_t(info.raw_bytes), n = size_t(cols);
    if (format >= n_quant_formats)
        return {Format(format), f64 ? 8 : bytes, group_rows * bytes, 0, n * panel_rows * bytes, 0};
    const size_t block = size_t(quant_block_bytes(info.bits)), unit = size_t(info.unit_bytes());
    return {Format(format), bytes, block, unit, n / block_cols * block * panel_groups,
            n / size_t(info.raw_cols) * unit * panel_groups};
}

}  // namespace

size_t Weight::packed_bytes(int ggml_type, int64_t rows, int64_t cols) {
    const Layout l = layout_of(ggml_type, cols);
    return size_t((rows + panel_rows - 1) / panel_rows) * (l.q_panel + l.s_panel);
}

Weight::Weight(Backend& on, const uint8_t* raw, size_t matrix_bytes, size_t row_bytes, int count, int rows, int cols,
               int ggml_type, bool exact)
    : ggml_type_(ggml_type), exact_(exact) {
    const Layout l = layout_of(ggml_type, cols);
    const FormatInfo& info = format_info(l.format);
    if (rows < 1 || cols < 1 || cols % info.raw_cols != 0 || row_bytes != size_t(cols / info.raw_cols) * l.raw_bytes)
        throw GGUFError("a " + std::string(info.name) + " weight of " + std::to_string(rows) + " x " +
                        std::to_string(cols) + " cannot have rows of " + std::to_string(row_bytes) + " bytes");
    packed_.rows = rows;
    packed_.cols = cols;
    packed_.format = l.format;
    packed_.q_panel = l.q_panel;
    packed_.s_panel = l.s_panel;
    const int all_panels = count * panels();
    memory_ = Buffer(size_t(all_panels) * panel_bytes());
    uint8_t *q = memory_.data(), *s = q + size_t(all_panels) * packed_.q_panel;
    packed_.q = q;
    packed_.s = s;

    const int per_task = int(std::clamp<size_t>((256 << 10) / panel_bytes(), 1, size_t(all_panels)));
    const int matrix_groups = panels() * panel_groups;
    on.parallel_for((all_panels + per_task - 1) / per_task, [&](int task, int) {
        const int end = std::min(all_panels, (task + 1) * per_task) * panel_groups;
        for (int g = task * per_task * panel_groups; g < end; ++g) {
            const uint8_t *matrix = raw + size_t(g / matrix_groups) * matrix_bytes, *row[group_rows];
            for (int r = 0; r < group_rows; ++r) {
                const int at = g % matrix_groups * group_rows + r;
                row[r] = at < rows ? matrix + size_t(at) * row_bytes : nullptr;
            }
            uint8_t* out = q + (packed_.q_of(g, l.q_block) - packed_.q);
            if (ggml_type == ggml_f64)
                interleave_f64(row, cols, reinterpret_cast<float*>(out));
            else if (packed_.format == fmt_F32)
                interleave(row, cols, reinterpret_cast<uint32_t*>(out));
            else if (is_float())
                interleave(row, cols, reinterpret_cast<uint16_t*>(out));
            else
                pack_quant_group(packed_, row, out, s + (packed_.s_of(g, l.unit) - packed_.s));
        }
    });
}

void Weight::read_row(int row, float* out) const {
    const FormatInfo& info = format_info(packed_.format);
    const int r = row % group_rows, group = row / group_rows;
    if (is_float()) {
        const uint8_t* q = packed_.q_of(group, size_t(group_rows) * size_t(info.raw_bytes));
        for (int k = 0; k < packed_.cols; ++k) {
            const size_t at = size_t(k) * group_rows * panel_groups + size_t(r), size = size_t(info.raw_bytes);
            uint32_t bits = 0;
            std::memcpy(&bits, q + at * size, size);
            if (packed_.format == fmt_F16) {
                out[k] = half_to_float(uint16_t(bits));
                continue;
            }
            if (packed_.format == fmt_BF16) bits <<= 16;
            std::memcpy(out + k, &bits, 4);
        }
        return;
    }
    const int block = quant_block_bytes(info.bits), unit_size = info.unit_bytes();
    const uint8_t *q = packed_.q_of(group, size_t(block)), *s = packed_.s_of(group, size_t(unit_size));
    const int unit_blocks = info.blocks(), half_cols = block_cols / info.subs;
    const bool has_min = info.scales == scales_plain_min || info.scales >= scales_super_min;
    for (int b = 0; b < packed_.cols / block_cols; ++b, q += panel_groups * block, out += block_cols) {
        const uint8_t* unit = s + b / unit_blocks * panel_groups * unit_size;
        float d[2], m[2];
        for (int h = 0; h < info.subs; ++h) get_scales(packed_.format, unit, b % unit_blocks, h, r, d + h, m + h);
        for (int k = 0; k < block_cols; ++k) {
            const int code = get_code(info.bits, q, r, k), h = k / half_cols;
            const float v = d[h] * float((info.table ? value_tables[info.table][code] : code) - info.zero);
            out[k] = has_min ? v + m[h] : v;
        }
    }
}

}  // namespace mixkv
