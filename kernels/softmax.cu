// Softmax along rows, forward.  See kernels/softmax.py.
//
//   y[r,i] = exp(x[r,i] - m) / l        m = max_i x[r,i]        l = sum_i exp(x[r,i] - m)
//
// version 1  naive   one thread per row; neighbours read n floats apart
// version 2  block   a block per row; maximum and sum are reduced in shared memory, a tree each
// version 3  online  a warp per row; m and l in one pass, reduced by shuffles: no shared memory
//
// A score of -inf is impossible.  A row of nothing else gives zeros: m is held above -inf, so that
// no -inf - -inf arises, and l, which is 1 or more for all other rows, is held above 0.

#define THREADS 128          // per block, in versions 2 and 3
#define LOWEST -3.402823466e+38f

extern "C" __global__
void softmax_v1_naive(const float* x, float* y, int rows, int n) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    x += size_t(row) * n;
    y += size_t(row) * n;

    float m = LOWEST, l = 0.0f;
    for (int i = 0; i < n; i++) m = fmaxf(m, x[i]);
    for (int i = 0; i < n; i++) l += expf(x[i] - m);
    for (int i = 0; i < n; i++) y[i] = expf(x[i] - m) / fmaxf(l, 1.0f);
}

extern "C" __global__
void softmax_v2_block(const float* x, float* y, int rows, int n) {
    __shared__ float part[THREADS];
    int t = threadIdx.x;
    x += size_t(blockIdx.x) * n;
    y += size_t(blockIdx.x) * n;

    float m = LOWEST;
    for (int i = t; i < n; i += THREADS) m = fmaxf(m, x[i]);
    part[t] = m;
    __syncthreads();                         // every thread's maximum is there
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (t < half) part[t] = fmaxf(part[t], part[t + half]);
        __syncthreads();                     // this level of the tree is there
    }
    m = part[0];
    __syncthreads();                         // nobody still reads the maximum

    float l = 0.0f;
    for (int i = t; i < n; i += THREADS) l += expf(x[i] - m);
    part[t] = l;
    __syncthreads();                         // every thread's sum is there
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (t < half) part[t] += part[t + half];
        __syncthreads();                     // this level of the tree is there
    }
    l = fmaxf(part[0], 1.0f);
    for (int i = t; i < n; i += THREADS) y[i] = expf(x[i] - m) / l;
}

extern "C" __global__
void softmax_v3_online(const float* x, float* y, int rows, int n) {
    int lane = threadIdx.x % 32, row = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (row >= rows) return;                 // a whole warp leaves, or none of it
    x += size_t(row) * n;
    y += size_t(row) * n;

    // When the maximum rises, the sum so far is too large by the same factor in every term.
    float m = LOWEST, l = 0.0f;
    for (int i = lane; i < n; i += 32) {
        float above = fmaxf(m, x[i]);
        l = l * expf(m - above) + expf(x[i] - above);
        m = above;
    }
    for (int d = 16; d > 0; d /= 2) {        // join with the lane that differs in one bit
        float other_m = __shfl_xor_sync(0xffffffffu, m, d);
        float other_l = __shfl_xor_sync(0xffffffffu, l, d);
        float above = fmaxf(m, other_m);
        l = l * expf(m - above) + other_l * expf(other_m - above);
        m = above;
    }
    l = fmaxf(l, 1.0f);
    for (int i = lane; i < n; i += 32) y[i] = expf(x[i] - m) / l;
}
