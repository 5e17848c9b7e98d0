// The linear kernels' function table for one instruction set.
#include <math.h>
#include <stdint.h>

#include "ops.h"

namespace mixkv::MIXKV_ISA {

static void rms_norm(const float* x, const float* gain, float eps, int n, int dim, float* y) {
    for (int t = 0; t < n; ++t, x += dim, y += dim) {
        double sum = 0;
        for (int i = 0; i < dim; ++i) sum += double(x[i]) * x[i];
        const float r = float(1.0 / sqrt(sum / dim + eps));
        for (int i = 0; i < dim; ++i) y[i] = x[i] * r * gain[i];
    }
}

extern const Ops linear_table = {rms_norm};

}  // namespace mixkv::MIXKV_ISA
