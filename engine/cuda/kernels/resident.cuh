// One row: a whole token is one launch, on devices of compute capability 9.0.
//
// A launch costs microseconds in which memory idles: the end of one, the start of the next, its first bytes.
// Here one block a multiprocessor stays for all layers. Four warps of it bring this block's weights into a ring
// of shared memory, in the order of their use and as far ahead as the ring is long, whatever the other warps
// wait for. Those compute the block's outputs: some channels of every matrix. Blocks hand vectors to each other
// number by number, each with a flag that says of which token and product it is, so that nobody waits for a
// barrier: a number is there when its flag is.
//
// Weights are multiplied on the tensor cores, 16 outputs at a time, as they are: f16 ones with activations of two f16,
// high + low, int8 ones with activations of four digits of eight bits. Either is as exact as f32, times a power of
// two; the parts of activations are columns of the same product.

// The first layer; the others' vectors and weights lie behind it at equal distances.
struct ResidentLayer {
    Norm att_norm;
    const float *att_mix[3]; // key, value, receptance
    const float *decay_log, *bonus;
    Matrix att_in[3];
    Matrix att_output;
    Norm ffn_norm;
    const float *ffn_mix[2]; // key, receptance
    Matrix ffn_in[2];
    Matrix ffn_value;
};

struct Resident {
    ResidentLayer layer;
    u64 vectors_step, weights_step; // bytes from a layer to the next
    Norm norm_out;
    Matrix head;  // weights null: there is none, or nobody asks
    float *x;     // what goes into the first layer, and what comes out of the last
    u64 *x_flagged, *gated_flagged, *hidden_flagged; // words on their way
    u32 *n_launches; // so far: flags go on from those of the last one
    u64 *best;       // see argmax_key
    const u8 *vectors; // where the first layer's lie together, for fetching
    u32 vector_lines;  // of 128 bytes
    u32 n_layers, n_embd, n_attention, n_hidden;
    u32 n_slots;       // of the ring
    u32 in_flight_bytes; // of weights, of a block
    u32 n_tiles;       // of 16 outputs that a block has room for at a time
    u32 plane_bytes;   // of one part of the activations of one product,
    u32 hidden_plane_bytes; // of that with the hidden units,
    u32 planes_bytes;  // and of all there are at a time
    Batch batch;
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

// Outputs of a block of one matrix, at most, but for the head.
#define OWN_MAX 256

// Vectors of the layer whose ones lie so many bytes behind the first one's.
struct Place {
    u64 vectors;
    __device__ const float *operator()(const float *first) const { return (const float *)((const u8 *)first + vectors); }
};

template <bool INT8> __device__ void bring(Bringer &b, const Resident &p, const Matrix &m, u64 behind, const Own &own) {
    u32 row_bytes = m.stride * Format<INT8>::bytes;
    b = bring_rows(b, m.weights + behind + (u64)own.first * row_bytes, row_bytes, own.n, p.in_flight_bytes);
}

template <bool INT8> __device__ void bring_all(const Resident &p, RingPlace ring) {
    Bringer b = {ring, ring, 0, 0};
    Own attention(p.n_attention, 2), embd(p.n_embd, 2), hidden(p.n_hidden, 2);
#pragma unroll 1
    for (u32 layer = 0; layer < p.n_layers; layer++) {
        u64 behind = layer * p.weights_step;
        for (int i = 0; i < 3; i++) bring<INT8>(b, p, p.layer.att_in[i], behind, attention);
        // The next layer's vectors and state, into the second cache: blocks share this.
        if (layer + 1 < p.n_layers) {
            u32 thread = blockIdx.x * 32 * BRINGERS + threadIdx.x - THREADS, n_threads = gridDim.x * 32 * BRINGERS;
            u32 numbers = 2 * p.n_embd + 3 * p.n_attention;
            fetch(p.vectors + (layer + 1) * p.vectors_step, p.vector_lines, thread, n_threads);
            if (layer == 0) wait_for_previous();
            const u8 *state = (const u8 *)p.batch.span_state[0] + (u64)4 * (layer + 1) * numbers;
            fetch(state, (4 * numbers + 127) / 128, thread, n_threads);
        }
        bring<INT8>(b, p, p.layer.att_output, behind, embd);
        bring<INT8>(b, p, p.layer.ffn_in[0], behind, hidden);
        bring<INT8>(b, p, p.layer.ffn_in[1], behind, embd);
        bring<INT8>(b, p, p.layer.ffn_value, behind, embd);
    }
    if (p.head.weights) bring<INT8>(b, p, p.head, 0, Own(p.head.n_outputs, 1));
}

// What the computing warps have.
template <bool INT8> struct Worker {
    const Resident &p;
    RingPlace place;
    u32 planes, pieces; // addresses in shared memory
    float *partials;  // (n_tiles, 16, PARTIALS_PITCH): sums of what warps multiplied
    float *room;      // (8, WARPS)
    float *own_x, *own_gate;
    u32 i, lane, warp; // i: the first of the four channels that this thread prepares
    u32 slots_so_far;  // only what it is modulo SLOT_GROUPS counts
    float pivot;       // about the mean of the residual stream, the same in all blocks

    // The largest over all threads; `room_row` may be used again behind another barrier.
    template <int N> __device__ void largest(float (&v)[N], u32 room_row) {
#pragma unroll
        for (int n = 0; n < N; n++) {
            v[n] = warp_largest(v[n]);
            if (lane == 0) room[(room_row + n) * WARPS + warp] = v[n];
        }
        sync_consumers();
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int w = 0; w < WARPS; w += 4) v[n] = larger(v[n], largest_of(four(room + (room_row + n) * WARPS + w)));
    }

