// C++ twins of the classes in kernels/errors.py that native code raises; module.cpp translates them by name.
// what() follows the same rule: what was wrong, where, what to do, in one line.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace mixkv {

struct MixkvError : std::runtime_error {
    const char* py_name;  // the class's name in mixkv.kernels.errors
    MixkvError(const char* py, const std::string& what) : std::runtime_error(what), py_name(py) {}
};
struct ConfigError : MixkvError {
    explicit ConfigError(const std::string& what) : MixkvError("ConfigError", what) {}
};
struct GGUFError : MixkvError {
    explicit GGUFError(const std::string& what) : MixkvError("GGUFError", what) {}
};
struct InputError : MixkvError {
    explicit InputError(const std::string& what) : MixkvError("InputError", what) {}
};
struct OutOfMemoryError : MixkvError {
    explicit OutOfMemoryError(const std::string& what) : MixkvError("OutOfMemoryError", what) {}
};

// For our own bugs; stays on in release builds because each one guards memory.
#define MIXKV_CHECK(cond)                                                                        \
    do {                                                                                         \
        if (!(cond)) {                                                                           \
            std::fprintf(stderr, "mixkv bug: %s:%d: %s\n", __FILE__, __LINE__, #cond);           \
            std::abort();                                                                        \
        }                                                                                        \
    } while (0)

}  // namespace mixkv
