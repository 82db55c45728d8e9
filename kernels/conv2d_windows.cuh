// The implicit GEMM of versions 3 to 5: a convolution as a product of matrices, one of which is never built.
//
//   out[m, pixel] = sum_{k, tap} w[m, (k, tap)] * columns[(k, tap), pixel]
//
// columns[(k, i, j), pixel] is the number that tap (i, j) of the window at `pixel` sees in channel k.  That matrix
// holds KH*KW copies of the picture.  A block keeps the picture's patch in shared memory instead, and reads the
// same copy for every tap, a little further on.  forward, and each phase of dx, are such products (`Windows`).
// A block makes BM channels x BN pixels.

#define TAPS 9               // taps of a kernel that are staged together; larger kernels take several turns

// A convolution of `in` with `w`, as forward and dx both are:
//   out[b, m, out_step r + out_top, out_step q + out_left] =
//       sum_{k, i, j} in[b, k, step r + i - top, step q + j - left] * w[w_first + m w_m + k w_k + i w_i + j w_j]
struct Windows {
    int B, K, H, W;                                   // in: pictures, channels, size
    int M, rows, columns;                             // m < M, r < rows, q < columns
    int step, top, left;
    int KH, KW, w_first, w_m, w_k, w_i, w_j;
    int out_H, out_W, out_step, out_top, out_left;
};

// Where a block's pixels are: `pictures` whole tiles of tile_h x tile_w, one from each of so many pictures.
struct Place {
    int tile_h, tile_w, pictures;
    int b, r, q;                                      // of the tile's first pixel
    int patch_h, patch_w, channel;                    // what its windows see of a picture; words from one k to the next

    // Where in the patch the window of pixel n of the tile begins.
    __device__ int window(const Windows& g, int n) const {
        int column = n % tile_w, row = n / tile_w % tile_h, picture = n / tile_w / tile_h;
        return (picture * patch_h + g.step * row) * patch_w + g.step * column;
    }
};
__device__ Place place_of_block(const Windows& g, int tile_h, int tile_w) {
    Place place;
    place.tile_h = tile_h, place.tile_w = tile_w, place.pictures = BN / (tile_h * tile_w);
    int across = (g.columns + tile_w - 1) / tile_w, down = (g.rows + tile_h - 1) / tile_h;
    place.q = blockIdx.x % across * tile_w;
    place.r = blockIdx.x / across % down * tile_h;
    place.b = blockIdx.x / across / down * place.pictures;
    place.patch_h = g.step * (tile_h - 1) + g.KH;
    place.patch_w = g.step * (tile_w - 1) + g.KW;
    place.channel = (place.pictures * place.patch_h * place.patch_w + 31) / 32 * 32 + 8;   // 8 modulo 32: see ROW
    return place;
}

// patch[word of k][picture, row, column]
template <class Tile>
__device__ void stage_patch(typename Tile::Word* patch, const float* __restrict__ in, const Windows& g,
                            const Place& place, int k0, int words) {
    const int plane = g.H * g.W;
    for (int f = threadIdx.x % BN; f < place.pictures * place.patch_h * place.patch_w; f += BN) {
        int b = place.b + f / place.patch_w / place.patch_h;
        int u = g.step * place.r - g.top + f / place.patch_w % place.patch_h;
        int v = g.step * place.q - g.left + f % place.patch_w;
        bool inside = b < g.B && 0 <= u && u < g.H && 0 <= v && v < g.W;
        const float* pixel = in + (b * g.K * g.H + u) * g.W + v;           // of channel 0
#pragma unroll 4
        for (int word = threadIdx.x / BN; word < words; word += THREADS / BN) {
            int k = k0 + word * Tile::NUMBERS;
            float first = inside && k < g.K ? pixel[k * plane] : 0.0f;
            float second = Tile::NUMBERS == 2 && inside && k + 1 < g.K ? pixel[(k + 1) * plane] : 0.0f;
            patch[word * place.channel + f] = Tile::pack(first, second);
        }
    }
}

// Row (word of k, tap) of the weights' tile: its first channel, counted from k0, and where in w it lies from there.
// Divisions are slow, so one thread makes them for all.
struct Row { int channel, offset; };

template <class Tile>
__device__ void find_rows(Row* rows, const Windows& g, int tap0, int taps) {
    if (threadIdx.x >= DEPTH) return;
    int channel = int(threadIdx.x) / taps * Tile::NUMBERS, tap = tap0 + int(threadIdx.x) % taps;
    rows[threadIdx.x].channel = channel;
    rows[threadIdx.x].offset = channel * g.w_k + tap / g.KW * g.w_i + tap % g.KW * g.w_j;
}

