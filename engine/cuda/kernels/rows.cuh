// Many rows: prompts and many sequences at once. Between the matrix products, one block a row.
//
// With tensor cores activations are f16 times a power of two a row, so that no squared ReLU can leave the range of f16; of
// few rows in two parts, high + low, which are as exact as f32. Without tensor cores they are f32.

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

// Writes N inputs of one row: values(i, v) sets v[n] to number i of the n-th, for i < n_numbers. `split`: with
// low halves. `room` as for block_sums.
template <int N, class Values>
__device__ void write_inputs(const Inputs *inputs, u32 row, u32 n_numbers, bool split, float *room, Values values) {
    float v[N];
#if TENSOR_CORES
    float largest[N];
#pragma unroll
    for (int n = 0; n < N; n++) largest[n] = 0.0f;
    for (u32 i = threadIdx.x; i < n_numbers; i += THREADS) {
        values(i, v);
#pragma unroll
        for (int n = 0; n < N; n++) largest[n] = larger(largest[n], fabsf(v[n]));
    }
    block_largest<N>(largest, room);
#pragma unroll
    for (int n = 0; n < N; n++) {
        largest[n] = row_factor(largest[n]);
        if (threadIdx.x == 0) inputs[n].scales[row] = 1.0f / largest[n];
    }
    for (u32 i = threadIdx.x; i < n_numbers; i += THREADS) {
        values(i, v);
#pragma unroll
        for (int n = 0; n < N; n++) {
            float scaled = v[n] * largest[n];
            u16 high = to_half(scaled);
            u64 at = (u64)row * inputs[n].stride + i;
            inputs[n].high[at] = high;
            if (split) inputs[n].low[at] = to_half(scaled - from_half(high));
        }
    }
#else
    for (u32 i = threadIdx.x; i < n_numbers; i += THREADS) {
        values(i, v);
#pragma unroll
        for (int n = 0; n < N; n++) inputs[n].values[(u64)row * inputs[n].stride + i] = v[n];
    }
    if (threadIdx.x == 0)
        for (int n = 0; n < N; n++) inputs[n].scales[row] = 1.0f;
    (void)room;
    (void)split;
#endif
}

struct Shift {
    const float *x;   // (rows, x_stride)
    Norm norm;
    const float *mix[3];
    const float *factors[3]; // input factors, or null
    Inputs out[3];
    u32 split;
    float *last;      // (spans, x_stride): the normalised last row of each span
    u32 n_embd, x_stride, n_rows, rows_of_block;
    u32 single;       // every span has one row
    u32 staged;
    u32 behind_products; // which is the launch in front of this one
    u32 previous;     // where it goes in a state, by a later launch
    // Of channel mixing, in shift_single: a row's hidden units divided by the square of what goes into their product are
    // at most *hidden_bound, which gives their scale before they are there.
    const float *hidden_bound;
    float *hidden_scales; // a row
    Batch batch;
};

// Norms a row of shared memory in place.
__device__ inline void norm_in_place(float *x, u32 n, const float *weight, const float *bias, float epsilon, float *room) {
    const float *const rows[1] = {x};
    Moments m[1];
    moments<1>(rows, n, epsilon, room, m);
    for (u32 i = threadIdx.x; i < n; i += THREADS) x[i] = normed(x[i], m[0], weight[i], bias[i]);
}

