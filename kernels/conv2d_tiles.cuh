// The products of tiles in shared memory that versions 3 to 5 of the convolution and of its gradients are made of.
//
//   sum[m, n] += sum_k a[k, m] * b[k, n]            m < BM, n < BN; k: at most DEPTH words at a time
//
// 256 threads make the BM x BN sums; every thread has 8 x 8 of them in its registers.
// A word is one number, or two float16 numbers of neighbouring k.
//
// Each addition rounds the whole sum, so no register adds up more than CHAIN stages of DEPTH words: then the sums go
// to memory, where they are added to what is there, and begin again at zero.

#define THREADS 256
#define BM 128               // rows and
#define BN 128               // columns of a block's tile
#define DEPTH 72             // words of k in shared memory: 8 channels of a 3x3 kernel, 72 of a 1x1, 72 pixels
#define ROW (BM + 8)         // from one k to the next.  8 modulo 32 banks: the 4 k x 8 m that a warp reads
                             // at once for a fragment lie in 32 different banks

// Version 3: 16 x 16 threads.  A step reads 8 + 8 numbers for 64 products.
struct RegisterTile {
    typedef float Word;
    static const int NUMBERS = 1, STEP = 1, READS = 8, CHAIN = 4;
    float sum[8][8];

    static __device__ Word pack(float number, float) { return number; }
    static __device__ int row(int i) { return threadIdx.x / 16 * 8 + i; }           // of sum[i][.] in the tile
    static __device__ int column(int j) { return threadIdx.x % 16 + 16 * j; }       // of sum[.][j]
    static __device__ int read_column(int j) { return column(j); }                  // which columns of b it reads

    __device__ float& at(int i, int j) { return sum[i][j]; }

    __device__ void multiply(const Word* a, int, const Word* b, int, const int (&from)[READS]) {
        const float4* quads = reinterpret_cast<const float4*>(a + row(0));
        float4 low = quads[0], high = quads[1];
        float left[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}, right[8];
#pragma unroll
        for (int j = 0; j < 8; j++) right[j] = b[from[j]];
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
            for (int j = 0; j < 8; j++) sum[i][j] += left[i] * right[j];
    }
};

// Versions 4 and 5: 2 x 4 warps with 64 x 32 sums each, in 4 x 4 products of the tensor cores.  m16n8k8 of TF32 and
// m16n8k16 of float16 both take 16 x 8 and 8 x 8 words, and hand them out to the lanes in the same way:
// with g = lane / 4 and t = lane % 4, a lane gives a[t | t+4, g | g+8] and b[t | t+4, g] and has sums
// (g | g+8, 2t | 2t+1).
template <bool HALF>
struct TensorTile {
    typedef unsigned Word;
    static const int NUMBERS = HALF ? 2 : 1, STEP = 8, READS = 4, CHAIN = 8;
    float sum[4][4][4];

    static __device__ Word pack(float first, float second) {
        return HALF ? pack_half(first, second) : to_tf32(first);
    }
    static __device__ int g() { return threadIdx.x % 32 / 4; }
    static __device__ int t() { return threadIdx.x % 4; }
    static __device__ int warp_row() { return threadIdx.x / 32 % 2 * 64; }
    static __device__ int warp_column() { return threadIdx.x / 64 * 32; }
    static __device__ int row(int i) { return warp_row() + i / 2 * 16 + i % 2 * 8 + g(); }
    static __device__ int column(int j) { return warp_column() + j / 2 * 8 + 2 * t() + j % 2; }
    static __device__ int read_column(int j) { return warp_column() + j * 8 + g(); }

    __device__ float& at(int i, int j) { return sum[i / 2][j / 2][i % 2 * 2 + j % 2]; }

    __device__ void multiply(const Word* a, int a_step, const Word* b, int b_step, const int (&from)[READS]) {
        unsigned left[4][4], right[4][2];
        a += t() * a_step, b += t() * b_step;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            left[i][0] = a[row(2 * i)], left[i][2] = a[row(2 * i) + 4 * a_step];
            left[i][1] = a[row(2 * i + 1)], left[i][3] = a[row(2 * i + 1) + 4 * a_step];
        }
#pragma unroll
        for (int j = 0; j < 4; j++) right[j][0] = b[from[j]], right[j][1] = b[from[j] + 4 * b_step];
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (HALF) mma_half(sum[i][j], left[i], right[j]);
                else mma_tf32(sum[i][j], left[i], right[j]);
    }
};

template <class Tile>
__device__ void clear(Tile& tile) {
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < 8; j++) tile.at(i, j) = 0.0f;
}
