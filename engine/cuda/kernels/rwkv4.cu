// The kernels of the CUDA plugin: RWKV-4 with f16 or int8 weights, everything else in f32.
//
// build.py makes the modules from this file: for compute capability 6.1 on, for 8.0 on with its tensor cores,
// and for 9.0 on, where a launch may begin before the one in front of it ends, and a token of one sequence is one launch;
// each for f16 and for int8. src/pass.rs and src/resident.rs call them, src/params.rs has the same structs.

#include "common.cuh"
#include "decode.cuh"
#include "rows.cuh"
#include "single.cuh"
#include "tensor.cuh"
#include "products.cuh"
#include "ring.cuh"
#include "resident.cuh"

// Of one row, a multiprocessor has room for the blocks of two launches: one begins while the other ends.
#define DECODE(kernel, Params, rows)                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS, rows == 1 ? 2 : 1) kernel##_##rows(const Params p) {         \
        kernel<INT8_WEIGHTS, rows>(p);                                                                                 \
    }
#define DECODE_HEAD(rows)                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS) head_##rows(const Head p) { head<INT8_WEIGHTS, rows>(p); }
#define DECODE_ALL(kernel, Params) DECODE(kernel, Params, 1) DECODE(kernel, Params, 2) DECODE(kernel, Params, 4)

DECODE_ALL(time_in, TimeIn)
DECODE_ALL(time_out, TimeOut)
DECODE_ALL(channel_in, ChannelIn)
DECODE_ALL(channel_out, ChannelOut)
DECODE_HEAD(1) DECODE_HEAD(2) DECODE_HEAD(4)

// And the warps that bring weights.
extern "C" __global__ void __launch_bounds__(THREADS + 128, 1) token(const Resident p) { resident<INT8_WEIGHTS>(p); }

extern "C" __global__ void __launch_bounds__(THREADS) begin_rows(const Begin p) { begin<INT8_WEIGHTS>(p); }

#if TENSOR_CORES
struct HiddenBound {
    Matrix key;
    const float *hidden_factors;
    float *bound;
};

extern "C" __global__ void __launch_bounds__(THREADS) hidden_bound_of(const HiddenBound p) {
    hidden_bound<INT8_WEIGHTS>(p.key, p.hidden_factors, p.bound);
}
#endif

struct Repack {
    const u8 *from; // (n_rows, n_cols), the first of which is row `first_row` of the stored matrix
    u8 *to;         // rows of `stride` weights
    u32 n_rows, n_cols, first_row, stride;
    u32 transpose;  // 1: stored one row an input
};

// Weights as a file has them become weights as the kernels read them.
extern "C" __global__ void repack(const Repack p) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (u64)p.n_rows * p.n_cols) return;
    u32 row = (u32)(i / p.n_cols) + p.first_row, column = (u32)(i % p.n_cols);
    u32 o = p.transpose ? column : row, k = p.transpose ? row : column;
    if (INT8_WEIGHTS)
        p.to[(u64)o * p.stride + int8_place(k)] = p.from[i];
    else
        ((u16 *)p.to)[(u64)o * p.stride + k] = ((const u16 *)p.from)[i];
}

// For measuring: reads n 16-byte words, and a kernel that does nothing.
extern "C" __global__ void __launch_bounds__(512) read_all(const uint4 *words, u64 n, u32 *sink) {
    u32 mix = 0;
    u64 step = (u64)gridDim.x * 512;
    u64 i = (u64)blockIdx.x * 512 + threadIdx.x;
    for (; i + 3 * step < n; i += 4 * step) {
        uint4 a = load_weights(words + i), b = load_weights(words + i + step);
        uint4 c = load_weights(words + i + 2 * step), d = load_weights(words + i + 3 * step);
        mix ^= a.x ^ b.y ^ c.z ^ d.w;
    }
    if (mix == 0x12345679u) *sink = mix;
}

extern "C" __global__ void nothing(u32 *sink) {
    if (sink == nullptr) return;
}

// Multiply-adds of the kind that long prompts use: `rounds` times 16 of them a warp (or thread), on registers.
extern "C" __global__ void __launch_bounds__(256) arithmetic(u32 rounds, float *sink) {
#if TENSOR_CORES
    float sums[16][4] = {};
    u32 a[4] = {threadIdx.x, 1, 2, 3};
    for (u32 round = 0; round < rounds; round++)
#pragma unroll
        for (int i = 0; i < 16; i++) multiply_add(sums[i], a, a[i & 3], a[i + 1 & 3]);
    float sum = 0.0f;
    for (int i = 0; i < 16; i++) sum += sums[i][0] + sums[i][1] + sums[i][2] + sums[i][3];
#else
    float sums[16], factor = 1.0f + threadIdx.x * 1e-9f;
    for (int i = 0; i < 16; i++) sums[i] = (float)i;
    for (u32 round = 0; round < rounds; round++)
#pragma unroll
        for (int i = 0; i < 16; i++) sums[i] = sums[i] * factor + factor;
    float sum = 0.0f;
    for (int i = 0; i < 16; i++) sum += sums[i];
#endif
    if (sum == 12345.678f) *sink = sum;
}
