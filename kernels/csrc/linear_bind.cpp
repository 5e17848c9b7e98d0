#include "bind.h"
#include "errors.h"
#include "ops.h"

namespace mixkv {
namespace {

nb::object rms_norm(In2 x, In1 gain, float eps) {
    float* y;
    nb::object out = new_array(y, {x.shape(0), x.shape(1)});
    nb::gil_scoped_release nogil;
    ops().rms_norm(x.data(), gain.data(), eps, int(x.shape(0)), int(x.shape(1)), y);
    return out;
}

}  // namespace

void bind_linear(nb::module_& m) {
    m.def("rms_norm", &rms_norm, nb::arg("x").noconvert(), nb::arg("gain").noconvert(), nb::arg("eps"));
}
}  // namespace mixkv
