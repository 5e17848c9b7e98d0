// A pool of threads, as many as its owner asks for; pools do not know of each other. parallel_for(n, f) calls
// f(task, thread) once for each task in 0..n-1, on the caller and on idle workers, and returns when all are done.
//
// - Who uses a pool has its turn (Pool::Turn): one caller at a time, the others wait.
// - Tasks are fixed pieces of work that write disjoint results: who runs one must not matter, so results are the same
//   for every thread count. `thread` (0 <= thread < n_threads()) is for scratch memory only.
// - A task must not call parallel_for (checked: it aborts) and must not touch Python.
// - A task may throw: tasks that nobody has begun are left out, and the first exception goes to the caller.
// - Workers start with the first job. What cannot be started is done without; `take_missing` tells how many, once.
// - Workers spin for some tens of microseconds after a job, then sleep on a futex: back-to-back kernels of a layer meet
//   them awake, an idle process burns nothing.
// - fork() waits until no pool has a job in hand. The child starts with no workers and makes its own at its first job.
#pragma once

#include <atomic>
#include <mutex>
#include <type_traits>

namespace mixkv {

using TaskFn = void (*)(void* ctx, int task, int thread);

class Pool {
public:
    explicit Pool(int n_threads);  // the caller included; throws ConfigError unless 1 <= n_threads <= 1024
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    class Turn {
    public:
        explicit Turn(Pool& pool);
        ~Turn() { pool_.taken_ = false, pool_.mutex_.unlock(); }
        Turn(const Turn&) = delete;
        Turn& operator=(const Turn&) = delete;

    private:
        Pool& pool_;
    };

    template <class F>
    void parallel_for(int n_tasks, F&& f) {
        using Fn = std::remove_reference_t<F>;
        run(
            n_tasks, [](void* ctx, int task, int thread) { (*static_cast<Fn*>(ctx))(task, thread); },
            const_cast<void*>(static_cast<const void*>(&f)));
    }

    int n_threads() const { return n_threads_; }
    // Workers that could not be started since this was last asked.
    int take_missing() { return missing_.load(std::memory_order_relaxed) == 0 ? 0 : missing_.exchange(0); }

private:
    struct Crew;
    friend struct ForkHooks;
    void run(int n_tasks, TaskFn fn, void* ctx);
    void start();

    const int n_threads_;
    std::mutex mutex_;  // held by whoever has the turn; guards what follows
    bool taken_ = false, busy_ = false, started_ = false;
    Crew* crew_ = nullptr;
    std::atomic<int> missing_{0};
    Pool *previous_ = nullptr, *next_ = nullptr;  // of all pools, for ForkHooks
};

}  // namespace mixkv
