// Group norm, with or without a scale and shift for each picture and SiLU; forward and backward.
// See kernels/group_norm.py for the launches.
//
//   x_hat = (x - mean) rstd                   within one group of one picture
//   u     = p x_hat + q                       p = weight (1 + scale),  q = bias (1 + scale) + shift
//   y     = u sigmoid(u)    or    y = u
//
//   du = f'(u) dy,    dp = sum du x_hat,    dq = sum du            over the pixels of one channel
//   dx = rstd (p du - via_mean - x_hat via_std)                    N numbers in a group
//   via_mean = sum_c p dq / N,    via_std = sum_c p dp / N         c: the channels of the group
//
// version 1  two-pass   a thread takes the mean of a group and then, in a second pass, its variance;
//                       then a thread for each number
// version 2  one-pass   a block for each group: each number is read once for both, threads put their
//                       parts together by warp shuffles, and what follows happens in the same kernel
//
// x is (B, C, pixels), mean and rstd are (B, groups).  scale and shift are (B, C), or both null.
#include "moments.cuh"

// p and q of channel c (counted over all pictures: b C + c).
__device__ inline float2 factors(const float* weight, const float* bias, const float* scale,
                                 const float* shift, int c, int C) {
    float gain = scale ? 1.0f + scale[c] : 1.0f;
    return {gain * weight[c % C], gain * bias[c % C] + (shift ? shift[c] : 0.0f)};
}

__device__ inline float activate(float u, int silu) {
    return silu ? u / (1.0f + expf(-u)) : u;
}

// The derivative of u sigmoid(u) is s + u s (1 - s), for s = sigmoid(u).
__device__ inline float slope(float u, int silu) {
    float s = 1.0f / (1.0f + expf(-u));
    return silu ? s + u * s * (1.0f - s) : 1.0f;
}

// One thread per group; in float64, for a sum of N numbers one after the other.
extern "C" __global__
void group_norm_v1_moments(const float* x, float* mean, float* rstd, int all_groups, int N,
                           float eps) {
    int g = blockIdx.x * blockDim.x + threadIdx.x;
    if (g >= all_groups) return;

    const float* x_g = x + (size_t)g * N;
    double sum = 0.0, squares = 0.0;
    for (int i = 0; i < N; i++) sum += x_g[i];
    double centre = sum / N;
    for (int i = 0; i < N; i++) squares += (x_g[i] - centre) * (x_g[i] - centre);
    mean[g] = (float)centre;
    rstd[g] = (float)(1.0 / sqrt(squares / N + eps));
}

// One thread per number.
extern "C" __global__
void group_norm_v1_apply(const float* x, const float* mean, const float* rstd,
                         const float* weight, const float* bias, const float* scale,
                         const float* shift, float* y, long long size, int C, int channels,
                         int pixels, int silu) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;

    int c = i / pixels, g = c / channels;         // counted over all pictures
    float2 f = factors(weight, bias, scale, shift, c, C);
    y[i] = activate(f.x * ((x[i] - mean[g]) * rstd[g]) + f.y, silu);
}

// One thread per channel of a picture.
extern "C" __global__
void group_norm_v1_sums(const float* dy, const float* x, const float* mean, const float* rstd,
                        const float* weight, const float* bias, const float* scale,
                        const float* shift, float* dp, float* dq, int all_channels, int C,
                        int channels, int pixels, int silu) {
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= all_channels) return;

    int g = c / channels;
    float2 f = factors(weight, bias, scale, shift, c, C);
    double sum = 0.0, sum_x = 0.0;
    for (size_t i = (size_t)c * pixels; i < (size_t)(c + 1) * pixels; i++) {
        float x_hat = (x[i] - mean[g]) * rstd[g];
        float du = slope(f.x * x_hat + f.y, silu) * dy[i];
        sum += du;
        sum_x += du * x_hat;
    }
    dq[c] = (float)sum;
    dp[c] = (float)sum_x;
}

// One thread per number; each adds up its group's channels again.
extern "C" __global__
void group_norm_v1_dx(const float* dy, const float* x, const float* mean, const float* rstd,
                      const float* weight, const float* bias, const float* scale,
                      const float* shift, const float* dp, const float* dq, float* dx,
                      long long size, int C, int channels, int pixels, int silu) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;

    int c = i / pixels, g = c / channels;
    float via_mean = 0.0f, via_std = 0.0f, N = (float)channels * pixels;
    for (int j = g * channels; j < (g + 1) * channels; j++) {
        float p = factors(weight, bias, scale, shift, j, C).x;
        via_mean += p * dq[j] / N;
        via_std += p * dp[j] / N;
    }
    float2 f = factors(weight, bias, scale, shift, c, C);
    float x_hat = (x[i] - mean[g]) * rstd[g];
    float du = slope(f.x * x_hat + f.y, silu) * dy[i];
    dx[i] = rstd[g] * (f.x * du - via_mean - x_hat * via_std);
}

