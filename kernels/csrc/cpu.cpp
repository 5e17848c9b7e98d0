// x86: CPUID and XGETBV by hand, as __builtin_cpu_supports knows neither AMX (in gcc 12) nor its permission.
// Arm: what the kernel says; its tier `neon` needs the dot product instructions, all else is part of Armv8.
#include "cpu.h"

#include <cstdlib>
#include <cstring>

#include "errors.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

#include <cstdio>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mixkv {
namespace {

struct Features {
    bool v2 = true, avx2 = false, fma = false, f16c = false, bmi2 = false;
    bool avx512f = false, avx512bw = false, avx512dq = false, avx512vl = false, avx512vnni = false, avx512bf16 = false;
    bool avx_vnni = false, amx_tile = false, amx_int8 = false, amx_bf16 = false;
    bool os_avx = false, os_avx512 = false, os_amx = false;
    bool dotprod = false;
};

#if defined(__x86_64__)
unsigned long long xgetbv0() {
    unsigned lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (static_cast<unsigned long long>(hi) << 32) | lo;
}

// Linux hands out the 8 KiB AMX tile state only on request; without it the first tile instruction is a SIGILL.
bool request_amx() {
#if defined(__linux__)
    constexpr int arch_req_xcomp_perm = 0x1023, xfeature_xtiledata = 18;
    return syscall(SYS_arch_prctl, arch_req_xcomp_perm, xfeature_xtiledata) == 0;
#else
    return false;
#endif
}

Features detect() {
    Features f;
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return f;
    const bool osxsave = c >> 27 & 1;
    f.v2 = (c >> 20 & 1) && (c >> 23 & 1) && (c >> 9 & 1);  // SSE4.2, POPCNT, SSSE3
    f.fma = c >> 12 & 1;
    f.f16c = c >> 29 & 1;
    if (osxsave) {
        const unsigned long long xcr0 = xgetbv0();
        f.os_avx = (xcr0 & 0x6) == 0x6;
        f.os_avx512 = (xcr0 & 0xe6) == 0xe6;
        f.os_amx = (xcr0 & 0x60000) == 0x60000;
    }
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        f.avx2 = b >> 5 & 1;
        f.bmi2 = (b >> 8 & 1) && (b >> 3 & 1);
        f.avx512f = b >> 16 & 1;
        f.avx512dq = b >> 17 & 1;
        f.avx512bw = b >> 30 & 1;
        f.avx512vl = b >> 31 & 1;
        f.avx512vnni = c >> 11 & 1;
        f.amx_bf16 = d >> 22 & 1;
        f.amx_tile = d >> 24 & 1;
        f.amx_int8 = d >> 25 & 1;
        const unsigned sub = a;
        if (sub >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) {
            f.avx_vnni = a >> 4 & 1;
            f.avx512bf16 = a >> 5 & 1;
        }
    }
    if (f.os_amx && f.amx_tile && f.amx_int8) f.os_amx = request_amx();
    return f;
}
#elif defined(__aarch64__)
Features detect() {
    Features f;
#if defined(__linux__)
    constexpr unsigned long hwcap_asimddp = 1ul << 20;  // HWCAP_ASIMDDP of <asm/hwcap.h>
    f.dotprod = getauxval(AT_HWCAP) & hwcap_asimddp;
#elif defined(__APPLE__)
    f.dotprod = true;  // since the first of Apple's own Macs
#endif
    return f;
}
#else
Features detect() { return {}; }
#endif

const Features& features() {
    static const Features f = detect();
    return f;
}

}  // namespace

const char* isa_name(Isa isa) {
    static const char* const names[] = {
#define MIXKV_NAME(name) #name,
        MIXKV_FOR_EACH_ISA(MIXKV_NAME)
#undef MIXKV_NAME
    };
    return names[int(isa)];
}

