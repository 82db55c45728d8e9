// What the lines of a kernel ask of memory: counted as a device would serve it, warp by warp.
//
// The k-th time that a lane executes an instruction belongs together with the k-th time of the other
// lanes of its warp.  (Where lanes run a loop for different numbers of rounds, a device may group
// them otherwise.)
#include <algorithm>
#include <map>
#include <tuple>
#include <vector>

#include "scheduler.h"

namespace emulator {
namespace {

struct Place {                          // one instruction; a copy both reads and writes
    const void* pc;
    bool shared, write;
    bool operator<(const Place& other) const {
        return std::tie(pc, shared, write) < std::tie(other.pc, other.shared, other.write);
    }
};
struct Part { int lane; uintptr_t address; size_t bytes; };
using Request = std::vector<Part>;

std::map<std::pair<Place, int>, std::vector<Request>> requests;     // of this block, by warp
std::map<std::pair<Place, int>, size_t> times;                      // and how many, by thread
std::map<Place, Count> counts;

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
    std::map<int, std::map<int, std::vector<uintptr_t>>> parts;     // words, by part and bank
    for (const Part& part : request)
        for (uintptr_t word = part.address / 4; word <= (part.address + part.bytes - 1) / 4; word++) {
            auto& bank = parts[part.lane / together][word % 32];
            if (std::find(bank.begin(), bank.end(), word) == bank.end()) bank.push_back(word);
        }
    int total = 0;
    for (auto& part : parts) {
        size_t fullest = 0;
        for (auto& bank : part.second) fullest = std::max(fullest, bank.second.size());
        total += int(fullest);
    }
    *least = int(parts.size());
    return total;
}

}  // namespace

void begin_counting() { counts.clear(); }

void count(const Access& a, bool shared) {
    if (a.kind == OVERWRITE) return;
    Place place{a.pc, shared, a.kind != READ};
    int rank = current()->rank;
    size_t k = times[{place, rank}]++;
    std::vector<Request>& of_warp = requests[{place, rank / WARP}];
    if (of_warp.size() <= k) of_warp.resize(k + 1);
    of_warp[k].push_back({rank % WARP, a.address, a.bytes});
}

void end_counting_block() {
    for (auto& each : requests) {
        const Place& place = each.first.first;
        Count& c = counts[place];
        c.pc = place.pc;
        c.shared = place.shared;
        c.write = place.write;
        for (const Request& request : each.second) {
            int least = (touched(request, 4) + 7) / 8;
            c.moved += place.shared ? passes(request, &least) : touched(request, 32);
            c.least += least;
            c.requests++;
        }
    }
    requests.clear();
    times.clear();
}

}  // namespace emulator

// Copy what was counted in the latest launch, at most `n` places; return how many there are.
extern "C" int emulator_counts(emulator::Count* to, int n) {
    int i = 0;
    for (auto& each : emulator::counts) {
        if (i < n) to[i] = each.second;
        i++;
    }
    return i;
}