// Norm and token shift. A block takes some rows in order, so that the norm of one row serves the next, too.
// `staged`: shared memory has room for all vectors; else they are read from where they are.
template <int N> __device__ void shift_rows(const Shift &p) {
    // Rows that follow each other use other parts: nobody may still be reading the one that is written.
    __shared__ float room[2][(2 + N) * WARPS];
    let_next_begin();
    u32 n = p.n_embd, first_row = blockIdx.x * p.rows_of_block;
    u32 end = min(first_row + p.rows_of_block, p.n_rows);
    float *now = shared, *before = shared + n, *next = shared + 2 * n, *vectors = shared + 3 * n;
    const float *weight = p.norm.weight, *bias = p.norm.bias;
    const float *mix[N], *factors[N];
#pragma unroll
    for (int output = 0; output < N; output++) mix[output] = p.mix[output], factors[output] = p.factors[output];
    if (p.staged) {
        stage(vectors, weight, n);
        stage(vectors + n, bias, n);
        weight = vectors, bias = vectors + n;
#pragma unroll
        for (int output = 0; output < N; output++) {
            stage(vectors + (2 + output) * n, mix[output], n);
            mix[output] = vectors + (2 + output) * n;
            if (factors[output]) {
                stage(vectors + (2 + N + output) * n, factors[output], n);
                factors[output] = vectors + (2 + N + output) * n;
            }
        }
    }
    wait_for_previous();
    u32 span = p.single ? first_row : p.batch.row_span[first_row];
    u32 span_first = p.single ? first_row : p.batch.span_first[span], span_rows = p.single ? 1 : p.batch.span_rows[span];
    stage(now, p.x + (u64)first_row * p.x_stride, n);
    bool starts = first_row == span_first;
    if (starts)
        stage(before, (const float *)p.batch.span_state[span] + p.previous, n);
    else
        stage(before, p.x + (u64)(first_row - 1) * p.x_stride, n);
    end_of_staging();
    __syncthreads();
    if (!starts) norm_in_place(before, n, weight, bias, p.norm.epsilon, room[1]);
    for (u32 row = first_row; row < end; row++) {
        float *here = room[row & 1];
        bool more = row + 1 < end;
        if (more) stage(next, p.x + (u64)(row + 1) * p.x_stride, n);
        norm_in_place(now, n, weight, bias, p.norm.epsilon, here);
        if (row + 1 == span_first + span_rows)
            for (u32 i = threadIdx.x; i < n; i += THREADS) p.last[(u64)span * p.x_stride + i] = now[i];
        write_inputs<N>(p.out, row, n, p.split != 0, here + 2 * WARPS, [&](u32 i, float(&v)[N]) {
            float x = now[i], previous = before[i];
#pragma unroll
            for (int output = 0; output < N; output++) {
                v[output] = mixed(x, previous, mix[output][i]);
                if (factors[output]) v[output] *= factors[output][i];
            }
        });
        if (!more) break;
        float *free = before;
        before = now, now = next, next = free;
        end_of_staging();
        __syncthreads();
        if (row + 1 == span_first + span_rows) {
            span++;
            span_first = p.single ? span : p.batch.span_first[span], span_rows = p.single ? 1 : p.batch.span_rows[span];
            stage(before, (const float *)p.batch.span_state[span] + p.previous, n);
            end_of_staging();
            __syncthreads();
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) shift_rows_3(const Shift p) { shift_rows<3>(p); }
extern "C" __global__ void __launch_bounds__(THREADS) shift_rows_2(const Shift p) { shift_rows<2>(p); }

struct Plain {
    const float *x; // (rows, x_stride)
    const float *factors;
    Inputs out;
    u32 split;
    u32 n, x_stride;
    u32 single; // every span has one row
    // The last normalised rows of the spans go into the states, where `last` is not null.
    const float *last;
    u32 last_stride, n_embd, previous;
    Batch batch;
};

// Rows as they are become inputs; one block a row.
extern "C" __global__ void __launch_bounds__(THREADS) plain_rows(const Plain p) {
    __shared__ float room[WARPS];
    let_next_begin();
    u32 row = blockIdx.x;
    float *factors = shared + p.n;
    if (p.factors) stage(factors, p.factors, p.n);
    wait_for_previous();
    stage(shared, p.x + (u64)row * p.x_stride, p.n);
    if (p.last) {
        u32 span = p.single ? row : p.batch.row_span[row];
        if (p.single || row == p.batch.span_first[span]) {
            float *state = (float *)p.batch.span_state[span] + p.previous;
            const float *last = p.last + (u64)span * p.last_stride;
            in_batches<4>(p.n_embd, [&](u32 i) { return last[i]; }, [&](u32 i, float x) { state[i] = x; });
        }
    }
    end_of_staging();
    __syncthreads();
    write_inputs<1>(&p.out, row, p.n, p.split != 0, room,
                    [&](u32 i, float(&v)[1]) { v[0] = p.factors ? shared[i] * factors[i] : shared[i]; });
}

struct WkvRows {
    const float *key, *value, *receptance; // (rows, a_stride)
    const float *decay_log, *bonus;
    const float *factors; // input factors of the output matrix
    Inputs out;
    u32 split;
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
    const float *last = p.last + (u64)span * p.last_stride;
    in_batches<4>(p.n_embd, [&](u32 i) { return last[i]; }, [&](u32 i, float x) { state[i] = x; });
}

// All spans have one row: one block a row.
extern "C" __global__ void __launch_bounds__(THREADS) wkv_single(const WkvRows p) {
    __shared__ float room[WARPS];
    struct Channel {
        float key, value, receptance, bonus, decay_log, factor;
        Wkv wkv;
    };
    let_next_begin();
    wait_for_previous();
    u32 row = blockIdx.x, n = p.n_attention;
    float *wkv = (float *)p.batch.span_state[row] + p.wkv;
    in_batches<4>(
        n,
        [&](u32 i) {
            u64 at = (u64)row * p.a_stride + i;
            Channel c = {p.key[at], p.value[at], p.receptance[at], p.bonus[i], p.decay_log[i],
                         p.factors ? p.factors[i] : 1.0f, wkv_load(wkv, n, i)};
            return c;
        },
        [&](u32 i, const Channel &c) {
            shared[i] = sigmoid(c.receptance) * wkv_output(c.wkv, c.key, c.value, c.bonus) * c.factor;
            wkv_store(wkv, n, i, wkv_next(c.wkv, c.key, c.value, c.decay_log));
        });
    keep_last(p, row);
    __syncthreads();
    write_inputs<1>(&p.out, row, n, p.split != 0, room, [&](u32 i, float(&v)[1]) { v[0] = shared[i]; });
}

// Channels of a block of the next two.
#define WKV_CHANNELS 64
// Tokens whose numbers are on their way at once.
#define WKV_BATCH 8

// Spans of several rows, in chunks. First every chunk alone, from nothing; only the first one of a span starts
// from the state. A chunk that is its span's only one has nothing to do here. grid (channels, chunks)
extern "C" __global__ void __launch_bounds__(WKV_CHANNELS) wkv_sums(const WkvRows p) {
    let_next_begin();
    wait_for_previous();
    u32 i = blockIdx.x * WKV_CHANNELS + threadIdx.x, chunk = blockIdx.y;
    u32 span = p.batch.chunk_span[chunk], n_rows = p.batch.chunk_rows[chunk];
    if (i >= p.n_attention || n_rows == p.batch.span_rows[span]) return;
    Wkv s = {0.0f, 0.0f, -1e30f};
    if (p.batch.chunk_index[chunk] == 0) {
        s = wkv_load((const float *)p.batch.span_state[span] + p.wkv, p.n_attention, i);
        wkv_store(p.start + (u64)span * 3 * p.a_stride, p.a_stride, i, s);
    }
    u64 at = (u64)p.batch.chunk_first[chunk] * p.a_stride + i;
    float decay = p.decay_log[i];
    for (u32 row = 0; row < n_rows; row += WKV_BATCH, at += (u64)WKV_BATCH * p.a_stride) {
        float key[WKV_BATCH], value[WKV_BATCH];
#pragma unroll
        for (int j = 0; j < WKV_BATCH; j++) {
            u64 here = at + (u64)(row + j < n_rows ? j : 0) * p.a_stride;
            key[j] = p.key[here], value[j] = p.value[here];
        }
#pragma unroll
        for (int j = 0; j < WKV_BATCH; j++)
            if (row + j < n_rows) s = wkv_next(s, key[j], value[j], decay);
    }
    wkv_store(p.sums + (u64)chunk * 3 * p.a_stride, p.a_stride, i, s);
}

// Then every chunk again, from what the chunks before it add up to. grid (channels, chunks)
extern "C" __global__ void __launch_bounds__(WKV_CHANNELS) wkv_apply(const WkvRows p) {
    let_next_begin();
    wait_for_previous();
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
            const float *sums = p.sums + (u64)begin * 3 * p.a_stride;
            s = wkv_load(sums, p.a_stride, i);
            for (u32 before = 1; before < index; before += WKV_BATCH) {
                Wkv next[WKV_BATCH];
#pragma unroll
                for (int j = 0; j < WKV_BATCH; j++) {
                    u32 here = before + j < index ? before + j : 0;
                    next[j] = wkv_load(sums + (u64)here * 3 * p.a_stride, p.a_stride, i);
                }
#pragma unroll
                for (int j = 0; j < WKV_BATCH; j++)
                    // All chunks but a span's last have as many rows as its first.
                    if (before + j < index) s = wkv_join(s, decay * (float)p.batch.chunk_rows[begin], next[j]);
            }
        }
        u64 at = (u64)first * p.a_stride + i;
        for (u32 row = 0; row < n_rows; row += WKV_BATCH, at += (u64)WKV_BATCH * p.a_stride) {
            float key[WKV_BATCH], value[WKV_BATCH], receptance[WKV_BATCH];
#pragma unroll
            for (int j = 0; j < WKV_BATCH; j++) {
                u64 here = at + (u64)(row + j < n_rows ? j : 0) * p.a_stride;
                key[j] = p.key[here], value[j] = p.value[here], receptance[j] = p.receptance[here];
            }
#pragma unroll
            for (int j = 0; j < WKV_BATCH; j++) {
                if (row + j < n_rows) {
                    p.gated[at + (u64)j * p.a_stride] = sigmoid(receptance[j]) * wkv_output(s, key[j], value[j], bonus);
                    s = wkv_next(s, key[j], value[j], decay);
                }
            }
        }
        if (is_last) wkv_store(state, p.n_attention, i, s);
    }
    if (is_last && blockIdx.x == 0) {
        float *previous = (float *)p.batch.span_state[span] + p.previous;
        for (u32 d = threadIdx.x; d < p.n_embd; d += WKV_CHANNELS) previous[d] = p.last[(u64)span * p.last_stride + d];
    }
}