    // What activations are multiplied by whose largest is this. Integers are always finite: where activations are not, the
    // pivot becomes NaN and with it the residual stream.
    __device__ float factor_for(float largest) {
        if (INT8 && !(largest < 3.0e38f)) pivot = __int_as_float(0x7fffffff);
        return row_factor(largest);
    }

    // 0, or NaN.
    __device__ float poison() const { return INT8 ? pivot - pivot : 0.0f; }

    // Four activations from input k on become those of product `n`, times `factor`.
    __device__ void keep(u32 n, u32 k, float4 v, float factor, u32 plane_bytes) {
        float scaled[4] = {v.x * factor, v.y * factor, v.z * factor, v.w * factor};
        u32 to = planes + n * Parts<INT8>::n * plane_bytes;
        if (INT8) {
            // Factors bring numbers below 2^14. Digits are -128 .. 127, by adding 128 to all but the first, and
            // taking it off the bytes.
            to += int8_place(k);
            u32 digits[4];
#pragma unroll
            for (int j = 0; j < 4; j++) digits[j] = (u32)__float2int_rn(scaled[j] * 65536.0f) + 0x00808080u ^ 0x00808080u;
#pragma unroll
            for (int pair = 0; pair < 2; pair++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    // Two numbers' third and second bytes, or first and fourth ..: two planes at a time.
                    u32 both = __byte_perm(digits[2 * pair], digits[2 * pair + 1], half ? 0x5140 : 0x7362);
                    u32 at = to + 4 * pair + 2 * half * plane_bytes;
                    asm volatile("st.shared.u16 [%0], %1;" ::"r"(at), "h"((u16)(both >> 16)) : "memory");
                    asm volatile("st.shared.u16 [%0], %1;" ::"r"(at + plane_bytes), "h"((u16)both) : "memory");
                }
            return;
        }
        to += 2 * k;
        u32 high[4], low[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            u16 half = to_half(scaled[j]);
            high[j] = half, low[j] = to_half(scaled[j] - from_half(half));
        }
        asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(to), "r"(high[0] | high[1] << 16), "r"(high[2] | high[3] << 16) : "memory");
        asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(to + plane_bytes), "r"(low[0] | low[1] << 16), "r"(low[2] | low[3] << 16) : "memory");
    }

    // The products that pieces `first` .. `first + n` are of.
    __device__ void multiply(u32 first, u32 n, u32 plane_bytes) {
        u32 mine = (warp / SLOT_WARPS - slots_so_far) % SLOT_GROUPS, at = pieces + first * (u32)sizeof(Piece);
        place = multiply_pieces<INT8>(place, at + mine * (u32)sizeof(Piece), at + n * (u32)sizeof(Piece), planes, plane_bytes,
                                      shared_address(partials));
        slots_so_far += n;
    }

    // Output `o` of those of matrix `m` whose tiles start with `tile`; behind a barrier.
    __device__ float product(const Matrix &m, u32 tile, u32 o) const {
        const float *from = partials + (tile * 16 + o) * PARTIALS_PITCH;
        u32 n = min(n_chunks(m.stride * Format<INT8>::bytes), SLOT_GROUPS) * SLOT_WARPS;
        float sum = 0.0f;
#pragma unroll
        for (u32 w = 0; w < WARPS; w += 4) {
            float4 v = four(from + w);
            if (w < n) sum += v.x + v.y + (v.z + v.w);
        }
        return sum;
    }

    // The normalised row. Sums are of the differences to what the mean was the last time: that it hardly changes
    // from one half of a layer to the next makes one pass as exact as two.
    __device__ float4 norm(float4 x, float4 weight, float4 bias, float epsilon) {
        float4 d = make_float4(0, 0, 0, 0);
        float first = 0.0f, second = 0.0f;
        if (i < p.n_embd) d = make_float4(x.x - pivot, x.y - pivot, x.z - pivot, x.w - pivot);
        if (warp * 128 < p.n_embd) {
            first = warp_sum(d.x + d.y + (d.z + d.w));
            second = warp_sum(d.x * d.x + d.y * d.y + (d.z * d.z + d.w * d.w));
        }
        if (lane == 0) room[warp] = first, room[WARPS + warp] = second;
        sync_consumers();
        first = 0.0f, second = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w += 4) {
            float4 f = four(room + w), s = four(room + WARPS + w);
            first += f.x + f.y + (f.z + f.w), second += s.x + s.y + (s.z + s.w);
        }
        float shift = first / (float)p.n_embd, variance = fmaxf(second / (float)p.n_embd - shift * shift, 0.0f);
        float inverse = 1.0f / sqrtf(variance + epsilon);
        pivot += shift;
        return make_float4((d.x - shift) * inverse * weight.x + bias.x, (d.y - shift) * inverse * weight.y + bias.y,
                           (d.z - shift) * inverse * weight.z + bias.z, (d.w - shift) * inverse * weight.w + bias.w);
    }

    // What no number behind a norm can be larger than.
    __device__ float4 bounds(float4 weight, float4 bias) const {
        float most = sqrtf((float)p.n_embd);
        return make_float4(most * fabsf(weight.x) + fabsf(bias.x), most * fabsf(weight.y) + fabsf(bias.y),
                           most * fabsf(weight.z) + fabsf(bias.z), most * fabsf(weight.w) + fabsf(bias.w));
    }
};

