// Matrix product: the ladder on which the ideas of all other kernels stand.  See kernels/matmul.py.
//
//   c[m,n] = sum_k a[m,k] * b[k,n]          a is M x K, b is K x N, rows lie one after another
//
// version 1  naive      one thread per entry; neighbouring threads go down a column of c
// version 2  coalesced  neighbouring threads go along a row: what a warp reads lies side by side
// version 3  tiled      the block stages tiles of a and b in shared memory; each is read TILE times there
// version 4  registers  a thread computes 4 x 4 entries: 8 reads of shared memory for 16 products
// version 5  vectors    a thread computes 8 x 8 entries and reads shared memory four floats at a time
// version 6  tf32       a warp multiplies 16 x 8 by 8 x 8 on a tensor core; factors have 11 bits
// version 7  half       a warp multiplies 16 x 16 by 16 x 8; a and b are float16, the sums float

#include "ptx.cuh"

#ifndef TILE
#define TILE 16              // versions 1 to 3: threads per block side, blockDim = (TILE, TILE)
#endif

extern "C" __global__
void matmul_v1_naive(const float* a, const float* b, float* c, int M, int N, int K) {
    int m = blockIdx.x * TILE + threadIdx.x;
    int n = blockIdx.y * TILE + threadIdx.y;
    if (m >= M || n >= N) return;

    float sum = 0.0f;
    for (int k = 0; k < K; k++) sum += a[m * K + k] * b[k * N + n];
    c[m * N + n] = sum;
}

extern "C" __global__
void matmul_v2_coalesced(const float* a, const float* b, float* c, int M, int N, int K) {
    int m = blockIdx.y * TILE + threadIdx.y;
    int n = blockIdx.x * TILE + threadIdx.x;
    if (m >= M || n >= N) return;

    float sum = 0.0f;
    for (int k = 0; k < K; k++) sum += a[m * K + k] * b[k * N + n];
    c[m * N + n] = sum;
}

extern "C" __global__
void matmul_v3_tiled(const float* a, const float* b, float* c, int M, int N, int K) {
    __shared__ float a_tile[TILE][TILE], b_tile[TILE][TILE];
    int tx = threadIdx.x, ty = threadIdx.y;
    int m = blockIdx.y * TILE + ty;
    int n = blockIdx.x * TILE + tx;

    float sum = 0.0f;
    for (int k0 = 0; k0 < K; k0 += TILE) {
        a_tile[ty][tx] = m < M && k0 + tx < K ? a[m * K + k0 + tx] : 0.0f;
        b_tile[ty][tx] = k0 + ty < K && n < N ? b[(k0 + ty) * N + n] : 0.0f;
        __syncthreads();                     // the tiles are complete

        for (int k = 0; k < TILE; k++) sum += a_tile[ty][k] * b_tile[k][tx];
        __syncthreads();                     // nobody still reads them
    }
    // The bounds test comes last: an early return would leave the others waiting at the barrier.
    if (m < M && n < N) c[m * N + n] = sum;
}

// Versions 4 and 5: 16 x 16 threads compute SIDE x SIDE entries, SIDE / 16 squared for each thread,
// and take DEPTH columns of a and rows of b at a time.  The tile of a is stored with k as its row, so
// that both tiles are read along their rows; PAD numbers at the end of a row move the next one on by
// that many banks, and the 8 rows that a warp writes to at once do not meet in one bank.
#define DEPTH 8
#define PAD 4

template <int ROW>
__device__ void stage(float (&a_tile)[DEPTH][ROW], float (&b_tile)[DEPTH][ROW],
                      const float* a, const float* b, int m0, int n0, int k0, int M, int N, int K) {
    constexpr int SIDE = ROW - PAD;
    int thread = threadIdx.y * 16 + threadIdx.x;
    for (int i = thread; i < SIDE * DEPTH; i += 256) {
        int k = i % DEPTH, m = i / DEPTH;    // neighbouring threads read along a row of a
        a_tile[k][m] = m0 + m < M && k0 + k < K ? a[(m0 + m) * K + k0 + k] : 0.0f;
    }
    for (int i = thread; i < SIDE * DEPTH; i += 256) {
        int n = i % SIDE, k = i / SIDE;      // and along a row of b
        b_tile[k][n] = k0 + k < K && n0 + n < N ? b[(k0 + k) * N + n0 + n] : 0.0f;
    }
}

