// Products of many rows of activations with matrices: out[t, o] = sum over k of inputs[t, k] * weight[o, k].

enum Finish {
    STORE,        // out = product
    SQUARED_RELU, // out = max(product, 0)^2
    SIGMOID,      // out = sigmoid(product)
    ADD,          // out += product
    ADD_GATED,    // out += gate * product
    HIDDEN        // inputs of the next product = max(product, 0)^2
};

struct Product {
    Matrix matrix;
    Inputs inputs;
    float *out; // (rows, out_stride)
    const float *gate;
    u32 out_stride;
    u32 finish;
};

// Up to three products with the same rows and as many inputs, tile after tile.
struct Products {
    Product product[3];
    u32 n_tiles[3]; // tiles of outputs of each
    u32 n_rows;
    float *partials; // with gridDim.z > 1: (tiles, gridDim.z, sums of a tile)
    u32 *counters;   // (tiles), all 0 before and after
    Inputs hidden;   // with scales, for HIDDEN
    const float *hidden_factors; // input factors, or null
    u32 split;       // with low halves
    const u64 *out_logits; // or null; a row: where what is stored goes instead, as many numbers as there are outputs, or 0
    u64 *best;             // or null; a row: see argmax_key. 0 before. Not of tiles in parts
    u32 early;             // what is launched next may begin before the launch in front of this one is done
};

#if TENSOR_CORES

// Tiles of TILE_T rows and TILE_O outputs, TILE_K inputs a stage. A warp computes WARP_T x WARP_O of it, on one of
// K_PARTS parts of each stage's inputs; the parts are added up in the end. SPLIT: activations are high + low.
template <int TILE_T, int TILE_O, int TILE_K, int WARP_T, int WARP_O, int K_PARTS, int STAGES, bool SPLIT, bool INT8>
struct Tile {
    static const int warps_t = TILE_T / WARP_T, warps_o = TILE_O / WARP_O;
    static const int threads = warps_t * warps_o * K_PARTS * 32;
    static const int t_tiles = WARP_T / 16, o_tiles = WARP_O / 8;
    static const int weight_size = INT8 ? 1 : 2;
    static const int input_chunks = TILE_K / 8; // of 16 bytes, a row
    static const int weight_chunks = TILE_K * weight_size / 16;
    static const int input_bytes = TILE_T * TILE_K * 2;
    static const int weight_bytes = TILE_O * TILE_K * weight_size;
    static const int weights_at = input_bytes * (SPLIT ? 2 : 1);
    static const int stage_bytes = weights_at + weight_bytes;
    static const int groups = TILE_K / 16 / K_PARTS; // of 16 inputs, a warp and stage
    // Copies of a thread and stage; the rows of two that follow each other are a multiple of 8 apart, so that
    // they have the same place in what `place` shuffles.
    static const int input_copies = TILE_T * input_chunks / threads;
    static const int weight_copies = TILE_O * weight_chunks / threads;
    static_assert(input_copies * threads == TILE_T * input_chunks && threads / input_chunks % 8 == 0, "inputs");
    static_assert(weight_copies * threads == TILE_O * weight_chunks && threads / weight_chunks % 8 == 0, "weights");

    typedef float Sums[t_tiles][o_tiles][4];
    // Whether blocks that share a tile's inputs are a cluster; only of the shapes for few rows there are such.
#if __CUDA_ARCH__ >= 900
    static const bool CLUSTERS = K_PARTS > 1;
#else
    static const bool CLUSTERS = false;
#endif

    // Chunks of a row are shuffled so that eight rows' chunks lie in different banks.
    template <int CHUNKS> __device__ static int place(int row, int chunk) {
        int mix = CHUNKS >= 8 ? row & 7 : CHUNKS == 4 ? row >> 1 & 3 : row >> 2 & 1;
        return row * CHUNKS + (chunk ^ mix);
    }

    // Where a thread's copies come from, and where they go inside a stage.
    struct Copies {
        const u16 *high, *low;
        u32 inputs[input_copies]; // in numbers
        const u8 *weights;
        u32 weight_step, input_place, weight_place;

