// Instructions around tensor cores: copies in stages, tiles out of shared memory, products; and those of clusters of blocks.

#if TENSOR_CORES

__device__ inline void end_of_stage() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// All threads of all blocks of a cluster; what they wrote before they arrived, the others see behind the wait.
__device__ inline void arrive_in_cluster() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

// The same, where they only read. Nothing orders what was read before this: so what was made of it has to be stored before.
__device__ inline void leave_cluster() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}

__device__ inline void wait_for_cluster() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// Four floats in the shared memory of another block of the cluster, by their address in this block's.
__device__ inline float4 load_from_block(u32 address, u32 block) {
    float4 v = make_float4(0, 0, 0, 0);
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n.reg .u32 there;\nmapa.shared::cluster.u32 there, %4, %5;\nld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [there];\n}"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(address), "r"(block) : "memory");
#endif
    return v;
}

template <int left> __device__ inline void wait_for_stages() {
    asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
}

// Four 8 x 8 tiles of f16.
__device__ inline void load_tiles(u32 (&tiles)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3]) : "r"(address) : "memory");
}

// (16, 16) activations times (16, 8) weights.
__device__ inline void multiply_add(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two of four bytes q as two f16: 1024 + (q + 128) has the byte in its mantissa.
template <int selector> __device__ inline u32 bytes_to_halves(u32 biased) {
    u32 pair;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(pair) : "r"(biased), "r"(0x64646464u), "n"(selector));
    asm("sub.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(pair), "r"(0x64806480u));
    return pair;
}

#endif
