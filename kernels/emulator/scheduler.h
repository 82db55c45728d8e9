// What runtime.cpp, which runs threads, and tracer.cpp, which watches their memory, share.
#pragma once
#include <string>
#include <vector>

#include "fiber.h"
#include "runtime.h"

namespace emulator {

constexpr size_t STATIC_LIMIT = 48 << 10;       // bytes in __shared__ arrays of fixed size
constexpr size_t SHARED_LIMIT = 227 << 10;      // bytes with the dynamic part, on sm_90

// ---- what Python fills in and reads: keep in step with launching.py ----

struct Region {                         // an array argument
    uintptr_t start, stop;
    size_t granule;                     // bytes of an element
    const char* name;
};

struct Count {                          // what the warps of a launch asked at one place
    const void* pc;
    int shared, write;
    int64_t requests, moved, least;     // sectors or passes: as many as were, and as must be
};

struct Launch {
    unsigned grid[3], block[3];
    size_t shared_bytes;
    uint64_t seed;
    void (*enter)(void**);
    void** arguments;
    const Region* regions;
    int n_regions;
    const Site* ignored;
    int n_ignored;
    int traced;                         // the kernel was compiled with hooks: race mode
    int counting;                       // and memory requests are counted
    Site reached[256];                  // barriers and atomics that were executed
    int n_reached;
    int failed;
    const void* pcs[2];                 // places that the error is about, if any
    char error[1024];

    void reach(Site site) {
        for (int i = 0; i < n_reached; i++)
            if (reached[i] == site) return;
        if (n_reached < 256) reached[n_reached++] = site;
    }
};
extern Launch* launch;

// ---- a block ----

enum State { READY, AT_BARRIER, AT_WARP_BARRIER, AT_EXCHANGE, DONE };

struct Copy {                           // an asynchronous copy that has not arrived
    void* to;
    const void* from;
    size_t bytes;
    bool inside;
    int group;
    const void* pc;
};

struct Fiber {                          // a CUDA thread
    Stack stack;
    uint3 index;
    int rank;
    State state;
    Site site;                          // where it waits,
    unsigned mask;                      // for which lanes of its warp,
    bool predicate = false;             // and what it counts for in __syncthreads_count
    Slot shown;                         // to the other lanes, in an exchange
    unsigned party;                     // which took part in the latest
    int groups;                         // of asynchronous copies, committed
    std::vector<Copy> copies;
    uint32_t clock, known[WARP];        // see tracer.cpp
};

struct SharedArray {
    const char *name, *function;
    int line;
    size_t bytes, granule;
    bool dynamic;
    unsigned char* memory;
};

struct Block {
    static constexpr size_t ARENA = 512 << 10;  // bytes; no device has more shared memory than 228 KiB
    int size = 0;                       // threads
    std::vector<Fiber> fibers;
    std::vector<Slot> slots;            // what the threads showed when their exchange was complete
    std::vector<SharedArray> shared;
    unsigned char *arena = nullptr, *dynamic = nullptr;
    size_t used = 0;
    uint32_t serial = 0, epoch = 0;     // blocks begun ever, barriers passed in this one
    int count = 0;                      // for __syncthreads_count

    unsigned char* add_shared(SharedArray array);
    void begin(unsigned number);
    void run_all();
    bool run_ready(std::vector<int>& order);
    bool release_warp(int warp);
    bool release_barrier();
    void report_deadlock();
};
extern Block block;

Fiber* current();
std::string name_of(const Fiber& fiber);
void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ---- tracer.cpp and counter.cpp ----

struct Access {
    uintptr_t address;
    size_t bytes;
    Kind kind;
    const void* pc;                     // of the instruction after the call that reports it
};

void begin_tracing();
void join_clocks(Fiber* lanes, unsigned party);
void begin_counting();
void count(const Access& access, bool shared);
void end_counting_block();

}  // namespace emulator
