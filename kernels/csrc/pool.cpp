// See pool.h. The protocol, in one place:
//
//   door   counts the workers inside the current job; `closed` added when nobody may enter. The caller writes the job,
//          opens the door, bumps `epoch`, works, closes the door, and waits until the last worker has left. A worker
//          that wakes up late finds the door closed and goes back to sleep: nobody waits for it.
//   epoch  what workers wait on (futex). It only says "look again"; entering is decided by the door.
//
// Nothing here or in a task is thread_local: the system allocates such memory when a thread first touches it, and ends
// the process where it cannot. The C++ runtime has some for exceptions in flight: each thread touches it beforehand.
#include "pool.h"

#include <cxxabi.h>
#include <pthread.h>
#include <sys/mman.h>

#include <chrono>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <utility>

#include "errors.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mixkv {
namespace {

constexpr int closed = -(1 << 30);
constexpr auto spin_time = std::chrono::microseconds(40);
constexpr size_t reserve_bytes = 256 << 10;  // for what a thread allocates before it is ready
constexpr size_t stack_bytes = 1 << 20;      // kernels take some tens of KiB; the usual 8 MiB a thread may not be to be had

inline void pause_cpu() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

void be_ready_to_throw() {
    void* volatile touched = abi::__cxa_get_globals();  // declared to have no effects: without a use there is no call
    (void)touched;
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

}  // namespace

struct Pool::Crew {
    alignas(64) std::atomic<int> epoch{0};
    alignas(64) std::atomic<int> door{closed};
    alignas(64) std::atomic<int> next{0};
    alignas(64) std::atomic<bool> stop{false};
    std::atomic<bool> failed{false};
    std::exception_ptr error;  // the first that a task threw; read when everybody has left
    TaskFn fn = nullptr;
    void* ctx = nullptr;
    int n_tasks = 0;

    struct Worker {
        Crew* crew;
        int thread;
        void* reserve;
        pthread_t handle;
    };
    std::unique_ptr<Worker[]> workers;
    int n_workers = 0;
    std::atomic<int> n_ready{0};

    explicit Crew(int wanted) : workers(new Worker[size_t(wanted)]) {
        pthread_attr_t attr;
        if (pthread_attr_init(&attr) != 0) return;
        pthread_attr_setstacksize(&attr, stack_bytes);
        auto body = [](void* w) -> void* {
            const Worker& worker = *static_cast<Worker*>(w);
            munmap(worker.reserve, reserve_bytes);
            be_ready_to_throw();
            worker.crew->n_ready.fetch_add(1);
            worker.crew->n_ready.notify_one();
            worker.crew->work(worker.thread);
            return nullptr;
        };
        while (n_workers < wanted) {
            Worker& w = workers[size_t(n_workers)];
            w.crew = this, w.thread = n_workers + 1;
            w.reserve = mmap(nullptr, reserve_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (w.reserve == MAP_FAILED) break;
            if (pthread_create(&w.handle, &attr, body, &w) != 0) {
                munmap(w.reserve, reserve_bytes);
                break;
            }
            ++n_workers;  // one after the other: nobody else may take what this one gave back for itself
            for (int n; (n = n_ready.load()) < n_workers;) n_ready.wait(n);
        }
        pthread_attr_destroy(&attr);
    }
    ~Crew() {
        stop.store(true);
        epoch.fetch_add(1);
        epoch.notify_all();
        for (int i = 0; i < n_workers; ++i) pthread_join(workers[size_t(i)].handle, nullptr);
    }

    void grab_tasks(int thread) {
        for (int t; (t = next.fetch_add(1, std::memory_order_relaxed)) < n_tasks;) {
            try {
                fn(ctx, t, thread);
            } catch (...) {
                if (!failed.exchange(true, std::memory_order_relaxed)) error = std::current_exception();
                next.store(n_tasks, std::memory_order_relaxed);  // nobody begins another
            }
        }
    }

    bool enter() {
        int v = door.load(std::memory_order_relaxed);
        while (v >= 0)
            if (door.compare_exchange_weak(v, v + 1, std::memory_order_acquire)) return true;
        return false;
    }

    void work(int thread) {
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
        if (failed.load(std::memory_order_relaxed)) {
            failed.store(false, std::memory_order_relaxed);
            std::rethrow_exception(std::exchange(error, nullptr));
        }
    }
};

// All pools there are. fork() copies the calling thread alone: whatever another one holds would be held for ever in the
// child, so each pool's turn is taken first, and with it what is written under it (a store's tiles, say) is whole.
struct ForkHooks {
    std::mutex mutex;
    Pool* first = nullptr;

    static ForkHooks& get() {
        static ForkHooks* const hooks = [] {
            auto* h = new ForkHooks;  // never destroyed: pools may outlive static objects
            pthread_atfork(before, in_parent, in_child);
            return h;
        }();
        return *hooks;
    }
    static void before() {
        get().mutex.lock();
        for (Pool* p = get().first; p; p = p->next_) p->mutex_.lock();
    }
    static void in_parent() {
        for (Pool* p = get().first; p; p = p->next_) p->mutex_.unlock();
        get().mutex.unlock();
    }
    static void in_child() {
        for (Pool* p = get().first; p; p = p->next_) {
            p->crew_ = nullptr;  // its threads exist in the parent only: leaked on purpose
            p->started_ = false;
            p->mutex_.unlock();
        }
        get().mutex.unlock();
    }
    void add(Pool* p) {
        std::lock_guard lock(mutex);
        p->next_ = first;
        if (first) first->previous_ = p;
        first = p;
    }
    void remove(Pool* p) {
        std::lock_guard lock(mutex);
        (p->previous_ ? p->previous_->next_ : first) = p->next_;
        if (p->next_) p->next_->previous_ = p->previous_;
    }
};

Pool::Turn::Turn(Pool& pool) : pool_(pool) {
    be_ready_to_throw();
    pool_.mutex_.lock();
    pool_.taken_ = true;
}

Pool::Pool(int n_threads) : n_threads_(n_threads) {
    if (n_threads < 1 || n_threads > 1024)
        throw ConfigError("threads must be between 1 and 1024, not " + std::to_string(n_threads));
    ForkHooks::get().add(this);
}

Pool::~Pool() {
    ForkHooks::get().remove(this);
    delete crew_;
}

void Pool::start() {
    started_ = true;
    try {
        crew_ = new Crew(n_threads_ - 1);
    } catch (const std::bad_alloc&) {  // no memory for a list of threads: the caller works alone
    }
    missing_ = n_threads_ - 1 - (crew_ ? crew_->n_workers : 0);
}

void Pool::run(int n_tasks, TaskFn fn, void* ctx) {
    MIXKV_CHECK(taken_ && "parallel_for out of turn");
    MIXKV_CHECK(!busy_ && "parallel_for inside a task");
    struct Busy {
        bool& busy;
        explicit Busy(bool& b) : busy(b) { busy = true; }
        ~Busy() { busy = false; }
    } busy(busy_);
    const bool alone = n_threads_ == 1 || n_tasks <= 1;
    if (!alone && !started_) start();
    if (!alone && crew_)
        crew_->run(n_tasks, fn, ctx);
    else
        for (int t = 0; t < n_tasks; ++t) fn(ctx, t, 0);
}

}  // namespace mixkv