        __device__ Copies(const Product &p, u32 first_row, u32 n_rows, u32 first_output) {
            u32 row = threadIdx.x / input_chunks, chunk = threadIdx.x % input_chunks;
            high = p.inputs.high, low = p.inputs.low;
#pragma unroll
            for (int i = 0; i < input_copies; i++) {
                // Rows beyond the last one are computed, too, but go nowhere.
                u32 source = min(first_row + row + i * (threads / input_chunks), n_rows - 1);
                inputs[i] = source * p.inputs.stride + chunk * 8;
            }
            input_place = place<input_chunks>(row, chunk) * 16;
            row = threadIdx.x / weight_chunks, chunk = threadIdx.x % weight_chunks;
            weights = p.matrix.weights + (u64)(first_output + row) * p.matrix.stride * weight_size + chunk * 16;
            weight_step = threads / weight_chunks * p.matrix.stride * weight_size;
            weight_place = weights_at + place<weight_chunks>(row, chunk) * 16;
        }

        __device__ void load_inputs(u32 stage, u32 k) const {
#pragma unroll
            for (int i = 0; i < input_copies; i++) {
                u32 to = stage + input_place + i * threads * 16;
                copy_16(to, high + (inputs[i] + k));
                if (SPLIT) copy_16(to + input_bytes, low + (inputs[i] + k));
            }
        }

        __device__ void load_weights(u32 stage, u32 k) const {
            const u8 *from = weights + (u64)k * weight_size;
#pragma unroll
            for (int i = 0; i < weight_copies; i++, from += weight_step)
                copy_16(stage + weight_place + i * threads * 16, from);
        }
    };

    __device__ static void run(const Products &products) {
        if (products.early) let_next_begin();
        u32 first;
        u32 index = share_of(blockIdx.y, products.n_tiles, first);
        const Product &p = products.product[index];
        u32 first_output = (blockIdx.y - first) * TILE_O, first_row = blockIdx.x * TILE_T;
        u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
        int part = warp / (warps_t * warps_o), place_of_warp = warp % (warps_t * warps_o);
        int warp_t = place_of_warp % warps_t * WARP_T, warp_o = place_of_warp / warps_t * WARP_O;

        // Blocks of the same tile share its inputs: stages first_stage .. are this one's.
        u32 all_stages = p.matrix.stride / TILE_K;
        u32 first_stage = all_stages * blockIdx.z / gridDim.z, n_stages = all_stages * (blockIdx.z + 1) / gridDim.z - first_stage;
        u32 k = first_stage * TILE_K;
        Copies copies(p, first_row, products.n_rows, first_output);
        u32 base = shared_address(shared);
        // Weights may come before the launch in front of this one is done.
#pragma unroll
        for (u32 stage = 0; stage < STAGES; stage++)
            if (stage < n_stages) copies.load_weights(base + stage * stage_bytes, k + stage * TILE_K);
        wait_for_previous();
        if (!products.early) let_next_begin();
#pragma unroll
        for (u32 stage = 0; stage < STAGES; stage++) {
            if (stage < n_stages) copies.load_inputs(base + stage * stage_bytes, k + stage * TILE_K);
            end_of_stage();
        }
        k += STAGES * TILE_K;

        Sums sums;
#pragma unroll
        for (int t = 0; t < t_tiles; t++)
#pragma unroll
            for (int o = 0; o < o_tiles; o++)
#pragma unroll
                for (int i = 0; i < 4; i++) sums[t][o][i] = 0.0f;
        // Fragments of the next 16 inputs are loaded while the present ones are multiplied, also from one stage to
        // the next; a stage whose last fragments have been loaded makes room for one further on.
        Fragments fragments[2];
        wait_for_stages<STAGES - 1>();
        __syncthreads();
        u32 here = base, end = base + STAGES * stage_bytes;
        fragments[0].load(here, part * groups, warp_t, warp_o, lane);
        for (u32 stage = 0; stage < n_stages; stage++) {
#pragma unroll
            for (int g = 0; g < groups; g++) {
                // With an odd number of groups the two change places from stage to stage.
                Fragments &now = fragments[g & 1], &next = fragments[g + 1 & 1];
                if (g + 1 < groups) {
                    next.load(here, part * groups + g + 1, warp_t, warp_o, lane);
                } else {
                    wait_for_stages<STAGES - 2>();
                    __syncthreads();
                    if (stage + STAGES < n_stages) {
                        copies.load_inputs(here, k);
                        copies.load_weights(here, k);
                        k += TILE_K;
                    }
                    end_of_stage();
                    here += stage_bytes;
                    if (here == end) here = base;
                    if (stage + 1 < n_stages) next.load(here, part * groups, warp_t, warp_o, lane);
                }
                now.multiply(sums);
            }
            if (groups & 1) {
                Fragments other = fragments[0];
                fragments[0] = fragments[1];
                fragments[1] = other;
            }
        }
        wait_for_stages<0>();
        if (K_PARTS > 1) add_parts(sums, part, place_of_warp);
        if (CLUSTERS && gridDim.z > 1) {
            finish_in_cluster(products, p, first_row, first_output, sums, part == 0);
            return;
        }
        if (gridDim.z > 1 && !add_blocks(products, sums, part == 0)) return;
        if (part == 0) finish(products, p, first_row + warp_t + lane / 4, first_output + warp_o + lane % 4 * 2, sums);
        if (K_PARTS == 1 && products.best) find_best(products, p.matrix.n_outputs, first_row, warp_t + lane / 4, first_output + warp_o + lane % 4 * 2, sums);
    }

