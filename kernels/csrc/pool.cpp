// See pool.h. The protocol, in one place:
//
//   door   counts the workers inside the current job; `closed` added when nobody may enter. The caller writes the job,
//          opens the door, bumps `epoch`, works, closes the door, and waits until the last worker has left. A worker
//          that wakes up late finds the door closed and goes back to sleep: nobody waits for it.
//   epoch  what workers wait on (futex). It only says "look again"; entering is decided by the door.
#include "pool.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "errors.h"

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mixkv {
namespace {

constexpr int closed = -(1 << 30);
constexpr auto spin_time = std::chrono::microseconds(40);

inline void pause_cpu() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// Spins until ready() or until the time is up; says which.
template <class F>
bool spin_until(F ready) {
    const auto end = std::chrono::steady_clock::now() + spin_time;
    do {
        for (int i = 0; i < 16; ++i) {
            if (ready()) return true;
            pause_cpu();
        }
    } while (std::chrono::steady_clock::now() < end);
    return ready();
}

struct Pool {
    alignas(64) std::atomic<int> epoch{0};
    alignas(64) std::atomic<int> door{closed};
    alignas(64) std::atomic<int> next{0};
    alignas(64) std::atomic<bool> stop{false};
    TaskFn fn = nullptr;
    void* ctx = nullptr;
    int n_tasks = 0;
    std::vector<std::thread> workers;

    explicit Pool(int n_workers) {
        for (int i = 0; i < n_workers; ++i) workers.emplace_back([this, i] { work(i + 1); });
    }
    ~Pool() {
        stop.store(true);
        epoch.fetch_add(1);
        epoch.notify_all();
        for (std::thread& w : workers) w.join();
    }

    void grab_tasks(int thread) {
        for (int t; (t = next.fetch_add(1, std::memory_order_relaxed)) < n_tasks;) fn(ctx, t, thread);
    }

    bool enter() {
        int v = door.load(std::memory_order_relaxed);
        while (v >= 0)
            if (door.compare_exchange_weak(v, v + 1, std::memory_order_acquire)) return true;
        return false;
    }

    void work(int thread);

    void run(int n, TaskFn f, void* c) {
        fn = f;
        ctx = c;
        n_tasks = n;
        next.store(0, std::memory_order_relaxed);
        door.store(0, std::memory_order_release);
        epoch.fetch_add(1, std::memory_order_release);
        epoch.notify_all();
        grab_tasks(0);
        int v = door.fetch_add(closed, std::memory_order_acquire) + closed;
        while (v != closed) {
            if (!spin_until([&] { return (v = door.load(std::memory_order_acquire)) == closed; })) door.wait(v);
            v = door.load(std::memory_order_acquire);
        }
    }
};

thread_local bool inside_task = false;

void Pool::work(int thread) {
    inside_task = true;
    for (;;) {
        const int seen = epoch.load(std::memory_order_acquire);
        if (stop.load(std::memory_order_acquire)) return;
        if (enter()) {
            grab_tasks(thread);
            if (door.fetch_sub(1, std::memory_order_release) - 1 == closed) door.notify_one();
        }
        if (!spin_until([&] { return epoch.load(std::memory_order_acquire) != seen; })) epoch.wait(seen);
    }
}

std::mutex mutex;       // guards the three below and serialises callers from several Python threads
Pool* pool = nullptr;   // made lazily; never destroyed at exit: the workers sleep until the process ends
int want_threads = 0;   // 0: not yet asked for
bool fork_hooks = false;

void before_fork() { mutex.lock(); }
void after_fork_parent() { mutex.unlock(); }
void after_fork_child() {
    pool = nullptr;  // its threads exist in the parent only: leaked on purpose
    mutex.unlock();
}

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

int threads_locked() {
    if (want_threads == 0) want_threads = available_cores();
    return want_threads;
}

}  // namespace

int available_cores() { return std::max(1, std::min(affinity_cores(), cgroup_cores())); }

void set_threads(int n) {
    if (n < 1 || n > 1024)
        throw ConfigError("threads must be between 1 and 1024, not " + std::to_string(n));
    std::lock_guard lock(mutex);
    want_threads = n;
}

int threads() {
    std::lock_guard lock(mutex);
    return threads_locked();
}

void parallel_run(int n_tasks, TaskFn fn, void* ctx) {
    MIXKV_CHECK(!inside_task && "parallel_for inside a task");
    std::lock_guard lock(mutex);
    const int n_workers = threads_locked() - 1;
    inside_task = true;
    if (n_workers == 0 || n_tasks <= 1) {
        for (int t = 0; t < n_tasks; ++t) fn(ctx, t, 0);
    } else {
        if (!fork_hooks) {
            pthread_atfork(before_fork, after_fork_parent, after_fork_child);
            fork_hooks = true;
        }
        if (pool && int(pool->workers.size()) != n_workers) {
            delete pool;
            pool = nullptr;
        }
        if (!pool) pool = new Pool(n_workers);
        pool->run(n_tasks, fn, ctx);
    }
    inside_task = false;
}

}  // namespace mixkv
