// The few instructions of the device that CUDA C++ has no word for, one function each.
//
// Without a device, kernels/emulator has functions of the same names that do the same.  No header of
// CUDA is needed, so NVRTC alone compiles this.
//
// half, bfloat16           16-bit numbers in memory; arithmetic is done in float
// mma_tf32, mma_half, ...  d += a b on a tensor core: a warp multiplies 16 x DEPTH by DEPTH x 8.
//                          DEPTH is 8 for tf32, 16 for half and bfloat16
// copy_async16             16 bytes from global to shared memory that no register holds on the way
//
// Who holds what, with g = lane / 4 and t = lane % 4 (PTX manual, "Matrix fragments for mma"):
//
//   tf32, one number in a register        half and bfloat16, two, the lower column or row first
//   a[0]  A[g    ][t    ]                 a[0]  A[g    ][2t, 2t + 1]
//   a[1]  A[g + 8][t    ]                 a[1]  A[g + 8][2t, 2t + 1]
//   a[2]  A[g    ][t + 4]                 a[2]  A[g    ][2t + 8, 2t + 9]
//   a[3]  A[g + 8][t + 4]                 a[3]  A[g + 8][2t + 8, 2t + 9]
//   b[0]  B[t    ][g]                     b[0]  B[2t, 2t + 1][g]
//   b[1]  B[t + 4][g]                     b[1]  B[2t + 8, 2t + 9][g]
//   d[0], d[1]  D[g][2t, 2t + 1]          d[2], d[3]  D[g + 8][2t, 2t + 1]

#ifdef __CUDA_ARCH__

struct half { unsigned short bits; };
struct bfloat16 { unsigned short bits; };

// ---- conversions: to nearest, ties to even; tf32 has ties away from zero ----

__device__ __forceinline__ half to_half(float x) {
    half h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(x));
    return h;
}
__device__ __forceinline__ float to_float(half h) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h.bits));
    return x;
}
__device__ __forceinline__ bfloat16 to_bfloat16(float x) {
    bfloat16 b;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(b.bits) : "f"(x));
    return b;
}
__device__ __forceinline__ float to_float(bfloat16 b) {
    return __uint_as_float(unsigned(b.bits) << 16);
}
__device__ __forceinline__ unsigned to_tf32(float x) {
    unsigned r;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
    return r;
}

// Two numbers in one register, the first in its lower half.
__device__ __forceinline__ unsigned pack(half low, half high) {
    return low.bits | unsigned(high.bits) << 16;
}
__device__ __forceinline__ unsigned pack(bfloat16 low, bfloat16 high) {
    return low.bits | unsigned(high.bits) << 16;
}
__device__ __forceinline__ unsigned pack_half(float low, float high) {
    unsigned r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
__device__ __forceinline__ unsigned pack_bfloat16(float low, float high) {
    unsigned r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

// ---- tensor cores ----

__device__ __forceinline__
void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__
void mma_half(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__
void mma_bfloat16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- asynchronous copies ----

// Start to copy 16 bytes, or to write 16 zeros where they lie outside of the array.  They arrive for
// this thread when it has waited for their group, and for others after a barrier that follows.
__device__ __forceinline__
void copy_async16(void* shared, const void* global, bool inside = true) {
    unsigned to = __cvta_generic_to_shared(shared), bytes = inside ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(to), "l"(global), "r"(bytes) : "memory");
}
// End a group: all copies that this thread started since the last one.
__device__ __forceinline__ void copy_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
// Wait until at most the last GROUPS groups are on their way.
template <int GROUPS> __device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" :: "n"(GROUPS) : "memory");
}

#endif