    // The largest output of each row. Of a thread, of four side by side, of a tile, of all.
    __device__ static void find_best(const Products &products, u32 n_outputs, u32 first_row, u32 row, u32 output, const Sums &sums) {
        u64 *of_warps = (u64 *)shared, best[t_tiles][2];
#pragma unroll
        for (int t = 0; t < t_tiles; t++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float largest = __int_as_float(0xff800000);
                u32 at = output;
#pragma unroll
                for (int o = 0; o < 2 * o_tiles; o++) {
                    u32 here = output + o / 2 * 8 + o % 2;
                    float sum = sums[t][o / 2][half * 2 + o % 2];
                    if (here < n_outputs && sum > largest) largest = sum, at = here;
                }
                best[t][half] = at < n_outputs ? argmax_key(largest, at) : 0;
#pragma unroll
                for (int step = 1; step < 4; step <<= 1) {
                    u64 other = __shfl_xor_sync(0xffffffffu, best[t][half], step);
                    best[t][half] = other > best[t][half] ? other : best[t][half];
                }
            }
        __syncthreads();
        if (threadIdx.x % 4 == 0)
#pragma unroll
            for (int t = 0; t < t_tiles; t++)
#pragma unroll
                for (int half = 0; half < 2; half++) of_warps[threadIdx.x / (32 * warps_t) * TILE_T + row + t * 16 + half * 8] = best[t][half];
        __syncthreads();
        if (threadIdx.x >= TILE_T || first_row + threadIdx.x >= products.n_rows) return;
        u64 of_tile = 0;
#pragma unroll
        for (int warp = 0; warp < warps_o; warp++) {
            u64 of_warp = of_warps[warp * TILE_T + threadIdx.x];
            of_tile = of_warp > of_tile ? of_warp : of_tile;
        }
        atomicMax(products.best + first_row + threadIdx.x, of_tile);
    }

    // What a warp multiplies of 16 inputs.
    struct Fragments {
        u32 high[t_tiles][4], low[SPLIT ? t_tiles : 1][4], weights[o_tiles][2];

