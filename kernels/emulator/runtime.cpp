// The emulator's runtime: the threads of a block as fibers, and what makes them wait for another.
//
// Blocks run one after another.  In a block every thread that can run does so until it waits; then
// whoever has got what it waits for can run again.  With a seed the order is random, and some warps
// are held back so that others get ahead.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "fiber.h"
#include "runtime.h"
#include "scheduler.h"

namespace emulator {

Now now;
Block block;
Launch* launch;

namespace {

Stack scheduler;                        // the stack of whoever called `emulator_launch`
Fiber* running;
uint64_t random_state;

uint32_t random_bits() {                // splitmix64: the same everywhere
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return uint32_t(z >> 32);
}

void shuffle(std::vector<int>& order) {
    for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[random_bits() % i]);
}

void back_to_scheduler() { emulator_switch_stacks(&running->stack.pointer, scheduler.pointer); }

void first_function() {
    launch->enter(launch->arguments);
    running->state = DONE;
    back_to_scheduler();
    abort();                            // nobody runs a thread that is done
}

void run(Fiber& fiber) {
    running = &fiber;
    now.thread_index = fiber.index;
    now.rank = fiber.rank;
    now.party = fiber.party;
    emulator_switch_stacks(&scheduler.pointer, fiber.stack.pointer);
    running = nullptr;
}

void wait(State state, Site site, unsigned mask = 0) {
    running->state = state;
    running->site = site;
    running->mask = mask;
    back_to_scheduler();
}

}  // namespace

Fiber* current() { return running; }

std::string name_of(const Fiber& fiber) {
    char text[64];
    snprintf(text, sizeof text, "thread (%u,%u,%u)", fiber.index.x, fiber.index.y, fiber.index.z);
    return text;
}

void fail(const char* format, ...) {
    char* end = launch->error + sizeof launch->error;
    char* p = launch->error;
    p += snprintf(p, end - p, "block (%u,%u,%u): ", now.block_index.x, now.block_index.y,
                  now.block_index.z);
    va_list values;
    va_start(values, format);
    vsnprintf(p, end - p, format, values);
    va_end(values);
    launch->failed = 1;
    if (running) {                      // the fiber is left where it stands, for good
        running->state = DONE;
        back_to_scheduler();
    }
}

// ---- what kernels call ----

bool ignored(Site site) {
    bool found = false;
    for (int i = 0; i < launch->n_ignored; i++)
        found |= launch->ignored[i] == site;
    launch->reach(site);
    return found;
}

void let_others_run() { wait(READY, {"", 0}); }

void sync_threads(Site site) {
    if (!ignored(site)) wait(AT_BARRIER, site);
}

int sync_threads_count(bool predicate, Site site) {
    if (ignored(site)) return predicate;
    running->predicate = predicate;
    wait(AT_BARRIER, site);
    return block.count;
}

void sync_warp(unsigned mask, Site site) {
    if (!ignored(site)) wait(AT_WARP_BARRIER, site, mask);
}

const Slot* exchange(unsigned mask, const void* value, size_t bytes, Site site) {
    memcpy(running->shown.bytes, value, bytes);
    wait(AT_EXCHANGE, site, mask);
    return &block.slots[running->rank / WARP * WARP];
}

const Slot* exchange_all(const void* value, size_t bytes, Site site) {
    const Slot* slots = exchange(ALL_LANES, value, bytes, site);
    if (now.party != ALL_LANES) fail("%s:%d: only lanes 0x%08x of a warp multiply; a tensor core "
                                     "takes all 32", site.file, site.line, now.party);
    return slots;
}

void* shared_array(const char* name, const char* function, int line, size_t bytes, size_t granule) {
    for (const SharedArray& array : block.shared)
        if (array.function == function && array.line == line && array.name == name)
            return array.memory;
    size_t used = 0;
    for (const SharedArray& array : block.shared) used += array.dynamic ? 0 : array.bytes;
    if (used + bytes > STATIC_LIMIT)
        fail("%zu bytes in __shared__ arrays, %s among them: a kernel has 48 KiB; more is dynamic, "
             "extern __shared__, and given by shared_mem=", used + bytes, name);
    return block.add_shared({name, function, line, bytes, granule, false, nullptr});
}

