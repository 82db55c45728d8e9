// Softmax along rows, backward.  See kernels/softmax.py.
//
//   dx[r,i] = y[r,i] * (dy[r,i] - s)        s = sum_i dy[r,i] * y[r,i]
//
// version 1  naive   one thread per row
// version 2  block   a block per row; the sum is reduced in shared memory
// version 3  warp    a warp per row; the sum is reduced by shuffles

#define THREADS 128          // per block, in versions 2 and 3

extern "C" __global__
void softmax_backward_v1_naive(const float* dy, const float* y, float* dx, int rows, int n) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    size_t at = size_t(row) * n;

    float s = 0.0f;
    for (int i = 0; i < n; i++) s += dy[at + i] * y[at + i];
    for (int i = 0; i < n; i++) dx[at + i] = y[at + i] * (dy[at + i] - s);
}

extern "C" __global__
void softmax_backward_v2_block(const float* dy, const float* y, float* dx, int rows, int n) {
    __shared__ float part[THREADS];
    int t = threadIdx.x;
    size_t at = size_t(blockIdx.x) * n;

    float s = 0.0f;
    for (int i = t; i < n; i += THREADS) s += dy[at + i] * y[at + i];
    part[t] = s;
    __syncthreads();                         // every thread's sum is there
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (t < half) part[t] += part[t + half];
        __syncthreads();                     // this level of the tree is there
    }
    s = part[0];
    for (int i = t; i < n; i += THREADS) dx[at + i] = y[at + i] * (dy[at + i] - s);
}

extern "C" __global__
void softmax_backward_v3_warp(const float* dy, const float* y, float* dx, int rows, int n) {
    int lane = threadIdx.x % 32, row = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (row >= rows) return;                 // a whole warp leaves, or none of it
    size_t at = size_t(row) * n;

    float s = 0.0f;
    for (int i = lane; i < n; i += 32) s += dy[at + i] * y[at + i];
    for (int d = 16; d > 0; d /= 2) s += __shfl_xor_sync(0xffffffffu, s, d);
    for (int i = lane; i < n; i += 32) dx[at + i] = y[at + i] * (dy[at + i] - s);
}