        __device__ void load(u32 stage, int group, int warp_t, int warp_o, u32 lane) {
            u32 of_weights = stage + weights_at;
            if (INT8) {
#pragma unroll
                for (int o = 0; o < o_tiles; o++) {
                    int row = warp_o + o * 8 + lane / 4;
                    u32 bytes;
                    u32 at = of_weights + place<weight_chunks>(row, group) * 16 + lane % 4 * 4;
                    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(bytes) : "r"(at) : "memory");
                    weights[o][0] = bytes_to_halves<0x4140>(bytes ^ 0x80808080u);
                    weights[o][1] = bytes_to_halves<0x4342>(bytes ^ 0x80808080u);
                }
            } else {
#pragma unroll
                for (int o = 0; o < o_tiles; o += 2) {
                    // Tiles: outputs 0-7 and inputs 0-7, 8-15, then outputs 8-15.
                    int row = warp_o + o * 8 + (lane >> 4) * 8 + (lane & 7);
                    u32 tiles[4];
                    load_tiles(tiles, of_weights + place<weight_chunks>(row, group * 2 + (lane >> 3 & 1)) * 16);
                    weights[o][0] = tiles[0], weights[o][1] = tiles[1];
                    weights[o + 1][0] = tiles[2], weights[o + 1][1] = tiles[3];
                }
            }
#pragma unroll
            for (int t = 0; t < t_tiles; t++) {
                int row = warp_t + t * 16 + (lane & 15);
                u32 at = stage + place<input_chunks>(row, group * 2 + (lane >> 4)) * 16;
                load_tiles(high[t], at);
                if (SPLIT) load_tiles(low[t], at + input_bytes);
            }
        }

        __device__ void multiply(Sums &sums) const {
#pragma unroll
            for (int t = 0; t < t_tiles; t++)
#pragma unroll
                for (int o = 0; o < o_tiles; o++) multiply_add(sums[t][o], high[t], weights[o][0], weights[o][1]);
            if (SPLIT) {
#pragma unroll
                for (int t = 0; t < t_tiles; t++)
#pragma unroll
                    for (int o = 0; o < o_tiles; o++) multiply_add(sums[t][o], low[t], weights[o][0], weights[o][1]);
            }
        }
    };

    // Calls use(number, i) for each of a thread's sums, numbered.
    template <class Use> __device__ static void each(Sums &sums, Use use) {
#pragma unroll
        for (int t = 0; t < t_tiles; t++)
#pragma unroll
            for (int o = 0; o < o_tiles; o++)
#pragma unroll
                for (int i = 0; i < 4; i++) use(sums[t][o][i], (t * o_tiles + o) * 4 + i);
    }

    __device__ static void add_parts(Sums &sums, int part, int place_of_warp) {
        static const int numbers = t_tiles * o_tiles * 4, step = warps_t * warps_o * numbers * 32;
        __syncthreads();
        float *mine = shared + place_of_warp * numbers * 32 + (threadIdx.x & 31);
        if (part > 0) each(sums, [&](float sum, int i) { mine[part * step + i * 32] = sum; });
        __syncthreads();
        if (part > 0) return;
#pragma unroll
        for (int other = 1; other < K_PARTS; other++)
            each(sums, [&](float &sum, int i) { sum += mine[other * step + i * 32]; });
    }

    // Blocks of the same tile leave their sums in memory; the last one to do so adds all of them up, in their
    // order, and goes on. False for the others.
    __device__ static bool add_blocks(const Products &products, Sums &sums, bool has_sums) {
        static const int numbers = t_tiles * o_tiles * 4, holders = warps_t * warps_o * 32;
        __shared__ bool is_last;
        u32 tile = blockIdx.y * gridDim.x + blockIdx.x;
        float *of_tile = products.partials + (u64)tile * gridDim.z * numbers * holders + threadIdx.x;
        if (has_sums) {
            float *mine = of_tile + (u64)blockIdx.z * numbers * holders;
            each(sums, [&](float sum, int i) { mine[i * holders] = sum; });
        }
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            is_last = atomicAdd(products.counters + tile, 1) + 1 == gridDim.z;
            if (is_last) products.counters[tile] = 0;
        }
        __syncthreads();
        if (!is_last) return false;
        __threadfence();
        if (!has_sums) return true;
        each(sums, [&](float &sum, int) { sum = 0.0f; });