void* dynamic_shared() { return block.dynamic; }

// The bytes arrive as late as the kernel allows: when it waits for their group.  Until then the
// place holds NaN, for it may already hold the new bytes or may still hold the old.
void copy_async(void* to, const void* from, size_t bytes, bool inside, const void* pc) {
    note(to, bytes, OVERWRITE, pc);
    memset(to, 0xff, bytes);
    running->copies.push_back({to, from, bytes, inside, running->groups, pc});
}

void copy_async_commit() { running->groups++; }

void copy_async_wait(int groups, Site site) {
    if (ignored(site)) return;
    std::vector<Copy> later;
    for (const Copy& copy : running->copies) {
        if (copy.group + groups >= running->groups) {
            later.push_back(copy);
            continue;
        }
        note(copy.to, copy.bytes, WRITE, copy.pc);
        if (copy.inside) {
            note(copy.from, copy.bytes, READ, copy.pc);
            memcpy(copy.to, copy.from, copy.bytes);
        } else {
            memset(copy.to, 0, copy.bytes);
        }
    }
    running->copies.swap(later);
}

// ---- a block ----

unsigned char* Block::add_shared(SharedArray array) {
    constexpr size_t GAP = 128;         // between arrays: bytes that belong to none
    array.memory = arena + used + GAP;
    size_t stop = (used + GAP + array.bytes + GAP - 1) / GAP * GAP;
    size_t total = array.bytes;
    for (const SharedArray& other : shared) total += other.bytes;
    if (total > SHARED_LIMIT)
        fail("%zu bytes of shared memory with %s: the largest devices give a block 227 KiB", total,
             array.name);
    memset(arena + used, 0xff, stop + GAP - used);      // NaN, in every floating-point type
    used = stop;
    shared.push_back(array);
    return array.memory;
}

void Block::begin(unsigned number) {
    uint3 n = now.grid_size, t = now.block_size;
    now.block_index = {number % n.x, number / n.x % n.y, number / n.x / n.y};
    epoch = 0;
    serial++;
    used = 0;
    shared.clear();
    dynamic = launch->shared_bytes
        ? add_shared({"dynamic shared memory", "", 0, launch->shared_bytes, 2, true, nullptr})
        : nullptr;
    for (int rank = 0; rank < size; rank++) {
        Fiber& f = fibers[rank];
        f.rank = rank;
        f.index = {rank % t.x, rank / t.x % t.y, rank / t.x / t.y};
        f.state = READY;
        f.groups = 0;
        f.copies.clear();
        f.clock = 1;
        memset(f.known, 0, sizeof f.known);
        f.stack.start(first_function);
    }
}

bool Block::run_ready(std::vector<int>& order) {
    if (launch->seed) shuffle(order);
    uint32_t held_back = launch->seed ? random_bits() : 0;
    bool any = false;
    for (int rank : order) {
        if (fibers[rank].state != READY) continue;
        any = true;
        if (!(held_back >> rank / WARP & 1)) run(fibers[rank]);
        if (launch->failed) break;
    }
    return any;
}

// Let go the lanes whose mask is complete: all that it names have come, or returned before.
bool Block::release_warp(int warp) {
    Fiber* lanes = &fibers[warp * WARP];
    int n = std::min(WARP, size - warp * WARP);
    unsigned waiting = 0, alive = 0;
    for (int i = 0; i < n; i++) {
        waiting |= unsigned(lanes[i].state == AT_EXCHANGE || lanes[i].state == AT_WARP_BARRIER) << i;
        alive |= unsigned(lanes[i].state != DONE) << i;
    }
    bool any = false;
    for (int i = 0; i < n; i++) {
        if (!(waiting >> i & 1)) continue;
        const Fiber& first = lanes[i];
        unsigned party = first.mask & alive;
        if (!(first.mask >> i & 1)) {
            fail("%s:%d: lane %d is not in the mask 0x%08x that it passes", first.site.file,
                 first.site.line, i, first.mask);
            return false;
        }
        if ((waiting & party) != party) continue;
        for (int k = 0; k < n; k++) {
            const Fiber& other = lanes[k];
            if (!(party >> k & 1)) continue;
            if (!(other.site == first.site) || other.mask != first.mask) {
                fail("lanes %d and %d of a warp wait for each other in different calls: %s:%d with "
                     "mask 0x%08x and %s:%d with mask 0x%08x", i, k, first.site.file,
                     first.site.line, first.mask, other.site.file, other.site.line, other.mask);
                return false;
            }
        }
        if (first.state == AT_WARP_BARRIER) join_clocks(lanes, party);
        for (int k = 0; k < n; k++) {
            if (!(party >> k & 1)) continue;
            // All that can run do so before the next release: nobody will come too late to read.
            slots[warp * WARP + k] = lanes[k].shown;
            lanes[k].party = party;
            lanes[k].state = READY;
        }
        waiting &= ~party;
        any = true;
    }
    return any;
}

