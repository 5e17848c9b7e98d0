// A backend: threads, an instruction set, and memory for the call in hand. Every kernel is told which one it runs on, and
// two of them in one process share nothing.
//
// A call holds the backend's turn from beginning to end (bind.h, on_turn); calls of other threads wait for theirs.
#pragma once

#include "attn_ops.h"
#include "cpu.h"
#include "ops.h"
#include "pool.h"
#include "recurrent_ops.h"
#include "scratch.h"

namespace mixkv {

class Backend {
public:
    Backend(Isa isa, int n_threads);  // throws ConfigError for a number of threads that cannot be

    template <class F>
    void parallel_for(int n_tasks, F&& f) {
        pool.parallel_for(n_tasks, f);
    }

    const Isa isa;
    const Ops& linear;
    const AttnOps& attn;
    const RecurrentOps& recurrent;
    Pool pool;

    ActivationMemory activations, hidden;
    RoutedMemory routed;
    Scratch of_threads, by_token;
    CosineTables cosines;
    AttentionMemory attention;
};

}  // namespace mixkv
