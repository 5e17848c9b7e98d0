// available_cores: what affinity and the cgroup's quota leave to this process.
#include <algorithm>
#include <cstdio>
#include <set>
#include <string>
#include <thread>

#include "cpu.h"

#if defined(__linux__)
#include <sched.h>
#endif

namespace mixkv {
namespace {

int read_first_ints(const char* path, long long* a, long long* b) {
    std::FILE* f = std::fopen(path, "r");
    if (!f) return 0;
    const int n = std::fscanf(f, "%lld %lld", a, b);
    std::fclose(f);
    return n;
}

// Cores that the cgroup's CPU quota is worth (rounded up), or a large number where there is none.
int cgroup_cores() {
    int cores = 1 << 20;
    auto quota = [&](long long q, long long period) {
        if (q > 0 && period > 0) cores = std::min<long long>(cores, (q + period - 1) / period);
    };
    std::string rel;
    if (std::FILE* f = std::fopen("/proc/self/cgroup", "r")) {
        char line[4096];
        while (std::fgets(line, sizeof line, f)) {
            std::string s(line);
            if (s.rfind("0::", 0) == 0) rel = s.substr(3, s.find_last_not_of("\n") - 2);
        }
        std::fclose(f);
    }
    long long q, p;
    for (std::string dir = rel;; dir = dir.substr(0, dir.rfind('/'))) {  // a limit may sit on any ancestor
        if (read_first_ints(("/sys/fs/cgroup" + dir + "/cpu.max").c_str(), &q, &p) == 2) quota(q, p);
        if (dir.empty() || dir == "/") break;
    }
    long long period, unused;
    if (read_first_ints("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", &q, &unused) >= 1 &&
        read_first_ints("/sys/fs/cgroup/cpu/cpu.cfs_period_us", &period, &unused) >= 1)
        quota(q, period);
    return cores;
}

// Physical cores among the CPUs that affinity allows: two hyperthreads share the units that our kernels fill.
int affinity_cores() {
#if defined(__linux__)
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        std::set<std::pair<long long, long long>> cores;
        for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
            if (!CPU_ISSET(cpu, &set)) continue;
            const std::string dir = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
            long long core = cpu, package = -1, unused;
            if (read_first_ints((dir + "core_id").c_str(), &core, &unused) >= 1)
                read_first_ints((dir + "physical_package_id").c_str(), &package, &unused);
            else
                core = cpu;
            cores.emplace(package, core);
        }
        if (!cores.empty()) return int(cores.size());
    }
#endif
    return std::max(1, int(std::thread::hardware_concurrency()));
}

}  // namespace

int available_cores() { return std::max(1, std::min(affinity_cores(), cgroup_cores())); }

}  // namespace mixkv
