// What a block that stays for a whole token (resident.cuh) is made of: a ring of shared memory that some warps fill with
// weights, words that blocks hand numbers on with, and products of what is in the ring.

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

// A slot of the ring: 16 rows of so many bytes; the space behind each puts rows that follow each other into
// different banks.
#define SLOT_ROW_BYTES 1024
#define SLOT_PITCH (SLOT_ROW_BYTES + 64)
#define SLOT_BYTES (16 * SLOT_PITCH)
// Warps that bring weights, each some rows of a slot: asking for a row takes 75 clocks.
#define BRINGERS 4
// Warps that share a slot; others are at the next ones meanwhile.
#define SLOT_WARPS 4
#define SLOT_GROUPS (WARPS / SLOT_WARPS)
// What goes from block to block is written so many times, and each copy read by a part of the blocks: what all of
// them ask for at once is slow.
#define COPIES 4

__device__ inline void mbarrier_init(u32 at, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(count) : "memory");
}

__device__ inline void mbarrier_arrive(u32 at) {
    asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared::cta.b64 state, [%0];\n}" ::"r"(at) : "memory");
}

__device__ inline void mbarrier_expect(u32 at, u32 bytes) {
    asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n}" ::"r"(at), "r"(bytes) : "memory");
}

__device__ inline void mbarrier_wait(u32 at, u32 parity) {
    u32 done;
    do {
        asm volatile("{\n.reg .pred done;\nmbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\nselp.u32 %0, 1, 0, done;\n}"
                     : "=r"(done) : "r"(at), "r"(parity) : "memory");
    } while (!done);
}

__device__ inline void bulk_copy(u32 to, const void *from, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
}

__device__ inline uint4 shared_16(u32 at) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at));
    return v;
}

// All warps but those that bring weights.
__device__ inline void sync_consumers() { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); }

// A block's outputs of one matrix, whole groups of `group`.
struct Own {
    u32 first, n;
    __device__ Own(u32 n_outputs, u32 group) : first(blockIdx.x * (n_outputs / group) / gridDim.x * group) {
        n = (blockIdx.x + 1) * (n_outputs / group) / gridDim.x * group - first;
    }
};

// A slot of the ring, which starts at the block's shared memory.
struct RingPlace {
    u32 slots, barriers, n_slots; // addresses in shared memory
    u32 index, parity;
    __device__ u32 slot() const { return slots + index * SLOT_BYTES; }
    __device__ u32 full() const { return barriers + index * 16; }
    __device__ u32 empty() const { return full() + 8; }
    __device__ void advance(u32 n) {
        index += n;
        if (index >= n_slots) index -= n_slots, parity ^= 1;
    }
};

// A warp that brings weights.
struct Bringer {
    RingPlace next, oldest; // where weights go next, and which of those on their way were asked for first
    u32 on_their_way;       // bytes
    u32 of_slot;            // bytes that the slot whose number is this lane's holds
};

// `n` rows go through the ring. No more than `most` bytes are on their way at a time: that much keeps memory busy, and
// what is more only waits in front of it, and everything that other warps ask for, behind that.
__device__ __noinline__ Bringer bring_rows(Bringer b, const u8 *weights, u32 row_bytes, u32 n, u32 most) {
    u32 lane = threadIdx.x & 31, bringer = (threadIdx.x - THREADS) / 32, row = bringer + BRINGERS * lane;
#pragma unroll 1
    for (u32 tile = 0; tile < n; tile += 16) {
        u32 n_rows = min(16, n - tile);
        const u8 *from = weights + (u64)(tile + row) * row_bytes;
        u32 n_mine = (n_rows + BRINGERS - 1 - bringer) / BRINGERS;
#pragma unroll 1
        for (u32 at = 0; at < row_bytes; at += SLOT_ROW_BYTES) {
            u32 bytes = min(SLOT_ROW_BYTES, row_bytes - at), all = n_rows * bytes;
            mbarrier_wait(b.next.empty(), b.next.parity ^ 1);
#pragma unroll 1
            while (b.on_their_way > 0 && (b.on_their_way + all > most || b.oldest.index == b.next.index)) {
                mbarrier_wait(b.oldest.full(), b.oldest.parity);
                b.on_their_way -= __shfl_sync(0xffffffffu, b.of_slot, b.oldest.index);
                b.oldest.advance(1);
            }
            b.on_their_way += all;
            if (lane == b.next.index) b.of_slot = all;
            if (lane == 0) mbarrier_expect(b.next.full(), n_mine * bytes);
            __syncwarp();
            if (row < n_rows) bulk_copy(b.next.slot() + row * SLOT_PITCH, from + at, bytes, b.next.full());
            b.next.advance(1);
        }
    }
    return b;
}

