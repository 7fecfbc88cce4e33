// Few rows (1, 2 or up to 4), each of a sequence of its own: a layer is four launches.
//
// Every warp computes whole outputs and holds its first weights in flight before it looks at the
// activations, which each block prepares for itself in shared memory: the norm and token shift of a row are
// cheaper to do again in every block than to hand over through another launch. Numbers that a block still
// reads are never overwritten in the same launch: the launch after it writes the state.

// One matrix as it lies on the device: n_outputs rounded up to 256 rows of `stride` weights, all 0 beyond the
// real ones. weight[o, k] = value[o, k] * output_factor[o] * input_factor[k]; f16 has no factors.
struct Matrix {
    const u8 *weights;
    const float *input_factors;
    const float *output_factors;
    u32 n_outputs;
    u32 stride;
};

// f16: eight inputs in 16 bytes; int8: sixteen, in the order of int8_place.
template <bool INT8> struct Format {
    static const u32 bytes = INT8 ? 1 : 2;
    static const u32 lane_inputs = 16 / bytes;
    static const u32 step_inputs = 32 * lane_inputs;

    // Where a decode block keeps input k, so that the 32 lanes of a warp read four floats each side by side.
    __device__ static u32 slot(u32 k) {
        u32 step = k / step_inputs, lane = k % step_inputs / lane_inputs;
        u32 offset = INT8 ? int8_place(k) & 15u : k & 7u;
        return step * step_inputs + (offset >> 2) * 128u + lane * 4u + (offset & 3u);
    }

    __device__ static float input_factor(const Matrix &m, u32 k) { return INT8 ? m.input_factors[k] : 1.0f; }
    __device__ static float output_factor(const Matrix &m, u32 o) { return INT8 ? m.output_factors[o] : 1.0f; }

    // sums[row] += the products of 16 bytes of weights with each row's activations. `lane_slots` is where
    // this lane's first four activations of the step are.
    template <int ROWS>
    __device__ static void multiply(uint4 w, const float *lane_slots, u32 row_stride, float (&sums)[ROWS]) {
        u32 words[4] = {w.x, w.y, w.z, w.w};
        if (INT8) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                u32 bytes = words[j] ^ 0x80808080u;
                float a = biased_byte<0>(bytes), b = biased_byte<1>(bytes);
                float c = biased_byte<2>(bytes), d = biased_byte<3>(bytes);
#pragma unroll
                for (int row = 0; row < ROWS; row++) {
                    float4 x = *(const float4 *)(lane_slots + row * row_stride + j * 128);
                    sums[row] += a * x.x + b * x.y + c * x.z + d * x.w;
                }
            }
        } else {
#pragma unroll
            for (int j = 0; j < 2; j++) {
                float a = low_half(words[2 * j]), b = high_half(words[2 * j]);
                float c = low_half(words[2 * j + 1]), d = high_half(words[2 * j + 1]);
#pragma unroll
                for (int row = 0; row < ROWS; row++) {
                    float4 x = *(const float4 *)(lane_slots + row * row_stride + j * 128);
                    sums[row] += a * x.x + b * x.y + c * x.z + d * x.w;
                }
            }
        }
    }
};

// 16-byte loads that a lane has in flight for each output of its warp.
#define AHEAD 4