struct NormOut {
    const float *x; // (rows, x_stride)
    Norm norm;
    const float *factors;
    Inputs out;    // for the head
    u32 split;
    float *hidden; // (output rows, n_embd), where it is not null, instead
    u32 n_embd, x_stride, first;
    u32 behind_products; // which is the launch in front of this one
    Batch batch;
};

// The norm in front of the head, of output rows first + 0, 1, ..; one block each.
extern "C" __global__ void __launch_bounds__(THREADS) norm_out_rows(const NormOut p) {
    __shared__ float room[3 * WARPS];
    let_next_begin();
    float *weight = shared + p.n_embd, *bias = weight + p.n_embd;
    stage(weight, p.norm.weight, p.n_embd);
    stage(bias, p.norm.bias, p.n_embd);
    wait_for_previous();
    u32 row = p.batch.out_rows[p.first + blockIdx.x];
    stage(shared, p.x + (u64)row * p.x_stride, p.n_embd);
    end_of_staging();
    __syncthreads();
    norm_in_place(shared, p.n_embd, weight, bias, p.norm.epsilon, room);
    if (p.hidden) {
        for (u32 i = threadIdx.x; i < p.n_embd; i += THREADS) p.hidden[(u64)blockIdx.x * p.n_embd + i] = shared[i];
        return;
    }
    write_inputs<1>(&p.out, blockIdx.x, p.n_embd, p.split != 0, room + 2 * WARPS,
                    [&](u32 i, float(&v)[1]) { v[0] = p.factors ? shared[i] * p.factors[i] : shared[i]; });
}

