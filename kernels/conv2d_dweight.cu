// 2-D convolution, gradient with respect to the weight.  See kernels/conv2d.py for the launches.
//
//   dw[o,c,i,j] = sum_{n,p,q} dy[n,o,p,q] * x[n, c, stride p + i - top, stride q + j - left]
//
// The sum runs over all pixels k = (n, p, q) of all pictures; the columns m = (c, i, j) stand in one row of dw.
//
// version 1  naive      one thread per weight; it reads all of its factors from global memory
// version 2  tiled      a block makes TILE x TILE weights; TILE pixels at a time are staged in shared memory
// version 3  registers  a block makes 128 x 128 weights, each thread 8 x 8 of them
// version 4  tf32       the same tile, multiplied by tensor cores: factors rounded to 11 bits, float32 sums
// version 5  half       the same with two float16 factors in each word
//
// dw is small and the sum is long, so versions 3 to 5 cut it into slices: slice s of `slices` goes to dw[s, ...],
// and the caller adds the slices in order.  (atomicAdd would add them in another order each time.)

#include "ptx.cuh"
#include "conv2d_tiles.cuh"

#ifndef TILE
#define TILE 16              // versions 1 and 2: threads per block side, blockDim = (TILE, TILE)
#endif

// A column (c, i, j) of the matrix that is never built, and a pixel (n, p, q): where they meet in x.
struct Column {
    int c, i, j;
    __device__ Column(int m, int KH, int KW) : c(m / KW / KH), i(m / KW % KH), j(m % KW) {}
};
struct Pixel {
    int n, p, q;
    __device__ Pixel(int k, int Ho, int Wo) : n(k / Wo / Ho), p(k / Wo % Ho), q(k % Wo) {}
};
__device__ float meet(const float* __restrict__ x, Column m, Pixel k, int C, int H, int W, int stride, int top, int left) {
    int u = stride * k.p + m.i - top, v = stride * k.q + m.j - left;
    return 0 <= u && u < H && 0 <= v && v < W ? x[((k.n * C + m.c) * H + u) * W + v] : 0.0f;
}

extern "C" __global__
void conv2d_dweight_v1_naive(const float* dy, const float* x, float* dw,
                             int B, int C, int H, int W, int O, int Ho, int Wo,
                             int KH, int KW, int stride, int top, int left) {
    int m = blockIdx.x * TILE + threadIdx.x, M = C * KH * KW;
    int o = blockIdx.y * TILE + threadIdx.y;
    if (m >= M || o >= O) return;

    float sum = 0.0f;
    Column column(m, KH, KW);
    for (int n = 0; n < B; n++)
        for (int p = 0; p < Ho; p++) {
            float of_p = 0.0f;                                       // one row of the picture
            for (int q = 0; q < Wo; q++) {
                int u = stride * p + column.i - top, v = stride * q + column.j - left;
                if (0 <= u && u < H && 0 <= v && v < W)
                    of_p += dy[((n * O + o) * Ho + p) * Wo + q] * x[((n * C + column.c) * H + u) * W + v];
            }
            sum += of_p;
        }
    dw[o * M + m] = sum;
}

extern "C" __global__
void conv2d_dweight_v2_tiled(const float* dy, const float* x, float* dw,
                             int B, int C, int H, int W, int O, int Ho, int Wo,
                             int KH, int KW, int stride, int top, int left) {
    __shared__ float dys[TILE][TILE + 1], xs[TILE][TILE + 1];        // [o | m][pixel]; + 1: columns in different banks
    int tx = threadIdx.x, ty = threadIdx.y, M = C * KH * KW, K = B * Ho * Wo;
    int m0 = blockIdx.x * TILE, m = m0 + tx;
    int o0 = blockIdx.y * TILE, o = o0 + ty;

    float sum = 0.0f;
    for (int k0 = 0; k0 < K; k0 += TILE) {
        Pixel pixel(k0 + tx, Ho, Wo);                                // this thread's, in both tiles
        bool inside = k0 + tx < K;
        dys[ty][tx] = inside && o < O ? dy[((pixel.n * O + o) * Ho + pixel.p) * Wo + pixel.q] : 0.0f;
        xs[ty][tx] = inside && m0 + ty < M
            ? meet(x, Column(m0 + ty, KH, KW), pixel, C, H, W, stride, top, left) : 0.0f;
        __syncthreads();                                             // both tiles are complete

        float of_tile = 0.0f;
        for (int k = 0; k < TILE; k++) of_tile += dys[ty][k] * xs[tx][k];
        sum += of_tile;
        __syncthreads();                                             // nobody still reads them
    }
    // The bounds test comes last: an early return would leave the others waiting at the barrier.
    if (m < M && o < O) dw[o * M + m] = sum;
}