#pragma unroll 2
        for (u32 z = 0; z < gridDim.z; z++, of_tile += numbers * holders)
            each(sums, [&](float &sum, int i) { sum += __ldcg(of_tile + i * holders); });
        return true;
    }

    // Two hidden units become inputs of the next product.
    __device__ static void store_hidden(const Products &products, u32 row, u32 unit, float a, float b, float2 factors, float scale) {
        float factor = 1.0f / scale;
        a = squared_relu(a) * factors.x * factor, b = squared_relu(b) * factors.y * factor;
        u64 at = (u64)row * products.hidden.stride + unit;
        *(u32 *)(products.hidden.high + at) = two_halves(a, b);
        if (products.split) *(u32 *)(products.hidden.low + at) = two_halves(lost(a), lost(b));
    }

    // Of 2 x 2 sums that a thread has of a 16 x 8 tile, rows eight apart: what they are finished with.
    struct Corner {
        u32 row, output;
        float scale[2], hidden_scale[2];
        float2 factors, hidden_factors, gate[2], before[2];

        // Of the i-th four sums of a tile of the block's: whose they were, and where in the tile that thread's are.
        __device__ void load(const Products &products, const Product &p, u32 first_row, u32 first_output, u32 i) {
            u32 holders = warps_t * warps_o * 32, tile = i / holders, lane = i % 32, warp = i % holders / 32;
            row = first_row + warp % warps_t * WARP_T + tile / o_tiles * 16 + lane / 4;
            output = first_output + warp / warps_t * WARP_O + tile % o_tiles * 8 + lane % 4 * 2;
            factors = make_float2(Format<INT8>::output_factor(p.matrix, output), Format<INT8>::output_factor(p.matrix, output + 1));
            hidden_factors = make_float2(1.0f, 1.0f);
            if (p.finish == HIDDEN && products.hidden_factors) hidden_factors = *(const float2 *)(products.hidden_factors + output);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                u32 here = min(row + half * 8, products.n_rows - 1);
                if (p.finish == HIDDEN) hidden_scale[half] = products.hidden.scales[here];
                scale[half] = p.inputs.scales[here];
                u64 at = (u64)here * p.out_stride + output;
                if (p.finish == ADD_GATED) gate[half] = *(const float2 *)(p.gate + at);
                if (p.finish == ADD || p.finish == ADD_GATED) before[half] = *(const float2 *)(p.out + at);
            }
        }

        __device__ void store(const Products &products, const Product &p, const float4 &sums) const {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float a = (half ? sums.z : sums.x) * (scale[half] * factors.x), b = (half ? sums.w : sums.y) * (scale[half] * factors.y);
                if (p.finish == SQUARED_RELU) a = squared_relu(a), b = squared_relu(b);
                if (p.finish == SIGMOID) a = sigmoid(a), b = sigmoid(b);
                if (p.finish == ADD_GATED) a *= gate[half].x, b *= gate[half].y;
                if (p.finish == ADD || p.finish == ADD_GATED) a += before[half].x, b += before[half].y;
                if (row + half * 8 >= products.n_rows) continue;
                if (p.finish == HIDDEN)
                    store_hidden(products, row + half * 8, output, a, b, hidden_factors, hidden_scale[half]);
                else
                    *(float2 *)(p.out + (u64)(row + half * 8) * p.out_stride + output) = make_float2(a, b);
            }
        }
    };

    // The blocks of a cluster have sums of the same tile: each adds up a part of it, and finishes that.
    __device__ static void finish_in_cluster(const Products &products, const Product &p, u32 first_row, u32 first_output, Sums &sums, bool has_sums) {
        static const u32 holders = warps_t * warps_o * 32, n = t_tiles * o_tiles * holders, most = 8;
        // A cluster has two blocks at least.
        static const u32 of_thread = (n / 2 + threads - 1) / threads;
        u32 blocks = gridDim.z, base = shared_address(shared), first = n * blockIdx.z / blocks + threadIdx.x, end = n * (blockIdx.z + 1) / blocks;
        // All that is needed beside the sums is on its way while blocks wait for each other.
        Corner corners[of_thread];
#pragma unroll
        for (u32 j = 0; j < of_thread; j++)
            if (first + j * threads < end) corners[j].load(products, p, first_row, first_output, first + j * threads);
        __syncthreads();
        if (has_sums) {
#pragma unroll
            for (int t = 0; t < t_tiles; t++)
#pragma unroll
                for (int o = 0; o < o_tiles; o++)
                    ((float4 *)shared)[(t * o_tiles + o) * holders + threadIdx.x] = *(const float4 *)sums[t][o];
        }
        arrive_in_cluster();
        wait_for_cluster();
#pragma unroll
        for (u32 j = 0; j < of_thread; j++) {
            u32 i = first + j * threads;
            if (i >= end) continue;
            float4 of_block[most], all = make_float4(0, 0, 0, 0);
#pragma unroll
            for (u32 block = 0; block < most; block++) of_block[block] = block < blocks ? load_from_block(base + i * 16, block) : all;
#pragma unroll
            for (u32 block = 0; block < most; block++) {
                all.x += of_block[block].x, all.y += of_block[block].y;
                all.z += of_block[block].z, all.w += of_block[block].w;
            }
            corners[j].store(products, p, all);
        }
        // Others may still be reading what this block has.
        leave_cluster();
        wait_for_cluster();
    }

    // use(row, column, sums[0], sums[1]) for each pair of outputs side by side.
    template <class Use> __device__ static void pairs(u32 n_rows, u32 row, u32 output, Sums &sums, Use use) {
#pragma unroll
        for (int t = 0; t < t_tiles; t++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                if (row + t * 16 + half * 8 < n_rows)
#pragma unroll
                    for (int o = 0; o < o_tiles; o++)
                        use(row + t * 16 + half * 8, output + o * 8, sums[t][o][half * 2], sums[t][o][half * 2 + 1]);
    }

    __device__ static void finish(const Products &products, const Product &p, u32 row, u32 output, Sums &sums) {
        u32 n_rows = products.n_rows;
        pairs(n_rows, row, output, sums, [&](u32 row, u32 o, float &a, float &b) {
            float scale = p.inputs.scales[row];
            a *= scale * Format<INT8>::output_factor(p.matrix, o);
            b *= scale * Format<INT8>::output_factor(p.matrix, o + 1);
        });
        if (p.finish == SQUARED_RELU) each(sums, [](float &sum, int) { sum = squared_relu(sum); });
        if (p.finish == SIGMOID) each(sums, [](float &sum, int) { sum = sigmoid(sum); });
        float *out = p.out;
        u32 stride = p.out_stride;
        if (p.finish == ADD_GATED) {
            const float *gate = p.gate;
            pairs(n_rows, row, output, sums, [&](u32 row, u32 o, float &a, float &b) {
                float2 g = *(const float2 *)(gate + (u64)row * stride + o);
                a *= g.x, b *= g.y;
            });
        }
        if (p.finish == HIDDEN) {
            const float *factors = products.hidden_factors;
            pairs(n_rows, row, output, sums, [&](u32 row, u32 o, float &a, float &b) {
                float2 f = factors ? *(const float2 *)(factors + o) : make_float2(1.0f, 1.0f);
                store_hidden(products, row, o, a, b, f, products.hidden.scales[row]);
            });
            return;
        }
        if (p.finish >= ADD)
            pairs(n_rows, row, output, sums, [&](u32 row, u32 o, float &a, float &b) {
                float2 before = *(const float2 *)(out + (u64)row * stride + o);
                a += before.x, b += before.y;
            });
        u32 n_outputs = p.matrix.n_outputs;
        pairs(n_rows, row, output, sums, [&](u32 row, u32 o, float &a, float &b) {
            float *to = out + (u64)row * stride, *kept = products.out_logits ? (float *)products.out_logits[row] : nullptr;
            if (!kept || o + 1 < n_outputs)
                *(float2 *)((kept ? kept : to) + o) = make_float2(a, b);
            else if (o < n_outputs)
                kept[o] = a;
        });
    }
};

