// Scaled dot-product attention, backward, in float32.  See kernels/attention.py for the launches,
// attention.cu for the forward pass and the layout of the arrays.
//
//   o = p v                        dv[m] = sum_n p[n,m] do[n],     dp[n,m] = do[n] . v[m]
//   p = softmax(s)                 ds[n,m] = p[n,m] (dp[n,m] - delta[n])
//   s = scale * q k^T + mask       dq[n] = scale sum_m ds[n,m] k[m]
//                                  dk[m] = scale sum_n ds[n,m] q[n]
//
// where delta[n] = sum_m p[n,m] dp[n,m] = do[n] . o[n].
//
// version 1  naive   p is still there; ds is another N x M numbers in global memory
// version 2  tiled   scores are computed again, p = exp(s - lse): nothing of N x M is stored.  One
//                    kernel keeps queries and passes by all keys, for dq; one keeps keys and passes
//                    by all queries, for dk and dv.  The scores are computed in both; in return no
//                    two blocks add to the same number, and a result has the same bits every time
// (3, 4: attention_tensor_backward.cu)
//
// A block of version 2 keeps Own rows of its side, and takes Step rows at a time of the other.
// T. Dao et al., "FlashAttention", 2022, arXiv:2205.14135, Algorithm 4; lse: T. Dao, 2023,
// arXiv:2307.08691 (there one kernel makes all three gradients, and adds up dq atomically).
#include "attention_tiles.cuh"

#ifndef D
#define D 40                 // width of a head in q and k
#endif
#ifndef E
#define E 40                 // width of a head in v
#endif
#ifndef Own
#define Own 64               // rows that a block keeps
#endif
#ifndef Step
#define Step 64              // rows that it takes at a time
#endif
#define TM (Own / SIDE)      // rows and columns of scores that a thread has
#define TN (Step / SIDE)

// One thread per score.  delta is part of the sum: dp - delta = do[n] . (v[m] - o[n]).
extern "C" __global__
void attention_v1_dscores(const float* p, const float* v, const float* o, const float* dout,
                          float* ds, int heads, int N, int M, int width) {
    int m = blockIdx.x * blockDim.x + threadIdx.x;
    int n = blockIdx.y * blockDim.y + threadIdx.y;
    int b = blockIdx.z / heads, head = blockIdx.z % heads;
    if (m >= M || n >= N) return;

    size_t row = ((size_t)(b * N + n) * heads + head) * width;
    const float* v_m = v + ((size_t)(b * M + m) * heads + head) * width;
    float dp = 0.0f;
    for (int c = 0; c < width; c++) dp += dout[row + c] * (v_m[c] - o[row + c]);
    size_t at = ((size_t)blockIdx.z * N + n) * M + m;
    ds[at] = p[at] * dp;
}

// y[m] = factor * sum_n p[n,m] x[n]: dv from p and do, dk from ds and q.
extern "C" __global__
void attention_v1_columns(const float* p, const float* x, float* y, int heads, int N, int M,
                          int width, float factor) {
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    int m = blockIdx.y * blockDim.y + threadIdx.y;
    int b = blockIdx.z / heads, head = blockIdx.z % heads;
    if (c >= width || m >= M) return;

    float sum = 0.0f;
    for (int n0 = 0; n0 < N; n0 += PART) {
        float part = 0.0f;
        for (int n = n0; n < min(n0 + PART, N); n++)
            part += p[((size_t)blockIdx.z * N + n) * M + m]
                  * x[((size_t)(b * N + n) * heads + head) * width + c];
        sum += part;
    }
    y[((size_t)(b * M + m) * heads + head) * width + c] = factor * sum;
}

// delta of each query and head, (B, heads, N) as lse is; one thread for each.
extern "C" __global__
void attention_v2_delta(const float* o, const float* dout, float* delta, int heads, int N) {
    int n = blockIdx.x * blockDim.x + threadIdx.x;
    int b = blockIdx.y / heads, head = blockIdx.y % heads;
    if (n >= N) return;

    size_t row = ((size_t)(b * N + n) * heads + head) * E;
    float sum = 0.0f;
    for (int c = 0; c < E; c++) sum += dout[row + c] * o[row + c];
    delta[(size_t)blockIdx.y * N + n] = sum;
}

