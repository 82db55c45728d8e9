// Tiles of attention on the CUDA cores: what version 2 shares, forward and backward.
//
// A block has 16 x 16 threads, thread (tx, ty).  Rows of q, k, v or do lie in shared memory, each
// padded to a multiple of 16 numbers and 4 more: then the 16 threads of a row find float4s of 16
// different rows in different banks.  Products of two kinds, both in registers of the threads,
// where thread (tx, ty) has rows ty, ty + 16, ... and columns tx, tx + 16, ...:
//
//   dot_rows      S[r][c] += sum_i A[r][i] B[c][i]         scores: rows against rows
//   accumulate    O[r][i] += sum_c P[r][c] V[c][i]         a weighted sum of rows
//
// Rounding errors grow with the number of terms that are added one after the other, so the terms
// of one step are added up first, and then to O.
//
// The sixteen threads of one row are half a warp: they add up by shuffles, and what they write to
// shared memory for each other needs no barrier of the whole block.

#define SIDE 16                                   // blockDim = (SIDE, SIDE)
#define PART 64                                   // a sum in float32 has no more terms in a row
#define LOWEST (-3.402823466e38f)                 // the smallest float: below any score
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif

__device__ constexpr int columns(int width) { return (width + SIDE - 1) / SIDE; }   // per thread
__device__ constexpr int stride(int width) { return columns(width) * SIDE + 4; }    // of a tile

// Copy rows first .. first + ROWS - 1 of one head, multiplied by factor; zeros where there are none.
template <int ROWS, int WIDTH>
__device__ void stage(float* tile, const float* x, int first, int length, int pitch,
                      float factor = 1.0f) {
    const int padded = columns(WIDTH) * SIDE;
    for (int i = threadIdx.y * SIDE + threadIdx.x; i < ROWS * padded; i += SIDE * SIDE) {
        int r = i / padded, c = i % padded;
        bool inside = first + r < length && c < WIDTH;
        tile[r * stride(WIDTH) + c] = inside ? factor * x[(size_t)(first + r) * pitch + c] : 0.0f;
    }
}

template <int WIDTH, int TM, int TN>
__device__ void dot_rows(float (&S)[TM][TN], const float* A, const float* B) {
#pragma unroll 2
    for (int c = 0; c < WIDTH; c += 4) {          // what pads a row to a multiple of 4 is zero
        float4 a[TM], b[TN];
#pragma unroll
        for (int i = 0; i < TM; i++)
            a[i] = *(const float4*)&A[(threadIdx.y + SIDE * i) * stride(WIDTH) + c];
#pragma unroll
        for (int j = 0; j < TN; j++)
            b[j] = *(const float4*)&B[(threadIdx.x + SIDE * j) * stride(WIDTH) + c];
#pragma unroll
        for (int i = 0; i < TM; i++)
#pragma unroll
            for (int j = 0; j < TN; j++) {
                S[i][j] += a[i].x * b[j].x;
                S[i][j] += a[i].y * b[j].y;
                S[i][j] += a[i].z * b[j].z;
                S[i][j] += a[i].w * b[j].w;
            }
    }
}

template <int COUNT, int WIDTH, int TM>
__device__ void accumulate(float (&O)[TM][columns(WIDTH)], const float* P, const float* V) {
    float sum[TM][columns(WIDTH)] = {};
    for (int c = 0; c < COUNT; c += 4) {
        float4 p[TM];
#pragma unroll
        for (int i = 0; i < TM; i++)
            p[i] = *(const float4*)&P[(threadIdx.y + SIDE * i) * stride(COUNT) + c];
#pragma unroll
        for (int j = 0; j < columns(WIDTH); j++) {
            const float* v = &V[c * stride(WIDTH) + threadIdx.x + SIDE * j];
#pragma unroll
            for (int i = 0; i < TM; i++) {
                sum[i][j] += p[i].x * v[0];
                sum[i][j] += p[i].y * v[stride(WIDTH)];
                sum[i][j] += p[i].z * v[2 * stride(WIDTH)];
                sum[i][j] += p[i].w * v[3 * stride(WIDTH)];
            }
        }
    }
#pragma unroll
    for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < columns(WIDTH); j++) O[i][j] += sum[i][j];
}

// Add the mask to S, a tile whose first row and column are r0 and c0 of R x C scores; where there
// is no such column, nothing may be read.  mask may be null; element (r, c) is r * dr + c * dc on.
template <int TM, int TN>
__device__ void add_mask(float (&S)[TM][TN], const float* mask, int r0, int c0, int R, int C,
                         int dr, int dc) {
#pragma unroll
    for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j++) {
            int r = r0 + threadIdx.y + SIDE * i, c = c0 + threadIdx.x + SIDE * j;
            if (c >= C)
                S[i][j] = -INFINITY;
            else if (mask && r < R)
                S[i][j] += mask[(size_t)r * dr + (size_t)c * dc];
        }
}

// Write the registers S to shared memory, for `accumulate`.
template <int TM, int TN>
__device__ void put(float* tile, const float (&S)[TM][TN]) {
#pragma unroll
    for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j++)
            tile[(threadIdx.y + SIDE * i) * stride(SIDE * TN) + threadIdx.x + SIDE * j] = S[i][j];
}

// Write row r of the registers O, multiplied by factor, to row r of one head.
template <int WIDTH>
__device__ void write_row(float* x, const float (&O)[columns(WIDTH)], int r, int length, int pitch,
                          float factor) {
#pragma unroll
    for (int j = 0; j < columns(WIDTH); j++) {
        int c = threadIdx.x + SIDE * j;
        if (r < length && c < WIDTH) x[(size_t)r * pitch + c] = factor * O[j];
    }
}

// The largest value and the sum over the 16 threads of a row.
__device__ inline float row_max(float x) {
    for (int step = SIDE / 2; step; step /= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, step));
    return x;
}

__device__ inline float row_sum(float x) {
    for (int step = SIDE / 2; step; step /= 2)
        x += __shfl_xor_sync(0xffffffff, x, step);
    return x;
}