extern "C" __global__ void __launch_bounds__(256)
matmul_v4_registers(const float* a, const float* b, float* c, int M, int N, int K) {
    constexpr int SIDE = 64, EACH = 4;
    __shared__ float a_tile[DEPTH][SIDE + PAD], b_tile[DEPTH][SIDE + PAD];
    int tx = threadIdx.x, ty = threadIdx.y;
    int m0 = blockIdx.y * SIDE, n0 = blockIdx.x * SIDE;

    float sum[EACH][EACH] = {};              // rows m0 + ty + 16 i, columns n0 + tx + 16 j
    for (int k0 = 0; k0 < K; k0 += DEPTH) {
        stage(a_tile, b_tile, a, b, m0, n0, k0, M, N, K);
        __syncthreads();                     // the tiles are complete

        for (int k = 0; k < DEPTH; k++) {
            float a_k[EACH], b_k[EACH];
            for (int i = 0; i < EACH; i++) a_k[i] = a_tile[k][ty + 16 * i];
            for (int j = 0; j < EACH; j++) b_k[j] = b_tile[k][tx + 16 * j];
            for (int i = 0; i < EACH; i++)
                for (int j = 0; j < EACH; j++) sum[i][j] += a_k[i] * b_k[j];
        }
        __syncthreads();                     // nobody still reads them
    }
    for (int i = 0; i < EACH; i++)
        for (int j = 0; j < EACH; j++) {
            int m = m0 + ty + 16 * i, n = n0 + tx + 16 * j;
            if (m < M && n < N) c[m * N + n] = sum[i][j];
        }
}

extern "C" __global__ void __launch_bounds__(256)
matmul_v5_vectors(const float* a, const float* b, float* c, int M, int N, int K) {
    constexpr int SIDE = 128, EACH = 8;
    __shared__ __align__(16) float a_tile[DEPTH][SIDE + PAD], b_tile[DEPTH][SIDE + PAD];
    int tx = threadIdx.x, ty = threadIdx.y;
    int m0 = blockIdx.y * SIDE, n0 = blockIdx.x * SIDE;

    float sum[EACH][EACH] = {};              // rows m0 + 4 ty + 64 (i / 4) + i % 4, columns likewise
    for (int k0 = 0; k0 < K; k0 += DEPTH) {
        stage(a_tile, b_tile, a, b, m0, n0, k0, M, N, K);
        __syncthreads();                     // the tiles are complete

        for (int k = 0; k < DEPTH; k++) {
            float4 a_k[EACH / 4], b_k[EACH / 4];
            for (int i = 0; i < EACH / 4; i++) {
                a_k[i] = *reinterpret_cast<const float4*>(&a_tile[k][4 * ty + 64 * i]);
                b_k[i] = *reinterpret_cast<const float4*>(&b_tile[k][4 * tx + 64 * i]);
            }
            for (int i = 0; i < EACH / 4; i++)
                for (int j = 0; j < EACH; j++) {
                    float b_kj = (&b_k[j / 4].x)[j % 4];
                    sum[4 * i + 0][j] += a_k[i].x * b_kj;
                    sum[4 * i + 1][j] += a_k[i].y * b_kj;
                    sum[4 * i + 2][j] += a_k[i].z * b_kj;
                    sum[4 * i + 3][j] += a_k[i].w * b_kj;
                }
        }
        __syncthreads();                     // nobody still reads them
    }
    for (int i = 0; i < EACH; i++)
        for (int j = 0; j < EACH; j++) {
            int m = m0 + 4 * ty + 64 * (i / 4) + i % 4, n = n0 + 4 * tx + 64 * (j / 4) + j % 4;
            if (m < M && n < N) c[m * N + n] = sum[i][j];
        }
}

// Versions 6 and 7: a block of 4 warps computes 64 x 64 entries, a warp 32 x 32 of them as 2 x 4 tiles
// of 16 x 8, one for each mma.  A lane holds the parts of a factor that ptx.cuh lists for g and t.
#define SIDE 64

struct Part { int g, t, m, n; };             // this lane, and the first row and column of its warp

__device__ Part own_part() {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    return {lane / 4, lane % 4, warp / 2 * 32, warp % 2 * 32};
}

__device__ void store(float* c, const float (&d)[2][4][4], int M, int N) {
    Part p = own_part();
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++)
            for (int e = 0; e < 4; e++) {
                int m = blockIdx.y * SIDE + p.m + 16 * i + p.g + 8 * (e / 2);
                int n = blockIdx.x * SIDE + p.n + 8 * j + 2 * p.t + e % 2;
                if (m < M && n < N) c[m * N + n] = d[i][j][e];
            }
}