// A vector on its way from block to block: words of two numbers each and the flag. Numbers have 19 bits behind the
// point, which is nearly what activations keep of them; the last 8 bits are the flag's.
__device__ inline u32 copy_words(u32 n) { return (n + 255 & ~255u) / 2; }

// Threads side by side have numbers i and i + 1 of n, i even. Every thread of the warp is here.
__device__ inline void publish(u64 *words, u32 i, u32 n, float x, u32 flag, bool has_number) {
    float other = __shfl_xor_sync(0xffffffffu, x, 1);
    u32 odd = threadIdx.x & 1, first = __float_as_uint(odd ? other : x) >> 4, second = __float_as_uint(odd ? x : other) >> 4;
    if (!has_number) return;
    u64 word = (u64)first << 36 | (u64)second << 8 | (flag & 0xffu), *to = words + i / 2 + odd * (COPIES / 2) * copy_words(n);
#pragma unroll
    for (int copy = 0; copy < COPIES / 2; copy++)
        asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to + copy * copy_words(n)), "l"(word) : "memory");
}

__device__ inline float4 numbers_of(u64 a, u64 b) {
    return make_float4(__uint_as_float((u32)(a >> 36) << 4), __uint_as_float((u32)(a >> 8) << 4),
                       __uint_as_float((u32)(b >> 36) << 4), __uint_as_float((u32)(b >> 8) << 4));
}

// Numbers i .. i + 3 of n, and those 4 * THREADS further on, N times, as soon as they have the flag; 0 behind the n-th.
// i is four times the thread's number. A warp waits as one: threads that go on as each has its numbers would stay apart.
template <int N> __device__ inline void wait_for(float4 (&numbers)[N], const u64 *words, u32 i, u32 n, u32 flag) {
    u64 a[N], b[N];
    words += blockIdx.x % COPIES * copy_words(n);
    u32 waiting = 0;
#pragma unroll
    for (int j = 0; j < N; j++) {
        a[j] = b[j] = 0;
        if ((i & ~127u) + j * 4 * THREADS < n) waiting |= 1u << j;
    }
#pragma unroll 1
    while (waiting) {
#pragma unroll
        for (int j = 0; j < N; j++)
            if (waiting >> j & 1)
                asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
                             : "=l"(a[j]), "=l"(b[j]) : "l"(words + min(i + j * 4 * THREADS, n - 4) / 2) : "memory");
#pragma unroll
        for (int j = 0; j < N; j++)
            if (waiting >> j & 1 && __all_sync(0xffffffffu, ((((u32)a[j] ^ flag) | ((u32)b[j] ^ flag)) & 0xffu) == 0))
                waiting &= ~(1u << j);
    }
#pragma unroll
    for (int j = 0; j < N; j++) numbers[j] = i + j * 4 * THREADS < n ? numbers_of(a[j], b[j]) : make_float4(0, 0, 0, 0);
}

__device__ inline u32 n_chunks(u32 row_bytes) { return (row_bytes + SLOT_ROW_BYTES - 1) / SLOT_ROW_BYTES; }

// What weights are multiplied with: how many parts an activation has, each as large as a weight, and sums of them.
template <bool INT8> struct Parts;

