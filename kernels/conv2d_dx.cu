// 2-D convolution, gradient with respect to the input.  See kernels/conv2d.py for the launches.
//
// Row u of x stands under tap i of the windows in row p = (u + top - i) / stride, where that is a whole number:
//
//   dx[n,c,u,v] = sum_{o,i,j} dy[n, o, (u + top - i) / stride, (v + left - j) / stride] * w[o,c,i,j]
//
// version 1  naive      one thread per entry of dx; all windows and kernels come from global memory
// version 2  tiled      the block stages the windows of dy that see its entries in shared memory
// version 3  registers  implicit GEMM: one convolution of stride 1 for each of the stride * stride phases
// version 4  tf32       the same on tensor cores: factors rounded to 11 bits, float32 sums
// version 5  half       the same with two float16 factors in each word
//
// All versions have the same first arguments.

#include "ptx.cuh"
#include "conv2d_tiles.cuh"
#include "conv2d_windows.cuh"

#ifndef TILE
#define TILE 16              // versions 1 and 2: threads per block side, blockDim = (TILE, TILE)
#endif

extern "C" __global__
void conv2d_dx_v1_naive(const float* dy, const float* w, float* dx,
                        int B, int C, int H, int W, int O, int Ho, int Wo,
                        int KH, int KW, int stride, int top, int left) {
    int v = blockIdx.x * TILE + threadIdx.x;
    int u = blockIdx.y * TILE + threadIdx.y;
    int n = blockIdx.z / C, c = blockIdx.z % C;
    if (v >= W || u >= H) return;

    float sum = 0.0f;
    for (int o = 0; o < O; o++) {
        float of_o = 0.0f;
        for (int i = 0; i < KH; i++)
            for (int j = 0; j < KW; j++) {
                int p = (u + top - i) / stride, q = (v + left - j) / stride;
                bool whole = stride * p == u + top - i && stride * q == v + left - j;
                if (whole && 0 <= p && p < Ho && 0 <= q && q < Wo)
                    of_o += dy[((n * O + o) * Ho + p) * Wo + q] * w[((o * C + c) * KH + i) * KW + j];
            }
        sum += of_o;
    }
    dx[((n * C + c) * H + u) * W + v] = sum;
}

extern "C" __global__
void conv2d_dx_v2_tiled(const float* dy, const float* w, float* dx,
                        int B, int C, int H, int W, int O, int Ho, int Wo,
                        int KH, int KW, int stride, int top, int left) {
    extern __shared__ float patch[];                     // (rows, columns): the part of dy that sees the block's entries
    int rows = (TILE + KH - 2) / stride + 2, columns = (TILE + KW - 2) / stride + 2;
    int tx = threadIdx.x, ty = threadIdx.y;
    int first_v = blockIdx.x * TILE, v = first_v + tx, first_q = (first_v + left - (KW - 1)) / stride;
    int first_u = blockIdx.y * TILE, u = first_u + ty, first_p = (first_u + top - (KH - 1)) / stride;
    int n = blockIdx.z / C, c = blockIdx.z % C;

    float sum = 0.0f;
    for (int o = 0; o < O; o++) {
        for (int r = ty; r < rows; r += TILE)
            for (int s = tx; s < columns; s += TILE) {
                int p = first_p + r, q = first_q + s;
                bool inside = 0 <= p && p < Ho && 0 <= q && q < Wo;
                patch[r * columns + s] = inside ? dy[((n * O + o) * Ho + p) * Wo + q] : 0.0f;
            }
        __syncthreads();                                 // the patch is complete

        float of_o = 0.0f;
        for (int i = 0; i < KH; i++)
            for (int j = 0; j < KW; j++) {
                int p = (u + top - i) / stride, q = (v + left - j) / stride;
                bool whole = stride * p == u + top - i && stride * q == v + left - j;
                if (whole)
                    of_o += patch[(p - first_p) * columns + q - first_q] * w[((o * C + c) * KH + i) * KW + j];
            }
        sum += of_o;
        __syncthreads();                                 // nobody still reads it
    }
    // The bounds test comes last: an early return would leave the others waiting at the barrier.
    if (v < W && u < H) dx[((n * C + c) * H + u) * W + v] = sum;
}