#define PRODUCTS(name, blocks, split, ...)                                                                             \
    extern "C" __global__ void __launch_bounds__(Tile<__VA_ARGS__, split, INT8_WEIGHTS>::threads, blocks)              \
        name(const Products p) {                                                                                       \
        Tile<__VA_ARGS__, split, INT8_WEIGHTS>::run(p);                                                                \
    }

// src/kernels.rs has the same shapes.
// Blocks: that a multiprocessor shall have room for.
//       name        blocks split  T    O    K   warp   parts stages
PRODUCTS(products_few, 2, true, 16, 32, 256, 16, 32, 8, 3)
PRODUCTS(products_16, 2, false, 16, 32, 256, 16, 32, 8, 3)
PRODUCTS(products_32, 2, false, 32, 32, 128, 32, 32, 8, 4)
PRODUCTS(products_64, 2, false, 64, 64, 64, 32, 32, 2, 4)
PRODUCTS(products_head, 2, false, 64, 128, 64, 32, 32, 1, 4)
PRODUCTS(products_vocabulary, 1, false, 64, 384, 64, 32, 48, 1, 4)
PRODUCTS(products_square, 2, false, 128, 128, 32, 64, 32, 1, 4)
PRODUCTS(products_wide, 1, false, 128, 256, 32, 64, 64, 1, 4)