// Of the vocabularies of RWKV-4, a thread's share of a row's part.
#define LOGITS_BATCH 16

struct LogitsOut {
    const float *logits; // (output rows, stride)
    u32 kept;            // 1: rows that go to their state's memory are there already
    u64 *best;           // an output row
    u32 n_vocab, stride, first;
    Batch batch;
};

// The largest logit of each output row, and the row itself to its state's memory. grid (parts of a row, rows);
// `best` was 0. Behind products.
extern "C" __global__ void __launch_bounds__(THREADS) logits_out(const LogitsOut p) {
    let_next_begin();
    u32 row = p.first + blockIdx.y;
    const float *logits = p.logits + (u64)blockIdx.y * p.stride;
    float *keep = (float *)p.batch.out_logits[row];
    if (p.kept && keep) logits = keep, keep = nullptr;
    u32 part = (p.n_vocab + gridDim.x - 1) / gridDim.x, start = blockIdx.x * part;
    wait_for_previous();
    if (start >= p.n_vocab) return;
    u64 best = 0;
    in_batches<LOGITS_BATCH>(
        min(part, p.n_vocab - start), [&](u32 i) { return logits[start + i]; },
        [&](u32 i, float logit) {
            u64 key = argmax_key(logit, start + i);
            best = key > best ? key : best;
            if (keep) keep[start + i] = logit;
        });
    for (int step = 16; step > 0; step >>= 1) {
        u64 other = __shfl_xor_sync(0xffffffffu, best, step);
        best = other > best ? other : best;
    }
    if ((threadIdx.x & 31) == 0) atomicMax(p.best + row, best);
}