// weights[row][m].  A warp takes 8 rows, which lie side by side in memory, by 4 of m.  A thread has 12 numbers under
// way before it stores the first: it waits once for all of them.
template <class Tile>
__device__ void stage_weights(typename Tile::Word* weights, const float* __restrict__ w, const Windows& g,
                              const Row* rows, int m0, int k0) {
    const int ROWS = 3, COLUMNS = 4 / Tile::NUMBERS, BETWEEN = THREADS / 8;
#pragma unroll 1
    for (int row = threadIdx.x % 8; row < DEPTH; row += 8 * ROWS)
#pragma unroll 1
        for (int m = threadIdx.x / 8; m < BM; m += BETWEEN * COLUMNS) {
            typename Tile::Word words[ROWS][COLUMNS];
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                int k = k0 + rows[row + 8 * r].channel;
                const float* from = w + g.w_first + k0 * g.w_k + rows[row + 8 * r].offset + (m0 + m) * g.w_m;
#pragma unroll
                for (int s = 0; s < COLUMNS; s++) {
                    bool inside = m0 + m + BETWEEN * s < g.M;
                    float first = inside && k < g.K ? from[BETWEEN * s * g.w_m] : 0.0f;
                    float second = Tile::NUMBERS == 2 && inside && k + 1 < g.K ? from[BETWEEN * s * g.w_m + g.w_k] : 0.0f;
                    words[r][s] = Tile::pack(first, second);
                }
            }
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int s = 0; s < COLUMNS; s++) weights[(row + 8 * r) * ROW + m + BETWEEN * s] = words[r][s];
        }
}

// Write the block's sums and the bias to out[b, m, ., .], m0 <= m, or add the sums to what is there.
template <class Tile>
__device__ void store_pixels(Tile& tile, const float* bias, float* out, const Windows& g, const Place& place, int m0,
                             bool add) {
#pragma unroll
    for (int j = 0; j < 8; j++) {
        int n = Tile::column(j);
        int q = place.q + n % place.tile_w, r = place.r + n / place.tile_w % place.tile_h;
        int b = place.b + n / place.tile_w / place.tile_h;
        if (b >= g.B || r >= g.rows || q >= g.columns) continue;
        int y = g.out_step * r + g.out_top, x = g.out_step * q + g.out_left;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int m = m0 + Tile::row(i);
            if (m >= g.M) continue;
            float& sum = out[((b * g.M + m) * g.out_H + y) * g.out_W + x];
            sum = tile.at(i, j) + (add ? sum : bias ? bias[m] : 0.0f);
        }
    }
}

// One block's tile of `out`, or its share of the sum over k: slice `slice` of `slices` goes to a copy of its own.
template <class Tile>
__device__ void implicit_gemm(const float* __restrict__ in, const float* __restrict__ w, const float* bias, float* out,
                              const Windows& windows, int tile_h, int tile_w, int slice, int slices) {
    extern __shared__ unsigned smem[];
    typename Tile::Word* weights = reinterpret_cast<typename Tile::Word*>(smem);       // (DEPTH, ROW)
    typename Tile::Word* patch = weights + DEPTH * ROW;                                // (words, place.channel)
    __shared__ Windows g;                             // what all threads know takes none of their registers
    __shared__ Place place;
    __shared__ Row rows[DEPTH];
    const int all = windows.KH * windows.KW;          // taps; a phase of dx may have none
    const int most = 0 < all && all < TAPS ? all : TAPS;              // at a time
    if (threadIdx.x == 0) g = windows, place = place_of_block(windows, tile_h, tile_w);
    if (all) find_rows<Tile>(rows, windows, 0, most);
    __syncthreads();                                  // g, place and rows are known
    const int m0 = blockIdx.y * BM;
    if (place.b >= g.B) return;                       // the whole block

    int from[Tile::READS];
#pragma unroll
    for (int j = 0; j < Tile::READS; j++) from[j] = place.window(g, Tile::read_column(j));
    Tile tile;
    clear(tile);

    const int words = DEPTH / most / 8 * 8;                           // of k at a time
    const int channels = words * Tile::NUMBERS, stages = (g.K + channels - 1) / channels;
    const int end = (slice + 1) * stages / slices * channels;
    out += (size_t)slice * g.B * g.M * g.out_H * g.out_W;
    bool add = false;
    for (int k0 = slice * stages / slices * channels, held = 0; k0 < end; k0 += channels, held++) {
        if (held == Tile::CHAIN) {
            store_pixels(tile, bias, out, g, place, m0, add);
            clear(tile);
            add = true, held = 0;
        }
        stage_patch<Tile>(patch, in, g, place, k0, words);
        for (int tap0 = 0, taps = most; tap0 < all; tap0 += taps) {
            taps = all - tap0 < most ? all - tap0 : most;
            stage_weights<Tile>(weights, w, g, rows, m0, k0);
            __syncthreads();                                          // patch and weights are complete, rows are read

            for (int word = 0; word < words && k0 + word * Tile::NUMBERS < g.K; word += Tile::STEP) {
                int j = tap0 % g.KW, shift = tap0 / g.KW * place.patch_w + j;         // where tap0 reads
                for (int tap = 0; tap < taps; tap++) {
                    tile.multiply(weights + (word * taps + tap) * ROW, taps * ROW,
                                  patch + word * place.channel + shift, place.channel, from);
                    shift++;
                    if (++j == g.KW) j = 0, shift += place.patch_w - g.KW;            // the next row of taps
                }
            }
            if (all > most) {                                         // the next taps; after the last, the first
                int next = tap0 + taps < all ? tap0 + taps : 0;
                find_rows<Tile>(rows, g, next, all - next < most ? all - next : most);
            }
            __syncthreads();                                          // nobody still reads the tiles, rows are known
        }
    }
    store_pixels(tile, bias, out, g, place, m0, add);
}
