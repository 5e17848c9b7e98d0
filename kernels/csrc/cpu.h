// Which instruction sets this machine can run, and how many of its cores; which one is used, each backend decides for
// itself (backend.h). Everything here may be called from any thread.
#pragma once

#include <string>
#include <vector>

// One entry per tier that CMakeLists.txt builds, in rising order. X(name).
#if defined(__x86_64__) || defined(_M_X64)
#define MIXKV_FOR_EACH_ISA(X) X(base) X(avx2) X(avxvnni) X(avx512) X(amx)
#elif defined(__aarch64__)
#define MIXKV_FOR_EACH_ISA(X) X(base) X(neon)
#else
#define MIXKV_FOR_EACH_ISA(X) X(base)
#endif

namespace mixkv {

enum class Isa : int {
#define MIXKV_ENUM(name) name,
    MIXKV_FOR_EACH_ISA(MIXKV_ENUM)
#undef MIXKV_ENUM
        count
};
constexpr int n_isas = int(Isa::count);

const char* isa_name(Isa isa);
bool isa_supported(Isa isa);           // by the CPU and by the operating system (XCR0, AMX permission, AT_HWCAP)
std::vector<std::string> supported_isas();
Isa find_isa(const std::string& name);  // "": the best one; throws ConfigError for names that are unknown or cannot run
int available_cores();                  // physical cores that affinity and cgroup quota leave us

struct CpuFeature {
    const char* name;
    bool cpu;   // the CPU has it
    bool usable; // and the operating system lets us use it
};
std::vector<CpuFeature> cpu_features();
std::string cpu_brand();

}  // namespace mixkv
