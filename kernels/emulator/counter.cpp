// What the lines of a kernel ask of memory: counted as a device would serve it, warp by warp.
//
// The k-th time that a lane executes an instruction belongs together with the k-th time of the other
// lanes of its warp.  (Where lanes run a loop for different numbers of rounds, a device may group
// them otherwise.)
#include <algorithm>
#include <array>
#include <unordered_map>
#include <vector>

#include "scheduler.h"

namespace emulator {
namespace {

struct Part { int lane; uintptr_t address; size_t bytes; };
using Request = std::vector<Part>;

struct Place {                          // one instruction; a copy both reads and writes: that is two
    Count count{};
    std::vector<size_t> times;          // that each thread of this block has come here
    std::vector<std::vector<Request>> requests;         // of each warp
};
std::unordered_map<uintptr_t, Place> places;            // by address and kind

// How many units of so many bytes a request touches.
int touched(const Request& request, uintptr_t unit) {
    std::vector<uintptr_t> all;
    for (const Part& part : request)
        for (uintptr_t u = part.address / unit; u <= (part.address + part.bytes - 1) / unit; u++)
            all.push_back(u);
    std::sort(all.begin(), all.end());
    return int(std::unique(all.begin(), all.end()) - all.begin());
}

// A bank gives one word at a time, to any number of lanes.  128 bytes are served at once: to half a
// warp where lanes take 8 bytes each, to a quarter where they take 16.
int passes(const Request& request, int* least) {
    int together = int(128 / std::max<size_t>(4, request[0].bytes));
    int total = 0;
    *least = 0;
    for (int first = 0; first < WARP; first += together) {
        std::array<std::vector<uintptr_t>, 32> banks;               // the words asked of each
        size_t fullest = 0;
        for (const Part& part : request) {
            if (part.lane < first || part.lane >= first + together) continue;
            for (uintptr_t w = part.address / 4; w <= (part.address + part.bytes - 1) / 4; w++) {
                auto& bank = banks[w % 32];
                if (std::find(bank.begin(), bank.end(), w) == bank.end()) bank.push_back(w);
                fullest = std::max(fullest, bank.size());
            }
        }
        total += int(fullest);
        *least += fullest > 0;
    }
    return total;
}

}  // namespace

void begin_counting() { places.clear(); }

void count(const Access& a, bool shared) {
    if (a.kind == OVERWRITE) return;
    bool write = a.kind != READ;
    Place& place = places[uintptr_t(a.pc) * 4 + shared * 2 + write];
    if (place.times.empty()) {
        place.count.pc = a.pc;
        place.count.shared = shared;
        place.count.write = write;
        place.times.resize(block.size);
        place.requests.resize((block.size + WARP - 1) / WARP);
    }
    int rank = current()->rank;
    size_t k = place.times[rank]++;
    std::vector<Request>& of_warp = place.requests[rank / WARP];
    if (of_warp.size() <= k) of_warp.resize(k + 1);
    of_warp[k].push_back({rank % WARP, a.address, a.bytes});
}

void end_counting_block() {
    for (auto& each : places) {
        Count& c = each.second.count;
        for (const std::vector<Request>& of_warp : each.second.requests)
            for (const Request& request : of_warp) {
                int least = (touched(request, 4) + 7) / 8;
                c.moved += c.shared ? passes(request, &least) : touched(request, 32);
                c.least += least;
                c.requests++;
            }
        each.second.times.clear();
        each.second.requests.clear();
    }
}

}  // namespace emulator

// Copy what was counted in the latest launch, at most `n` places; return how many there are.
extern "C" int emulator_counts(emulator::Count* to, int n) {
    int i = 0;
    for (auto& each : emulator::places) {
        if (i < n) to[i] = each.second.count;
        i++;
    }
    return i;
}
