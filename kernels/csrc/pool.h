// The thread pool. parallel_for(n, f) calls f(task, thread) once for each task in 0..n-1, on the caller and on idle
// workers, and returns when all are done.
//
// - Tasks are fixed pieces of work that write disjoint results: who runs one must not matter, so results are the same
//   for every thread count. `thread` (0 <= thread < threads()) is for scratch memory only.
// - A task must not call parallel_for (checked: it aborts) and must not touch Python.
// - Workers spin for some tens of microseconds after a job, then sleep on a futex: back-to-back kernels of a layer meet
//   them awake, an idle process burns nothing.
// - A forked child starts with no workers and makes its own at its first parallel_for.
#pragma once

#include <type_traits>

namespace mixkv {

using TaskFn = void (*)(void* ctx, int task, int thread);

void parallel_run(int n_tasks, TaskFn fn, void* ctx);

template <class F>
void parallel_for(int n_tasks, F&& f) {
    using Fn = std::remove_reference_t<F>;
    parallel_run(
        n_tasks, [](void* ctx, int task, int thread) { (*static_cast<Fn*>(ctx))(task, thread); },
        const_cast<void*>(static_cast<const void*>(&f)));
}

void set_threads(int n);    // for the calls that follow; n >= 1
int threads();              // caller included
int available_cores();      // physical cores that affinity and cgroup quota leave us: the default size

}  // namespace mixkv
