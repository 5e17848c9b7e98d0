// How a struct of function pointers gets one instance per instruction set. See ops.h for the pattern.
// No includes but C headers here: the isa sources use this file.
#pragma once

#if defined(__x86_64__) || defined(_M_X64)
#define MIXKV_DECLARE_TABLES(Struct, table)           \
    namespace base { extern const Struct table; }     \
    namespace avx2 { extern const Struct table; }     \
    namespace avxvnni { extern const Struct table; }  \
    namespace avx512 { extern const Struct table; }   \
    namespace amx { extern const Struct table; }
#define MIXKV_DEFINE_LOOKUP(Struct, table, lookup)                                              \
    const Struct& lookup(Isa isa) {                                                             \
        static const Struct* const all[] = {&base::table, &avx2::table, &avxvnni::table,        \
                                            &avx512::table, &amx::table};                       \
        return *all[int(isa)];                                                                  \
    }
#elif defined(__aarch64__)
#define MIXKV_DECLARE_TABLES(Struct, table)           \
    namespace base { extern const Struct table; }     \
    namespace neon { extern const Struct table; }
#define MIXKV_DEFINE_LOOKUP(Struct, table, lookup)                            \
    const Struct& lookup(Isa isa) {                                                             \
        static const Struct* const all[] = {&base::table, &neon::table};      \
        return *all[int(isa)];                                                                  \
    }
#else
#define MIXKV_DECLARE_TABLES(Struct, table) \
    namespace base { extern const Struct table; }
#define MIXKV_DEFINE_LOOKUP(Struct, table, lookup) \
    const Struct& lookup(Isa isa) { return base::table; }
#endif
