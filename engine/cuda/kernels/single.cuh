// Rows that are each of their own sequence, on tensor cores: what is between the products, as rows.cuh has it, with one
// block a row whose threads hold four numbers each in registers; no more warps than the row needs, because all of them
// wait for each other several times. Everything that is known before the row is on its way before the launch in front of
// this one ends.
//
// That is the state, too. Products of such rows are not `early`: what is launched behind them may read at once what was
// written before the launch in front of them.

#if TENSOR_CORES

__device__ inline float4 four(const float *from) { return *(const float4 *)from; }
__device__ inline float4 operator+(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
__device__ inline float4 operator*(float4 a, float4 b) { return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w); }
__device__ inline float4 all_four(float x) { return make_float4(x, x, x, x); }
__device__ inline float sum_of(float4 v) { return v.x + v.y + (v.z + v.w); }
__device__ inline float largest_of(float4 v) { return larger(larger(fabsf(v.x), fabsf(v.y)), larger(fabsf(v.z), fabsf(v.w))); }

__device__ inline u32 two_halves(float a, float b) { return to_half(a) | (u32)to_half(b) << 16; }
__device__ inline float lost(float x) { return x - from_half(to_half(x)); }

// Numbers i .. i + 3 of N inputs of products, multiplied by what brings each row's largest number into f16.
template <int N>
__device__ inline void write_fours(const Inputs *inputs, u32 row, u32 i, bool inside, bool split, const float (&largest)[N], const float4 (&v)[N]) {
#pragma unroll
    for (int n = 0; n < N; n++) {
        float factor = row_factor(largest[n]);
        if (threadIdx.x == 0) inputs[n].scales[row] = 1.0f / factor;
        if (!inside) continue;
        float4 s = v[n] * all_four(factor);
        u64 at = (u64)row * inputs[n].stride + i;
        *(uint2 *)(inputs[n].high + at) = make_uint2(two_halves(s.x, s.y), two_halves(s.z, s.w));
        if (split)
            *(uint2 *)(inputs[n].low + at) = make_uint2(two_halves(lost(s.x), lost(s.y)), two_halves(lost(s.z), lost(s.w)));
    }
}

// The normalised row, of which this thread has `x`. `room` holds 2 * WARPS floats.
__device__ inline float4 norm_four(float4 x, bool inside, u32 n, float4 weight, float4 bias, float epsilon, float *room) {
    u32 n_warps = blockDim.x / 32;
    float sum[1] = {sum_of(x)};
    block_sums<1>(sum, room, n_warps);
    float4 d = inside ? x + all_four(-sum[0] / (float)n) : all_four(0.0f);
    sum[0] = sum_of(d * d);
    block_sums<1>(sum, room + WARPS, n_warps);
    return d * all_four(1.0f / sqrtf(sum[0] / (float)n + epsilon)) * weight + bias;
}

// shift_rows. BOUND: also the scale of the hidden units that the first input becomes.
template <int N, bool BOUND> __device__ void shift_single(const Shift &p) {
    __shared__ float room[(3 + N) * WARPS];
    let_next_begin();
    u32 i = 4 * threadIdx.x, row = blockIdx.x, n_warps = blockDim.x / 32;
    bool inside = i < p.n_embd;
    float4 weight = all_four(0.0f), bias = weight, x = weight, before = weight, share[N], factor[N], v[N];
    float hidden_bound = 0.0f, *previous = nullptr;
#pragma unroll
    for (int n = 0; n < N; n++) share[n] = v[n] = all_four(0.0f), factor[n] = all_four(1.0f);
    if (inside) {
        weight = four(p.norm.weight + i), bias = four(p.norm.bias + i);
#pragma unroll
        for (int n = 0; n < N; n++) {
            share[n] = four(p.mix[n] + i);
            if (p.factors[n]) factor[n] = four(p.factors[n] + i);
        }
        if (BOUND) hidden_bound = *p.hidden_bound;
    }
    auto load_state = [&] {
        previous = (float *)p.batch.span_state[row] + p.previous + i;
        if (inside) before = four(previous);
    };
    if (p.behind_products) load_state();
    wait_for_previous();
    if (inside) x = four(p.x + (u64)row * p.x_stride + i);
    if (!p.behind_products) load_state();
    float4 now = norm_four(x, inside, p.n_embd, weight, bias, p.norm.epsilon, room);
    float largest[N], squares = 0.0f;
    if (inside) {
        // Nobody else reads it.
        *(float4 *)previous = now;
#pragma unroll
        for (int n = 0; n < N; n++)
            v[n] = make_float4(mixed(now.x, before.x, share[n].x), mixed(now.y, before.y, share[n].y),
                               mixed(now.z, before.z, share[n].z), mixed(now.w, before.w, share[n].w)) * factor[n];
    }
    if (BOUND) {
        // On its way to the other threads with the largest numbers.
        squares = warp_sum(sum_of(v[0] * v[0]));
        if ((threadIdx.x & 31) == 0) room[(2 + N) * WARPS + threadIdx.x / 32] = squares;
    }
#pragma unroll
    for (int n = 0; n < N; n++) largest[n] = largest_of(v[n]);
    block_largest<N>(largest, room + 2 * WARPS, n_warps);
    if (BOUND && threadIdx.x == 0) {
        squares = 0.0f;
        for (u32 warp = 0; warp < n_warps; warp++) squares += room[(2 + N) * WARPS + warp];
        p.hidden_scales[row] = 1.0f / row_factor(squares * hidden_bound);
    }
    write_fours<N>(p.out, row, i, inside, p.split != 0, largest, v);
}

