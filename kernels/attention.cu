// Scaled dot-product attention, forward, in float32.  See kernels/attention.py for the launches.
//
//   s[n,m] = scale * q[n] . k[m] + mask[n,m]                       for each picture and head
//   p[n,m] = exp(s[n,m]) / sum_m exp(s[n,m])
//   o[n]   = sum_m p[n,m] v[m]
//
// version 1  naive   the three lines are three kernels, a thread for each number (a row of p); the
//                    N x M scores lie in global memory, and each is written and read three times
// version 2  tiled   a block takes Br queries past all keys, Bc at a time: the scores live in its
//                    registers, and the softmax is computed while they come in
// (3, 4: attention_tensor.cu)
//
// With m the largest score so far, l the sum of exp(s - m) and O the sum of exp(s - m) v, further
// scores change them to
//
//   m' = max(m, s)    l' = alpha l + sum exp(s - m')    O' = alpha O + sum exp(s - m') v
//
// where alpha = exp(m - m').  In the end o = O / l, and lse = m + log(l) is all that the backward
// pass needs to compute p again.  T. Dao et al., "FlashAttention", 2022, arXiv:2205.14135,
// Algorithm 1; the division at the end and lse: T. Dao, 2023, arXiv:2307.08691.
//
// q is (B, N, heads * D), k and v are (B, M, heads * D or E), lse is (B, heads, N).  The mask may be
// null; its element (b, head, n, m) is b * mask_b + head * mask_h + n * mask_n + m * mask_m on.
#include "attention_tiles.cuh"

#ifndef D
#define D 40                 // width of a head in q and k
#endif
#ifndef E
#define E 40                 // width of a head in v
#endif
#ifndef Br
#define Br 64                // queries of a block
#endif
#ifndef Bc
#define Bc 64                // keys of a step
#endif
#define TM (Br / SIDE)       // rows and columns of scores that a thread has
#define TN (Bc / SIDE)

extern "C" __global__
void attention_v1_scores(const float* q, const float* k, const float* mask, float* s,
                         int heads, int N, int M, int width,
                         int mask_b, int mask_h, int mask_n, int mask_m, float scale) {
    int m = blockIdx.x * blockDim.x + threadIdx.x;
    int n = blockIdx.y * blockDim.y + threadIdx.y;
    int b = blockIdx.z / heads, head = blockIdx.z % heads;
    if (m >= M || n >= N) return;

    const float* q_n = q + ((size_t)(b * N + n) * heads + head) * width;
    const float* k_m = k + ((size_t)(b * M + m) * heads + head) * width;
    float dot = 0.0f;
    for (int c = 0; c < width; c++) dot += scale * q_n[c] * k_m[c];
    if (mask)
        dot += mask[b * mask_b + head * mask_h + (size_t)n * mask_n + (size_t)m * mask_m];
    s[((size_t)blockIdx.z * N + n) * M + m] = dot;
}

// One thread per row of s, which becomes p.
extern "C" __global__
void attention_v1_softmax(float* s, int rows, int M) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;

    float* p = s + (size_t)row * M;
    float largest = LOWEST, sum = 0.0f;
    for (int m = 0; m < M; m++) largest = fmaxf(largest, p[m]);
    for (int m0 = 0; m0 < M; m0 += PART) {
        float part = 0.0f;
        for (int m = m0; m < min(m0 + PART, M); m++) part += p[m] = expf(p[m] - largest);
        sum += part;
    }
    float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;              // 0: may read nothing
    for (int m = 0; m < M; m++) p[m] *= inverse;
}

// y[n] = factor * sum_m p[n,m] x[m]: o from p and v; and dq from ds and k, in the backward pass.
extern "C" __global__
void attention_v1_rows(const float* p, const float* x, float* y, int heads, int N, int M,
                       int width, float factor) {
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    int n = blockIdx.y * blockDim.y + threadIdx.y;
    int b = blockIdx.z / heads, head = blockIdx.z % heads;
    if (c >= width || n >= N) return;

    float sum = 0.0f;
    for (int m0 = 0; m0 < M; m0 += PART) {
        float part = 0.0f;
        for (int m = m0; m < min(m0 + PART, M); m++)
            part += p[((size_t)blockIdx.z * N + n) * M + m]
                  * x[((size_t)(b * M + m) * heads + head) * width + c];
        sum += part;
    }
    y[((size_t)(b * N + n) * heads + head) * width + c] = factor * sum;
}

extern "C" __global__ void __launch_bounds__(SIDE * SIDE, 1)
attention_v2_tiled(const float* q, const float* k, const float* v, const float* mask,
                   float* o, float* lse, int heads, int N, int M,
                   int mask_b, int mask_h, int mask_n, int mask_m, float scale) {
    extern __shared__ __align__(16) float smem[];
    float* Q = smem;                              // [Br][D]
    float* K = Q + Br * stride(D);                // [Bc][D]
    float* V = K + Bc * stride(D);                // [Bc][E]
    float* P = V + Bc * stride(E);                // [Br][Bc]

    int n0 = blockIdx.x * Br, head = blockIdx.y, b = blockIdx.z;
    if (mask) mask += b * mask_b + head * mask_h;
    k += ((size_t)b * M * heads + head) * D;
    v += ((size_t)b * M * heads + head) * E;
    stage<Br, D>(Q, q + ((size_t)b * N * heads + head) * D, n0, N, heads * D, scale);

    float O[TM][columns(E)] = {}, l[TM] = {}, m[TM];
    for (int i = 0; i < TM; i++) m[i] = LOWEST;

    for (int m0 = 0; m0 < M; m0 += Bc) {
        stage<Bc, D>(K, k, m0, M, heads * D);
        stage<Bc, E>(V, v, m0, M, heads * E);
        __syncthreads();                          // K and V, and at first Q, are complete

        float S[TM][TN] = {};
        dot_rows<D>(S, Q, K);
        add_mask(S, mask, n0, m0, N, M, mask_n, mask_m);
#pragma unroll
        for (int i = 0; i < TM; i++) {
            float largest = m[i], sum = 0.0f;
            for (int j = 0; j < TN; j++) largest = fmaxf(largest, S[i][j]);
            largest = row_max(largest);
            for (int j = 0; j < TN; j++) {
                S[i][j] = expf(S[i][j] - largest);
                sum += S[i][j];
            }
            float alpha = expf(m[i] - largest);
            m[i] = largest;
            l[i] = alpha * l[i] + row_sum(sum);
            for (int j = 0; j < columns(E); j++) O[i][j] *= alpha;
        }
        put(P, S);
        __syncwarp();                             // the warp's rows of P are complete
        accumulate<Bc, E>(O, P, V);
        __syncthreads();                          // nobody still reads K, V and P
    }

    for (int i = 0; i < TM; i++) {
        int n = n0 + threadIdx.y + SIDE * i;
        float inverse = l[i] > 0.0f ? 1.0f / l[i] : 0.0f;        // 0: may read nothing
        write_row<E>(o + ((size_t)b * N * heads + head) * E, O[i], n, N, heads * E, inverse);
        if (threadIdx.x == 0 && n < N)
            lse[((size_t)b * heads + head) * N + n] = l[i] > 0.0f ? m[i] + logf(l[i]) : INFINITY;
    }
}
