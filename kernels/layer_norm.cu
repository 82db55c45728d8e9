// Layer norm, forward and backward.  See kernels/layer_norm.py for the launches.
//
//   x_hat = (x - mean) rstd                   within one row of D numbers
//   y     = weight x_hat + bias
//
//   dx = rstd (weight dy - via_mean - x_hat via_std)
//   via_mean = mean(weight dy),    via_std = mean(weight dy x_hat)
//   dweight = sum dy x_hat,        dbias = sum dy                  over all rows
//
// version 1  naive   a thread takes a row, once for its mean, once for its variance, once for y; the
//                    reads of a warp lie D numbers apart.  Another takes a column, for dweight
// version 2  warp    a warp takes a row, its reads side by side, and one pass for mean and variance,
//                    put together by shuffles; dweight is cut into chunks of rows, for more threads
//
// x is (rows, D).
#include "moments.cuh"

#define SIDE 8                                    // rows that a block of layer_norm_v2_dweight adds

// One thread per row; in float64, for sums of D numbers one after the other.
extern "C" __global__
void layer_norm_v1(const float* x, const float* weight, const float* bias, float* y, float* mean,
                   float* rstd, int rows, int D, float eps) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;

    x += (size_t)row * D;
    y += (size_t)row * D;
    double sum = 0.0, squares = 0.0;
    for (int i = 0; i < D; i++) sum += x[i];
    double centre = sum / D;
    for (int i = 0; i < D; i++) squares += (x[i] - centre) * (x[i] - centre);
    float m = (float)centre, r = (float)(1.0 / sqrt(squares / D + eps));
    for (int i = 0; i < D; i++) y[i] = weight[i] * ((x[i] - m) * r) + bias[i];
    mean[row] = m;
    rstd[row] = r;
}

extern "C" __global__
void layer_norm_v1_dx(const float* dy, const float* x, const float* weight, const float* mean,
                      const float* rstd, float* dx, int rows, int D) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;

    x += (size_t)row * D;
    dy += (size_t)row * D;
    dx += (size_t)row * D;
    double via_mean = 0.0, via_std = 0.0;
    for (int i = 0; i < D; i++) {
        via_mean += weight[i] * dy[i];
        via_std += weight[i] * dy[i] * ((x[i] - mean[row]) * rstd[row]);
    }
    float a = (float)(via_mean / D), b = (float)(via_std / D);
    for (int i = 0; i < D; i++)
        dx[i] = rstd[row] * (weight[i] * dy[i] - a - (x[i] - mean[row]) * rstd[row] * b);
}

// One thread per column.
extern "C" __global__
void layer_norm_v1_dweight(const float* dy, const float* x, const float* mean, const float* rstd,
                           float* dweight, float* dbias, int rows, int D) {
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= D) return;

    double sum = 0.0, sum_x = 0.0;
    for (int row = 0; row < rows; row++) {
        size_t i = (size_t)row * D + c;
        sum += dy[i];
        sum_x += dy[i] * ((x[i] - mean[row]) * rstd[row]);
    }
    dbias[c] = (float)sum;
    dweight[c] = (float)sum_x;
}

// One warp per row.
extern "C" __global__
void layer_norm_v2(const float* x, const float* weight, const float* bias, float* y, float* mean,
                   float* rstd, int rows, int D, float eps) {
    int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;                      // the whole warp

    x += (size_t)row * D;
    y += (size_t)row * D;
    float origin = x[0];                          // mean - origin has digits to spare
    Moments all = {};
    for (int i = lane; i < D; i += 32) all = merge(all, {1.0f, x[i] - origin, 0.0f});
    all = merge_warp(all);
    float m = origin + all.mean, r = 1.0f / sqrtf(all.squares / D + eps);
    for (int i = lane; i < D; i += 32) y[i] = weight[i] * ((x[i] - m) * r) + bias[i];
    if (lane == 0) {
        mean[row] = m;
        rstd[row] = r;
    }
}

extern "C" __global__
void layer_norm_v2_dx(const float* dy, const float* x, const float* weight, const float* mean,
                      const float* rstd, float* dx, int rows, int D) {
    int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;                      // the whole warp

    x += (size_t)row * D;
    dy += (size_t)row * D;
    dx += (size_t)row * D;
    float m = mean[row], r = rstd[row], via_mean = 0.0f, via_std = 0.0f;
    for (int i = lane; i < D; i += 32) {
        via_mean += weight[i] * dy[i];
        via_std += weight[i] * dy[i] * ((x[i] - m) * r);
    }
    via_mean = sum_warp(via_mean) / D;
    via_std = sum_warp(via_std) / D;
    for (int i = lane; i < D; i += 32)
        dx[i] = r * (weight[i] * dy[i] - via_mean - (x[i] - m) * r * via_std);
}

// A block of 32 x SIDE threads adds up 32 columns of one chunk of rows; dweight and dbias are
// (chunks, D), and a chunk is `length` rows.
extern "C" __global__
void layer_norm_v2_dweight(const float* dy, const float* x, const float* mean, const float* rstd,
                           float* dweight, float* dbias, int rows, int D, int length) {
    __shared__ float sums[2][SIDE][32];
    int tx = threadIdx.x, ty = threadIdx.y, c = blockIdx.x * 32 + tx;
    int first = blockIdx.y * length, last = min(first + length, rows);

    float sum = 0.0f, sum_x = 0.0f;
    for (int row = first + ty; row < last; row += SIDE) {
        size_t i = (size_t)row * D + c;
        if (c < D) {
            sum += dy[i];
            sum_x += dy[i] * ((x[i] - mean[row]) * rstd[row]);
        }
    }
    sums[0][ty][tx] = sum;
    sums[1][ty][tx] = sum_x;
    __syncthreads();                              // the sums of all rows of threads are there

    if (ty == 0 && c < D) {
        for (int other = 1; other < SIDE; other++) {
            sum += sums[0][other][tx];
            sum_x += sums[1][other][tx];
        }
        dbias[blockIdx.y * D + c] = sum;
        dweight[blockIdx.y * D + c] = sum_x;
    }
}
