// What all kernels share: numbers, reductions inside a block, and the formulas of RWKV-4.
//
// No header is included anywhere, so that NVRTC alone compiles this: f16 is handled as unsigned short.

typedef signed char i8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define TENSOR_CORES 1
#else
#define TENSOR_CORES 0
#endif

// Threads of a block of every kernel but the products.
#define THREADS 512
#define WARPS (THREADS / 32)

// Memory of the block, as much as the launch gives it.
extern __shared__ float shared[];

// A launch may begin while the one before it still runs, so that it has its weights when it gets its turn: on
// devices of compute capability 9.0. What earlier launches have written may be read, and anything written, only
// behind wait_for_previous().
__device__ inline void let_next_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ inline void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The batch, in device memory. Spans are numbered 0 .. n_spans, rows 0 .. n_rows, span after span.
struct Batch {
    u32 *tokens;      // a row
    u32 *row_span;    // a row
    u32 *span_first;  // a span: its first row
    u32 *span_rows;   // a span
    u64 *span_state;  // a span: address of its state
    u32 *chunk_span;  // a chunk of WKV
    u32 *chunk_first; // a chunk: its first row
    u32 *chunk_rows;  // a chunk
    u32 *chunk_index; // a chunk: how many of the same span stand before it
    u32 *out_rows;    // an output row: which row it is of
    u64 *out_logits;  // an output row: where its logits are kept, or 0
};

__device__ inline float from_half(u16 half) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    return value;
}

__device__ inline u16 to_half(float value) {
    u16 half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
}

__device__ inline float low_half(u32 pair) { return from_half((u16)(pair & 0xffffu)); }
__device__ inline float high_half(u32 pair) { return from_half((u16)(pair >> 16)); }

// Byte `index` of four bytes that hold q + 128, as the float q: 2^23 + (q + 128) has it in its mantissa.
template <int index> __device__ inline float biased_byte(u32 bytes) {
    u32 bits;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bits) : "r"(bytes), "r"(0x4b000000u), "n"(0x7540 + index));
    return __uint_as_float(bits) - 8388736.0f;
}

// Where input k lies inside the 16 inputs that an int8 row keeps together: the order in which the matrix
// instruction wants them, 0 1 8 9 | 2 3 10 11 | 4 5 12 13 | 6 7 14 15.
__device__ inline u32 int8_place(u32 k) {
    u32 offset = k & 15u;
    return (k & ~15u) + ((offset & 7u) >> 1) * 4u + (offset & 1u) + (offset >> 3) * 2u;
}

// Weights are read once a pass: they shall not push other things out of the first cache.
__device__ inline uint4 load_weights(const void *address) {
    uint4 v;
#if TENSOR_CORES
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(address));
#else
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(address));
#endif
    return v;
}

__device__ inline float warp_sum(float value) {
    for (int step = 16; step > 0; step >>= 1) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

// The larger of two numbers that are not negative. Those are in the order of their bits, and what is not a number is the
// largest.
__device__ inline float larger(float a, float b) { return __uint_as_float(max(__float_as_uint(a), __float_as_uint(b))); }

// The largest of a warp's, none of which is negative.
__device__ inline float warp_largest(float value) {
#if TENSOR_CORES
    u32 bits;
    asm volatile("redux.sync.max.u32 %0, %1, 0xffffffff;" : "=r"(bits) : "r"(__float_as_uint(value)));
    return __uint_as_float(bits);
#else
    for (int step = 16; step > 0; step >>= 1) value = larger(value, __shfl_xor_sync(0xffffffffu, value, step));
    return value;
#endif
}

// Sums, or the largest, of N numbers over all threads of the block, which has `n_warps`; the same in each. Summed in one
// fixed order. `room` holds N * WARPS floats, which no other thread may still be reading.
template <int N> __device__ inline void block_sums(float (&values)[N], float *room, u32 n_warps = WARPS) {
#pragma unroll
    for (int n = 0; n < N; n++) {
        values[n] = warp_sum(values[n]);
        if ((threadIdx.x & 31) == 0) room[n * WARPS + (threadIdx.x >> 5)] = values[n];
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; n++) {
        values[n] = 0.0f;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++)
            if (warp < n_warps) values[n] += room[n * WARPS + warp];
    }
}

template <int N> __device__ inline void block_largest(float (&values)[N], float *room, u32 n_warps = WARPS) {
#pragma unroll
    for (int n = 0; n < N; n++) {
        values[n] = warp_largest(values[n]);
        if ((threadIdx.x & 31) == 0) room[n * WARPS + (threadIdx.x >> 5)] = values[n];
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++)
            if (warp < n_warps) values[n] = larger(values[n], room[n * WARPS + warp]);
}

