// The end of every product: 16 rows of one token into Out.
#pragma once

#include "ops.h"
#include "simd.h"

namespace mixkv::MIXKV_ISA {

MIXKV_INLINE void put(const Out* out, int rows, int group, int t, F16 acc) {
    const int row = group * group_rows, left = rows - row;
    float* y = out->y + t * out->ldy + (row - out->row0);
    if (left >= group_rows) {
        if (out->bias) acc = add(acc, load16(out->bias + row));
        if (out->residual) acc = add(acc, load16(out->residual + t * out->ldr + row));
        store16(y, acc);
    } else if (left > 0) {  // the groups that pad the last panel have nothing to write
        if (out->bias) acc = add(acc, load16_n(out->bias + row, left));
        if (out->residual) acc = add(acc, load16_n(out->residual + t * out->ldr + row, left));
        store16_n(y, acc, left);
    }
}

}  // namespace mixkv::MIXKV_ISA
