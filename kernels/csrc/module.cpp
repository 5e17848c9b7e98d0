// mixkv.kernels._native: errors, instruction sets and backends here; what a backend does in linear_bind.cpp, kv_bind.cpp
// and mask.cpp.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bind.h"
#include "cpu.h"
#include "errors.h"
#include "probe.h"

namespace mixkv {
namespace {

nb::object error_class(const char* name) { return nb::module_::import_("mixkv.kernels.errors").attr(name); }

void translate(const std::exception_ptr& p, void*) {
    try {
        std::rethrow_exception(p);
    } catch (const MixkvError& e) {
        PyErr_SetString(error_class(e.py_name).ptr(), e.what());
    } catch (const std::bad_alloc&) {
        PyErr_SetString(error_class("OutOfMemoryError").ptr(),
                        "no memory is left for the kernels: give back some, or use a smaller batch or context");
    }
}

nb::dict cpu_report(PyBackend& on) {
    nb::dict features, out;
    for (const CpuFeature& f : cpu_features())
        features[f.name] = f.usable ? "yes" : f.cpu ? "not enabled by the system" : "no";
    out["cpu"] = cpu_brand();
    out["isa"] = isa_name((*on).isa);
    out["supported"] = supported_isas();
    out["features"] = features;
    out["threads"] = (*on).pool.n_threads();
    return out;
}

double measure_bandwidth(PyBackend& on, size_t n_bytes) {
    double speed = 0;
    on_turn(*on, [&] { speed = read_bandwidth(*on, n_bytes); });
    return speed;
}

}  // namespace

void warn_of_missing_threads(int n_missing, const Backend& on) {
    const int wanted = on.pool.n_threads();
    const std::string text = std::to_string(n_missing) + " of " + std::to_string(wanted) +
                             " threads could not be started; computing with " + std::to_string(wanted - n_missing);
    if (PyErr_WarnEx(error_class("MixkvWarning").ptr(), text.c_str(), 1) != 0) throw nb::python_error();
}

}  // namespace mixkv

NB_MODULE(_native, m) {
    using namespace mixkv;
    nb::register_exception_translator(translate);
    m.def("supported_isas", &supported_isas, "The instruction sets that this machine can run, in rising order.");
    m.def("available_cores", &available_cores, "Physical cores that affinity and cgroup quota leave to this process.");
    auto backend =
        nb::class_<PyBackend>(m, "Backend", "Threads, an instruction set and memory: what all kernels run on.")
            .def("__init__", [](PyBackend* self, int n_threads, const std::string& isa) {
                new (self) PyBackend{std::make_shared<Backend>(find_isa(isa), n_threads)};
            }, nb::arg("n_threads"), nb::arg("isa") = "", "isa \"\" is the best one; ConfigError for what cannot be.")
            .def_prop_ro("isa", [](PyBackend& on) { return std::string(isa_name((*on).isa)); })
            .def_prop_ro("n_threads", [](PyBackend& on) { return (*on).pool.n_threads(); })
            .def("cpu_report", &cpu_report, "What the CPU has, and what is used of it.")
            .def("read_bandwidth", &measure_bandwidth, nb::arg("n_bytes"),
                 "Bytes a second read from memory by all threads, in one pass over n_bytes of fresh memory.");
    bind_linear(m, backend);
    bind_kv(m, backend);
    bind_mask(backend);
}
