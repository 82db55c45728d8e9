// The emulator's runtime, as cuda.h and runtime.cpp see it.
#pragma once
#include <cstddef>
#include <cstdint>

struct uint3 { unsigned x, y, z; };

namespace emulator {

struct Site {                           // a place in a .cu file
    const char* file;
    int line;

    bool operator==(const Site& other) const {
        return line == other.line && !__builtin_strcmp(file, other.file);
    }

    // As a default argument of a function this is the place that calls the function.
    static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }
};

struct Now {                            // what runs at this moment
    uint3 thread_index, block_index, block_size, grid_size;
    unsigned rank;                      // of the thread in its block
    unsigned party;                     // the lanes that took part in its latest exchange
};
extern Now now;

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int SLOT = 64;                // bytes that a lane can show to the others of its warp

struct alignas(16) Slot { unsigned char bytes[SLOT]; };

// ---- what a kernel calls; see runtime.cpp ----

void sync_threads(Site site);
int sync_threads_count(bool predicate, Site site);
void sync_warp(unsigned mask, Site site);

// Show `value` to the lanes in `mask`, wait for them, and return what each of a warp's 32 shows.
const Slot* exchange(unsigned mask, const void* value, size_t bytes, Site site);
const Slot* exchange_all(const void* value, size_t bytes, Site site);   // fails without all 32

void* shared_array(const char* name, const char* function, int line, size_t bytes, size_t granule);
void* dynamic_shared();

bool ignored(Site site);                // switched off for this run
void let_others_run();

void copy_async(void* to, const void* from, size_t bytes, bool inside, const void* pc);
void copy_async_commit();
void copy_async_wait(int groups, Site site);

// Tell the race detector, if one listens, what no hook of the compiler sees.
enum Kind { READ, WRITE, ATOMIC, OVERWRITE };   // the last: what is there is lost from now on
void note(const void* address, size_t bytes, Kind kind, const void* pc);

}  // namespace emulator