// A block's share of one matrix: groups of WARPS * OUTPUTS outputs, every n_blocks-th one.
template <bool INT8, int OUTPUTS> struct Reader {
    typedef Format<INT8> F;
    const Matrix &matrix;
    u32 group, group_step, n_groups, n_steps, lane, warp;
    uint4 ready[OUTPUTS][AHEAD];

    __device__ Reader(const Matrix &m, u32 block, u32 n_blocks)
        : matrix(m), group(block), group_step(n_blocks), n_groups((m.n_outputs + WARPS * OUTPUTS - 1) / (WARPS * OUTPUTS)),
          n_steps((m.stride + F::step_inputs - 1) / F::step_inputs), lane(threadIdx.x & 31), warp(threadIdx.x >> 5) {
        load(ready, group, 0);
    }

    __device__ u32 first_output(u32 group) const { return (group * WARPS + warp) * OUTPUTS; }

    __device__ void load(uint4 (&to)[OUTPUTS][AHEAD], u32 group, u32 step) const {
#pragma unroll
        for (int output = 0; output < OUTPUTS; output++) {
            const u8 *row = matrix.weights + (u64)(first_output(group) + output) * matrix.stride * F::bytes;
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                u32 k = (step + i) * F::step_inputs + lane * F::lane_inputs;
                bool inside = group < n_groups && k < matrix.stride;
                to[output][i] = inside ? load_weights(row + (u64)k * F::bytes) : make_uint4(0, 0, 0, 0);
            }
        }
    }

    // finish(output, prepared, sums) is called by every lane with the sums of all rows of one output, and with
    // what prepare(output) gave when the group began.
    template <int ROWS, class Prepare, class Finish>
    __device__ void run(const float *slots, u32 row_stride, Prepare prepare, Finish finish) {
        for (; group < n_groups; group += group_step) {
            float sums[OUTPUTS][ROWS];
            decltype(prepare(0u)) prepared[OUTPUTS];
#pragma unroll
            for (int output = 0; output < OUTPUTS; output++) {
                u32 o = first_output(group) + output;
                prepared[output] = prepare(o < matrix.n_outputs ? o : 0);
            }
#pragma unroll
            for (int output = 0; output < OUTPUTS; output++)
#pragma unroll
                for (int row = 0; row < ROWS; row++) sums[output][row] = 0.0f;
            for (u32 step = 0; step < n_steps; step += AHEAD) {
                bool more = step + AHEAD < n_steps;
                uint4 next[OUTPUTS][AHEAD];
                if (more || group + group_step < n_groups)
                    load(next, more ? group : group + group_step, more ? step + AHEAD : 0);
#pragma unroll
                for (int i = 0; i < AHEAD; i++) {
                    if (step + i < n_steps) {
                        const float *lane_slots = slots + (step + i) * F::step_inputs + lane * 4;
#pragma unroll
                        for (int output = 0; output < OUTPUTS; output++)
                            F::template multiply<ROWS>(ready[output][i], lane_slots, row_stride, sums[output]);
                    }
                }
#pragma unroll
                for (int output = 0; output < OUTPUTS; output++)
#pragma unroll
                    for (int i = 0; i < AHEAD; i++) ready[output][i] = next[output][i];
            }
#pragma unroll
            for (int output = 0; output < OUTPUTS; output++) {
                u32 o = first_output(group) + output;
#pragma unroll
                for (int row = 0; row < ROWS; row++)
                    sums[output][row] = warp_sum(sums[output][row]);
                if (o < matrix.n_outputs) finish(o, prepared[output], sums[output]);
            }
        }
    }
};

// Brings what the next launches read first into the second cache, while this one computes: memory never idles.
struct Ahead {
    const u8 *weights, *vectors;
    u32 weight_lines, vector_lines; // of 128 bytes
    u32 state;                      // where in a state
    u32 state_lines;                // of 128 bytes, for each row
};

__device__ inline void fetch(const u8 *start, u32 lines, u32 thread, u32 n_threads) {
#pragma unroll 1
    for (u32 line = thread; line < lines; line += n_threads)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(start + (u64)line * 128u));
}

// When the block has all that it waits for itself: what is fetched must not stand in front of that.
__device__ inline void fetch_ahead(const Ahead &ahead, const Batch &batch, u32 n_rows) {
    u32 thread = blockIdx.x * THREADS + threadIdx.x, n_threads = gridDim.x * THREADS;
    fetch(ahead.vectors, ahead.vector_lines, thread, n_threads);
    fetch(ahead.weights, ahead.weight_lines, thread, n_threads);
    if (ahead.state_lines > 0 && blockIdx.x < n_rows)
        fetch((const u8 *)((const float *)batch.span_state[blockIdx.x] + ahead.state), ahead.state_lines, threadIdx.x, THREADS);
}

