// The function table of the recurrent mixers, one instance per instruction set (the pattern is explained in ops.h).
//
// A scan's state is a matrix [n_in][width] of floats: rows are what keys (B) address, columns what values (x) have. A
// column never meets another one, so a strip of 32 columns is a task of its own, and the sum over rows has one order
// whatever the work is cut into: four sums of every fourth row, added at the end.
#pragma once

#include <stdint.h>

#include "isa_tables.h"

namespace mixkv {

constexpr int scan_strip = 32;  // columns that a task takes together

struct Convolution {
    const float* weight;  // [kernel][channels], the last row for the newest input
    const float* bias;    // (channels,) or null
    int kernel, channels;
};

// One strip of a head's scan over n tokens; rows of k, q (n_in floats each) are ldk, those of v and y ldv, ldy apart.
struct Scan {
    const float *k, *q, *v;
    const float *decay, *step;  // of each token, ld_head apart
    int64_t ldk, ldv, ldy, ld_head;
    const float* before;  // state [n_in][width], this strip's first column
    float* after;
    float* strip;  // n_in * scan_strip floats of scratch
    float* y;
    int n, n_in, width, cols;  // cols <= scan_strip columns of the strip are there
    float skip;                // mamba: y += skip * v
};

struct RecurrentOps {
    // y[t][c] = sum over j of weight[j][c] x[t - kernel + 1 + j][c] + bias[c], then y sigmoid(y) where silu is set; for rows
    // t0..t1. Rows before 0 are those of before [kernel - 1][channels]
    void (*convolve)(const Convolution* conv, const float* x, int64_t ldx, const float* before, int t0, int t1, int silu,
                     float* y, int64_t ldy);
    // y[i] = a[i] * b[i]
    void (*multiply)(const float* a, const float* b, int n, float* y);
    // x over its length, at least eps, times scale; in place
    void (*unit)(float* x, int n, float eps, float scale);
    // S = S decay + k (step v); y = S^T q + skip v
    void (*scan_mamba)(const Scan* s);
    // S = S decay; S += k (step (v - S^T k)); y = S^T q
    void (*scan_delta)(const Scan* s);
};

MIXKV_DECLARE_TABLES(RecurrentOps, recurrent_table)

}  // namespace mixkv
