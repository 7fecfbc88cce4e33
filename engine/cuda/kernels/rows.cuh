// Many rows: prompts and many sequences at once. Between the matrix products, one block a row.
//
// With tensor cores activations are f16 in two parts, high + low, times a power of two a row, so that no
// squared ReLU can leave the range of f16; without, they are f32.

// Inputs of one product, (rows, stride); the columns beyond the matrix's inputs are 0.
struct Inputs {
#if TENSOR_CORES
    u16 *high;
    u16 *low;
#else
    float *values;
    u16 *unused;
#endif
    float *scales; // a row: what sums are multiplied by
    u32 stride;
};

// What a row is multiplied by, a power of two that brings its largest number to 2^13 .. 2^14; 1 for all 0.
__device__ inline float row_factor(float largest) {
    if (!(largest > 0.0f) || largest > 3.0e38f) return 1.0f;
    int exponent = (int)(__float_as_uint(largest) >> 23) - 127;
    exponent = 13 - exponent;
    exponent = exponent > 120 ? 120 : exponent < -120 ? -120 : exponent;
    return __uint_as_float((u32)(exponent + 127) << 23);
}

// Writes the row that value(i) gives for i < n.
template <class Value>
__device__ void write_inputs(const Inputs &inputs, u32 row, u32 n, float *room, Value value) {
#if TENSOR_CORES
    float largest = 0.0f;
    for (u32 i = threadIdx.x; i < n; i += THREADS) largest = fmaxf(largest, fabsf(value(i)));
    float factor = row_factor(block_max(largest, room));
    for (u32 i = threadIdx.x; i < n; i += THREADS) {
        float scaled = value(i) * factor;
        u16 high = to_half(scaled);
        u64 at = (u64)row * inputs.stride + i;
        inputs.high[at] = high;
        inputs.low[at] = to_half(scaled - from_half(high));
    }
    if (threadIdx.x == 0) inputs.scales[row] = 1.0f / factor;
#else
    for (u32 i = threadIdx.x; i < n; i += THREADS) inputs.values[(u64)row * inputs.stride + i] = value(i);
    if (threadIdx.x == 0) inputs.scales[row] = 1.0f;
    (void)room;
#endif
}

struct Shift {
    const float *x;   // (rows, x_stride)
    Norm norm;
    const float *mix[3];
    const float *factors[3]; // input factors, or null
    Inputs out[3];
    u32 n_outputs;    // how many of them
    float *last;      // (spans, x_stride): the normalised last row of each span
    u32 n_embd, x_stride;
    u32 previous;     // where it goes in a state, by a later launch
    Batch batch;
};

// Norm and token shift; one block a row.
extern "C" __global__ void __launch_bounds__(THREADS) shift_rows(const Shift p) {
    __shared__ float room[WARPS];
    u32 row = blockIdx.x;
    u32 span = p.batch.row_span[row];
    u32 first = p.batch.span_first[span];
    float *now = shared, *before = shared + p.n_embd;
    norm_row(p.x + (u64)row * p.x_stride, p.n_embd, p.norm, now, room);
    if (row == first) {
        const float *previous = (const float *)p.batch.span_state[span] + p.previous;
        for (u32 i = threadIdx.x; i < p.n_embd; i += THREADS) before[i] = previous[i];
        __syncthreads();
    } else {
        norm_row(p.x + (u64)(row - 1) * p.x_stride, p.n_embd, p.norm, before, room);
    }
    if (row + 1 == first + p.batch.span_rows[span])
        for (u32 i = threadIdx.x; i < p.n_embd; i += THREADS) p.last[(u64)span * p.x_stride + i] = now[i];
#pragma unroll
    for (int output = 0; output < 3; output++) {
        if (output >= p.n_outputs) break;
        const float *mix = p.mix[output], *factors = p.factors[output];
        write_inputs(p.out[output], row, p.n_embd, room, [&](u32 i) {
            float value = mixed(now[i], before[i], mix[i]);
            return factors ? value * factors[i] : value;
        });
    }
}

struct Plain {
    const float *x; // (rows, x_stride)
    const float *factors;
    Inputs out;
    u32 n, x_stride;
    // The last normalised rows of the spans go into the states, where `last` is not null.
    const float *last;
    u32 last_stride, n_embd, previous;
    Batch batch;
};

// Rows as they are become inputs; one block a row.
extern "C" __global__ void __launch_bounds__(THREADS) plain_rows(const Plain p) {
    __shared__ float room[WARPS];
    u32 row = blockIdx.x;
    const float *x = p.x + (u64)row * p.x_stride;
    write_inputs(p.out, row, p.n, room, [&](u32 i) { return p.factors ? x[i] * p.factors[i] : x[i]; });
    if (p.last) {
        u32 span = p.batch.row_span[row];
        if (row == p.batch.span_first[span]) {
            float *state = (float *)p.batch.span_state[span] + p.previous;
            const float *last = p.last + (u64)span * p.last_stride;
            for (u32 i = threadIdx.x; i < p.n_embd; i += THREADS) state[i] = last[i];
        }
    }
}