// Which matrix a block works on: the first n_blocks[0] blocks on the first, and so on.
__device__ inline u32 share_of(u32 block, const u32 *n_blocks, u32 &first) {
    u32 second = n_blocks[0], third = second + n_blocks[1];
    u32 index = block < second ? 0 : block < third ? 1 : 2;
    first = index == 0 ? 0 : index == 1 ? second : third;
    return index;
}

struct TimeIn {
    const float *x; // (rows, x_stride) residual stream
    Norm norm;
    const float *mix[3];
    Matrix matrix[3]; // key, value, receptance
    u32 n_blocks[3];
    float *out[3];    // (rows, a_stride)
    float *normed;    // (rows, x_stride): what att_previous becomes
    u32 n_embd, x_stride, a_stride, n_rows;
    u32 previous;     // where att_previous of this layer is in a state
    Batch batch;
    Ahead ahead;
};

template <bool INT8> __device__ inline u32 slots_of(u32 stride) {
    return (stride + Format<INT8>::step_inputs - 1) / Format<INT8>::step_inputs * Format<INT8>::step_inputs;
}

// Slots of inputs that there are not hold 0, and so do rows that there are not.
template <bool INT8, int ROWS> __device__ inline void no_input(float *slots, u32 slot_stride, u32 n, u32 n_rows) {
#pragma unroll
    for (int row = 0; row < ROWS; row++)
        for (u32 i = (row < n_rows ? n : 0) + threadIdx.x; i < slot_stride; i += THREADS)
            slots[row * slot_stride + Format<INT8>::slot(i)] = 0.0f;
}

// The present input of a matrix: norm, token shift, input factors; in slots, all of which are written. Everything
// that this needs is on its way at once. `shared` has room for the slots, two more rows for each, and four vectors.
template <bool INT8, int ROWS, class P>
__device__ void shifted_inputs(const P &p, const Matrix &matrix, const float *mix, bool keep, float *slots, u32 slot_stride,
                               float *room) {
    u32 n = p.n_embd;
    float *x = slots + ROWS * slot_stride, *previous = x + ROWS * n, *vectors = previous + ROWS * n;
    stage(vectors, p.norm.weight, n);
    stage(vectors + n, p.norm.bias, n);
    stage(vectors + 2 * n, mix, n);
    if (INT8) stage(vectors + 3 * n, matrix.input_factors, n);
    no_input<INT8, ROWS>(slots, slot_stride, n, p.n_rows);
    wait_for_previous();
    for (u32 row = 0; row < ROWS && row < p.n_rows; row++) {
        stage(x + row * n, p.x + row * p.x_stride, n);
        stage(previous + row * n, (const float *)p.batch.span_state[row] + p.previous, n);
    }
    end_of_staging();
    __syncthreads();
    const float *rows[ROWS];
#pragma unroll
    for (int row = 0; row < ROWS; row++) rows[row] = x + (row < p.n_rows ? row : 0) * n;
    Moments m[ROWS];
    moments<ROWS>(rows, n, p.norm.epsilon, room, m);
    for (u32 i = threadIdx.x; i < n; i += THREADS) {
        float weight = vectors[i], bias = vectors[n + i], share = vectors[2 * n + i];
        float factor = INT8 ? vectors[3 * n + i] : 1.0f;
        u32 slot = Format<INT8>::slot(i);
#pragma unroll
        for (int row = 0; row < ROWS; row++) {
            if (row < p.n_rows) {
                float now = normed(x[row * n + i], m[row], weight, bias);
                slots[row * slot_stride + slot] = mixed(now, previous[row * n + i], share) * factor;
                if (keep) p.normed[row * p.x_stride + i] = now;
            }
        }
    }
    __syncthreads();
}