template <> struct Parts<false> {
    static const u32 n = 2;
    typedef float Sum;
    // Of this thread's two columns.
    __device__ static float value(float first, float second, u32) { return first + second; }
};

template <> struct Parts<true> {
    static const u32 n = 4;
    typedef int Sum;
    // Columns are digits of base 256, the most significant first. Sums of 8,192 products of bytes leave room in an int.
    __device__ static float value(int first, int second, u32 lane) {
        float pair = (float)first * 256.0f + (float)second;
        if (lane & 1) pair *= 1.0f / 65536.0f;
        return pair + __shfl_xor_sync(0xffffffffu, pair, 1);
    }
};

// (16, 32) weights times (32, 8) digits.
__device__ inline void multiply_add(int (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// COUNT times 64 bytes of up to 16 rows of weights, times the activations that are as many inputs. `weights`: this
// thread's 16 bytes of the upper eight rows, and how far behind them are those of the lower. Each part of the
// activations is a column, the others are nothing.
template <bool TALL, int COUNT, class Sum>
__device__ inline void multiply_blocks(Sum (&sums)[2][4], u32 weights, u32 to_lower, u32 activations, bool has_column) {
    const u32 step = 64 * SLOT_WARPS;
    uint4 zero = make_uint4(0, 0, 0, 0), a[COUNT], b[COUNT], x[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        a[i] = shared_16(weights + i * step);
        b[i] = TALL ? shared_16(weights + to_lower + i * step) : zero;
        x[i] = zero;
        if (has_column) x[i] = shared_16(activations + i * step);
    }
    // Two sums, so that a product need not wait for the one before it.
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        u32 first[4] = {a[i].x, b[i].x, a[i].y, b[i].y}, second[4] = {a[i].z, b[i].z, a[i].w, b[i].w};
        multiply_add(sums[0], first, x[i].x, x[i].y);
        multiply_add(sums[1], second, x[i].z, x[i].w);
    }
}

// Of `bytes` bytes of rows, this warp's. The same, on and on.
template <bool TALL, class Sum>
__device__ inline void multiply_slot(Sum (&sums)[2][4], u32 weights, u32 activations, bool has_column, u32 bytes) {
    const u32 step = 64 * SLOT_WARPS, to_lower = 8 * SLOT_PITCH;
    u32 at = threadIdx.x / 32 % SLOT_WARPS * 64;
#pragma unroll 1
    for (; at + 3 * step < bytes; at += 4 * step, weights += 4 * step, activations += 4 * step)
        multiply_blocks<TALL, 4>(sums, weights, to_lower, activations, has_column);
    if (at + step < bytes) {
        multiply_blocks<TALL, 2>(sums, weights, to_lower, activations, has_column);
        at += 2 * step, weights += 2 * step, activations += 2 * step;
    }
    if (at < bytes) multiply_blocks<TALL, 1>(sums, weights, to_lower, activations, has_column);
}

// What there is to do with a slot of the ring. Which slots come is the same in every layer: all this is written down
// once, because to work it out takes as long as to multiply.
struct Piece {
    u32 activations; // bytes from the first activations
    u32 bytes;       // of a row; and flags
    u32 partials;    // bytes from the first, where sums go
    u32 unused;
};
// The slot has more than eight rows. It is the last one of its tile that this group of warps has.
#define PIECE_TALL (1u << 16)
#define PIECE_LAST (1u << 17)

// Sums of a tile of 16 outputs: (16, WARPS), the space behind each row puts outputs into different banks.
#define PARTIALS_PITCH (WARPS + 4)
#define TILE_BYTES (16 * PARTIALS_PITCH * 4)

// The pieces of one product, or of several with matrices that have as many inputs: `n_first` rows of one matrix, times
// the first activations, and `n_other` of each of the following ones, times those behind, `n_tiles` in all. Activations
// of one product take `product_bytes`. Gives how many there are.
__device__ inline u32 write_pieces(u32 to, u32 row_bytes, u32 n_first, u32 n_other, u32 n_tiles, u32 product_bytes) {
    u32 chunks = n_chunks(row_bytes), first_tiles = (n_first + 15) / 16, other_tiles = (n_other + 15) / 16;
    u32 n = n_tiles * chunks;
#pragma unroll 1
    for (u32 i = threadIdx.x; i < n; i += THREADS) {
        u32 tile = i / chunks, chunk = i % chunks, matrix = 0, tile_of_matrix = tile, n_outputs = n_first;
        if (tile >= first_tiles) {
            matrix = 1 + (tile - first_tiles) / other_tiles;
            tile_of_matrix = (tile - first_tiles) % other_tiles, n_outputs = n_other;
        }
        u32 bytes = min(SLOT_ROW_BYTES, row_bytes - chunk * SLOT_ROW_BYTES);
        if (n_outputs > 16 * tile_of_matrix + 8) bytes |= PIECE_TALL;
        if (chunk + SLOT_GROUPS >= chunks) bytes |= PIECE_LAST;
        u32 partials = tile * TILE_BYTES + chunk % SLOT_GROUPS * SLOT_WARPS * 4;
        asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};"
                     ::"r"(to + i * (u32)sizeof(Piece)), "r"(matrix * product_bytes + chunk * SLOT_ROW_BYTES), "r"(bytes), "r"(partials), "r"(0)
                     : "memory");
    }
    return n;
}

