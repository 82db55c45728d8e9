// Scaled dot-product attention, forward, on tensor cores.  See kernels/attention.py for the
// launches, attention.cu for the formulas, versions 1 and 2 and the layout of the arrays.
//
// version 3  tf32    version 2 with mma.sync for both products, on numbers rounded to TF32 (10 bits
//                    after the point, float32's range); a warp has 16 queries, all its P in registers
// version 4  half    the same with float16 numbers: twice as many in each word and instruction (10
//                    bits after the point too, but nothing above 65504)
//
// Sums are float32.  q, k, v and P are rounded, and nothing else.
#include "ptx.cuh"
#include "attention_fragments.cuh"

#ifndef D
#define D 40                 // width of a head in q and k
#endif
#ifndef E
#define E 40                 // width of a head in v
#endif
#ifndef Br
#define Br 128               // queries of a block: 16 for each warp
#endif
#ifndef Bc
#define Bc 64                // keys of a step
#endif

template <int W>
__device__ void attend(const float* q, const float* k, const float* v, const float* mask,
                       float* o, float* lse, int heads, int N, int M,
                       int mask_b, int mask_h, int mask_n, int mask_m, float scale) {
    extern __shared__ __align__(16) unsigned smem[];
    unsigned* Q = smem;                           // [Br][D], words along d
    unsigned* K = Q + Br * row_stride(W, D);      // [Bc][D], words along d
    unsigned* V = K + Bc * row_stride(W, D);      // [Bc][E], words along the keys

    int head = blockIdx.y, b = blockIdx.z, first = threadIdx.x / 32 * 16;
    int n0 = blockIdx.x * Br;
    if (mask) mask += b * mask_b + head * mask_h;
    k += ((size_t)b * M * heads + head) * D;
    v += ((size_t)b * M * heads + head) * E;
    stage_rows<W, Br, D>(Q, q + ((size_t)b * N * heads + head) * D, n0, N, heads * D);

    // Rows g and g + 8 of the warp; l is the sum of the lane's own columns until the end.
    float O[tiles(E)][4] = {}, m[2] = {LOWEST, LOWEST}, l[2] = {};
    for (int m0 = 0; m0 < M; m0 += Bc) {
        stage_rows<W, Bc, D>(K, k, m0, M, heads * D);
        stage_columns<W, Bc, E>(V, v, m0, M, heads * E);
        __syncthreads();                          // K and V, and at first Q, are complete

        float S[Bc / 8][4] = {};
        dot_rows<W, D>(S, Q + first * row_stride(W, D), K);
        scale_and_mask(S, scale, mask, n0 + first, m0, N, M, mask_n, mask_m);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float largest = m[i];
            for (int j = 0; j < Bc / 8; j++)
                largest = fmaxf(largest, fmaxf(S[j][2 * i], S[j][2 * i + 1]));
            largest = row_max(largest);
            float alpha = exp2f(m[i] - largest);
            m[i] = largest;
            l[i] *= alpha;
            for (int j = 0; j < Bc / 8; j++)
                for (int e = 2 * i; e < 2 * i + 2; e++) {
                    S[j][e] = exp2f(S[j][e] - largest);
                    l[i] += S[j][e];
                }
            for (int j = 0; j < tiles(E); j++) {
                O[j][2 * i] *= alpha;
                O[j][2 * i + 1] *= alpha;
            }
        }
        accumulate<W, E>(O, S, V);
        __syncthreads();                          // nobody still reads K and V
    }

    float inverse[2];
    for (int i = 0; i < 2; i++) {
        l[i] = row_sum(l[i]);
        inverse[i] = l[i] > 0.0f ? 1.0f / l[i] : 0.0f;           // 0: may read nothing
        int n = n0 + first + threadIdx.x % 32 / 4 + 8 * i;
        if (threadIdx.x % 4 == 0 && n < N)
            lse[((size_t)b * heads + head) * N + n]
                = l[i] > 0.0f ? m[i] / LOG2E + logf(l[i]) : INFINITY;
    }
    write_rows<E>(o + ((size_t)b * N * heads + head) * E, O, n0 + first, N, heads * E,
                  inverse[0], inverse[1]);
}

extern "C" __global__ void __launch_bounds__(2 * Br, 1)
attention_v3_tf32(const float* q, const float* k, const float* v, const float* mask,
                  float* o, float* lse, int heads, int N, int M,
                  int mask_b, int mask_h, int mask_n, int mask_m, float scale) {
    attend<1>(q, k, v, mask, o, lse, heads, N, M, mask_b, mask_h, mask_n, mask_m, scale);
}

extern "C" __global__ void __launch_bounds__(2 * Br, 1)
attention_v4_half(const float* q, const float* k, const float* v, const float* mask,
                  float* o, float* lse, int heads, int N, int M,
                  int mask_b, int mask_h, int mask_n, int mask_m, float scale) {
    attend<2>(q, k, v, mask, o, lse, heads, N, M, mask_b, mask_h, mask_n, mask_m, scale);
}
