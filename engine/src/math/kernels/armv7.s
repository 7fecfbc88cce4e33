@ Inner loops of the kernels for 32-bit ARM with NEON and VFPv4; `armv7.rs` declares and calls them.
@
@ All of them go over whole steps of sixteen columns. They use q0 to q3 and q8 to q15, which belong to the
@ called function, and no stack. Sums are in q12 to q15, four a register, activations in q8 to q11.

    .syntax unified
    .arch armv7-a
    .fpu neon-vfpv4
    .text
    .arm

@ void rwkv_edge_dot_f32(const float *weights, const float *x, size_t steps, float sums[16])
    .p2align 4
    .hidden rwkv_edge_dot_f32
    .globl rwkv_edge_dot_f32
    .type rwkv_edge_dot_f32, %function
rwkv_edge_dot_f32:
    vldmia r3, {d24-d31}
1:  vld1.32 {d0-d3}, [r0]!
    vld1.32 {d16-d19}, [r1]!
    vld1.32 {d4-d7}, [r0]!
    vld1.32 {d20-d23}, [r1]!
    subs r2, r2, #1
    vfma.f32 q12, q0, q8
    vfma.f32 q13, q1, q9
    vfma.f32 q14, q2, q10
    vfma.f32 q15, q3, q11
    bne 1b
    vstmia r3, {d24-d31}
    bx lr
    .size rwkv_edge_dot_f32, . - rwkv_edge_dot_f32

@ void rwkv_edge_dot_f16(const half *weights, const float *x, size_t steps, float sums[16])
    .p2align 4
    .hidden rwkv_edge_dot_f16
    .globl rwkv_edge_dot_f16
    .type rwkv_edge_dot_f16, %function
rwkv_edge_dot_f16:
    vldmia r3, {d24-d31}
1:  vld1.16 {d0-d3}, [r0]!
    vld1.32 {d16-d19}, [r1]!
    vld1.32 {d20-d23}, [r1]!
    subs r2, r2, #1
    vcvt.f32.f16 q2, d0
    vcvt.f32.f16 q3, d1
    vcvt.f32.f16 q0, d2
    vcvt.f32.f16 q1, d3
    vfma.f32 q12, q2, q8
    vfma.f32 q13, q3, q9
    vfma.f32 q14, q0, q10
    vfma.f32 q15, q1, q11
    bne 1b
    vstmia r3, {d24-d31}
    bx lr
    .size rwkv_edge_dot_f16, . - rwkv_edge_dot_f16

@ int32_t rwkv_edge_dot_i8(const int8_t *weights, const int16_t *x, size_t steps)
    .p2align 4
    .hidden rwkv_edge_dot_i8
    .globl rwkv_edge_dot_i8
    .type rwkv_edge_dot_i8, %function
rwkv_edge_dot_i8:
    vmov.i32 q12, #0
    vmov.i32 q13, #0
    vmov.i32 q14, #0
    vmov.i32 q15, #0
1:  vld1.8 {d0-d1}, [r0]!
    vld1.16 {d16-d19}, [r1]!
    subs r2, r2, #1
    vmovl.s8 q2, d0
    vmovl.s8 q3, d1
    vmlal.s16 q12, d4, d16
    vmlal.s16 q13, d5, d17
    vmlal.s16 q14, d6, d18
    vmlal.s16 q15, d7, d19
    bne 1b
    vadd.i32 q12, q12, q13
    vadd.i32 q14, q14, q15
    vadd.i32 q12, q12, q14
    vadd.i32 d24, d24, d25
    vpadd.i32 d24, d24, d24
    vmov.32 r0, d24[0]
    bx lr
    .size rwkv_edge_dot_i8, . - rwkv_edge_dot_i8

@ int32_t rwkv_edge_dot_i16(const int16_t *weights, const int16_t *x, size_t steps)
    .p2align 4
    .hidden rwkv_edge_dot_i16
    .globl rwkv_edge_dot_i16
    .type rwkv_edge_dot_i16, %function
rwkv_edge_dot_i16:
    vmov.i32 q12, #0
    vmov.i32 q13, #0
    vmov.i32 q14, #0
    vmov.i32 q15, #0
1:  vld1.16 {d0-d3}, [r0]!
    vld1.16 {d16-d19}, [r1]!
    subs r2, r2, #1
    vmlal.s16 q12, d0, d16
    vmlal.s16 q13, d1, d17
    vmlal.s16 q14, d2, d18
    vmlal.s16 q15, d3, d19
    bne 1b
    vadd.i32 q12, q12, q13
    vadd.i32 q14, q14, q15
    vadd.i32 q12, q12, q14
    vadd.i32 d24, d24, d25
    vpadd.i32 d24, d24, d24
    vmov.32 r0, d24[0]
    bx lr
    .size rwkv_edge_dot_i16, . - rwkv_edge_dot_i16

@ void rwkv_edge_add_row_f32(const float *row, float *out, size_t steps, const float *value)
@ out += row * value
    .p2align 4
    .hidden rwkv_edge_add_row_f32
    .globl rwkv_edge_add_row_f32
    .type rwkv_edge_add_row_f32, %function
rwkv_edge_add_row_f32:
    vld1.32 {d16[], d17[]}, [r3]
1:  vldmia r1, {d24-d31}
    vld1.32 {d0-d3}, [r0]!
    vld1.32 {d4-d7}, [r0]!
    subs r2, r2, #1
    vfma.f32 q12, q0, q8
    vfma.f32 q13, q1, q8
    vfma.f32 q14, q2, q8
    vfma.f32 q15, q3, q8
    vstmia r1!, {d24-d31}
    bne 1b
    bx lr
    .size rwkv_edge_add_row_f32, . - rwkv_edge_add_row_f32