template <bool INT8, int ROWS> __device__ void time_in(const TimeIn &p) {
    let_next_begin();
    __shared__ float room[2 * ROWS * WARPS];
    u32 first;
    u32 index = share_of(blockIdx.x, p.n_blocks, first);
    const Matrix &matrix = p.matrix[index];
    Reader<INT8, 1> reader(matrix, blockIdx.x - first, p.n_blocks[index]);
    u32 slot_stride = slots_of<INT8>(matrix.stride);
    shifted_inputs<INT8, ROWS>(p, matrix, p.mix[index], blockIdx.x == 0, shared, slot_stride, room);
    fetch_ahead(p.ahead, p.batch, p.n_rows);
    float *out = p.out[index];
    reader.template run<ROWS>(
        shared, slot_stride, [&](u32 o) { return Format<INT8>::output_factor(matrix, o); },
        [&](u32 o, float factor, const float *sums) {
            if ((threadIdx.x & 31) == 0)
                for (u32 row = 0; row < ROWS; row++)
                    if (row < p.n_rows) out[row * p.a_stride + o] = sums[row] * factor;
        });
}

// What an output of a layer's half is added to, loaded before the sums are there.
template <int ROWS> struct Residual {
    float factor, x[ROWS], gate[ROWS], normed[ROWS];
};

template <bool INT8, int ROWS, class P> __device__ Residual<ROWS> residual(const P &p, u32 o, const float *gate) {
    Residual<ROWS> before;
    before.factor = Format<INT8>::output_factor(p.matrix, o);
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
        u32 at = (row < p.n_rows ? row : 0) * p.x_stride + o;
        before.x[row] = p.x[at];
        before.gate[row] = gate ? gate[at] : 1.0f;
        before.normed[row] = p.normed[at];
    }
    return before;
}

// x += gate * sum, and the normalised row goes into the state.
template <int ROWS, class P> __device__ void add_residual(const P &p, u32 o, const Residual<ROWS> &before, const float *sums) {
    u32 lane = threadIdx.x & 31;
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
        if (row < p.n_rows) {
            if (lane == 0) p.x[row * p.x_stride + o] = before.x[row] + before.gate[row] * (sums[row] * before.factor);
            if (lane == 1) ((float *)p.batch.span_state[row])[p.previous + o] = before.normed[row];
        }
    }
}

struct TimeOut {
    const float *key, *value, *receptance; // (rows, a_stride)
    const float *decay_log, *bonus;
    Matrix matrix;
    const float *normed; // (rows, x_stride)
    float *x;            // (rows, x_stride): the product is added
    u32 n_attention, n_embd, x_stride, a_stride, n_rows;
    u32 previous, wkv;   // where att_previous and WKV of this layer are in a state
    Batch batch;
    Ahead ahead;
};

template <bool INT8, int ROWS> __device__ void time_out(const TimeOut &p) {
    let_next_begin();
    Reader<INT8, 1> reader(p.matrix, blockIdx.x, gridDim.x);
    u32 slot_stride = slots_of<INT8>(p.matrix.stride);
    no_input<INT8, ROWS>(shared, slot_stride, p.n_attention, p.n_rows);
    wait_for_previous();
    struct Channel {
        float key, value, receptance, bonus, factor;
        Wkv wkv;
    };
    u32 n = p.n_attention;
    in_batches<4>(
        p.n_rows * n,
        [&](u32 index) {
            u32 row = ROWS == 1 ? 0 : index / n, i = index - row * n, at = row * p.a_stride + i;
            const float *wkv = (const float *)p.batch.span_state[row] + p.wkv;
            Channel c = {p.key[at], p.value[at], p.receptance[at], p.bonus[i], Format<INT8>::input_factor(p.matrix, i),
                         wkv_load(wkv, n, i)};
            return c;
        },
        [&](u32 index, const Channel &c) {
            float out = wkv_output(c.wkv, c.key, c.value, c.bonus);
            u32 row = ROWS == 1 ? 0 : index / n;
            shared[row * slot_stride + Format<INT8>::slot(index - row * n)] = sigmoid(c.receptance) * out * c.factor;
        });
    __syncthreads();
    fetch_ahead(p.ahead, p.batch, p.n_rows);
    reader.template run<ROWS>(
        shared, slot_stride, [&](u32 o) { return residual<INT8, ROWS>(p, o, nullptr); },
        [&](u32 o, const Residual<ROWS> &before, const float *sums) { add_residual<ROWS>(p, o, before, sums); });
}