extern "C" __global__ void __launch_bounds__(THREADS) shift_single_3(const Shift p) { shift_single<3, false>(p); }
extern "C" __global__ void __launch_bounds__(THREADS) shift_single_2(const Shift p) { shift_single<2, true>(p); }

// wkv_single, behind products.
extern "C" __global__ void __launch_bounds__(THREADS) wkv_single_fours(const WkvRows p) {
    __shared__ float room[WARPS];
    let_next_begin();
    u32 i = 4 * threadIdx.x, row = blockIdx.x, n = p.n_attention;
    bool inside = i < n;
    float4 zero = all_four(0.0f), bonus = zero, decay = zero, a = zero, b = zero, e = zero, factor = all_four(1.0f), gated[1] = {zero};
    float *wkv = (float *)p.batch.span_state[row] + p.wkv + i;
    if (inside) {
        a = four(wkv), b = four(wkv + n), e = four(wkv + 2 * n);
        bonus = four(p.bonus + i), decay = four(p.decay_log + i);
        if (p.factors) factor = four(p.factors + i);
    }
    wait_for_previous();
    if (inside) {
        u64 at = (u64)row * p.a_stride + i;
        float4 key = four(p.key + at), value = four(p.value + at), receptance = four(p.receptance + at);
        Wkv sums[4] = {{a.x, b.x, e.x}, {a.y, b.y, e.y}, {a.z, b.z, e.z}, {a.w, b.w, e.w}};
        gated[0] = make_float4(sigmoid(receptance.x) * wkv_output(sums[0], key.x, value.x, bonus.x),
                               sigmoid(receptance.y) * wkv_output(sums[1], key.y, value.y, bonus.y),
                               sigmoid(receptance.z) * wkv_output(sums[2], key.z, value.z, bonus.z),
                               sigmoid(receptance.w) * wkv_output(sums[3], key.w, value.w, bonus.w)) * factor;
        sums[0] = wkv_next(sums[0], key.x, value.x, decay.x), sums[1] = wkv_next(sums[1], key.y, value.y, decay.y);
        sums[2] = wkv_next(sums[2], key.z, value.z, decay.z), sums[3] = wkv_next(sums[3], key.w, value.w, decay.w);
        *(float4 *)wkv = make_float4(sums[0].numerator, sums[1].numerator, sums[2].numerator, sums[3].numerator);
        *(float4 *)(wkv + n) = make_float4(sums[0].denominator, sums[1].denominator, sums[2].denominator, sums[3].denominator);
        *(float4 *)(wkv + 2 * n) = make_float4(sums[0].exponent_max, sums[1].exponent_max, sums[2].exponent_max, sums[3].exponent_max);
    }
    float largest[1] = {largest_of(gated[0])};
    block_largest<1>(largest, room, blockDim.x / 32);
    write_fours<1>(&p.out, row, i, inside, p.split != 0, largest, gated);
}

// norm_out_rows.
extern "C" __global__ void __launch_bounds__(THREADS) norm_out_fours(const NormOut p) {
    __shared__ float room[3 * WARPS];
    let_next_begin();
    u32 i = 4 * threadIdx.x, row = 0;
    bool inside = i < p.n_embd;
    float4 weight = all_four(0.0f), bias = weight, x = weight, factor = all_four(1.0f);
    if (inside) {
        weight = four(p.norm.weight + i), bias = four(p.norm.bias + i);
        if (p.factors) factor = four(p.factors + i);
    }
    if (p.behind_products) row = p.batch.out_rows[p.first + blockIdx.x];
    wait_for_previous();
    if (!p.behind_products) row = p.batch.out_rows[p.first + blockIdx.x];
    if (inside) x = four(p.x + (u64)row * p.x_stride + i);
    float4 v[1] = {norm_four(x, inside, p.n_embd, weight, bias, p.norm.epsilon, room)};
    if (p.hidden) {
        if (inside) *(float4 *)(p.hidden + (u64)blockIdx.x * p.n_embd + i) = v[0];
        return;
    }
    v[0] = v[0] * factor;
    float largest[1] = {largest_of(v[0])};
    block_largest<1>(largest, room + 2 * WARPS, blockDim.x / 32);
    write_fours<1>(&p.out, blockIdx.x, i, inside, p.split != 0, largest, v);
}

// What a hidden unit can be at most: by Cauchy and Schwarz its product is at most the length of its weights times that of
// what goes in, and the unit is its square. Here the largest over all units of what belongs to the weights; `bound` was 0.
// The hidden units are then as exact as any f16 unless all of them are 2^28 times smaller than that.
template <bool INT8> __device__ void hidden_bound(const Matrix &key, const float *hidden_factors, float *bound) {
    u32 lane = threadIdx.x & 31, warp = blockIdx.x * WARPS + threadIdx.x / 32;
    float most = 0.0f;
    for (u32 unit = warp; unit < key.n_outputs; unit += gridDim.x * WARPS) {
        const u8 *weights = key.weights + (u64)unit * key.stride * Format<INT8>::bytes;
        float squares = 0.0f;
        for (u32 k = lane; k < key.stride; k += 32) {
            float w = INT8 ? (float)((const i8 *)weights)[k] : from_half(((const u16 *)weights)[k]);
            squares += w * w;
        }
        float factor = Format<INT8>::output_factor(key, unit);
        most = larger(most, warp_sum(squares) * (factor * factor) * (hidden_factors ? fabsf(hidden_factors[unit]) : 1.0f));
    }
    // Positive floats are in the order of their bits.
    if (lane == 0) atomicMax((int *)bound, __float_as_int(most));
}

#endif