// What a layer's half needs of a norm and a token shift, on its way before the row is there.
template <bool INT8, int N> struct Shifting {
    float4 weight, bias, previous, share[N], factor[N];
    float scale[N]; // brings activations into the range of f16

    // The scale is for the largest that the activations can be, which is known before they are: even hundreds of
    // times smaller ones are exact to 2^-24 of their largest in two halves.
    __device__ Shifting(Worker<INT8> &w, const Norm &norm, const float *const (&mix)[N], const Matrix (&matrix)[N], const float *before,
                        const Place &at) {
        weight = bias = previous = make_float4(0, 0, 0, 0);
#pragma unroll
        for (int n = 0; n < N; n++) share[n] = factor[n] = make_float4(0, 0, 0, 0), scale[n] = 0.0f;
        u32 i = w.i;
        if (i < w.p.n_embd) {
            weight = four(at(norm.weight) + i), bias = four(at(norm.bias) + i), previous = *(const float4 *)(before + i);
#pragma unroll
            for (int n = 0; n < N; n++) {
                share[n] = four(at(mix[n]) + i);
                factor[n] = INT8 ? four(at(matrix[n].input_factors) + i) : make_float4(1, 1, 1, 1);
            }
            float4 most = w.bounds(weight, bias), f = previous;
            f = make_float4(fabsf(f.x), fabsf(f.y), fabsf(f.z), fabsf(f.w));
#pragma unroll
            for (int n = 0; n < N; n++) {
                float4 s = share[n];
                scale[n] = largest_of(make_float4(bound(most.x, f.x, s.x), bound(most.y, f.y, s.y), bound(most.z, f.z, s.z),
                                                  bound(most.w, f.w, s.w)) * factor[n]);
            }
        }
        w.template largest<N>(scale, 2);
#pragma unroll
        for (int n = 0; n < N; n++) scale[n] = w.factor_for(scale[n]);
    }

    __device__ static float bound(float present, float previous, float share) {
        return present * fabsf(share) + previous * fabsf(1.0f - share);
    }

    // The activations of N products. Gives the normalised row.
    __device__ float4 prepare(Worker<INT8> &w, float4 x, float epsilon) const {
        float4 now = w.norm(x, weight, bias, epsilon);
        if (w.i < ((w.p.n_embd + 255) & ~255u)) {
#pragma unroll
            for (int n = 0; n < N; n++) {
                float4 v = make_float4(mixed(now.x, previous.x, share[n].x), mixed(now.y, previous.y, share[n].y),
                                       mixed(now.z, previous.z, share[n].z), mixed(now.w, previous.w, share[n].w)) * factor[n];
                w.keep(n, w.i, v, scale[n], w.p.plane_bytes);
            }
        }
        sync_consumers();
        return now;
    }
};

