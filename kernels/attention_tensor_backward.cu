// Scaled dot-product attention, backward, on tensor cores.  See kernels/attention.py for the
// launches, attention_backward.cu for the formulas, versions 1 and 2, and what Own and Step are.
//
// version 3  tf32    version 2 with mma.sync for all products, on numbers rounded to TF32; a warp has
//                    16 of the block's own rows, and P and dS of these stay in its registers
// version 4  half    the same with float16 numbers
//
// Sums are float32; q, k, v, do, P and dS are rounded.  What stands on both sides of a product lies
// in shared memory twice, as rows and as columns (attention_fragments.cuh).
#include "ptx.cuh"
#include "attention_fragments.cuh"

#ifndef D
#define D 40                 // width of a head in q and k
#endif
#ifndef E
#define E 40                 // width of a head in v
#endif
#ifndef Own
#define Own 128              // rows that a block keeps: 16 for each warp
#endif
#ifndef Step
#define Step 32              // rows that it takes at a time
#endif

// delta = do . o takes do as the products do: rounded.  Else dp - delta would not vanish where it
// must, as for a single key.
template <int W>
__device__ void add_up_delta(const float* o, const float* dout, float* delta, int heads, int N) {
    int n = blockIdx.x * blockDim.x + threadIdx.x;
    int b = blockIdx.y / heads, head = blockIdx.y % heads;
    if (n >= N) return;

    size_t row = ((size_t)(b * N + n) * heads + head) * E;
    float sum = 0.0f;
    for (int c = 0; c < E; c++) sum += rounded<W>(dout[row + c]) * o[row + c];
    delta[(size_t)blockIdx.y * N + n] = sum;
}

template <int W>
__device__ void pull_to_queries(const float* q, const float* k, const float* v, const float* mask,
                                const float* dout, const float* lse, const float* delta, float* dq,
                                int heads, int N, int M, int mask_b, int mask_h, int mask_n,
                                int mask_m, float scale) {
    extern __shared__ __align__(16) unsigned smem[];
    unsigned* Q = smem;                           // [Own][D], words along d
    unsigned* dO = Q + Own * row_stride(W, D);    // [Own][E], words along e
    unsigned* K = dO + Own * row_stride(W, E);    // [Step][D], words along d
    unsigned* V = K + Step * row_stride(W, D);    // [Step][E], words along e
    unsigned* Kt = V + Step * row_stride(W, E);   // [Step][D], words along the keys

    int head = blockIdx.y, b = blockIdx.z, first = threadIdx.x / 32 * 16;
    int n0 = blockIdx.x * Own;
    if (mask) mask += b * mask_b + head * mask_h;
    k += ((size_t)b * M * heads + head) * D;
    v += ((size_t)b * M * heads + head) * E;
    stage_rows<W, Own, D>(Q, q + ((size_t)b * N * heads + head) * D, n0, N, heads * D);
    stage_rows<W, Own, E>(dO, dout + ((size_t)b * N * heads + head) * E, n0, N, heads * E);

    float dQ[tiles(D)][4] = {}, lse_n[2], delta_n[2];            // rows g and g + 8 of the warp
    for (int i = 0; i < 2; i++) {
        int n = n0 + first + threadIdx.x % 32 / 4 + 8 * i;
        lse_n[i] = n < N ? LOG2E * lse[((size_t)b * heads + head) * N + n] : INFINITY;
        delta_n[i] = n < N ? delta[((size_t)b * heads + head) * N + n] : 0.0f;
    }
    for (int m0 = 0; m0 < M; m0 += Step) {
        stage_rows<W, Step, D>(K, k, m0, M, heads * D);
        stage_rows<W, Step, E>(V, v, m0, M, heads * E);
        stage_columns<W, Step, D>(Kt, k, m0, M, heads * D);
        __syncthreads();                          // K, V and Kt, and at first Q and dO, are complete

        float S[Step / 8][4] = {}, dP[Step / 8][4] = {};
        dot_rows<W, D>(S, Q + first * row_stride(W, D), K);
        scale_and_mask(S, scale, mask, n0 + first, m0, N, M, mask_n, mask_m);
        dot_rows<W, E>(dP, dO + first * row_stride(W, E), V);
#pragma unroll
        for (int j = 0; j < Step / 8; j++)
            for (int e = 0; e < 4; e++)
                dP[j][e] = exp2f(S[j][e] - lse_n[e / 2]) * (dP[j][e] - delta_n[e / 2]);
        accumulate<W, D>(dQ, dP, Kt);
        __syncthreads();                          // nobody still reads K, V and Kt
    }
    write_rows<D>(dq + ((size_t)b * N * heads + head) * D, dQ, n0 + first, N, heads * D,
                  scale, scale);
}

