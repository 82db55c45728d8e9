// Tiles of attention on the tensor cores: what versions 3 and 4 share, forward and backward.
//
// One instruction, mma.sync, lets a warp multiply two small matrices: C += A B.  An operand's
// register is a word of 32 bits, and that is either one TF32 number (version 3) or two float16
// numbers which follow each other along the sum (version 4).  W is how many numbers a word holds.
// With the sum counted in words, both instructions take the same shapes and spread them over the
// warp in the same way; lane = 4 g + t has
//
//   A (16 x 8 words)     A[g][t]   A[g + 8][t]   A[g][t + 4]   A[g + 8][t + 4]
//   B (8 words x 8)      B[t][g]   B[t + 4][g]
//   C (16 x 8 floats)    C[g][2t]  C[g][2t + 1]  C[g + 8][2t]  C[g + 8][2t + 1]
//
// A sum may be taken in any order, and that saves two steps.
//
//   dot_rows      S = A B^T, rows against rows.  Lane t takes the words 2t and 2t + 1 of a row as
//                 its numbers t and t + 4, in A and in B alike: they are neighbours, one load.
//   accumulate    O += P V, with P in the registers where dot_rows left it.  For W = 2, what a lane
//                 has of C in two neighbouring tiles, rounded, is what it needs of A.  For W = 1 it
//                 has columns 2t and 2t + 1 and should have t and t + 4: so the rows of V are put
//                 into shared memory in that order.  P never leaves its lane.
//
// So a tile lies in shared memory in one of two ways: `stage_rows` makes words along its rows (the
// sum of dot_rows), `stage_columns` along its columns (the sum of accumulate).  A row has 8 words
// more or less than a multiple of 16: then the reads of a warp find different banks.

#define LOWEST (-3.402823466e38f)                 // the smallest float: below any score
#define LOG2E 1.4426950408889634f
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif

__device__ constexpr int tiles(int width) { return (width + 7) / 8; }                // of 8
__device__ constexpr int row_words(int W, int width) { return tiles((width + W - 1) / W) * 8; }
__device__ constexpr int stride(int words) { return words % 16 == 8 ? words : words + 8; }

// Words and strides of a tile whose rows, or columns, are packed.
__device__ constexpr int row_stride(int W, int width) { return stride(row_words(W, width)); }
__device__ constexpr int column_stride(int width) { return stride(tiles(width) * 8); }

template <int W>
__device__ unsigned word(float low, float high) {
    return W == 1 ? to_tf32(low) : pack_half(low, high);
}

// The number that a word keeps of x.
template <int W>
__device__ float rounded(float x) {
    return W == 1 ? __uint_as_float(to_tf32(x)) : to_float(to_half(x));
}

template <int W>
__device__ void mma(float (&C)[4], const unsigned (&A)[4], const unsigned (&B)[2]) {
    if (W == 1) mma_tf32(C, A, B);
    else mma_half(C, A, B);
}

// Copy rows first .. first + ROWS - 1 of one head; zeros where there are none.
template <int W, int ROWS, int WIDTH>
__device__ void stage_rows(unsigned* tile, const float* x, int first, int length, int pitch) {
    const int words = row_words(W, WIDTH);
    for (int i = threadIdx.x; i < ROWS * words; i += blockDim.x) {
        int r = i / words, c = i % words * W;
        const float* x_r = x + (size_t)(first + r) * pitch;
        bool inside = first + r < length;
        float low = inside && c < WIDTH ? x_r[c] : 0.0f;
        float high = W == 2 && inside && c + 1 < WIDTH ? x_r[c + 1] : 0.0f;
        tile[r * row_stride(W, WIDTH) + c / W] = word<W>(low, high);
    }
}

template <int W, int ROWS, int WIDTH>
__device__ void stage_columns(unsigned* tile, const float* x, int first, int length, int pitch) {
    const int width = tiles(WIDTH) * 8;
    for (int i = threadIdx.x; i < ROWS / W * width; i += blockDim.x) {
        int w = i / width, c = i % width;
        // Word w of 8: for W = 2 of rows 2w and 2w + 1; for W = 1 of rows 0, 2, 4, 6, 1, 3, 5, 7.
        int r = first + (W == 2 ? 2 * w : w / 8 * 8 + w % 4 * 2 + w % 8 / 4);
        float low = r < length && c < WIDTH ? x[(size_t)r * pitch + c] : 0.0f;
        float high = W == 2 && r + 1 < length && c < WIDTH ? x[(size_t)(r + 1) * pitch + c] : 0.0f;
        tile[w * column_stride(WIDTH) + c] = word<W>(low, high);
    }
}

