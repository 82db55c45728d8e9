// Race mode: every access to memory is checked.  The kernel is compiled with -fsanitize=thread, which
// calls a hook before each access; these are the hooks, in place of the sanitizer's own library.
//
// Two accesses of different threads to the same bytes race unless both read, both are atomic, or
// something puts one before the other: a __syncthreads between them or, within a warp, a
// __syncwarp.  Blocks are never ordered.  Nothing depends on who happened to run first.
#include <algorithm>
#include <cstring>
#include <map>
#include <string>
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
    int rank;                           // one of the threads
    bool atomic;
    const void* pc;
};

struct History { Event write, read; };

uint32_t first_block;                   // of this launch: whatever is older does not count
std::vector<std::vector<History>> global_history;       // for each array argument
std::map<const void*, std::vector<History>> shared_history;

bool exists(const Event& e) { return e.block >= first_block && e.block != 0; }

// Say whether every access in `e` is known to come before what the running thread does now.
bool comes_before(const Event& e, const Fiber& me, bool shared) {
    if (!exists(e) || (shared && e.block != block.serial)) return true;
    if (e.block != block.serial) return false;
    if (e.epoch < block.epoch) return true;
    if (e.warp != me.rank / WARP) return false;
    for (int lane = 0; lane < WARP; lane++)
        if (e.lanes >> lane & 1 && lane != me.rank % WARP && me.known[lane] < e.clock) return false;
    return true;
}

// Add an access to those that are already there and not ordered, or let it take their place.
void add(Event& e, const Fiber& me, bool atomic, bool ordered, const void* pc) {
    int warp = me.rank / WARP;
    unsigned lane = 1u << me.rank % WARP;
    if (ordered) {
        e = {block.serial, block.epoch, me.clock, warp, lane, me.rank, atomic, pc};
        return;
    }
    if (e.block != block.serial) e.block = MANY;
    if (e.warp != warp) e.warp = -1;
    e.lanes |= lane;
    e.clock = std::max(e.clock, me.clock);
    e.epoch = block.epoch;
}

std::string describe(const Event& e) {
    if (e.block != block.serial) return "a thread of another block";
    return e.rank == current()->rank ? "another thread" : name_of(block.fibers[e.rank]);
}

void race(const char* kinds, const std::string& memory, const Event& e, const void* pc) {
    launch->pcs[0] = pc;
    launch->pcs[1] = e.pc;
    fail("%s race on %s: %s at {0} and %s at {1}, with nothing that orders them", kinds,
         memory.c_str(), name_of(*current()).c_str(), describe(e).c_str());
}

void update(History& h, bool write, bool atomic, bool shared, const std::string& memory,
            const void* pc) {
    const Fiber& me = *current();
    bool after_write = comes_before(h.write, me, shared);
    if (!after_write && !(atomic && h.write.atomic))
        race(write ? "write-write" : "read-write", memory, h.write, pc);
    if (write) {
        if (!comes_before(h.read, me, shared)) race("write-read", memory, h.read, pc);
        add(h.write, me, atomic, after_write, pc);
    } else {
        add(h.read, me, atomic, comes_before(h.read, me, shared), pc);
    }
}

void update_all(std::vector<History>& history, size_t offset, size_t bytes, size_t granule,
                bool write, bool atomic, bool shared, const std::string& memory, const void* pc) {
    for (size_t g = offset / granule; g * granule < offset + bytes; g++)
        update(history[g], write, atomic, shared, memory, pc);
}

// ---- counting ----

struct Request { int lane; uintptr_t address; size_t bytes; };

// In this block, what each warp did at each place for the k-th time: one request of the device.
std::map<std::pair<const void*, int>, std::map<unsigned, std::vector<Request>>> requests;
std::map<std::pair<const void*, int>, unsigned> times;          // by place and thread

std::map<const void*, Count> counts;

void log(uintptr_t address, size_t bytes, bool write, bool shared, const void* pc) {
    int rank = current()->rank;
    Count& c = counts[pc];
    c.pc = pc;
    c.shared = shared;
    c.write = write;
    requests[{pc, rank / WARP}][times[{pc, rank}]++].push_back({rank % WARP, address, bytes});
}

// How many sectors of 32 bytes of global memory a request touches.
int sectors(const std::vector<Request>& request, uintptr_t unit) {
    std::vector<uintptr_t> touched;
    for (const Request& r : request)
        for (uintptr_t a = r.address / unit; a <= (r.address + r.bytes - 1) / unit; a++)
            touched.push_back(a);
    std::sort(touched.begin(), touched.end());
    return int(std::unique(touched.begin(), touched.end()) - touched.begin());
}

// How often shared memory must be asked: of the words in one of its 32 banks, it gives one at a time.
// 128 bytes are served at once: half a warp where lanes take 8 bytes, a quarter where they take 16.
int passes(const std::vector<Request>& request, int* at_least) {
    int together = int(128 / std::max<size_t>(4, request[0].bytes));
    std::map<int, std::map<int, std::vector<uintptr_t>>> parts;
    for (const Request& r : request)
        for (uintptr_t word = r.address / 4; word <= (r.address + r.bytes - 1) / 4; word++) {
            auto& bank = parts[r.lane / together][word % 32];
            if (std::find(bank.begin(), bank.end(), word) == bank.end()) bank.push_back(word);
        }
    int total = 0;
    for (auto& part : parts) {
        size_t most = 0;
        for (auto& bank : part.second) most = std::max(most, bank.second.size());
        total += int(most);
    }
    *at_least = int(parts.size());
    return total;
}