@ void rwkv_edge_add_row_f16(const half *row, float *out, size_t steps, const float *value)
    .p2align 4
    .hidden rwkv_edge_add_row_f16
    .globl rwkv_edge_add_row_f16
    .type rwkv_edge_add_row_f16, %function
rwkv_edge_add_row_f16:
    vld1.32 {d16[], d17[]}, [r3]
1:  vldmia r1, {d24-d31}
    vld1.16 {d0-d3}, [r0]!
    subs r2, r2, #1
    vcvt.f32.f16 q2, d0
    vcvt.f32.f16 q3, d1
    vcvt.f32.f16 q0, d2
    vcvt.f32.f16 q1, d3
    vfma.f32 q12, q2, q8
    vfma.f32 q13, q3, q8
    vfma.f32 q14, q0, q8
    vfma.f32 q15, q1, q8
    vstmia r1!, {d24-d31}
    bne 1b
    bx lr
    .size rwkv_edge_add_row_f16, . - rwkv_edge_add_row_f16

@ void rwkv_edge_add_row_i8(const int8_t *row, int32_t *out, size_t steps, const int16_t *value)
    .p2align 4
    .hidden rwkv_edge_add_row_i8
    .globl rwkv_edge_add_row_i8
    .type rwkv_edge_add_row_i8, %function
rwkv_edge_add_row_i8:
    vld1.16 {d16[]}, [r3]
1:  vldmia r1, {d24-d31}
    vld1.8 {d0-d1}, [r0]!
    subs r2, r2, #1
    vmovl.s8 q2, d0
    vmovl.s8 q3, d1
    vmlal.s16 q12, d4, d16
    vmlal.s16 q13, d5, d16
    vmlal.s16 q14, d6, d16
    vmlal.s16 q15, d7, d16
    vstmia r1!, {d24-d31}
    bne 1b
    bx lr
    .size rwkv_edge_add_row_i8, . - rwkv_edge_add_row_i8

@ void rwkv_edge_add_row_i16(const int16_t *row, int32_t *out, size_t steps, const int16_t *value)
    .p2align 4
    .hidden rwkv_edge_add_row_i16
    .globl rwkv_edge_add_row_i16
    .type rwkv_edge_add_row_i16, %function
rwkv_edge_add_row_i16:
    vld1.16 {d16[]}, [r3]
1:  vldmia r1, {d24-d31}
    vld1.16 {d0-d3}, [r0]!
    subs r2, r2, #1
    vmlal.s16 q12, d0, d16
    vmlal.s16 q13, d1, d16
    vmlal.s16 q14, d2, d16
    vmlal.s16 q15, d3, d16
    vstmia r1!, {d24-d31}
    bne 1b
    bx lr
    .size rwkv_edge_add_row_i16, . - rwkv_edge_add_row_i16

@ void rwkv_edge_panel_f32(const float *panel, const float *x, size_t steps, float sums[16])
@ sums[o] += sum over i < steps of x[i] * panel[i][o]
    .p2align 4
    .hidden rwkv_edge_panel_f32
    .globl rwkv_edge_panel_f32
    .type rwkv_edge_panel_f32, %function
rwkv_edge_panel_f32:
    vmov.i32 q12, #0
    vmov.i32 q13, #0
    vmov.i32 q14, #0
    vmov.i32 q15, #0
1:  vld1.32 {d0-d3}, [r0]!
    vld1.32 {d16[], d17[]}, [r1]!
    vld1.32 {d4-d7}, [r0]!
    subs r2, r2, #1
    vfma.f32 q12, q0, q8
    vfma.f32 q13, q1, q8
    vfma.f32 q14, q2, q8
    vfma.f32 q15, q3, q8
    bne 1b
    vldmia r3, {d0-d7}
    vadd.f32 q0, q0, q12
    vadd.f32 q1, q1, q13
    vadd.f32 q2, q2, q14
    vadd.f32 q3, q3, q15
    vstmia r3, {d0-d7}
    bx lr
    .size rwkv_edge_panel_f32, . - rwkv_edge_panel_f32

@ void rwkv_edge_panel_i8(const int16_t *panel, const int16_t *x, size_t steps, int32_t sums[16])
@ sums[o] += sum over i < steps of x[2i] * panel[i][o][0] + x[2i + 1] * panel[i][o][1]
    .p2align 4
    .hidden rwkv_edge_panel_i8
    .globl rwkv_edge_panel_i8
    .type rwkv_edge_panel_i8, %function
rwkv_edge_panel_i8:
    vldmia r3, {d24-d31}
1:  vld2.16 {d0-d3}, [r0]!
    vld1.16 {d16[]}, [r1]!
    vld2.16 {d4-d7}, [r0]!
    vld1.16 {d17[]}, [r1]!
    subs r2, r2, #1
    vmlal.s16 q12, d0, d16
    vmlal.s16 q13, d1, d16
    vmlal.s16 q14, d4, d16
    vmlal.s16 q15, d5, d16
    vmlal.s16 q12, d2, d17
    vmlal.s16 q13, d3, d17
    vmlal.s16 q14, d6, d17
    vmlal.s16 q15, d7, d17
    bne 1b
    vstmia r3, {d24-d31}
    bx lr
    .size rwkv_edge_panel_i8, . - rwkv_edge_panel_i8