// Calls load(i) for up to BATCH of a thread's i < n before it calls use(i, loaded) for any of them: so that a
// thread waits for memory once, not once a number.
template <int BATCH, class Load, class Use> __device__ inline void in_batches(u32 n, Load load, Use use) {
    for (u32 first = threadIdx.x; first < n; first += BATCH * THREADS) {
        decltype(load(0u)) loaded[BATCH];
#pragma unroll
        for (int j = 0; j < BATCH; j++) {
            u32 i = first + j * THREADS;
            loaded[j] = load(i < n ? i : n - 1);
        }
#pragma unroll
        for (int j = 0; j < BATCH; j++) {
            u32 i = first + j * THREADS;
            if (i < n) use(i, loaded[j]);
        }
    }
}

#if TENSOR_CORES
__device__ inline u32 shared_address(const void *pointer) {
    u64 address;
    asm("cvta.to.shared.u64 %0, %1;" : "=l"(address) : "l"(pointer));
    return (u32)address;
}

__device__ inline void copy_16(u32 to, const void *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ inline void copy_4(u32 to, const void *from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}
#endif

// n numbers start on their way to shared memory; they are there after end_of_staging().
__device__ inline void stage(float *to, const float *from, u32 n) {
#if TENSOR_CORES
    u32 address = shared_address(to), wide = 0;
    if ((((u64)from | address) & 15) == 0) {
        wide = n / 4;
        for (u32 i = threadIdx.x; i < wide; i += THREADS) copy_16(address + 16 * i, from + 4 * i);
    }
    for (u32 i = 4 * wide + threadIdx.x; i < n; i += THREADS) copy_4(address + 4 * i, from + i);
#else
    in_batches<4>(n, [&](u32 i) { return from[i]; }, [&](u32 i, float x) { to[i] = x; });
#endif
}

// Of this thread's numbers; others may see them behind the next __syncthreads().
__device__ inline void end_of_staging() {
#if TENSOR_CORES
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

struct Norm {
    const float *weight; // (n_embd)
    const float *bias;
    float epsilon;
};

// What a row's norm subtracts and multiplies by.
struct Moments {
    float mean, inverse;
};

// Of N rows in shared memory. `room` holds 2 * N * WARPS floats that no other thread may still be reading.
template <int N> __device__ inline void moments(const float *const (&x)[N], u32 n, float epsilon, float *room, Moments (&out)[N]) {
    float sums[N], squares[N];
#pragma unroll
    for (int row = 0; row < N; row++) {
        sums[row] = 0.0f;
        for (u32 i = threadIdx.x; i < n; i += THREADS) sums[row] += x[row][i];
    }
    block_sums<N>(sums, room);
#pragma unroll
    for (int row = 0; row < N; row++) {
        out[row].mean = sums[row] / (float)n;
        squares[row] = 0.0f;
        for (u32 i = threadIdx.x; i < n; i += THREADS) {
            float d = x[row][i] - out[row].mean;
            squares[row] += d * d;
        }
    }
    block_sums<N>(squares, room + N * WARPS);
#pragma unroll
    for (int row = 0; row < N; row++) out[row].inverse = 1.0f / sqrtf(squares[row] / (float)n + epsilon);
}

__device__ inline float normed(float x, Moments m, float weight, float bias) { return (x - m.mean) * m.inverse * weight + bias; }

__device__ inline float mixed(float present, float previous, float share) {
    return present * share + previous * (1.0f - share);
}

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ inline float squared_relu(float x) {
    x = fmaxf(x, 0.0f);
    return x * x;
}

// WKV of one channel: sums scaled by exp(-exponent_max), appendix of arXiv 2305.13048.
struct Wkv {
    float numerator, denominator, exponent_max;
};

__device__ inline float wkv_output(Wkv s, float key, float value, float bonus) {
    float now = bonus + key;
    float top = fmaxf(s.exponent_max, now);
    float old_share = expf(s.exponent_max - top), new_share = expf(now - top);
    return (old_share * s.numerator + new_share * value) / (old_share * s.denominator + new_share);
}

// The sums of two stretches of tokens, the later of which took `decay` off the earlier.
__device__ inline Wkv wkv_join(Wkv earlier, float decay, Wkv later) {
    float decayed = earlier.exponent_max + decay;
    float top = fmaxf(decayed, later.exponent_max);
    float a = expf(decayed - top), b = expf(later.exponent_max - top);
    Wkv joined = {a * earlier.numerator + b * later.numerator, a * earlier.denominator + b * later.denominator, top};
    return joined;
}

__device__ inline Wkv wkv_next(Wkv s, float key, float value, float decay_log) {
    Wkv token = {value, 1.0f, key};
    return wkv_join(s, decay_log, token);
}

__device__ inline Wkv wkv_load(const float *wkv, u32 n, u32 channel) {
    Wkv s = {wkv[channel], wkv[n + channel], wkv[2 * n + channel]};
    return s;
}

__device__ inline void wkv_store(float *wkv, u32 n, u32 channel, Wkv s) {
    wkv[channel] = s.numerator;
    wkv[n + channel] = s.denominator;
    wkv[2 * n + channel] = s.exponent_max;
}