// Columns and pixels, decoded once by one thread for all: where they meet in x is the sum of two.
struct __align__(16) Spot {
    int x, u, v;             // in x; row and column there.  FAR, so that no sum lies inside, if there is no such spot
    int dy;                  // of a pixel: in channel 0 of dy, or FAR
};
#define FAR (1 << 29)

__device__ Spot column_spot(int m, int M, int KH, int KW, int H, int W) {
    if (m >= M) return {0, FAR, FAR, 0};
    Column column(m, KH, KW);
    return {(column.c * H + column.i) * W + column.j, column.i, column.j, 0};
}
__device__ Spot pixel_spot(int k, int K, int C, int H, int W, int O, int Ho, int Wo, int stride, int top, int left) {
    if (k >= K) return {0, FAR, FAR, FAR};
    Pixel pixel(k, Ho, Wo);
    int u = stride * pixel.p - top, v = stride * pixel.q - left;
    return {(pixel.n * C * H + u) * W + v, u, v, (pixel.n * O * Ho + pixel.p) * Wo + pixel.q};
}

__device__ bool inside(const Spot& pixel, const Spot& column, int H, int W) {
    int u = pixel.u + column.u, v = pixel.v + column.v;
    return 0 <= u && u < H && 0 <= v && v < W;
}

// A block's tiles of dy and of x, DEPTH words of pixels.  A warp takes 8 words by 4 channels or columns.  A thread has
// many words under way before it stores the first: it waits once for all of them.
template <class Tile>
__device__ void stage_pixels(typename Tile::Word* dys, typename Tile::Word* xs, const Spot* pixels, const Spot* columns,
                             const float* __restrict__ dy, const float* __restrict__ x,
                             int o0, int O, int H, int W, int plane) {
    const int ROWS = 3, COLUMNS = 4 / Tile::NUMBERS, BETWEEN = THREADS / 8;
#pragma unroll 1
    for (int row = threadIdx.x % 8; row < DEPTH; row += 8 * ROWS)
#pragma unroll 1
        for (int n = threadIdx.x / 8; n < BM; n += BETWEEN * COLUMNS) {
            typename Tile::Word of_dy[COLUMNS][ROWS], of_x[COLUMNS][ROWS];
#pragma unroll
            for (int s = 0; s < COLUMNS; s++) {
                int o = o0 + n + BETWEEN * s;
                Spot column = columns[n + BETWEEN * s];
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    const Spot* pixel = pixels + (row + 8 * r) * Tile::NUMBERS;
                    float number[2][2];                              // of the word's one or two pixels: dy, x
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        bool there = i < Tile::NUMBERS;
                        number[i][0] = there && o < O && pixel[i].dy < FAR ? dy[pixel[i].dy + o * plane] : 0.0f;
                        number[i][1] = there && inside(pixel[i], column, H, W) ? x[pixel[i].x + column.x] : 0.0f;
                    }
                    of_dy[s][r] = Tile::pack(number[0][0], number[1][0]);
                    of_x[s][r] = Tile::pack(number[0][1], number[1][1]);
                }
            }
#pragma unroll
            for (int s = 0; s < COLUMNS; s++)
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    int place = (row + 8 * r) * ROW + n + BETWEEN * s;
                    dys[place] = of_dy[s][r], xs[place] = of_x[s][r];
                }
        }
}

// A block's weights: dw[o0 .. O, m0 .. M], as far as they go.
struct Block { int o0, O, m0, M; };

