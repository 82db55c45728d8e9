// The functions of kernels/ptx.cuh, in C++.  A warp's multiplication on a tensor core: every lane
// shows its part of the factors, and computes its own part of the product.
#pragma once
#include "cuda.h"

// ---- 16-bit numbers, rounded to nearest, ties to even ----

struct half { unsigned short bits; };
struct bfloat16 { unsigned short bits; };

UNTRACED inline float to_float(half h) {
    unsigned sign = (h.bits & 0x8000u) << 16, exponent = h.bits >> 10 & 31, fraction = h.bits & 1023;
    if (exponent == 31) return bits_as<float>(sign | 0x7f800000u | fraction << 13);
    float size = exponent ? ldexpf(float(fraction + 1024), int(exponent) - 25)
                          : ldexpf(float(fraction), -24);
    return sign ? -size : size;
}
UNTRACED inline half to_half(float x) {
    unsigned bits = bits_as<unsigned>(x), sign = bits >> 16 & 0x8000u;
    float size = fabsf(x);
    if (size != size) return {0x7fff};
    if (size >= 65520.0f) return {static_cast<unsigned short>(sign | 0x7c00u)};
    // A half has 11 bits, and none below 2^-24: adding and subtracting a number so large that these
    // are its last bits rounds the others away.
    int exponent;
    frexpf(size, &exponent);
    exponent = exponent < -13 ? -13 : exponent;
    float large = ldexpf(1.5f, exponent + 12);
    volatile float sum = size + large;
    float rounded = sum - large;
    unsigned r = rounded < ldexpf(1.0f, -14) ? unsigned(ldexpf(rounded, 24))
                                             : (bits_as<unsigned>(rounded) >> 13) - (112u << 10);
    return {static_cast<unsigned short>(sign | r)};
}
UNTRACED inline float to_float(bfloat16 b) { return bits_as<float>(unsigned(b.bits) << 16); }
UNTRACED inline bfloat16 to_bfloat16(float x) {
    unsigned bits = bits_as<unsigned>(x);
    if (x != x) return {0x7fff};
    return {static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}

UNTRACED inline unsigned pack(half low, half high) { return low.bits | unsigned(high.bits) << 16; }
UNTRACED inline unsigned pack(bfloat16 low, bfloat16 high) {
    return low.bits | unsigned(high.bits) << 16;
}
UNTRACED inline unsigned pack_half(float low, float high) { return pack(to_half(low), to_half(high)); }
UNTRACED inline unsigned pack_bfloat16(float low, float high) {
    return pack(to_bfloat16(low), to_bfloat16(high));
}

// 10 bits after the point; ties away from zero, as cvt.rna does.
UNTRACED inline unsigned to_tf32(float x) {
    unsigned bits = bits_as<unsigned>(x);
    return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & ~0x1fffu;
}

// ---- tensor cores ----

// d += a b for a 16 x 8 tile: `at_a(row, k)` and `at_b(k, column)` say what the lanes hold of a and b
// (see ptx.cuh), and e = 0 .. 3 goes through the part of d that this lane holds.
template <int DEPTH, class A, class B>
UNTRACED inline void multiply(float (&d)[4], A at_a, B at_b) {
    for (int e = 0; e < 4; e++) {
        int row = own_lane() / 4 + 8 * (e / 2), column = 2 * (own_lane() % 4) + e % 2;
        for (int k = 0; k < DEPTH; k++) d[e] += at_a(row, k) * at_b(k, column);
    }
}

struct Tf32Part { float a[4], b[2]; };
APART inline void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                           Site site = Site::here()) {
    Tf32Part part;                      // a tensor core does not read the last 13 bits
    for (int i = 0; i < 4; i++) part.a[i] = bits_as<float>(a[i] & ~0x1fffu);
    for (int i = 0; i < 2; i++) part.b[i] = bits_as<float>(b[i] & ~0x1fffu);
    const emulator::Slot* slots = emulator::exchange_all(&part, sizeof part, site);
    auto lane = [&](int i) UNTRACED { return reinterpret_cast<const Tf32Part*>(&slots[i]); };
    multiply<8>(
        d,
        [&](int row, int k) UNTRACED { return lane(row % 8 * 4 + k % 4)->a[row / 8 + 2 * (k / 4)]; },
        [&](int k, int column) UNTRACED { return lane(column * 4 + k % 4)->b[k / 4]; });
}

struct Part16 { float a[8], b[4]; };    // from two numbers in each register
template <class T> UNTRACED
void mma_16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], Site site) {
    Part16 part;
    auto number = [](const unsigned* registers, int i) UNTRACED {
        return to_float(T{static_cast<unsigned short>(registers[i / 2] >> 16 * (i % 2))});
    };
    for (int i = 0; i < 8; i++) part.a[i] = number(a, i);
    for (int i = 0; i < 4; i++) part.b[i] = number(b, i);
    const emulator::Slot* slots = emulator::exchange_all(&part, sizeof part, site);
    auto lane = [&](int i) UNTRACED { return reinterpret_cast<const Part16*>(&slots[i]); };
    multiply<16>(
        d,
        [&](int row, int k) UNTRACED {
            return lane(row % 8 * 4 + k % 8 / 2)->a[2 * (row / 8 + 2 * (k / 8)) + k % 2];
        },
        [&](int k, int column) UNTRACED {
            return lane(column * 4 + k % 8 / 2)->b[2 * (k / 8) + k % 2];
        });
}
APART inline void mma_half(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                           Site site = Site::here()) {
    mma_16<half>(d, a, b, site);
}
APART inline void mma_bfloat16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                               Site site = Site::here()) {
    mma_16<bfloat16>(d, a, b, site);
}

// ---- asynchronous copies ----

APART inline void copy_async16(void* shared, const void* global, bool inside = true) {
    emulator::copy_async(shared, global, 16, inside, CALLER);
}
UNTRACED inline void copy_async_commit() { emulator::copy_async_commit(); }
template <int GROUPS> UNTRACED void copy_async_wait(Site site = Site::here()) {
    emulator::copy_async_wait(GROUPS, site);
}
