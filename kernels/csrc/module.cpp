// mixkv.kernels._native: errors, instruction set and threads here; the kernels in linear_bind.cpp and kv_bind.cpp.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bind.h"
#include "cpu.h"
#include "errors.h"
#include "pool.h"
#include "probe.h"

namespace mixkv {
namespace {

void translate(const std::exception_ptr& p, void*) {
    try {
        std::rethrow_exception(p);
    } catch (const MixkvError& e) {
        nb::object cls = nb::module_::import_("mixkv.kernels.errors").attr(e.py_name);
        PyErr_SetString(cls.ptr(), e.what());
    }
}

nb::dict cpu_report() {
    nb::dict features, out;
    for (const CpuFeature& f : cpu_features())
        features[f.name] = f.usable ? "yes" : f.cpu ? "not enabled by the system" : "no";
    out["cpu"] = cpu_brand();
    out["isa"] = isa_name(current_isa());
    out["supported"] = supported_isas();
    out["features"] = features;
    out["threads"] = threads();
    return out;
}

}  // namespace
}  // namespace mixkv

NB_MODULE(_native, m) {
    using namespace mixkv;
    nb::register_exception_translator(translate);
    init_isa();
    m.def("isa", [] { return std::string(isa_name(current_isa())); }, "The instruction set in use.");
    m.def("supported_isas", &supported_isas, "The instruction sets that this machine can run, in rising order.");
    m.def("set_isa", &set_isa, nb::arg("name"), "Use this instruction set from now on (for tests; see MIXKV_ISA).");
    m.def("cpu_report", &cpu_report, "What the CPU has, what is used, and how many cores we may take.");
    m.def("set_threads", &set_threads, nb::arg("n"), "Threads for the calls that follow, the caller included.");
    m.def("threads", &threads, "Threads in use, the caller included.");
    m.def("available_cores", &available_cores, "Physical cores that affinity and cgroup quota leave to this process.");
    m.def("read_bandwidth", &read_bandwidth, nb::arg("n_bytes"), nb::call_guard<nb::gil_scoped_release>(),
          "Bytes a second read from memory by all threads, in one pass over n_bytes of fresh memory.");
    bind_linear(m);
    bind_kv(m);
}