// Write the block's sums to dw, or add them to what is there.
template <class Tile>
__device__ void store_weights(Tile& tile, float* dw, const Block& block, bool add) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int o = block.o0 + Tile::row(i);
        float* row = dw + o * block.M;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            int m = block.m0 + Tile::column(j);
            if (o < block.O && m < block.M) row[m] = tile.at(i, j) + (add ? row[m] : 0.0f);
        }
    }
}

// 128 x 128 weights a block, from DEPTH words of pixels at a time.
template <class Tile>
__device__ void dweight_gemm(const float* __restrict__ dy, const float* __restrict__ x, float* dw,
                             int B, int C, int H, int W, int O, int Ho, int Wo,
                             int KH, int KW, int stride, int top, int left, int slices) {
    extern __shared__ unsigned smem[];
    typename Tile::Word* dys = reinterpret_cast<typename Tile::Word*>(smem);         // [word of pixels][o]
    typename Tile::Word* xs = dys + DEPTH * ROW;                                     // [word of pixels][m]
    __shared__ Spot columns[BN], pixels[DEPTH * Tile::NUMBERS];
    __shared__ Block block;                           // what all threads know takes none of their registers
    const int M = C * KH * KW, K = B * Ho * Wo, m0 = blockIdx.x * BN, o0 = blockIdx.y * BM;
    const int many = DEPTH * Tile::NUMBERS, stages = (K + many - 1) / many, slice = blockIdx.z;
    const int begin = slice * stages / slices * many, end = (slice + 1) * stages / slices * many, me = threadIdx.x;

    int from[Tile::READS];
#pragma unroll
    for (int j = 0; j < Tile::READS; j++) from[j] = Tile::read_column(j);
    Tile tile;
    clear(tile);

    if (me == 0) block = {o0, O, m0, M};
    if (me < BN) columns[me] = column_spot(m0 + me, M, KH, KW, H, W);
    if (me < many) pixels[me] = pixel_spot(begin + me, K, C, H, W, O, Ho, Wo, stride, top, left);
    __syncthreads();                                                 // block, columns and pixels are known
    dw += (size_t)slice * O * M;
    bool add = false;
    for (int k0 = begin, held = 0; k0 < end; k0 += many, held++) {
        if (held == Tile::CHAIN) {
            store_weights(tile, dw, block, add);
            clear(tile);
            add = true, held = 0;
        }
        stage_pixels<Tile>(dys, xs, pixels, columns, dy, x, o0, O, H, W, Ho * Wo);
        __syncthreads();                                             // both tiles are complete, pixels are read

        if (me < many) pixels[me] = pixel_spot(k0 + many + me, K, C, H, W, O, Ho, Wo, stride, top, left);
        for (int row = 0; row < DEPTH; row += Tile::STEP)
            tile.multiply(dys + row * ROW, ROW, xs + row * ROW, ROW, from);
        __syncthreads();                                             // nobody still reads the tiles, pixels are known
    }

    store_weights(tile, dw, block, add);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
conv2d_dweight_v3_registers(const float* __restrict__ dy, const float* __restrict__ x, float* dw,
                            int B, int C, int H, int W, int O, int Ho, int Wo,
                            int KH, int KW, int stride, int top, int left, int slices) {
    dweight_gemm<RegisterTile>(dy, x, dw, B, C, H, W, O, Ho, Wo, KH, KW, stride, top, left, slices);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
conv2d_dweight_v4_tf32(const float* __restrict__ dy, const float* __restrict__ x, float* dw,
                       int B, int C, int H, int W, int O, int Ho, int Wo,
                       int KH, int KW, int stride, int top, int left, int slices) {
    dweight_gemm<TensorTile<false>>(dy, x, dw, B, C, H, W, O, Ho, Wo, KH, KW, stride, top, left, slices);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
conv2d_dweight_v5_half(const float* __restrict__ dy, const float* __restrict__ x, float* dw,
                       int B, int C, int H, int W, int O, int Ho, int Wo,
                       int KH, int KW, int stride, int top, int left, int slices) {
    dweight_gemm<TensorTile<true>>(dy, x, dw, B, C, H, W, O, Ho, Wo, KH, KW, stride, top, left, slices);
}
