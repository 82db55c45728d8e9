// 2-D convolution, forward, NCHW.  See kernels/conv2d.py for the launches.
//
//   y[n,o,p,q] = b[o] + sum_{c,i,j} x[n, c, stride p + i - top, stride q + j - left] * w[o,c,i,j]
//
// version 1  naive      one thread per output; each input value is read KH*KW*O times from global memory
// version 2  tiled      the block stages its patch of x, with the halo, in shared memory
// version 3  registers  implicit GEMM: a block makes 128 channels x 128 pixels, each thread 8 x 8 of them,
//                       so that a number from shared memory serves 8 products instead of one
// version 4  tf32       the same tile, multiplied by tensor cores: factors rounded to 11 bits, float32 sums
// version 5  half       the same with two float16 factors in each word
//
// The product of versions 3 to 5, which dx shares, is in conv2d_windows.cuh.
// Sums are made of shorter ones (here: one for each channel), because each addition rounds the whole sum.
// All versions have the same first arguments.  `b` may be null.

#include "ptx.cuh"
#include "conv2d_tiles.cuh"
#include "conv2d_windows.cuh"

#ifndef TILE
#define TILE 16              // versions 1 and 2: threads per block side, blockDim = (TILE, TILE)
#endif

extern "C" __global__
void conv2d_v1_naive(const float* x, const float* w, const float* b, float* y,
                     int B, int C, int H, int W, int O, int Ho, int Wo,
                     int KH, int KW, int stride, int top, int left) {
    int q = blockIdx.x * TILE + threadIdx.x;
    int p = blockIdx.y * TILE + threadIdx.y;
    int n = blockIdx.z / O, o = blockIdx.z % O;
    if (q >= Wo || p >= Ho) return;

    float sum = b ? b[o] : 0.0f;
    for (int c = 0; c < C; c++) {
        float of_c = 0.0f;
        for (int i = 0; i < KH; i++)
            for (int j = 0; j < KW; j++) {
                int u = stride * p + i - top, v = stride * q + j - left;
                if (0 <= u && u < H && 0 <= v && v < W)
                    of_c += x[((n * C + c) * H + u) * W + v] * w[((o * C + c) * KH + i) * KW + j];
            }
        sum += of_c;
    }
    y[((n * O + o) * Ho + p) * Wo + q] = sum;
}

extern "C" __global__
void conv2d_v2_tiled(const float* x, const float* w, const float* b, float* y,
                     int B, int C, int H, int W, int O, int Ho, int Wo,
                     int KH, int KW, int stride, int top, int left) {
    extern __shared__ float patch[];                     // (rows, columns): the windows of TILE x TILE outputs
    int rows = stride * (TILE - 1) + KH, columns = stride * (TILE - 1) + KW;
    int tx = threadIdx.x, ty = threadIdx.y;
    int q = blockIdx.x * TILE + tx, first_v = stride * blockIdx.x * TILE - left;    // column of x at patch[., 0]
    int p = blockIdx.y * TILE + ty, first_u = stride * blockIdx.y * TILE - top;     // row    of x at patch[0, .]
    int n = blockIdx.z / O, o = blockIdx.z % O;

    float sum = b ? b[o] : 0.0f;
    for (int c = 0; c < C; c++) {
        for (int r = ty; r < rows; r += TILE)
            for (int s = tx; s < columns; s += TILE) {
                int u = first_u + r, v = first_v + s;
                bool inside = 0 <= u && u < H && 0 <= v && v < W;
                patch[r * columns + s] = inside ? x[((n * C + c) * H + u) * W + v] : 0.0f;
            }
        __syncthreads();                                 // the patch is complete

        float of_c = 0.0f;
        for (int i = 0; i < KH; i++)
            for (int j = 0; j < KW; j++)
                of_c += patch[(stride * ty + i) * columns + stride * tx + j] * w[((o * C + c) * KH + i) * KW + j];
        sum += of_c;
        __syncthreads();                                 // nobody still reads it
    }
    // The bounds test comes last: an early return would leave the others waiting at the barrier.
    if (q < Wo && p < Ho) y[((n * O + o) * Ho + p) * Wo + q] = sum;
}

// The arguments of the implicit GEMM, in terms of the convolution: it reads C channels and makes O.
__device__ Windows forward_windows(int B, int C, int H, int W, int O, int Ho, int Wo,
                                   int KH, int KW, int stride, int top, int left) {
    Windows g;
    g.B = B, g.K = C, g.H = H, g.W = W;
    g.M = O, g.rows = Ho, g.columns = Wo;
    g.step = stride, g.top = top, g.left = left;
    g.KH = KH, g.KW = KW;
    g.w_first = 0, g.w_m = C * KH * KW, g.w_k = KH * KW, g.w_i = KW, g.w_j = 1;
    g.out_H = Ho, g.out_W = Wo, g.out_step = 1, g.out_top = 0, g.out_left = 0;
    return g;
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
conv2d_v3_registers(const float* __restrict__ x, const float* __restrict__ w, const float* b, float* y,
                    int B, int C, int H, int W, int O, int Ho, int Wo,
                    int KH, int KW, int stride, int top, int left, int tile_h, int tile_w, int slices) {
    Windows g = forward_windows(B, C, H, W, O, Ho, Wo, KH, KW, stride, top, left);
    implicit_gemm<RegisterTile>(x, w, b, y, g, tile_h, tile_w, blockIdx.z, slices);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
conv2d_v4_tf32(const float* __restrict__ x, const float* __restrict__ w, const float* b, float* y,
               int B, int C, int H, int W, int O, int Ho, int Wo,
               int KH, int KW, int stride, int top, int left, int tile_h, int tile_w, int slices) {
    Windows g = forward_windows(B, C, H, W, O, Ho, Wo, KH, KW, stride, top, left);
    implicit_gemm<TensorTile<false>>(x, w, b, y, g, tile_h, tile_w, blockIdx.z, slices);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
conv2d_v5_half(const float* __restrict__ x, const float* __restrict__ w, const float* b, float* y,
               int B, int C, int H, int W, int O, int Ho, int Wo,
               int KH, int KW, int stride, int top, int left, int tile_h, int tile_w, int slices) {
    Windows g = forward_windows(B, C, H, W, O, Ho, Wo, KH, KW, stride, top, left);
    implicit_gemm<TensorTile<true>>(x, w, b, y, g, tile_h, tile_w, blockIdx.z, slices);
}