#else

// 64 x 64 tiles in f32; each of 256 threads computes 4 x 4.
template <bool INT8> __device__ void multiply_tile(const Products &products) {
    __shared__ float inputs[16][65], weights[16][65];
    u32 first;
    u32 index = share_of(blockIdx.y, products.n_tiles, first);
    const Product &p = products.product[index];
    u32 first_output = (blockIdx.y - first) * 64, first_row = blockIdx.x * 64;
    u32 column = threadIdx.x % 16, line = threadIdx.x / 16;
    float sums[4][4] = {};
    for (u32 k = 0; k < p.matrix.stride; k += 16) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 at = line + i * 16;
            u32 row = first_row + at < products.n_rows ? first_row + at : products.n_rows - 1;
            inputs[column][at] = p.inputs.values[(u64)row * p.inputs.stride + k + column];
            u64 weight = (u64)(first_output + at) * p.matrix.stride + k;
            if (INT8)
                weights[column][at] = (float)((const i8 *)p.matrix.weights)[weight + int8_place(column)];
            else
                weights[column][at] = from_half(((const u16 *)p.matrix.weights)[weight + column]);
        }
        __syncthreads();
#pragma unroll
        for (int kk = 0; kk < 16; kk++)
#pragma unroll
            for (int t = 0; t < 4; t++)
#pragma unroll
                for (int o = 0; o < 4; o++) sums[t][o] += inputs[kk][line + t * 16] * weights[kk][column + o * 16];
        __syncthreads();
    }
    for (int t = 0; t < 4; t++) {
        u32 row = first_row + line + t * 16;
        if (row >= products.n_rows) continue;
        for (int o = 0; o < 4; o++) {
            u32 output = first_output + column + o * 16;
            u64 at = (u64)row * p.out_stride + output;
            float value = sums[t][o] * Format<INT8>::output_factor(p.matrix, output);
            if (p.finish == SQUARED_RELU) value = squared_relu(value);
            if (p.finish == SIGMOID) value = sigmoid(value);
            if (p.finish == ADD_GATED) value *= p.gate[at];
            p.out[at] = p.finish >= ADD ? p.out[at] + value : value;
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) products_plain(const Products p) { multiply_tile<INT8_WEIGHTS>(p); }

#endif