// One thread per channel: the parameters' gradients from each picture's dp and dq.
extern "C" __global__
void group_norm_parameters(const float* dp, const float* dq, const float* weight,
                           const float* bias, const float* scale, float* dweight, float* dbias,
                           float* dscale, int B, int C) {
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= C) return;

    float sum_p = 0.0f, sum_q = 0.0f;
    for (int i = c; i < B * C; i += C) {
        float gain = scale ? 1.0f + scale[i] : 1.0f;
        sum_p += gain * dp[i];
        sum_q += gain * dq[i];
        if (scale) dscale[i] = weight[c] * dp[i] + bias[c] * dq[i];
    }
    if (dweight) {
        dweight[c] = sum_p;
        dbias[c] = sum_q;
    }
}

// One block per group.
extern "C" __global__
void group_norm_v2(const float* x, const float* weight, const float* bias, const float* scale,
                   const float* shift, float* y, float* mean, float* rstd, int C, int channels,
                   int pixels, float eps, int silu) {
    __shared__ Moments parts[32];                 // one for each warp
    int g = blockIdx.x, N = channels * pixels, lane = threadIdx.x % 32;
    x += (size_t)g * N;
    y += (size_t)g * N;

    float origin = x[0];                          // mean - origin has digits to spare
    Moments own = {};
#pragma unroll 4
    for (int i = threadIdx.x; i < N; i += blockDim.x)
        own = merge(own, {1.0f, x[i] - origin, 0.0f});
    own = merge_warp(own);
    if (lane == 0) parts[threadIdx.x / 32] = own;
    __syncthreads();                              // all warps' parts are there

    Moments all = {};
    if (lane < blockDim.x / 32) all = parts[lane];
    all = merge_warp(all);                        // each warp does the same
    float m = origin + all.mean, r = 1.0f / sqrtf(all.squares / N + eps);
    for (int i = threadIdx.x; i < N; i += blockDim.x) {
        float2 f = factors(weight, bias, scale, shift, g * channels + i / pixels, C);
        y[i] = activate(f.x * ((x[i] - m) * r) + f.y, silu);
    }
    if (threadIdx.x == 0) {
        mean[g] = m;
        rstd[g] = r;
    }
}

// One block per group; a warp adds up one of `pieces` pieces of a channel at a time.
extern "C" __global__
void group_norm_v2_backward(const float* dy, const float* x, const float* mean, const float* rstd,
                            const float* weight, const float* bias, const float* scale,
                            const float* shift, float* dp, float* dq, float* dx, int C,
                            int channels, int pixels, int pieces, int silu) {
    extern __shared__ float sums[];               // [channels][pieces][du, du x_hat]
    int g = blockIdx.x, first = g * channels, N = channels * pixels;
    int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    int length = (pixels + pieces - 1) / pieces;
    float m = mean[g], r = rstd[g];
    x += (size_t)g * N;
    dy += (size_t)g * N;
    dx += (size_t)g * N;

    for (int piece = threadIdx.x / 32; piece < channels * pieces; piece += warps) {
        int c = piece / pieces, start = piece % pieces * length;
        float2 f = factors(weight, bias, scale, shift, first + c, C);
        float sum = 0.0f, sum_x = 0.0f;
        for (int i = start + lane; i < min(start + length, pixels); i += 32) {
            float x_hat = (x[c * pixels + i] - m) * r;
            float du = slope(f.x * x_hat + f.y, silu) * dy[c * pixels + i];
            sum += du;
            sum_x += du * x_hat;
        }
        sum = sum_warp(sum);
        sum_x = sum_warp(sum_x);
        if (lane == 0) {
            sums[2 * piece] = sum;
            sums[2 * piece + 1] = sum_x;
        }
    }
    __syncthreads();                              // the sums of all pieces are there

    float via_mean = 0.0f, via_std = 0.0f;
    for (int c = 0; c < channels; c++) {          // each thread does the same
        float sum = 0.0f, sum_x = 0.0f;
        for (int piece = c * pieces; piece < (c + 1) * pieces; piece++) {
            sum += sums[2 * piece];
            sum_x += sums[2 * piece + 1];
        }
        float p = factors(weight, bias, scale, shift, first + c, C).x;
        via_mean += p * sum / N;
        via_std += p * sum_x / N;
        if (threadIdx.x == 0) {
            dq[first + c] = sum;
            dp[first + c] = sum_x;
        }
    }
    for (int i = threadIdx.x; i < N; i += blockDim.x) {
        float2 f = factors(weight, bias, scale, shift, first + i / pixels, C);
        float x_hat = (x[i] - m) * r;
        float du = slope(f.x * x_hat + f.y, silu) * dy[i];
        dx[i] = r * (f.x * du - via_mean - x_hat * via_std);
    }
}
