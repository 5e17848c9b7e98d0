// How the parts of a layer (kernels/parts.py) and its arrays are read from Python. A wrong shape is an InputError, a wrong
// type a TypeError; what is read is kept alive by the reader.
#pragma once

#include <optional>
#include <string>

#include "bind.h"
#include "errors.h"
#include "layers.h"

namespace mixkv {

inline void need(bool ok, const std::string& what, long long got, long long want) {
    if (!ok)
        throw InputError(what + " has size " + std::to_string(got) + " where " + std::to_string(want) + " is needed");
}
inline void need_cols(const In2& x, int cols, const char* what) {
    need(x.shape(1) == size_t(cols), what, (long long)x.shape(1), cols);
}
// Rows (n, cols), or null for None.
const float* optional_rows(const std::optional<In2>& x, size_t n, int cols, const char* what);

// A float32 array of any shape, read-only memory allowed.
using AnyIn = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;

class Parts {
public:
    const Weight* weight(nb::handle w, const char* what);
    const Weight* optional_weight(nb::handle w, const char* what) { return w.is_none() ? nullptr : weight(w, what); }
    const float* vector(nb::handle v, int size, const std::string& what);  // (size,); null for None
    std::optional<Norm> norm(nb::handle norm, int dim, const char* what);  // gain and bias (dim,)
    // Of rows of heads, in one of the three forms that parts.Norm names; whole: whether the third is one of them.
    std::optional<HeadNorm> head_norm(nb::handle norm, int n_heads, int head_dim, bool whole, const char* what);
    Activation activation(nb::handle activation);
    Rotation rotation(nb::handle rotation, int head_dim);
    std::optional<Temperature> temperature(nb::handle temperature);

    AnyIn array(nb::handle v, const std::string& what);

private:
    void keep(nb::handle v) { kept_.append(v); }
    nb::list kept_;
};

}  // namespace mixkv
