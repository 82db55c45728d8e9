// Mean and variance in one pass over the numbers, put together from parts.
//
// The usual sums of x and x^2 lose all digits where the mean is far above the deviation.  These
// parts keep the deviations from their own mean, and two of them make a larger one:
//
//   n = n_a + n_b,    delta = mean_b - mean_a
//   mean    = mean_a + delta n_b / n
//   squares = squares_a + squares_b + delta^2 n_a n_b / n
//
// T. F. Chan, G. H. Golub and R. J. LeVeque, "Updating formulae and a pairwise algorithm for
// computing sample variances", 1979; with n_b = 1 it is B. P. Welford's formula of 1962.

struct __align__(16) Moments {
    float n, mean, squares;              // how many, their mean, sum of (x - mean)^2
};

__device__ inline Moments merge(Moments a, Moments b) {
    float n = a.n + b.n;
    if (n == 0.0f) return a;
    float delta = b.mean - a.mean, share = b.n / n;
    return {n, a.mean + delta * share, a.squares + b.squares + delta * delta * a.n * share};
}

// Merge the parts of a warp's 32 lanes; all of them get the same result.
__device__ inline Moments merge_warp(Moments a) {
    for (int step = 16; step; step /= 2) {
        Moments b = {__shfl_down_sync(0xffffffff, a.n, step),
                     __shfl_down_sync(0xffffffff, a.mean, step),
                     __shfl_down_sync(0xffffffff, a.squares, step)};
        a = merge(a, b);
    }
    return {__shfl_sync(0xffffffff, a.n, 0), __shfl_sync(0xffffffff, a.mean, 0),
            __shfl_sync(0xffffffff, a.squares, 0)};
}

__device__ inline float sum_warp(float x) {
    for (int step = 16; step; step /= 2) x += __shfl_xor_sync(0xffffffff, x, step);
    return x;
}