// One direction of one phase.  Entries u = stride r + phase - top see the taps i = phase + stride t, t < taps, in the
// windows p = r - t.  With t counted from the other end these are a convolution's.
struct Phase {
    int first, count;        // the first r with u >= 0, and how many
    int taps, last_tap;      // last_tap: i of the first in the new order
    int pad;                 // the window of entry `first` begins so far before dy

    __device__ Phase(int phase, int K, int size, int stride, int before) {
        first = before > phase ? (before - phase + stride - 1) / stride : 0;
        int end = (size + before - phase + stride - 1) / stride;         // the first r with u >= size
        count = end > first ? end - first : 0;
        taps = K > phase ? (K - phase + stride - 1) / stride : 0;
        last_tap = phase + stride * (taps - 1);
        pad = taps - 1 - first;
    }
};

// The arguments of the implicit GEMM: it reads the O channels of dy and makes the C of dx.
__device__ Windows dx_windows(int phase, int B, int C, int H, int W, int O, int Ho, int Wo,
                              int KH, int KW, int stride, int top, int left) {
    int a = phase / stride, b = phase % stride;
    Phase vertical(a, KH, H, stride, top), horizontal(b, KW, W, stride, left);
    Windows g;
    g.B = B, g.K = O, g.H = Ho, g.W = Wo;
    g.M = C, g.rows = vertical.count, g.columns = horizontal.count;
    g.step = 1, g.top = vertical.pad, g.left = horizontal.pad;
    g.KH = vertical.taps, g.KW = horizontal.taps;
    g.w_first = vertical.last_tap * KW + horizontal.last_tap;
    g.w_m = KH * KW, g.w_k = C * KH * KW, g.w_i = -stride * KW, g.w_j = -stride;
    g.out_H = H, g.out_W = W, g.out_step = stride;
    g.out_top = stride * vertical.first + a - top, g.out_left = stride * horizontal.first + b - left;
    return g;
}

// Versions 3 to 5: blockIdx.z = phase * slices + slice.

extern "C" __global__ void __launch_bounds__(THREADS, 2)
conv2d_dx_v3_registers(const float* __restrict__ dy, const float* __restrict__ w, float* dx,
                       int B, int C, int H, int W, int O, int Ho, int Wo,
                       int KH, int KW, int stride, int top, int left, int tile_h, int tile_w, int slices) {
    Windows g = dx_windows(blockIdx.z / slices, B, C, H, W, O, Ho, Wo, KH, KW, stride, top, left);
    implicit_gemm<RegisterTile>(dy, w, nullptr, dx, g, tile_h, tile_w, blockIdx.z % slices, slices);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
conv2d_dx_v4_tf32(const float* __restrict__ dy, const float* __restrict__ w, float* dx,
                  int B, int C, int H, int W, int O, int Ho, int Wo,
                  int KH, int KW, int stride, int top, int left, int tile_h, int tile_w, int slices) {
    Windows g = dx_windows(blockIdx.z / slices, B, C, H, W, O, Ho, Wo, KH, KW, stride, top, left);
    implicit_gemm<TensorTile<false>>(dy, w, nullptr, dx, g, tile_h, tile_w, blockIdx.z % slices, slices);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
conv2d_dx_v5_half(const float* __restrict__ dy, const float* __restrict__ w, float* dx,
                  int B, int C, int H, int W, int O, int Ho, int Wo,
                  int KH, int KW, int stride, int top, int left, int tile_h, int tile_w, int slices) {
    Windows g = dx_windows(blockIdx.z / slices, B, C, H, W, O, Ho, Wo, KH, KW, stride, top, left);
    implicit_gemm<TensorTile<true>>(dy, w, nullptr, dx, g, tile_h, tile_w, blockIdx.z % slices, slices);
}