struct Tokens {
    u64 *best;
    u32 *tokens; // where the host reads
};

// Hands the tokens with the largest logits to the host, and makes `best` ready for the next pass.
extern "C" __global__ void tokens_out(const Tokens p) {
    let_next_begin();
    wait_for_previous();
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
    __shared__ float room[2 * WARPS];
    let_next_begin();
    float *weight = shared + p.n_embd, *bias = weight + p.n_embd;
    if (p.embedding.weights) {
        stage(weight, p.norm.weight, p.n_embd);
        stage(bias, p.norm.bias, p.n_embd);
    }
    wait_for_previous();
    u32 row = blockIdx.x;
    // All that is read of the host's memory is on its way at once.
    bool first = p.single && threadIdx.x == 0;
    u64 state = first ? p.from.span_state[row] : 0, logits = first && p.outputs ? p.from.out_logits[row] : 0;
    u32 token = p.embedding.weights ? p.from.tokens[row] : 0;
    if (first) {
        p.batch.row_span[row] = row;
        p.batch.span_first[row] = row;
        p.batch.span_rows[row] = 1;
        p.batch.span_state[row] = state;
        if (p.outputs) {
            p.batch.out_rows[row] = row;
            p.batch.out_logits[row] = logits;
        }
    }
    if (!p.embedding.weights) return;
    const u8 *weights = p.embedding.weights + (u64)token * p.embedding.stride * Format<INT8>::bytes;
    float factor = Format<INT8>::output_factor(p.embedding, token);
    in_batches<4>(
        p.n_embd,
        [&](u32 i) {
            return INT8 ? (float)((const i8 *)weights)[int8_place(i)] * p.embedding.input_factors[i]
                        : from_half(((const u16 *)weights)[i]);
        },
        [&](u32 i, float x) { shared[i] = x * factor; });
    end_of_staging();
    __syncthreads();
    norm_in_place(shared, p.n_embd, weight, bias, p.norm.epsilon, room);
    for (u32 i = threadIdx.x; i < p.n_embd; i += THREADS) p.x[(u64)row * p.x_stride + i] = shared[i];
}