// The rows of both tiles are so long that the 32 numbers of a fragment lie in 32 banks.
extern "C" __global__ void __launch_bounds__(128)
matmul_v6_tf32(const float* a, const float* b, float* c, int M, int N, int K) {
    constexpr int DEEP = 16;
    __shared__ unsigned a_tile[SIDE][DEEP + 4], b_tile[DEEP][SIDE + 8];
    Part p = own_part();
    int m0 = blockIdx.y * SIDE, n0 = blockIdx.x * SIDE;

    float d[2][4][4] = {};
    for (int k0 = 0; k0 < K; k0 += DEEP) {
        for (int i = threadIdx.x; i < SIDE * DEEP; i += 128) {
            int m = i / DEEP, k = i % DEEP;
            a_tile[m][k] = to_tf32(m0 + m < M && k0 + k < K ? a[(m0 + m) * K + k0 + k] : 0.0f);
        }
        for (int i = threadIdx.x; i < SIDE * DEEP; i += 128) {
            int k = i / SIDE, n = i % SIDE;
            b_tile[k][n] = to_tf32(k0 + k < K && n0 + n < N ? b[(k0 + k) * N + n0 + n] : 0.0f);
        }
        __syncthreads();                     // the tiles are complete

        for (int k = 0; k < DEEP; k += 8) {
            unsigned a_k[2][4], b_k[4][2];
            for (int i = 0; i < 2; i++)
                for (int r = 0; r < 4; r++)
                    a_k[i][r] = a_tile[p.m + 16 * i + p.g + 8 * (r % 2)][k + p.t + 4 * (r / 2)];
            for (int j = 0; j < 4; j++)
                for (int r = 0; r < 2; r++)
                    b_k[j][r] = b_tile[k + p.t + 4 * r][p.n + 8 * j + p.g];
            for (int i = 0; i < 2; i++)
                for (int j = 0; j < 4; j++) mma_tf32(d[i][j], a_k[i], b_k[j]);
        }
        __syncthreads();                     // nobody still reads them
    }
    store(c, d, M, N);
}

// b's tile is stored with n as its row: a register holds two neighbours along k.
extern "C" __global__ void __launch_bounds__(128)
matmul_v7_half(const half* a, const half* b, float* c, int M, int N, int K) {
    constexpr int DEEP = 32;
    __shared__ __align__(4) half a_tile[SIDE][DEEP + 8], b_tile[SIDE][DEEP + 8];
    Part p = own_part();
    int m0 = blockIdx.y * SIDE, n0 = blockIdx.x * SIDE;
    half zero = to_half(0.0f);

    float d[2][4][4] = {};
    for (int k0 = 0; k0 < K; k0 += DEEP) {
        for (int i = threadIdx.x; i < SIDE * DEEP; i += 128) {
            int m = i / DEEP, k = i % DEEP;
            a_tile[m][k] = m0 + m < M && k0 + k < K ? a[(m0 + m) * K + k0 + k] : zero;
        }
        for (int i = threadIdx.x; i < SIDE * DEEP; i += 128) {
            int k = i / SIDE, n = i % SIDE;
            b_tile[n][k] = k0 + k < K && n0 + n < N ? b[(k0 + k) * N + n0 + n] : zero;
        }
        __syncthreads();                     // the tiles are complete

        for (int k = 0; k < DEEP; k += 16) {
            unsigned a_k[2][4], b_k[4][2];
            for (int i = 0; i < 2; i++)
                for (int r = 0; r < 4; r++)
                    a_k[i][r] = *reinterpret_cast<const unsigned*>(
                        &a_tile[p.m + 16 * i + p.g + 8 * (r % 2)][k + 2 * p.t + 8 * (r / 2)]);
            for (int j = 0; j < 4; j++)
                for (int r = 0; r < 2; r++)
                    b_k[j][r] = *reinterpret_cast<const unsigned*>(
                        &b_tile[p.n + 8 * j + p.g][k + 2 * p.t + 8 * r]);
            for (int i = 0; i < 2; i++)
                for (int j = 0; j < 4; j++) mma_half(d[i][j], a_k[i], b_k[j]);
        }
        __syncthreads();                     // nobody still reads them
    }
    store(c, d, M, N);
}
