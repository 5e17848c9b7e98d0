// Which experts a token goes to, one token at a time; the rules stand in kernels/parts.py. In a choice, NaN counts as less
// than any number, and of two that are equal the lower number comes first: whatever the products are, n_used different
// experts come out.
#include <cmath>

#include "routed.h"

namespace mixkv {
namespace {

bool above(float a, float b) { return a > b || (b != b && a == a); }

// Keeps the n largest of what it is given in rising order of number, largest first.
class Largest {
public:
    Largest(int n, int32_t* numbers, const float* values) : n_(n), numbers_(numbers), values_(values) {}
    void offer(int number) {
        int at = kept_ < n_ ? kept_++ : n_;
        for (; at > 0 && above(values_[number], values_[numbers_[at - 1]]); --at)
            if (at < n_) numbers_[at] = numbers_[at - 1];
        if (at < n_) numbers_[at] = number;
    }

private:
    int n_, kept_ = 0;
    int32_t* numbers_;
    const float* values_;
};

// The sum of the two largest of values[first .. first + n], or the only one.
float best_two(const float* values, int first, int n) {
    int32_t best[2];
    Largest largest(2, best, values);
    for (int i = 0; i < n; ++i) largest.offer(first + i);
    return n == 1 ? values[best[0]] : values[best[0]] + values[best[1]];
}

void softmax(float* p, int n) {
    float most = -INFINITY, sum = 0;
    for (int i = 0; i < n; ++i) most = p[i] > most ? p[i] : most;
    for (int i = 0; i < n; ++i) sum += p[i] = std::exp(p[i] - most);
    for (int i = 0; i < n; ++i) p[i] /= sum;
}

}  // namespace

void route(const Routing& r, const float* p, const float* bias, int32_t* chosen, float* weights, float* work) {
    constexpr float least_sum = 6.103515625e-5f;  // the smallest normal float16
    float *values = work, *group_scores = work + r.n_experts;
    const auto score = [&](float* out) {
        for (int e = 0; e < r.n_experts; ++e) out[e] = r.gating == Gating::sigmoid ? 1 / (1 + std::exp(-p[e])) : p[e];
        if (r.gating == Gating::softmax) softmax(out, r.n_experts);
    };
    const bool grouped = r.n_groups > 1;
    Largest largest(r.n_used, chosen, values);
    if (bias || grouped)
        score(values);
    else  // both kinds of score rise with p, which tells apart what they round to the same
        for (int e = 0; e < r.n_experts; ++e) values[e] = p[e];
    for (int e = 0; bias && e < r.n_experts; ++e) values[e] += bias[e];
    if (grouped) {
        const int size = r.n_experts / r.n_groups;
        for (int g = 0; g < r.n_groups; ++g) group_scores[g] = best_two(values, g * size, size);
        for (int g = 0; g < r.n_groups; ++g) {
            int better = 0;
            for (int o = 0; o < r.n_groups; ++o)
                better += above(group_scores[o], group_scores[g]) ||
                          (o < g && !above(group_scores[g], group_scores[o]));
            for (int e = g * size; better < r.n_groups_used && e < (g + 1) * size; ++e) largest.offer(e);
        }
    } else {
        for (int e = 0; e < r.n_experts; ++e) largest.offer(e);
    }
    score(values);
    float sum = 0;
    for (int i = 0; i < r.n_used; ++i) sum += weights[i] = values[chosen[i]];
    if (r.gating == Gating::softmax_of_chosen) {
        softmax(weights, r.n_used);
    } else if (r.normalize) {
        if (sum < least_sum) sum = least_sum;
        for (int i = 0; i < r.n_used; ++i) weights[i] /= sum;
    }
    for (int i = 0; i < r.n_used; ++i) weights[i] *= r.scale;
}

}  // namespace mixkv