// Pieces from `piece` to `end`, which are addresses; a group of warps takes one of SLOT_GROUPS of them. Leaves of each
// tile what every warp had of it in `partials`. Gives where the warp is in the ring. A function, not inlined: what a layer
// does must fit into the multiprocessor's instruction cache.
template <bool INT8>
__device__ __noinline__ RingPlace multiply_pieces(RingPlace ring, u32 piece, u32 end, u32 activations, u32 plane_bytes, u32 partials) {
    typedef Parts<INT8> P;
    u32 lane = threadIdx.x & 31, part = threadIdx.x / 32 % SLOT_WARPS, row = lane >> 2, here = part * 64 + (lane & 3) * 16;
    bool has_column = row < P::n;
    activations += (row & P::n - 1) * plane_bytes + here;
    partials += (row * PARTIALS_PITCH + part) * 4;
    here += row * SLOT_PITCH;
    typename P::Sum sums[2][4] = {};
#pragma unroll 1
    for (; piece < end; piece += SLOT_GROUPS * (u32)sizeof(Piece)) {
        uint4 what = shared_16(piece);
        u32 bytes = what.y & 0xffffu;
        mbarrier_wait(ring.full(), ring.parity);
        if (what.y & PIECE_TALL)
            multiply_slot<true>(sums, ring.slot() + here, activations + what.x, has_column, bytes);
        else
            multiply_slot<false>(sums, ring.slot() + here, activations + what.x, has_column, bytes);
        // Every thread for itself: 2 % faster than one a warp behind a barrier, and racecheck understands it.
        mbarrier_arrive(ring.empty());
        ring.advance(SLOT_GROUPS);
        if (what.y & PIECE_LAST) {
#pragma unroll
            for (int i = 0; i < 4; i++) sums[0][i] += sums[1][i];
            float upper = P::value(sums[0][0], sums[0][1], lane), lower = P::value(sums[0][2], sums[0][3], lane);
            if ((lane & 3) == 0) {
                asm volatile("st.shared.f32 [%0], %1;" ::"r"(partials + what.z), "f"(upper) : "memory");
                asm volatile("st.shared.f32 [%0], %1;" ::"r"(partials + what.z + 8 * PARTIALS_PITCH * 4), "f"(lower) : "memory");
            }
#pragma unroll
            for (int i = 0; i < 4; i++) sums[0][i] = sums[1][i] = 0;
        }
    }
    return ring;
}

#endif
