// CUDA's words for a C++ compiler: what stands before the first line of an emulated .cu file.
//
// Every word that waits for other threads, or talks to them, carries the place where it stands.
// In race mode the file is instrumented; UNTRACED keeps the compiler from instrumenting this.
#pragma once
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "runtime.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define UNTRACED __attribute__((no_sanitize("thread")))
#define APART UNTRACED __attribute__((noinline))    // a function of its own: its caller has a place

// ---- indices and vectors ----

#define threadIdx (emulator::now.thread_index)
#define blockIdx (emulator::now.block_index)
#define blockDim (emulator::now.block_size)
#define gridDim (emulator::now.grid_size)
constexpr int warpSize = emulator::WARP;

// Two or four numbers that travel together: `all` makes a copy one access, as it is on a device.
// They are aligned like one number here, so that a misaligned access is race mode's to report and
// not the processor's to refuse.
typedef float Bytes8 __attribute__((vector_size(8), aligned(4)));
typedef float Bytes16 __attribute__((vector_size(16), aligned(4)));

#define VECTOR2(name, T)                                                                         \
    struct name {                                                                                \
        union { struct { T x, y; }; Bytes8 all; };                                               \
        name() = default;                                                                        \
        name(T x, T y) : x(x), y(y) {}                                                           \
        name(const name& other) : all(other.all) {}                                              \
        name& operator=(const name& other) { all = other.all; return *this; }                    \
    };                                                                                           \
    inline name make_##name(T x, T y) { return name(x, y); }
#define VECTOR4(name, T)                                                                         \
    struct name {                                                                                \
        union { struct { T x, y, z, w; }; Bytes16 all; };                                        \
        name() = default;                                                                        \
        name(T x, T y, T z, T w) : x(x), y(y), z(z), w(w) {}                                     \
        name(const name& other) : all(other.all) {}                                              \
        name& operator=(const name& other) { all = other.all; return *this; }                    \
    };                                                                                           \
    inline name make_##name(T x, T y, T z, T w) { return name(x, y, z, w); }
VECTOR2(float2, float) VECTOR2(int2, int) VECTOR2(uint2, unsigned)
VECTOR4(float4, float) VECTOR4(int4, int) VECTOR4(uint4, unsigned)

// ---- mathematics ----

template <class T> constexpr T min(T a, T b) { return b < a ? b : a; }
template <class T> constexpr T max(T a, T b) { return a < b ? b : a; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
template <class T> T __ldg(const T* p) { return *p; }

template <class To, class From> UNTRACED To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "the same bits, of another type");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline int __float_as_int(float x) { return bits_as<int>(x); }
inline float __int_as_float(int x) { return bits_as<float>(x); }
inline unsigned __float_as_uint(float x) { return bits_as<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return bits_as<float>(x); }

// ---- barriers, shuffles and votes ----

using emulator::Site;
using emulator::ALL_LANES;

UNTRACED inline void __syncthreads(Site site = Site::here()) { emulator::sync_threads(site); }
UNTRACED inline void __syncwarp(unsigned mask = ALL_LANES, Site site = Site::here()) {
    emulator::sync_warp(mask, site);
}
UNTRACED inline int __syncthreads_count(int p, Site site = Site::here()) {
    return emulator::sync_threads_count(p, site);
}
UNTRACED inline int __syncthreads_or(int p, Site site = Site::here()) {
    return emulator::sync_threads_count(p, site) > 0;
}
UNTRACED inline int __syncthreads_and(int p, Site site = Site::here()) {
    return emulator::sync_threads_count(!p, site) == 0;
}

// Show `value`, and return what lane `source` shows; one that shows nothing gives NaN.
template <class T> UNTRACED T shuffle(unsigned mask, T value, unsigned source, Site site) {
    static_assert(sizeof(T) <= emulator::SLOT, "too large for a shuffle");
    const emulator::Slot* slots = emulator::exchange(mask, &value, sizeof(T), site);
    T result;
    if (emulator::now.party >> source & 1) memcpy(&result, slots[source].bytes, sizeof(T));
    else memset(&result, 0xff, sizeof(T));
    return result;
}
inline unsigned own_lane() { return emulator::now.rank % emulator::WARP; }

// As in CUDA, a source outside of the caller's segment of `width` lanes gives the caller's value.
template <class T> UNTRACED
T __shfl_sync(unsigned mask, T value, int source, int width = 32, Site site = Site::here()) {
    return shuffle(mask, value, own_lane() / width * width + unsigned(source) % width, site);
}
template <class T> UNTRACED
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, Site site = Site::here()) {
    unsigned lane = own_lane(), source = lane ^ bits;
    return shuffle(mask, value, source / width <= lane / width ? source : lane, site);
}
template <class T> UNTRACED
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, Site site = Site::here()) {
    unsigned lane = own_lane();
    return shuffle(mask, value, lane % width + by < unsigned(width) ? lane + by : lane, site);
}
template <class T> UNTRACED
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, Site site = Site::here()) {
    unsigned lane = own_lane();
    return shuffle(mask, value, lane % width >= by ? lane - by : lane, site);
}