// S[16 x 8 T] = A B^T: 16 rows of A, the warp's own, against 8 T rows of B.
template <int W, int WIDTH, int T>
__device__ void dot_rows(float (&S)[T][4], const unsigned* A, const unsigned* B) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int pitch = row_stride(W, WIDTH);
#pragma unroll 1                                  // two at a time would cost registers
    for (int w = 0; w < row_words(W, WIDTH); w += 8) {
        const int c = w + 2 * t;
        uint2 upper = *(const uint2*)&A[g * pitch + c];
        uint2 lower = *(const uint2*)&A[(g + 8) * pitch + c];
        unsigned a[4] = {upper.x, lower.x, upper.y, lower.y};
#pragma unroll
        for (int j = 0; j < T; j++) {
            uint2 row = *(const uint2*)&B[(8 * j + g) * pitch + c];
            unsigned b[2] = {row.x, row.y};
            mma<W>(S[j], a, b);
        }
    }
}

// Make the w-th 8 words of the rows of P an operand: what dot_rows left in a lane, rounded.
template <int W, int T>
__device__ void to_operand(unsigned (&a)[4], const float (&P)[T][4], int w) {
    if constexpr (W == 1) {                       // columns 2t, 2t + 1 are numbers t, t + 4
        a[0] = word<W>(P[w][0], 0.0f);
        a[1] = word<W>(P[w][2], 0.0f);
        a[2] = word<W>(P[w][1], 0.0f);
        a[3] = word<W>(P[w][3], 0.0f);
    } else {                                      // columns 2t, 2t + 1 of two tiles are words t, t + 4
        a[0] = word<W>(P[2 * w][0], P[2 * w][1]);
        a[1] = word<W>(P[2 * w][2], P[2 * w][3]);
        a[2] = word<W>(P[2 * w + 1][0], P[2 * w + 1][1]);
        a[3] = word<W>(P[2 * w + 1][2], P[2 * w + 1][3]);
    }
}

// O[16 x WIDTH] += P V: P is 16 x 8 T, V has 8 T rows.
template <int W, int WIDTH, int T>
__device__ void accumulate(float (&O)[tiles(WIDTH)][4], const float (&P)[T][4],
                           const unsigned* V) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int pitch = column_stride(WIDTH);
#pragma unroll
    for (int w = 0; w < T / W; w++) {
        unsigned a[4];
        to_operand<W>(a, P, w);
#pragma unroll
        for (int j = 0; j < tiles(WIDTH); j++) {
            unsigned b[2] = {V[(8 * w + t) * pitch + 8 * j + g],
                             V[(8 * w + t + 4) * pitch + 8 * j + g]};
            mma<W>(O[j], a, b);
        }
    }
}

// Turn products into scores in units of log 2: exp2f is exp without a multiplication.  r0 is the
// first of the warp's rows, c0 the first column of R x C scores; where there is no such column,
// nothing may be read.  mask may be null; element (r, c) is r * dr + c * dc on.
template <int T>
__device__ void scale_and_mask(float (&S)[T][4], float scale, const float* mask, int r0, int c0,
                               int R, int C, int dr, int dc) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int j = 0; j < T; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int r = r0 + g + e / 2 * 8, c = c0 + 8 * j + 2 * t + e % 2;
            S[j][e] *= scale * LOG2E;
            if (c >= C)
                S[j][e] = -INFINITY;
            else if (mask && r < R)
                S[j][e] += LOG2E * mask[(size_t)r * dr + (size_t)c * dc];
        }
}

// Write the warp's 16 rows of O, the first of them r0; rows g and g + 8 times one factor each.
template <int WIDTH>
__device__ void write_rows(float* x, const float (&O)[tiles(WIDTH)][4], int r0, int length,
                           int pitch, float factor, float factor_8) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int j = 0; j < tiles(WIDTH); j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int r = r0 + g + e / 2 * 8, c = 8 * j + 2 * t + e % 2;
            if (r < length && c < WIDTH)
                x[(size_t)r * pitch + c] = (e < 2 ? factor : factor_8) * O[j][e];
        }
}

// The largest value and the sum over the 4 lanes of a row.
__device__ inline float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}

__device__ inline float row_sum(float x) {
    x += __shfl_xor_sync(0xffffffff, x, 1);
    return x + __shfl_xor_sync(0xffffffff, x, 2);
}