template <bool INT8> __device__ void work(const Resident &p, Worker<INT8> &w) {
    u32 thread = threadIdx.x;
    Own attention(p.n_attention, 2), embd(p.n_embd, 2), hidden(p.n_hidden, 2);
    u32 attention_tiles = (attention.n + 15) / 16, embd_tiles = (embd.n + 15) / 16, hidden_tiles = (hidden.n + 15) / 16;
    // The block's outputs are the last warps' to finish: of narrow models the first ones have the channels.
    u32 mine = thread - (THREADS - OWN_MAX);
    bool has_channel = mine < attention.n, has_output = mine < embd.n, has_hidden = mine < hidden.n;
    u32 channel = attention.first + (has_channel ? mine : 0), output = embd.first + (has_output ? mine : 0);
    u32 unit = hidden.first + (has_hidden ? mine : 0);
    bool inside = w.i < p.n_embd;

    u32 in_bytes = p.layer.att_in[0].stride * Format<INT8>::bytes, hidden_bytes = p.layer.ffn_value.stride * Format<INT8>::bytes;
    u32 output_bytes = p.layer.att_output.stride * Format<INT8>::bytes, product_bytes = Parts<INT8>::n * p.plane_bytes;
    u32 n_pieces[4], first_piece[4], to = w.pieces;
    n_pieces[0] = write_pieces(to, in_bytes, attention.n, attention.n, 3 * attention_tiles, product_bytes);
    n_pieces[1] = write_pieces(to += n_pieces[0] * sizeof(Piece), output_bytes, embd.n, embd.n, embd_tiles, product_bytes);
    n_pieces[2] = write_pieces(to += n_pieces[1] * sizeof(Piece), in_bytes, hidden.n, embd.n, hidden_tiles + embd_tiles, product_bytes);
    n_pieces[3] = write_pieces(to += n_pieces[2] * sizeof(Piece), hidden_bytes, embd.n, embd.n, embd_tiles, product_bytes);
    first_piece[0] = 0;
#pragma unroll
    for (int i = 1; i < 4; i++) first_piece[i] = first_piece[i - 1] + n_pieces[i - 1];

    wait_for_previous();
    u32 flag = *(volatile u32 *)p.n_launches * 4 * p.n_layers;
    float *state = (float *)p.batch.span_state[0];
    float4 x[1] = {inside ? four(p.x + w.i) : make_float4(0, 0, 0, 0)};
    if (has_output) w.own_x[mine] = p.x[output];

#pragma unroll 1
    for (u32 layer = 0; layer < p.n_layers; layer++) {
        Place at = {layer * p.vectors_step};
        const ResidentLayer &l = p.layer;
        float *ffn_previous = state, *att_previous = state + p.n_embd, *wkv = att_previous + p.n_embd;
        bool writes_state = blockIdx.x == layer % gridDim.x && inside;

        // Time mixing: key, value and receptance of the block's channels, and WKV of them.
        Shifting<INT8, 3> time(w, l.att_norm, l.att_mix, l.att_in, att_previous, at);
        Wkv sums = {0.0f, 0.0f, 0.0f};
        float decay = 0.0f, bonus = 0.0f, factors[4] = {1.0f, 1.0f, 1.0f, 1.0f};
        if (has_channel) {
            sums = wkv_load(wkv, p.n_attention, channel);
            decay = at(l.decay_log)[channel], bonus = at(l.bonus)[channel];
            if (INT8) {
                for (int n = 0; n < 3; n++) factors[n] = at(l.att_in[n].output_factors)[channel];
                factors[3] = at(l.att_output.input_factors)[channel];
            }
        }
        if (layer > 0) wait_for(x, p.x_flagged, w.i, p.n_embd, flag);
        float4 now = time.prepare(w, x[0], l.att_norm.epsilon);
        w.multiply(first_piece[0], n_pieces[0], p.plane_bytes);
        sync_consumers();
        flag++;
        float key = 0.0f, value = 0.0f, mine_gated = 0.0f;
        if (has_channel) {
            key = w.product(l.att_in[0], 0, mine) * (factors[0] / time.scale[0]);
            value = w.product(l.att_in[0], attention_tiles, mine) * (factors[1] / time.scale[1]);
            float receptance = w.product(l.att_in[0], 2 * attention_tiles, mine) * (factors[2] / time.scale[2]);
            mine_gated = sigmoid(receptance) * wkv_output(sums, key, value, bonus) * factors[3];
        }
        publish(p.gated_flagged, channel, p.n_attention, mine_gated, flag, has_channel);
        if (has_channel) wkv_store(wkv, p.n_attention, channel, wkv_next(sums, key, value, decay));

        // Its output.
        float factor = INT8 && has_output ? at(l.att_output.output_factors)[output] : 1.0f, scale[1];
        float4 gated[1];
        wait_for(gated, p.gated_flagged, w.i, p.n_attention, flag);
        scale[0] = largest_of(gated[0]);
        w.template largest<1>(scale, 5);
        // All blocks have what was before.
        if (writes_state) *(float4 *)(att_previous + w.i) = now;
        scale[0] = w.factor_for(scale[0]);
        if (w.i < l.att_output.stride) w.keep(0, w.i, gated[0], scale[0], p.plane_bytes);
        sync_consumers();
        w.multiply(first_piece[1], n_pieces[1], p.plane_bytes);
        sync_consumers();
        flag++;
        float own_x = 0.0f;
        if (has_output) {
            own_x = w.own_x[mine] + w.product(l.att_output, 0, mine) * (factor / scale[0]) + w.poison();
            w.own_x[mine] = own_x;
        }
        publish(p.x_flagged, output, p.n_embd, own_x, flag, has_output);

        // Channel mixing: the block's hidden units, and the gates of its outputs.
        float unit_factor = 1.0f, unit_input = 1.0f, gate_factor = 1.0f, value_factor = 1.0f;
        if (INT8) {
            unit_factor = at(l.ffn_in[0].output_factors)[unit], unit_input = at(l.ffn_value.input_factors)[unit];
            gate_factor = at(l.ffn_in[1].output_factors)[output], value_factor = at(l.ffn_value.output_factors)[output];
        }
        Shifting<INT8, 2> shift(w, l.ffn_norm, l.ffn_mix, l.ffn_in, ffn_previous, at);
        wait_for(x, p.x_flagged, w.i, p.n_embd, flag);
        now = shift.prepare(w, x[0], l.ffn_norm.epsilon);
        w.multiply(first_piece[2], n_pieces[2], p.plane_bytes);
        sync_consumers();
        flag++;
        float mine_hidden = 0.0f;
        if (has_hidden) mine_hidden = squared_relu(w.product(l.ffn_in[0], 0, mine) * (unit_factor / shift.scale[0])) * unit_input;
        publish(p.hidden_flagged, unit, p.n_hidden, mine_hidden, flag, has_hidden);
        if (has_output) w.own_gate[mine] = sigmoid(w.product(l.ffn_in[0], hidden_tiles, mine) * (gate_factor / shift.scale[1]));

        // Its output.
        float4 units[4];
        wait_for(units, p.hidden_flagged, w.i, p.n_hidden, flag);
        scale[0] = 0.0f;
#pragma unroll
        for (int j = 0; j < 4; j++) scale[0] = larger(scale[0], largest_of(units[j]));
        w.template largest<1>(scale, 5);
        if (writes_state) *(float4 *)(ffn_previous + w.i) = now;
        scale[0] = w.factor_for(scale[0]);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            u32 k = w.i + j * 4 * THREADS;
            if (k < l.ffn_value.stride) w.keep(0, k, units[j], scale[0], p.hidden_plane_bytes);
        }
        sync_consumers();
        w.multiply(first_piece[3], n_pieces[3], p.hidden_plane_bytes);
        sync_consumers();
        flag++;
        if (has_output) {
            own_x += w.own_gate[mine] * (w.product(l.ffn_value, 0, mine) * (value_factor / scale[0])) + w.poison();
            w.own_x[mine] = own_x;
        }
        publish(p.x_flagged, output, p.n_embd, own_x, flag, has_output);
        if (has_output && layer + 1 == p.n_layers) p.x[output] = own_x;
        state += 2 * p.n_embd + 3 * p.n_attention;
    }
    // This block has had numbers from all others, which have therefore read it.
    if (blockIdx.x == 0 && thread == 0) *p.n_launches += 1;
    if (!p.head.weights) return;

    float4 zero = make_float4(0, 0, 0, 0);
    float4 weight = inside ? four(p.norm_out.weight + w.i) : zero, bias = inside ? four(p.norm_out.bias + w.i) : zero;
    float4 factor = !inside ? zero : INT8 ? four(p.head.input_factors + w.i) : make_float4(1, 1, 1, 1);
    wait_for(x, p.x_flagged, w.i, p.n_embd, flag);
    x[0] = w.norm(x[0], weight, bias, p.norm_out.epsilon) * factor;
    float scale[1] = {largest_of(x[0])};
    w.template largest<1>(scale, 2);
    scale[0] = w.factor_for(scale[0]);
    if (w.i < p.head.stride) w.keep(0, w.i, x[0], scale[0], p.plane_bytes);
    Own own(p.head.n_outputs, 1);
    u32 chunks = n_chunks(p.head.stride * Format<INT8>::bytes);
    // Only as many rows of the last tile count as there are.
    write_pieces(w.pieces, p.head.stride * Format<INT8>::bytes, 16 * p.n_tiles, 0, p.n_tiles, 0);
    sync_consumers();
    float *logits = (float *)p.batch.out_logits[0];
    u64 best = 0;
    for (u32 first = 0; first < own.n; first += 16 * p.n_tiles) {
        u32 n = min(16 * p.n_tiles, own.n - first);
        w.multiply(0, (n + 15) / 16 * chunks, p.plane_bytes);
        sync_consumers();
#pragma unroll 1
        for (u32 o = thread; o < n; o += THREADS) {
            u32 token = own.first + first + o;
            float logit = w.product(p.head, 0, o) * (INT8 ? p.head.output_factors[token] / scale[0] : 1.0f / scale[0]) + w.poison();
            if (logits) logits[token] = logit;
            u64 key = argmax_key(logit, token);
            best = key > best ? key : best;
        }
        sync_consumers();
    }