struct WkvRows {
    const float *key, *value, *receptance; // (rows, a_stride)
    const float *decay_log, *bonus;
    const float *factors; // input factors of the output matrix
    Inputs out;
    float *gated;   // (rows, a_stride), when spans have several rows
    float *sums;    // (chunks, 3, a_stride): WKV of a chunk alone
    float *start;   // (spans, 3, a_stride): WKV before the batch
    const float *last; // (spans, last_stride)
    u32 n_attention, a_stride, last_stride, n_embd;
    u32 previous, wkv;
    Batch batch;
};

__device__ inline void keep_last(const WkvRows &p, u32 span) {
    float *state = (float *)p.batch.span_state[span] + p.previous;
    for (u32 i = threadIdx.x; i < p.n_embd; i += blockDim.x) state[i] = p.last[(u64)span * p.last_stride + i];
}

// All spans have one row: one block a row.
extern "C" __global__ void __launch_bounds__(THREADS) wkv_single(const WkvRows p) {
    __shared__ float room[WARPS];
    u32 row = blockIdx.x;
    float *wkv = (float *)p.batch.span_state[row] + p.wkv;
    for (u32 i = threadIdx.x; i < p.n_attention; i += THREADS) {
        u64 at = (u64)row * p.a_stride + i;
        float key = p.key[at], value = p.value[at];
        Wkv s = wkv_load(wkv, p.n_attention, i);
        float gated = sigmoid(p.receptance[at]) * wkv_output(s, key, value, p.bonus[i]);
        shared[i] = p.factors ? gated * p.factors[i] : gated;
        wkv_store(wkv, p.n_attention, i, wkv_next(s, key, value, p.decay_log[i]));
    }
    __syncthreads();
    write_inputs(p.out, row, p.n_attention, room, [&](u32 i) { return shared[i]; });
    keep_last(p, row);
}

// Channels of a block of the next two.
#define WKV_CHANNELS 64

// Spans of several rows, in chunks. First every chunk alone, from nothing; only the first one of a span starts
// from the state. A chunk that is its span's only one has nothing to do here. grid (channels, chunks)
extern "C" __global__ void __launch_bounds__(WKV_CHANNELS) wkv_sums(const WkvRows p) {
    u32 i = blockIdx.x * WKV_CHANNELS + threadIdx.x, chunk = blockIdx.y;
    u32 span = p.batch.chunk_span[chunk], n_rows = p.batch.chunk_rows[chunk];
    if (i >= p.n_attention || n_rows == p.batch.span_rows[span]) return;
    Wkv s = {0.0f, 0.0f, -1e30f};
    if (p.batch.chunk_index[chunk] == 0) {
        s = wkv_load((const float *)p.batch.span_state[span] + p.wkv, p.n_attention, i);
        wkv_store(p.start + (u64)span * 3 * p.a_stride, p.a_stride, i, s);
    }
    u64 at = (u64)p.batch.chunk_first[chunk] * p.a_stride + i;
    for (u32 row = 0; row < n_rows; row++, at += p.a_stride)
        s = wkv_next(s, p.key[at], p.value[at], p.decay_log[i]);
    wkv_store(p.sums + (u64)chunk * 3 * p.a_stride, p.a_stride, i, s);
}

// Then every chunk again, from what the chunks before it add up to. grid (channels, chunks)
extern "C" __global__ void __launch_bounds__(WKV_CHANNELS) wkv_apply(const WkvRows p) {
    u32 i = blockIdx.x * WKV_CHANNELS + threadIdx.x, chunk = blockIdx.y;
    u32 span = p.batch.chunk_span[chunk], n_rows = p.batch.chunk_rows[chunk], index = p.batch.chunk_index[chunk];
    u32 first = p.batch.chunk_first[chunk];
    bool alone = n_rows == p.batch.span_rows[span];
    bool is_last = first + n_rows == p.batch.span_first[span] + p.batch.span_rows[span];
    float *state = (float *)p.batch.span_state[span] + p.wkv;
    if (i < p.n_attention) {
        float decay = p.decay_log[i], bonus = p.bonus[i];
        Wkv s;
        if (alone)
            s = wkv_load(state, p.n_attention, i);
        else if (index == 0)
            s = wkv_load(p.start + (u64)span * 3 * p.a_stride, p.a_stride, i);
        else {
            u32 begin = chunk - index;
            s = wkv_load(p.sums + (u64)begin * 3 * p.a_stride, p.a_stride, i);
            for (u32 before = begin + 1; before < chunk; before++) {
                float faded = decay * (float)p.batch.chunk_rows[before];
                s = wkv_join(s, faded, wkv_load(p.sums + (u64)before * 3 * p.a_stride, p.a_stride, i));
            }
        }
        u64 at = (u64)first * p.a_stride + i;
        for (u32 row = 0; row < n_rows; row++, at += p.a_stride) {
            float key = p.key[at], value = p.value[at];
            p.gated[at] = sigmoid(p.receptance[at]) * wkv_output(s, key, value, bonus);
            s = wkv_next(s, key, value, decay);
        }
        if (is_last) wkv_store(state, p.n_attention, i, s);
    }
    if (is_last && blockIdx.x == 0) keep_last(p, span);
}