// The same with the sides exchanged: rows of the tiles are keys, columns are queries.
template <int W>
__device__ void pull_to_keys(const float* q, const float* k, const float* v, const float* mask,
                             const float* dout, const float* lse, const float* delta,
                             float* dk, float* dv, int heads, int N, int M,
                             int mask_b, int mask_h, int mask_n, int mask_m, float scale) {
    extern __shared__ __align__(16) unsigned smem[];
    unsigned* K = smem;                           // [Own][D], words along d
    unsigned* V = K + Own * row_stride(W, D);     // [Own][E], words along e
    unsigned* Q = V + Own * row_stride(W, E);     // [Step][D], words along d
    unsigned* dO = Q + Step * row_stride(W, D);   // [Step][E], words along e
    unsigned* Qt = dO + Step * row_stride(W, E);  // [Step][D], words along the queries
    unsigned* dOt = Qt + Step / W * column_stride(D);            // [Step][E], the same

    int head = blockIdx.y, b = blockIdx.z, first = threadIdx.x / 32 * 16;
    int m0 = blockIdx.x * Own;
    if (mask) mask += b * mask_b + head * mask_h;
    q += ((size_t)b * N * heads + head) * D;
    dout += ((size_t)b * N * heads + head) * E;
    lse += ((size_t)b * heads + head) * N;
    delta += ((size_t)b * heads + head) * N;
    stage_rows<W, Own, D>(K, k + ((size_t)b * M * heads + head) * D, m0, M, heads * D);
    stage_rows<W, Own, E>(V, v + ((size_t)b * M * heads + head) * E, m0, M, heads * E);

    float dK[tiles(D)][4] = {}, dV[tiles(E)][4] = {};
    for (int n0 = 0; n0 < N; n0 += Step) {
        stage_rows<W, Step, D>(Q, q, n0, N, heads * D);
        stage_rows<W, Step, E>(dO, dout, n0, N, heads * E);
        stage_columns<W, Step, D>(Qt, q, n0, N, heads * D);
        stage_columns<W, Step, E>(dOt, dout, n0, N, heads * E);
        __syncthreads();                          // the four, and at first K and V, are complete

        float S[Step / 8][4] = {}, dP[Step / 8][4] = {};
        dot_rows<W, D>(S, K + first * row_stride(W, D), Q);
        scale_and_mask(S, scale, mask, m0 + first, n0, M, N, mask_m, mask_n);
        dot_rows<W, E>(dP, V + first * row_stride(W, E), dO);
#pragma unroll
        for (int j = 0; j < Step / 8; j++)
            for (int e = 0; e < 4; e++) {
                int n = n0 + 8 * j + threadIdx.x % 4 * 2 + e % 2;
                float lse_n = n < N ? LOG2E * lse[n] : INFINITY;
                float delta_n = n < N ? delta[n] : 0.0f;
                S[j][e] = exp2f(S[j][e] - lse_n);
                dP[j][e] = S[j][e] * (dP[j][e] - delta_n);
            }
        accumulate<W, E>(dV, S, dOt);
        accumulate<W, D>(dK, dP, Qt);
        __syncthreads();                          // nobody still reads the four
    }
    write_rows<D>(dk + ((size_t)b * M * heads + head) * D, dK, m0 + first, M, heads * D,
                  scale, scale);
    write_rows<E>(dv + ((size_t)b * M * heads + head) * E, dV, m0 + first, M, heads * E,
                  1.0f, 1.0f);
}

extern "C" __global__
void attention_v3_delta(const float* o, const float* dout, float* delta, int heads, int N) {
    add_up_delta<1>(o, dout, delta, heads, N);
}

extern "C" __global__
void attention_v4_delta(const float* o, const float* dout, float* delta, int heads, int N) {
    add_up_delta<2>(o, dout, delta, heads, N);
}

extern "C" __global__ void __launch_bounds__(2 * Own, 1)
attention_v3_dq(const float* q, const float* k, const float* v, const float* mask,
                const float* dout, const float* lse, const float* delta, float* dq,
                int heads, int N, int M, int mask_b, int mask_h, int mask_n, int mask_m,
                float scale) {
    pull_to_queries<1>(q, k, v, mask, dout, lse, delta, dq, heads, N, M,
                       mask_b, mask_h, mask_n, mask_m, scale);
}

extern "C" __global__ void __launch_bounds__(2 * Own, 1)
attention_v4_dq(const float* q, const float* k, const float* v, const float* mask,
                const float* dout, const float* lse, const float* delta, float* dq,
                int heads, int N, int M, int mask_b, int mask_h, int mask_n, int mask_m,
                float scale) {
    pull_to_queries<2>(q, k, v, mask, dout, lse, delta, dq, heads, N, M,
                       mask_b, mask_h, mask_n, mask_m, scale);
}

extern "C" __global__ void __launch_bounds__(2 * Own, 1)
attention_v3_dk_dv(const float* q, const float* k, const float* v, const float* mask,
                   const float* dout, const float* lse, const float* delta, float* dk, float* dv,
                   int heads, int N, int M, int mask_b, int mask_h, int mask_n, int mask_m,
                   float scale) {
    pull_to_keys<1>(q, k, v, mask, dout, lse, delta, dk, dv, heads, N, M,
                    mask_b, mask_h, mask_n, mask_m, scale);
}

extern "C" __global__ void __launch_bounds__(2 * Own, 1)
attention_v4_dk_dv(const float* q, const float* k, const float* v, const float* mask,
                   const float* dout, const float* lse, const float* delta, float* dk, float* dv,
                   int heads, int N, int M, int mask_b, int mask_h, int mask_n, int mask_m,
                   float scale) {
    pull_to_keys<2>(q, k, v, mask, dout, lse, delta, dk, dv, heads, N, M,
                    mask_b, mask_h, mask_n, mask_m, scale);
}