UNTRACED inline unsigned __ballot_sync(unsigned mask, int p, Site site = Site::here()) {
    bool vote = p != 0;
    const emulator::Slot* slots = emulator::exchange(mask, &vote, 1, site);
    unsigned ballot = 0;
    for (int lane = 0; lane < emulator::WARP; lane++)
        if (emulator::now.party >> lane & 1) ballot |= unsigned(slots[lane].bytes[0]) << lane;
    return ballot;
}
UNTRACED inline int __any_sync(unsigned mask, int p, Site site = Site::here()) {
    return __ballot_sync(mask, p, site) != 0;
}
UNTRACED inline int __all_sync(unsigned mask, int p, Site site = Site::here()) {
    return __ballot_sync(mask, !p, site) == 0;
}

// ---- atomics ----

// One read and one write.  Switched off, other threads run between the two.
template <class T, class F> UNTRACED __attribute__((always_inline))
inline T read_and_write(T* p, F update, Site site, const void* pc) {
    bool atomic = !emulator::ignored(site);
    if (!atomic) emulator::note(p, sizeof(T), emulator::READ, pc);
    T old = *p;
    if (!atomic) emulator::let_others_run();
    emulator::note(p, sizeof(T), atomic ? emulator::ATOMIC : emulator::WRITE, pc);
    *p = update(old);
    return old;
}
#define CALLER __builtin_return_address(0)

template <class T> APART T atomicAdd(T* p, std::common_type_t<T> v, Site site = Site::here()) {
    return read_and_write(p, [v](T old) UNTRACED { return T(old + v); }, site, CALLER);
}
template <class T> APART T atomicMax(T* p, std::common_type_t<T> v, Site site = Site::here()) {
    static_assert(std::is_integral<T>::value, "CUDA's atomicMax takes whole numbers");
    return read_and_write(p, [v](T old) UNTRACED { return old < v ? v : old; }, site, CALLER);
}
template <class T> APART T atomicMin(T* p, std::common_type_t<T> v, Site site = Site::here()) {
    static_assert(std::is_integral<T>::value, "CUDA's atomicMin takes whole numbers");
    return read_and_write(p, [v](T old) UNTRACED { return v < old ? v : old; }, site, CALLER);
}
template <class T> APART T atomicExch(T* p, std::common_type_t<T> v, Site site = Site::here()) {
    return read_and_write(p, [v](T) UNTRACED { return v; }, site, CALLER);
}
template <class T> APART
T atomicCAS(T* p, std::common_type_t<T> expected, std::common_type_t<T> v,
            Site site = Site::here()) {
    return read_and_write(p, [=](T old) UNTRACED { return old == expected ? v : old; }, site, CALLER);
}

// ---- shared memory; `translate.py` writes these in place of __shared__ ----

template <class T> UNTRACED T& shared_array(const char* name, const char* function, int line) {
    using Element = std::remove_all_extents_t<T>;
    return *static_cast<T*>(
        emulator::shared_array(name, function, line, sizeof(T), sizeof(Element)));
}
template <class T> UNTRACED T* dynamic_shared() {
    return static_cast<T*>(emulator::dynamic_shared());
}

// ---- launching; `translate.py` adds one EXPORT for each kernel ----

namespace emulator {

template <class T> struct Code {        // of a parameter's type, as NumPy writes it; * is a pointer
    static constexpr char kind = std::is_floating_point<T>::value ? 'f'
                                 : std::is_integral<T>::value     ? std::is_signed<T>::value ? 'i' : 'u'
                                                                  : 'V';
    static constexpr char text[] = {kind, char('0' + sizeof(T) / 10), char('0' + sizeof(T) % 10), 0};
};
template <class T> struct Code<T*> {
    static constexpr const char* element = Code<std::remove_const_t<T>>::text;
    static constexpr char text[] = {std::is_const<T>::value ? 'c' : '*', element[0], element[1],
                                    element[2], 0};
};

template <class... A, size_t... I> UNTRACED __attribute__((noinline))
void enter(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_const_t<A>*>(args[I])...);
}
template <class... A> UNTRACED void enter(void (*kernel)(A...), void** args) {
    enter(kernel, args, std::index_sequence_for<A...>{});
}
template <class... A> const char* const* types(void (*)(A...)) {
    static const char* const codes[] = {Code<A>::text..., nullptr};
    return codes;
}

}  // namespace emulator

#define EXPORT(kernel)                                                                           \
    extern "C" UNTRACED void emulator_enter_##kernel(void** args) { emulator::enter(kernel, args); } \
    extern "C" const char* const* emulator_types_##kernel() { return emulator::types(kernel); }
