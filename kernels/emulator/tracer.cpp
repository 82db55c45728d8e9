// Race mode: every access to memory is checked.  The kernel is compiled with -fsanitize=thread, which
// calls a hook before each access; these are the hooks, in place of the sanitizer's own library.
//
// Two accesses of different threads to the same bytes race unless both read, both are atomic, or
// something puts one before the other: a __syncthreads between them or, within a warp, a
// __syncwarp.  Blocks are never ordered.  Nothing depends on who happened to run first.
#include <algorithm>
#include <cstring>
#include <map>
#include <vector>

#include "scheduler.h"

namespace emulator {
namespace {

constexpr uint32_t MANY = ~0u;

// The latest write to some bytes, or their latest reads: several, where nothing orders them.
struct Event {
    uint32_t block = 0;                 // which did it: `Block::serial`, or MANY
    uint32_t epoch, clock;              // __syncthreads, and __syncwarp of its thread, until then
    int warp;                           // or -1: several
    unsigned lanes;                     // of that warp
    int first, latest;                  // two of the threads, if there are two
    bool atomic;
    const void* pc;
};

struct History { Event write, read; };

uint32_t first_block;                   // of this launch: whatever is older does not count
std::vector<std::vector<History>> global_history;       // for each array argument
std::map<const void*, std::vector<History>> shared_history;

// Say whether every access in `e` is known to come before what the running thread does now.
bool comes_before(const Event& e, const Fiber& me, bool shared) {
    bool exists = e.block >= first_block && e.block != 0;
    if (!exists || (shared && e.block != block.serial)) return true;
    if (e.block != block.serial) return false;
    if (e.epoch < block.epoch) return true;
    if (e.warp != me.rank / WARP) return false;
    for (int lane = 0; lane < WARP; lane++)
        if (e.lanes >> lane & 1 && lane != me.rank % WARP && me.known[lane] < e.clock) return false;
    return true;
}

// Add an access to those that are already there and not ordered, or let it take their place.
void add(Event& e, const Fiber& me, const Access& a, bool ordered) {
    int warp = me.rank / WARP;
    unsigned lane = 1u << me.rank % WARP;
    if (ordered) {
        e = {block.serial, block.epoch, me.clock, warp, lane, me.rank, me.rank, a.kind == ATOMIC, a.pc};
        return;
    }
    if (e.block != block.serial) e.block = MANY;
    if (e.warp != warp) e.warp = -1;
    e.lanes |= lane;
    e.clock = std::max(e.clock, me.clock);
    e.epoch = block.epoch;
    e.latest = me.rank;
}

void race(const char* kinds, const char* memory, const Event& e, const Access& a) {
    const Fiber& me = *current();
    std::string other = e.block != block.serial
        ? "a thread of another block"
        : name_of(block.fibers[e.first == me.rank ? e.latest : e.first]);
    launch->pcs[0] = a.pc;
    launch->pcs[1] = e.pc;
    fail("%s race on %s: %s at {0} and %s at {1}, with nothing that orders them", kinds, memory,
         name_of(me).c_str(), other.c_str());
}

void update(History& h, const Access& a, bool shared, const char* memory) {
    const Fiber& me = *current();
    bool after_write = comes_before(h.write, me, shared);
    bool after_read = comes_before(h.read, me, shared);
    if (!after_write && !(a.kind == ATOMIC && h.write.atomic))
        race(a.kind == READ ? "read-write" : "write-write", memory, h.write, a);
    if (a.kind == READ) {
        add(h.read, me, a, after_read);
    } else {
        if (!after_read) race("write-read", memory, h.read, a);
        add(h.write, me, a, after_write);
    }
}

void update_all(std::vector<History>& history, const Access& a, size_t offset, size_t granule,
                bool shared, const char* memory) {
    if (launch->counting) count(a, shared);
    for (size_t g = offset / granule; g * granule < offset + a.bytes; g++)
        update(history[g], a, shared, memory);
}

// ---- one access: where is it? ----

void out_of_bounds(const Access& a) {
    const char* name = "anything";
    uintptr_t nearest = ~uintptr_t(0);
    bool before = false;
    auto consider = [&](uintptr_t start, uintptr_t stop, const char* whose) {
        uintptr_t distance = a.address < start ? start - a.address : a.address + a.bytes - stop;
        if (distance < nearest) { nearest = distance; name = whose; before = a.address < start; }
    };
    for (const SharedArray& array : block.shared)
        consider(uintptr_t(array.memory), uintptr_t(array.memory) + array.bytes, array.name);
    for (int i = 0; i < launch->n_regions; i++)
        consider(launch->regions[i].start, launch->regions[i].stop, launch->regions[i].name);
    launch->pcs[0] = a.pc;
    std::string who = name_of(*current());
    const char* verb = a.kind == READ ? "reads" : "writes";
    if (a.address < 4096) fail("%s %s through a null pointer at {0}", who.c_str(), verb);
    fail("%s %s out of bounds at {0}: %zu bytes, %zu bytes %s %s", who.c_str(), verb, a.bytes,
         nearest, before ? "before the start of" : "past the end of", name);
}

bool holds(const void* object, size_t size, uintptr_t address) {
    return address - uintptr_t(object) < size;
}

// Check an access of the running thread, unless it is to its own stack or the emulator's own data.
void check(const Access& a) {
    const Fiber* me = current();
    if (!me || me->stack.holds(a.address) || holds(&now, sizeof now, a.address)) return;
    if (holds(block.slots.data(), block.slots.size() * sizeof block.slots[0], a.address)) return;
    if (a.bytes <= 16 && a.address % a.bytes) {
        launch->pcs[0] = a.pc;
        fail("%s accesses %zu bytes at {0} that do not start at a multiple of %zu",
             name_of(*me).c_str(), a.bytes, a.bytes);
    }
    if (holds(block.arena, Block::ARENA, a.address)) {
        for (const SharedArray& array : block.shared) {
            size_t offset = a.address - uintptr_t(array.memory);
            if (offset >= array.bytes || offset + a.bytes > array.bytes) continue;
            std::vector<History>& history = shared_history[array.memory];
            history.resize(std::max(history.size(), array.bytes / array.granule + 1));
            return update_all(history, a, offset, array.granule, true, array.name);
        }
    } else {
        for (int i = 0; i < launch->n_regions; i++) {
            const Region& region = launch->regions[i];
            if (a.address < region.start || a.address + a.bytes > region.stop) continue;
            return update_all(global_history[i], a, a.address - region.start, region.granule, false,
                              region.name);
        }
    }
    out_of_bounds(a);
}

}  // namespace

void begin_tracing() {
    first_block = block.serial + 1;
    global_history.clear();
    if (!launch->traced) return;
    for (int i = 0; i < launch->n_regions; i++) {
        const Region& r = launch->regions[i];
        global_history.emplace_back((r.stop - r.start) / r.granule + 1);
    }
}

// After a __syncwarp each lane of the party knows of all that the others did before it.
void join_clocks(Fiber* lanes, unsigned party) {
    uint32_t known[WARP] = {};
    for (int i = 0; i < WARP; i++) {
        if (!(party >> i & 1)) continue;
        for (int k = 0; k < WARP; k++) known[k] = std::max(known[k], lanes[i].known[k]);
        known[i] = std::max(known[i], lanes[i].clock);
    }
    for (int i = 0; i < WARP; i++) {
        if (!(party >> i & 1)) continue;
        memcpy(lanes[i].known, known, sizeof known);
        lanes[i].clock++;
    }
}

void note(const void* address, size_t bytes, Kind kind, const void* pc) {
    if (launch->traced) check({uintptr_t(address), bytes, kind, pc});
}

}  // namespace emulator

// ---- the compiler's hooks ----

#define CHECK(kind, n) emulator::check({uintptr_t(p), n, emulator::kind, __builtin_return_address(0)})
#define HOOKS(n)                                                                                 \
    void __tsan_read##n(void* p) { CHECK(READ, n); }                                             \
    void __tsan_write##n(void* p) { CHECK(WRITE, n); }                                           \
    void __tsan_unaligned_read##n(void* p) { CHECK(READ, n); }                                   \
    void __tsan_unaligned_write##n(void* p) { CHECK(WRITE, n); }

extern "C" {
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
void __tsan_read_range(void* p, size_t n) { CHECK(READ, n); }
void __tsan_write_range(void* p, size_t n) { CHECK(WRITE, n); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