struct ChannelIn {
    const float *x;
    Norm norm;
    const float *mix[2];
    Matrix matrix[2];    // key, receptance
    u32 n_blocks[2];
    const float *hidden_factors; // input factors of the value matrix
    float *hidden;       // (rows, hidden_stride), in slots
    float *gate;         // (rows, x_stride)
    float *normed;       // (rows, x_stride): what ffn_previous becomes
    const float *key, *value, *decay_log; // of the time mixing
    u32 n_attention, n_embd, x_stride, a_stride, hidden_stride, n_rows;
    u32 previous, wkv;
    Batch batch;
    Ahead ahead;
};

template <bool INT8, int ROWS> __device__ void channel_in(const ChannelIn &p) {
    let_next_begin();
    __shared__ float room[2 * ROWS * WARPS];
    u32 first;
    u32 index = share_of(blockIdx.x, p.n_blocks, first);
    const Matrix &matrix = p.matrix[index];
    Reader<INT8, 1> reader(matrix, blockIdx.x - first, p.n_blocks[index]);
    u32 slot_stride = slots_of<INT8>(matrix.stride);
    shifted_inputs<INT8, ROWS>(p, matrix, p.mix[index], blockIdx.x == 0, shared, slot_stride, room);
    // The time mixing is done reading WKV's state.
    u32 thread = blockIdx.x * THREADS + threadIdx.x;
    for (u32 i = thread; i < p.n_rows * p.n_attention; i += gridDim.x * THREADS) {
        u32 row = i / p.n_attention, channel = i % p.n_attention, at = row * p.a_stride + channel;
        float *wkv = (float *)p.batch.span_state[row] + p.wkv;
        Wkv s = wkv_load(wkv, p.n_attention, channel);
        wkv_store(wkv, p.n_attention, channel, wkv_next(s, p.key[at], p.value[at], p.decay_log[channel]));
    }
    fetch_ahead(p.ahead, p.batch, p.n_rows);
    struct Factors {
        float output, hidden;
    };
    reader.template run<ROWS>(
        shared, slot_stride,
        [&](u32 o) {
            Factors f = {Format<INT8>::output_factor(matrix, o), INT8 && index == 0 ? p.hidden_factors[o] : 1.0f};
            return f;
        },
        [&](u32 o, const Factors &factors, const float *sums) {
            if ((threadIdx.x & 31) != 0) return;
#pragma unroll
            for (int row = 0; row < ROWS; row++) {
                if (row < p.n_rows) {
                    float sum = sums[row] * factors.output;
                    if (index == 0)
                        p.hidden[row * p.hidden_stride + Format<INT8>::slot(o)] = squared_relu(sum) * factors.hidden;
                    else
                        p.gate[row * p.x_stride + o] = sigmoid(sum);
                }
            }
        });
}

struct ChannelOut {
    const float *hidden; // (rows, hidden_stride), in slots
    Matrix matrix;
    const float *gate, *normed;
    float *x;
    u32 x_stride, hidden_stride, n_rows;
    u32 previous;
    Batch batch;
    Ahead ahead;
};