extern "C" __global__ void __launch_bounds__(SIDE * SIDE, 1)
attention_v2_dq(const float* q, const float* k, const float* v, const float* mask,
                const float* dout, const float* lse, const float* delta, float* dq,
                int heads, int N, int M, int mask_b, int mask_h, int mask_n, int mask_m,
                float scale) {
    extern __shared__ __align__(16) float smem[];
    float* Q = smem;                              // [Own][D]
    float* dO = Q + Own * stride(D);              // [Own][E]
    float* K = dO + Own * stride(E);              // [Step][D]
    float* V = K + Step * stride(D);              // [Step][E]
    float* dS = V + Step * stride(E);             // [Own][Step]

    int n0 = blockIdx.x * Own, head = blockIdx.y, b = blockIdx.z;
    if (mask) mask += b * mask_b + head * mask_h;
    k += ((size_t)b * M * heads + head) * D;
    v += ((size_t)b * M * heads + head) * E;
    stage<Own, D>(Q, q + ((size_t)b * N * heads + head) * D, n0, N, heads * D, scale);
    stage<Own, E>(dO, dout + ((size_t)b * N * heads + head) * E, n0, N, heads * E);

    float dQ[TM][columns(D)] = {}, lse_n[TM], delta_n[TM];
    for (int i = 0; i < TM; i++) {
        int n = n0 + threadIdx.y + SIDE * i;
        lse_n[i] = n < N ? lse[((size_t)b * heads + head) * N + n] : INFINITY;
        delta_n[i] = n < N ? delta[((size_t)b * heads + head) * N + n] : 0.0f;
    }
    for (int m0 = 0; m0 < M; m0 += Step) {
        stage<Step, D>(K, k, m0, M, heads * D);
        stage<Step, E>(V, v, m0, M, heads * E);
        __syncthreads();                          // K and V, and at first Q and dO, are complete

        float S[TM][TN] = {}, dP[TM][TN] = {};
        dot_rows<D>(S, Q, K);
        add_mask(S, mask, n0, m0, N, M, mask_n, mask_m);
        dot_rows<E>(dP, dO, V);
        for (int i = 0; i < TM; i++)
            for (int j = 0; j < TN; j++)
                dP[i][j] = expf(S[i][j] - lse_n[i]) * (dP[i][j] - delta_n[i]);
        put(dS, dP);
        __syncwarp();                             // the warp's rows of dS are complete
        accumulate<Step, D>(dQ, dS, K);
        __syncthreads();                          // nobody still reads K, V and dS
    }
    for (int i = 0; i < TM; i++)
        write_row<D>(dq + ((size_t)b * N * heads + head) * D, dQ[i],
                     n0 + threadIdx.y + SIDE * i, N, heads * D, scale);
}

// The same with the sides exchanged: rows of the tiles are keys, columns are queries.
extern "C" __global__ void __launch_bounds__(SIDE * SIDE, 1)
attention_v2_dk_dv(const float* q, const float* k, const float* v, const float* mask,
                   const float* dout, const float* lse, const float* delta, float* dk, float* dv,
                   int heads, int N, int M, int mask_b, int mask_h, int mask_n, int mask_m,
                   float scale) {
    extern __shared__ __align__(16) float smem[];
    float* K = smem;                              // [Own][D]
    float* V = K + Own * stride(D);               // [Own][E]
    float* Q = V + Own * stride(E);               // [Step][D], times scale: so dk has the factor
    float* dO = Q + Step * stride(D);             // [Step][E]
    float* P = dO + Step * stride(E);             // [Own][Step]
    float* dS = P + Own * stride(Step);           // [Own][Step]

    int m0 = blockIdx.x * Own, head = blockIdx.y, b = blockIdx.z;
    if (mask) mask += b * mask_b + head * mask_h;
    q += ((size_t)b * N * heads + head) * D;
    dout += ((size_t)b * N * heads + head) * E;
    lse += ((size_t)b * heads + head) * N;
    delta += ((size_t)b * heads + head) * N;
    stage<Own, D>(K, k + ((size_t)b * M * heads + head) * D, m0, M, heads * D);
    stage<Own, E>(V, v + ((size_t)b * M * heads + head) * E, m0, M, heads * E);

    float dK[TM][columns(D)] = {}, dV[TM][columns(E)] = {};
    for (int n0 = 0; n0 < N; n0 += Step) {
        stage<Step, D>(Q, q, n0, N, heads * D, scale);
        stage<Step, E>(dO, dout, n0, N, heads * E);
        __syncthreads();                          // Q and dO, and at first K and V, are complete

        float S[TM][TN] = {}, dP[TM][TN] = {};
        dot_rows<D>(S, K, Q);
        add_mask(S, mask, m0, n0, M, N, mask_m, mask_n);
        dot_rows<E>(dP, V, dO);
        for (int j = 0; j < TN; j++) {
            int n = n0 + threadIdx.x + SIDE * j;
            float lse_n = n < N ? lse[n] : INFINITY, delta_n = n < N ? delta[n] : 0.0f;
            for (int i = 0; i < TM; i++) {
                S[i][j] = expf(S[i][j] - lse_n);
                dP[i][j] = S[i][j] * (dP[i][j] - delta_n);
            }
        }
        put(P, S);
        put(dS, dP);
        __syncwarp();                             // the warp's rows of P and dS are complete
        accumulate<Step, E>(dV, P, dO);
        accumulate<Step, D>(dK, dS, Q);
        __syncthreads();                          // nobody still reads Q, dO, P and dS
    }
    for (int i = 0; i < TM; i++) {
        int m = m0 + threadIdx.y + SIDE * i;
        write_row<D>(dk + ((size_t)b * M * heads + head) * D, dK[i], m, M, heads * D, 1.0f);
        write_row<E>(dv + ((size_t)b * M * heads + head) * E, dV[i], m, M, heads * E, 1.0f);
    }
}