bool isa_supported(Isa isa) {
    const Features& f = features();
    [[maybe_unused]] const bool avx2 = f.v2 && f.os_avx && f.avx2 && f.fma && f.f16c && f.bmi2;
    [[maybe_unused]] const bool avx512 =
        avx2 && f.os_avx512 && f.avx512f && f.avx512bw && f.avx512dq && f.avx512vl && f.avx512vnni;
    [[maybe_unused]] const bool amx = avx512 && f.os_amx && f.amx_tile && f.amx_int8 && f.amx_bf16 && f.avx512bf16;
    switch (isa) {
        case Isa::base: return f.v2;
#if defined(__x86_64__)
        case Isa::avx2: return avx2;
        case Isa::avxvnni: return avx2 && f.avx_vnni;
        case Isa::avx512: return avx512;
        case Isa::amx: return amx;
#elif defined(__aarch64__)
        case Isa::neon: return f.dotprod;
#endif
        default: return false;
    }
}

std::vector<std::string> supported_isas() {
    std::vector<std::string> out;
    for (int i = 0; i < n_isas; ++i)
        if (isa_supported(Isa(i))) out.emplace_back(isa_name(Isa(i)));
    return out;
}

Isa find_isa(const std::string& name) {
    std::string can;
    for (const std::string& s : supported_isas()) {
        if (!can.empty()) can += ", ";
        can += s;
    }
    for (int i = n_isas - 1; i >= 0; --i) {
        if (name.empty() ? !isa_supported(Isa(i)) : name != isa_name(Isa(i))) continue;
        if (!isa_supported(Isa(i)))
            throw ConfigError("MIXKV_ISA=" + name + " cannot run on this machine; it supports: " + can);
        return Isa(i);
    }
    throw ConfigError("MIXKV_ISA=" + name + " is not an instruction set of this build; choose one of: " + can);
}

std::vector<CpuFeature> cpu_features() {
    [[maybe_unused]] const Features& f = features();
#if defined(__aarch64__)
    return {{"neon", true, true}, {"dotprod", f.dotprod, f.dotprod}};
#elif !defined(__x86_64__)
    return {};
#else
    return {
        {"sse4.2", f.v2, f.v2},
        {"avx2", f.avx2, f.avx2 && f.os_avx},
        {"fma", f.fma, f.fma && f.os_avx},
        {"f16c", f.f16c, f.f16c && f.os_avx},
        {"avx_vnni", f.avx_vnni, f.avx_vnni && f.os_avx},
        {"avx512f", f.avx512f, f.avx512f && f.os_avx512},
        {"avx512bw", f.avx512bw, f.avx512bw && f.os_avx512},
        {"avx512vnni", f.avx512vnni, f.avx512vnni && f.os_avx512},
        {"avx512bf16", f.avx512bf16, f.avx512bf16 && f.os_avx512},
        {"amx_int8", f.amx_int8, f.amx_int8 && f.os_amx},
        {"amx_bf16", f.amx_bf16, f.amx_bf16 && f.os_amx},
    };
#endif
}

std::string cpu_brand() {
#if defined(__x86_64__)
    unsigned regs[12];
    unsigned max = __get_cpuid_max(0x80000000u, nullptr);
    if (max < 0x80000004u) return "unknown x86-64";
    for (unsigned i = 0; i < 3; ++i)
        __get_cpuid(0x80000002u + i, &regs[4 * i], &regs[4 * i + 1], &regs[4 * i + 2], &regs[4 * i + 3]);
    char text[49] = {};
    std::memcpy(text, regs, 48);
    std::string s(text);
    return s.substr(0, s.find_last_not_of(' ') + 1);
#elif defined(__aarch64__)
    std::string s = "Arm";  // its number names maker and model; the system has no text
#if defined(__linux__)
    if (std::FILE* file = std::fopen("/sys/devices/system/cpu/cpu0/regs/identification/midr_el1", "r")) {
        unsigned long long midr = 0;
        char text[40];
        if (std::fscanf(file, "%llx", &midr) == 1) {
            std::snprintf(text, sizeof text, ", implementer 0x%02llx part 0x%03llx", midr >> 24 & 0xff, midr >> 4 & 0xfff);
            s += text;
        }
        std::fclose(file);
    }
#endif
    return s;
#else
    return "portable build";
#endif
}

}  // namespace mixkv