struct NormOut {
    const float *x; // (rows, x_stride)
    Norm norm;
    const float *factors;
    Inputs out;    // for the head
    float *hidden; // (output rows, n_embd), where it is not null, instead
    u32 n_embd, x_stride, first;
    Batch batch;
};

// The norm in front of the head, of output rows first + 0, 1, ..; one block each.
extern "C" __global__ void __launch_bounds__(THREADS) norm_out_rows(const NormOut p) {
    __shared__ float room[WARPS];
    u32 row = p.batch.out_rows[p.first + blockIdx.x];
    norm_row(p.x + (u64)row * p.x_stride, p.n_embd, p.norm, shared, room);
    if (p.hidden) {
        for (u32 i = threadIdx.x; i < p.n_embd; i += THREADS) p.hidden[(u64)blockIdx.x * p.n_embd + i] = shared[i];
        return;
    }
    write_inputs(p.out, blockIdx.x, p.n_embd, room, [&](u32 i) { return p.factors ? shared[i] * p.factors[i] : shared[i]; });
}

struct LogitsOut {
    const float *logits; // (output rows, stride)
    u64 *best;           // an output row
    u32 n_vocab, stride, first;
    Batch batch;
};

// The largest logit of each output row, and the row itself to its state's memory; one block each.
extern "C" __global__ void __launch_bounds__(THREADS) logits_out(const LogitsOut p) {
    __shared__ u64 room[WARPS];
    u32 row = p.first + blockIdx.x;
    const float *logits = p.logits + (u64)blockIdx.x * p.stride;
    float *keep = (float *)p.batch.out_logits[row];
    u64 best = 0;
    for (u32 i = threadIdx.x; i < p.n_vocab; i += THREADS) {
        float logit = logits[i];
        u64 key = argmax_key(logit, i);
        best = key > best ? key : best;
        if (keep) keep[i] = logit;
    }
    for (int step = 16; step > 0; step >>= 1) {
        u64 other = __shfl_xor_sync(0xffffffffu, best, step);
        best = other > best ? other : best;
    }
    if ((threadIdx.x & 31) == 0) room[threadIdx.x >> 5] = best;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int warp = 1; warp < WARPS; warp++) best = room[warp] > best ? room[warp] : best;
        p.best[row] = best;
    }
}

struct Tokens {
    u64 *best;
    u32 *tokens; // where the host reads
};

// Hands the tokens with the largest logits to the host, and makes `best` ready for the next pass.
extern "C" __global__ void tokens_out(const Tokens p) {
    u32 row = blockIdx.x * blockDim.x + threadIdx.x;
    p.tokens[row] = ~(u32)p.best[row];
    p.best[row] = 0;
}

struct Begin {
    Batch from; // as the host wrote it; may be the same
    Batch batch;
    Matrix embedding; // weights null: x is there already
    Norm norm;
    float *x; // (rows, x_stride)
    u32 n_embd, x_stride;
    u32 single;  // 1: every span has one row, and the host wrote only tokens, states and logits
    u32 outputs; // with single: 1 when every row is an output row
};

// Embedding and the norm behind it; one block a row.
template <bool INT8> __device__ void begin(const Begin &p) {
    __shared__ float room[WARPS];
    u32 row = blockIdx.x;
    if (p.single && threadIdx.x == 0) {
        p.batch.row_span[row] = row;
        p.batch.span_first[row] = row;
        p.batch.span_rows[row] = 1;
        p.batch.span_state[row] = p.from.span_state[row];
        if (p.outputs) {
            p.batch.out_rows[row] = row;
            p.batch.out_logits[row] = p.from.out_logits[row];
        }
    }
    if (!p.embedding.weights) return;
    u32 token = p.from.tokens[row];
    const u8 *weights = p.embedding.weights + (u64)token * p.embedding.stride * Format<INT8>::bytes;
    float factor = Format<INT8>::output_factor(p.embedding, token);
    for (u32 i = threadIdx.x; i < p.n_embd; i += THREADS) {
        if (INT8)
            shared[i] = (float)((const i8 *)weights)[int8_place(i)] * factor * p.embedding.input_factors[i];
        else
            shared[i] = from_half(((const u16 *)weights)[i]);
    }
    __syncthreads();
    Moments m = moments(shared, p.n_embd, p.norm.epsilon, room);
    float *x = p.x + (u64)row * p.x_stride;
    for (u32 i = threadIdx.x; i < p.n_embd; i += THREADS) x[i] = normed(shared[i], m, p.norm, i);
}