void count_requests() {
    for (auto& place : requests) {
        Count& c = counts[place.first.first];
        for (auto& each : place.second) {
            const std::vector<Request>& request = each.second;
            int least = (sectors(request, 4) + 7) / 8;
            c.requests++;
            c.moved += c.shared ? passes(request, &least) : sectors(request, 32);
            c.least += least;
        }
    }
    requests.clear();
    times.clear();
}

// ---- one access ----

void out_of_bounds(uintptr_t address, size_t bytes, bool write, const void* pc) {
    const char* name = "anything";
    uintptr_t nearest = ~uintptr_t(0);
    bool before = false;
    auto consider = [&](uintptr_t start, uintptr_t stop, const char* whose) {
        uintptr_t distance = address < start ? start - address : address + bytes - stop;
        if (distance < nearest) { nearest = distance; name = whose; before = address < start; }
    };
    for (const SharedArray& a : block.shared)
        consider(uintptr_t(a.memory), uintptr_t(a.memory) + a.bytes, a.name);
    for (int i = 0; i < launch->n_regions; i++)
        consider(launch->regions[i].start, launch->regions[i].stop, launch->regions[i].name);
    launch->pcs[0] = pc;
    const char* verb = write ? "writes" : "reads";
    std::string who = name_of(*current());
    if (!address) fail("%s %s through a null pointer at {0}", who.c_str(), verb);
    fail("%s %s out of bounds at {0}: %zu bytes, %zu bytes %s %s", who.c_str(), verb, bytes, nearest,
         before ? "before the start of" : "past the end of", name);
}

bool holds(const void* object, size_t size, uintptr_t address) {
    return address - uintptr_t(object) < size;
}

void access(uintptr_t address, size_t bytes, bool write, bool atomic, const void* pc) {
    Fiber* me = current();
    if (!me || me->stack.holds(address) || holds(&now, sizeof now, address)) return;
    if (holds(block.slots.data(), block.slots.size() * sizeof block.slots[0], address)) return;
    if (bytes > 1 && bytes <= 16 && address % bytes) {
        launch->pcs[0] = pc;
        fail("%s accesses %zu bytes at {0} that do not start at a multiple of %zu",
             name_of(*me).c_str(), bytes, bytes);
    }
    if (holds(block.arena, Block::ARENA, address)) {
        for (const SharedArray& array : block.shared) {
            size_t offset = address - uintptr_t(array.memory);
            if (offset >= array.bytes || offset + bytes > array.bytes) continue;
            std::vector<History>& history = shared_history[array.memory];
            if (history.size() * array.granule < array.bytes)
                history.resize(array.bytes / array.granule + 1);
            if (launch->counting) log(address, bytes, write, true, pc);
            update_all(history, offset, bytes, array.granule, write, atomic, true, array.name, pc);
            return;
        }
    } else {
        for (int i = 0; i < launch->n_regions; i++) {
            const Region& region = launch->regions[i];
            if (address < region.start || address + bytes > region.stop) continue;
            if (launch->counting) log(address, bytes, write, false, pc);
            update_all(global_history[i], address - region.start, bytes, region.granule, write,
                       atomic, false, region.name, pc);
            return;
        }
    }
    out_of_bounds(address, bytes, write, pc);
}

}  // namespace

void begin_tracing() {
    first_block = block.serial + 1;
    counts.clear();
    global_history.clear();
    if (!launch->traced) return;
    for (int i = 0; i < launch->n_regions; i++) {
        const Region& r = launch->regions[i];
        global_history.emplace_back((r.stop - r.start) / r.granule + 1);
    }
}

void end_tracing_block() { count_requests(); }

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

void note(const void* address, size_t bytes, bool write, bool atomic, const void* pc) {
    if (launch->traced) access(uintptr_t(address), bytes, write, atomic, pc);
}

}  // namespace emulator

using emulator::access;

extern "C" {

// Copy what was counted in the latest launch into `counts`, at most `n`; return how many there are.
int emulator_counts(emulator::Count* counts, int n) {
    int i = 0;
    for (auto& each : emulator::counts) {
        if (i < n) counts[i] = each.second;
        i++;
    }
    return i;
}

// ---- the compiler's hooks ----

#define PC __builtin_return_address(0)
#define HOOKS(n)                                                                                 \
    void __tsan_read##n(void* p) { access(uintptr_t(p), n, false, false, PC); }                  \
    void __tsan_write##n(void* p) { access(uintptr_t(p), n, true, false, PC); }                  \
    void __tsan_unaligned_read##n(void* p) { access(uintptr_t(p), n, false, false, PC); }        \
    void __tsan_unaligned_write##n(void* p) { access(uintptr_t(p), n, true, false, PC); }
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
void __tsan_read_range(void* p, size_t n) { access(uintptr_t(p), n, false, false, PC); }
void __tsan_write_range(void* p, size_t n) { access(uintptr_t(p), n, true, false, PC); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

}