bool Block::release_barrier() {
    int waiting = 0, done = 0;
    const Fiber *first = nullptr, *returned = nullptr;
    for (int i = 0; i < size; i++) {
        if (fibers[i].state == AT_BARRIER) { waiting++; first = first ? first : &fibers[i]; }
        if (fibers[i].state == DONE) { done++; returned = &fibers[i]; }
    }
    if (!waiting || waiting + done < size) return false;
    if (done) {
        fail("%s:%d: __syncthreads is reached by %d of %d threads, the others (%s) have returned",
             first->site.file, first->site.line, waiting, size, name_of(*returned).c_str());
        return false;
    }
    count = 0;
    for (int i = 0; i < size; i++) {
        const Fiber& f = fibers[i];
        if (!(f.site == first->site)) {
            fail("threads wait at different __syncthreads: %s at %s:%d, %s at %s:%d",
                 name_of(*first).c_str(), first->site.file, first->site.line,
                 name_of(f).c_str(), f.site.file, f.site.line);
            return false;
        }
        count += f.predicate;
    }
    for (int i = 0; i < size; i++) fibers[i].state = READY;
    epoch++;
    return true;
}

void Block::report_deadlock() {
    for (int i = 0; i < size; i++) {
        const Fiber& f = fibers[i];
        if (f.state == AT_EXCHANGE || f.state == AT_WARP_BARRIER) {
            int others = std::count_if(fibers.begin(), fibers.begin() + size,
                                       [](const Fiber& g) { return g.state == AT_BARRIER; });
            fail("%s:%d: %s waits for lanes of its mask 0x%08x that never come; %d threads wait at "
                 "a __syncthreads", f.site.file, f.site.line, name_of(f).c_str(), f.mask, others);
            return;
        }
    }
}

void Block::run_all() {
    std::vector<int> order(size);
    for (int i = 0; i < size; i++) order[i] = i;
    while (!launch->failed) {
        bool moved = run_ready(order);
        for (int warp = 0; warp * WARP < size && !launch->failed; warp++) moved |= release_warp(warp);
        if (!launch->failed) moved |= release_barrier();
        bool done = std::all_of(fibers.begin(), fibers.begin() + size,
                                [](const Fiber& f) { return f.state == DONE; });
        if (done || launch->failed) return;
        if (!moved) report_deadlock();
    }
}

}  // namespace emulator

using namespace emulator;

// Run every block of a launch; `launch.error` says what went wrong, if `launch.failed`.
extern "C" void emulator_launch(Launch* request) {
    launch = request;
    const unsigned *g = request->grid, *b = request->block;
    now.grid_size = {g[0], g[1], g[2]};
    now.block_size = {b[0], b[1], b[2]};
    block.size = b[0] * b[1] * b[2];
    if (block.fibers.size() < size_t(block.size)) block.fibers.resize(block.size);
    if (!block.arena) block.arena = static_cast<unsigned char*>(aligned_alloc(4096, Block::ARENA));
    block.slots.resize((block.size + WARP - 1) / WARP * WARP);

    random_state = request->seed;
    std::vector<int> blocks(g[0] * g[1] * g[2]);
    for (size_t i = 0; i < blocks.size(); i++) blocks[i] = int(i);
    if (request->seed) shuffle(blocks);
    begin_tracing();
    begin_counting();
    for (size_t i = 0; i < blocks.size() && !request->failed; i++) {
        block.begin(blocks[i]);
        block.run_all();
        end_counting_block();
    }
}
