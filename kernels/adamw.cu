// AdamW and the moving average of the weights, in one pass.  See kernels/adamw.py.
//
//   g       = clip * grad
//   m       = m + to_m (g - m)                          to_m = 1 - beta1
//   v       = v + to_v (g g - v)                        to_v = 1 - beta2
//   value   = value - rate m / (sqrt(v) root + eps) - shrink value
//   average = average + share (value - average)
//
//   rate = lr / (1 - beta1^k)     root = 1 / sqrt(1 - beta2^k)     shrink = lr weight_decay
//
// version 1  fused    one thread per number: 5 arrays are read and 4 written, each once
// version 2  vectors  one thread per four numbers, which travel as a float4

struct Rates { float clip, to_m, to_v, root, eps, rate, shrink, share; };

__device__ void update(float& value, float grad, float& m, float& v, Rates r) {
    float g = r.clip * grad;
    m += r.to_m * (g - m);
    v += r.to_v * (g * g - v);
    value -= r.rate * (m / (sqrtf(v) * r.root + r.eps)) + r.shrink * value;
}

extern "C" __global__
void adamw_v1_fused(float* value, const float* grad, float* m, float* v, float* average, int n,
                    float clip, float to_m, float to_v, float root, float eps, float rate,
                    float shrink, float share) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    update(value[i], grad[i], m[i], v[i], {clip, to_m, to_v, root, eps, rate, shrink, share});
    if (average) average[i] += share * (value[i] - average[i]);
}

// Here n counts the groups of four.
extern "C" __global__
void adamw_v2_vectors(float4* value, const float4* grad, float4* m, float4* v, float4* average,
                      int n, float clip, float to_m, float to_v, float root, float eps, float rate,
                      float shrink, float share) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    Rates r = {clip, to_m, to_v, root, eps, rate, shrink, share};
    float4 value_i = value[i], grad_i = grad[i], m_i = m[i], v_i = v[i];
    update(value_i.x, grad_i.x, m_i.x, v_i.x, r);
    update(value_i.y, grad_i.y, m_i.y, v_i.y, r);
    update(value_i.z, grad_i.z, m_i.z, v_i.z, r);
    update(value_i.w, grad_i.w, m_i.w, v_i.w, r);
    value[i] = value_i;
    m[i] = m_i;
    v[i] = v_i;
    if (average) {
        float4 average_i = average[i];
        average_i.x += share * (value_i.x - average_i.x);
        average_i.y += share * (value_i.y - average_i.y);
        average_i.z += share * (value_i.z - average_i.z);
        average_i.w += share * (value_i.w - average_i.w);
        average[i] = average_i;
    }
}