#pragma unroll 1
    for (int step = 16; step > 0; step >>= 1) {
        u64 other = __shfl_xor_sync(0xffffffffu, best, step);
        best = other > best ? other : best;
    }
    u64 *of_warps = (u64 *)w.partials;
    if (w.lane == 0) of_warps[w.warp] = best;
    sync_consumers();
    if (thread == 0) {
#pragma unroll 1
        for (int warp = 1; warp < WARPS; warp++) best = of_warps[warp] > best ? of_warps[warp] : best;
        if (own.n > 0) atomicMax(p.best, best);
    }
}

// Shared memory: ring, activations, partial sums, pieces, and what is declared here.
template <bool INT8> __device__ void resident(const Resident &p) {
    __shared__ u64 barriers[2 * 16];
    __shared__ __align__(16) float room[8 * WARPS];
    __shared__ float own_x[OWN_MAX], own_gate[OWN_MAX];
    u32 base = shared_address(shared), at = shared_address(barriers);
    if (threadIdx.x == 0) {
#pragma unroll 1
        for (u32 slot = 0; slot < p.n_slots; slot++) {
            mbarrier_init(at + 16 * slot, BRINGERS);
            mbarrier_init(at + 16 * slot + 8, 32 * SLOT_WARPS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
    RingPlace ring = {base, at, p.n_slots, 0, 0};
    u32 planes = p.n_slots * SLOT_BYTES;
    if (threadIdx.x >= THREADS) {
        bring_all<INT8>(p, ring);
        return;
    }
    u32 partials = planes + p.planes_bytes, pieces = partials + p.n_tiles * TILE_BYTES;
    Worker<INT8> w = {p, ring, base + planes, base + pieces, (float *)((u8 *)shared + partials), room, own_x, own_gate,
                      4 * threadIdx.x, threadIdx.x & 31, threadIdx.x >> 5, 0, 0.0f};
    w.place.index = w.warp / SLOT_WARPS;
    work<INT8>(p, w);
}

#else
template <bool INT8> __device__ void resident(const Resident &p) { (void)p; }
#endif