template <bool INT8, int ROWS> __device__ void channel_out(const ChannelOut &p) {
    let_next_begin();
    Reader<INT8, 1> reader(p.matrix, blockIdx.x, gridDim.x);
    wait_for_previous();
    for (u32 row = 0; row < ROWS && row < p.n_rows; row++)
        stage(shared + row * p.hidden_stride, p.hidden + row * p.hidden_stride, p.hidden_stride);
    end_of_staging();
    __syncthreads();
    fetch_ahead(p.ahead, p.batch, p.n_rows);
    reader.template run<ROWS>(
        shared, p.hidden_stride, [&](u32 o) { return residual<INT8, ROWS>(p, o, p.gate); },
        [&](u32 o, const Residual<ROWS> &before, const float *sums) { add_residual<ROWS>(p, o, before, sums); });
}

struct Head {
    const float *x;
    Norm norm;
    Matrix matrix;
    u64 *best; // an output row: see argmax_key
    u32 n_embd, x_stride, n_rows;
    Batch batch;
    Ahead ahead;
};

// Ordered as (logit, then the smaller token): the largest key is the argmax. What is not a number comes behind all others.
__device__ inline u64 argmax_key(float logit, u32 token) {
    u32 bits = __float_as_uint(logit);
    bits = logit != logit ? 0 : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (u64)bits << 32 | (u32)~token;
}

template <bool INT8, int ROWS> __device__ void head(const Head &p) {
    let_next_begin();
    __shared__ float room[2 * ROWS * WARPS];
    Reader<INT8, 2> reader(p.matrix, blockIdx.x, gridDim.x);
    u32 n = p.n_embd, slot_stride = slots_of<INT8>(p.matrix.stride);
    float *x = shared + ROWS * slot_stride, *vectors = x + ROWS * n;
    stage(vectors, p.norm.weight, n);
    stage(vectors + n, p.norm.bias, n);
    if (INT8) stage(vectors + 2 * n, p.matrix.input_factors, n);
    no_input<INT8, ROWS>(shared, slot_stride, n, p.n_rows);
    wait_for_previous();
    for (u32 row = 0; row < ROWS && row < p.n_rows; row++) stage(x + row * n, p.x + p.batch.out_rows[row] * p.x_stride, n);
    end_of_staging();
    __syncthreads();
    const float *rows[ROWS];
#pragma unroll
    for (int row = 0; row < ROWS; row++) rows[row] = x + (row < p.n_rows ? row : 0) * n;
    Moments m[ROWS];
    moments<ROWS>(rows, n, p.norm.epsilon, room, m);
    for (u32 i = threadIdx.x; i < n; i += THREADS) {
        float factor = INT8 ? vectors[2 * n + i] : 1.0f;
#pragma unroll
        for (int row = 0; row < ROWS; row++)
            if (row < p.n_rows)
                shared[row * slot_stride + Format<INT8>::slot(i)] = normed(x[row * n + i], m[row], vectors[i], vectors[n + i]) * factor;
    }
    __syncthreads();
    fetch_ahead(p.ahead, p.batch, p.n_rows);
    u64 best[ROWS];
#pragma unroll
    for (int row = 0; row < ROWS; row++) best[row] = 0;
    reader.template run<ROWS>(
        shared, slot_stride, [&](u32 o) { return Format<INT8>::output_factor(p.matrix, o); },
        [&](u32 o, float factor, const float *sums) {
#pragma unroll
            for (int row = 0; row < ROWS; row++) {
                if (row < p.n_rows) {
                    float logit = sums[row] * factor;
                    if ((threadIdx.x & 31) == 0) ((float *)p.batch.out_logits[row])[o] = logit;
                    u64 key = argmax_key(logit, o);
                    best[row] = key > best[row] ? key : best[row];
                }
            }
        });
#pragma unroll
    for (int row = 0; row < ROWS; row++)
        if (row < p.n_rows && (threadIdx.x & 31) == 0) atomicMax(p.best + row, best[row]);
}
