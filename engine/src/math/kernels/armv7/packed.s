@ Inner loops for packed weights of 4 to 6 bits; `packed.rs` declares and calls them, and `packed.rs` beside the
@ instruction sets has the layout.
@
@ A unit of 64 weights is 32 low bytes and their high bits. In registers its columns lie in order, sixteen a register: q0,
@ q9, q1 and q10. With four bits they are looked up and are codes; with more they are the numbers `u` themselves.
@
@ Products are made of bytes, onto 16 bits, of which each of eight lanes holds a block's four products of at most 63 * 128.

    .syntax unified
    .arch armv7-a
    .fpu neon-vfpv4
    .text
    .arm

    .macro function name
    .p2align 4
    .hidden \name
    .globl \name
    .type \name, %function
\name:
    .endm

@ What `numbers_4` wants in q4 and q5; r1 is at the sixteen codes.
    .macro constants_4
    vld1.8 {d8-d9}, [r1]
    vmov.i8 q5, #15
    .endm

@ The columns of the unit at r0. 13 instructions.
    .macro numbers_4
    vld1.8 {d0-d3}, [r0]!
    vshr.u8 q9, q0, #4
    vshr.u8 q10, q1, #4
    vand q0, q0, q5
    vand q1, q1, q5
    vtbl.8 d18, {d8-d9}, d18
    vtbl.8 d19, {d8-d9}, d19
    vtbl.8 d20, {d8-d9}, d20
    vtbl.8 d21, {d8-d9}, d21
    vtbl.8 d0, {d8-d9}, d0
    vtbl.8 d1, {d8-d9}, d1
    vtbl.8 d2, {d8-d9}, d2
    vtbl.8 d3, {d8-d9}, d3
    .endm

    .macro constants_5
    vmov.i8 q4, #0x10
    vmov.i8 q5, #0x1f
    .endm

@ With its high bits at r1, those of the second word one place above those of the first. 12 instructions.
    .macro numbers_5
    vld1.8 {d4}, [r1]!
    vld1.8 {d0-d3}, [r0]!
    vshr.u8 d5, d4, #1
    insert_high
    .endm

    .macro constants_6
    vmov.i8 q4, #0x30
    vmov.i8 q5, #0x3f
    .endm

@ 11 instructions.
    .macro numbers_6
    vld1.8 {d4-d5}, [r1]!
    vld1.8 {d0-d3}, [r0]!
    insert_high
    .endm

@ Low bits in q0 and q1, high ones in q2: those of the first sixteen columns at place 0 of each byte, of the others at 4, 2
@ and 6.
    .macro insert_high
    vshr.u8 q3, q2, #2
    vand q9, q2, q4
    vand q10, q3, q4
    vsri.8 q9, q0, #4
    vsri.8 q10, q1, #4
    vsli.8 q0, q2, #4
    vsli.8 q1, q3, #4
    vand q0, q0, q5
    vand q1, q1, q5
    .endm

@ Two sums of a block to \sums: of sixteen columns in \a and \b and sixteen in \c and \d with the split activations at r3.
@ 14 instructions.
    .macro block sums a b c d
    vld1.8 {d4-d7}, [r3]!
    vld1.8 {d22-d25}, [r3]!
    vmull.s8 q13, \a, d4
    vmull.s8 q14, \a, d6
    vmlal.s8 q13, \b, d5
    vmlal.s8 q14, \b, d7
    vmlal.s8 q13, \c, d22
    vmlal.s8 q14, \c, d24
    vmlal.s8 q13, \d, d23
    vmlal.s8 q14, \d, d25
    vpaddl.s16 q13, q13
    vshl.i32 q13, q13, #8
    vpadal.s16 q13, q14
    vpadd.i32 \sums, d26, d27
    .endm

@ uint64_t rwkv_edge_dot_qN(const uint8_t *low, const uint8_t *high or codes, const uint8_t *scales,
@     const int8_t *x, size_t units)
@ low word: sums of products times scales; high word: of activations times scales
@
@ Instructions a unit: 50, 50 and 49 with 4, 5 and 6 bits, so that a core which begins one a cycle could read 0.66, 0.82 and
@ 1.0 bytes a cycle.
    .macro dot bits
    function rwkv_edge_dot_q\bits
    ldr r12, [sp]
    vpush {d8-d15}
    constants_\bits
    vmov.i32 q6, #1
    vmov.i32 q7, #0
    vmov.i32 q15, #0
1:  numbers_\bits
    block d16 d0 d1 d18 d19
    block d17 d2 d3 d20 d21
    vld1.8 {d26[], d27[]}, [r2]!
    subs r12, r12, #1
    @ The low four bits of the scales are the first block's, the high ones the second's.
    vshl.i32 d26, d26, #28
    vshr.u32 d27, d27, #28
    vshr.u32 d26, d26, #28
    vadd.i32 q13, q13, q6
    vmla.i32 q15, q8, q13
    .if \bits == 4
    add r3, r3, #16
    .else
    vld1.32 {d4-d5}, [r3]!
    vmla.i32 q7, q2, q13
    .endif
    bne 1b
    vpadd.i32 d30, d30, d31
    vpadd.i32 d14, d14, d15
    vpadd.i32 d30, d30, d14
    vmov r0, r1, d30
    vpop {d8-d15}
    bx lr
    .size rwkv_edge_dot_q\bits, . - rwkv_edge_dot_q\bits
    .endm

    dot 4
    dot 5
    dot 6

@ Sixteen codes times the scale \s.
    .macro store a b s
    vmull.s8 q11, \a, \s
    vmull.s8 q12, \b, \s
    vst1.16 {d22-d25}, [r3]!
    .endm

@ void rwkv_edge_widen_qN(const uint8_t *low, const uint8_t *high or codes, const uint8_t *scales,
@     int16_t *out, size_t units)
@
@ Instructions a unit: 32, 39 and 38 with 4, 5 and 6 bits.
    .macro widen bits
    function rwkv_edge_widen_q\bits
    ldr r12, [sp]
    vpush {d8-d13}
    constants_\bits
    vmov.i8 d12, #1
    .if \bits == 5
    vmov.i8 q8, #31
    .elseif \bits == 6
    vmov.i8 q8, #63
    .endif
    vmov.i8 d13, #15
1:  numbers_\bits
    .if \bits != 4
    vadd.i8 q0, q0, q0
    vadd.i8 q9, q9, q9
    vadd.i8 q1, q1, q1
    vadd.i8 q10, q10, q10
    vsub.i8 q0, q0, q8
    vsub.i8 q9, q9, q8
    vsub.i8 q1, q1, q8
    vsub.i8 q10, q10, q8
    .endif
    vld1.8 {d28[]}, [r2]!
    subs r12, r12, #1
    vshr.u8 d29, d28, #4
    vand d28, d28, d13
    vadd.i8 d29, d29, d12
    vadd.i8 d28, d28, d12
    store d0 d1 d28
    store d18 d19 d28
    store d2 d3 d29
    store d20 d21 d29
    bne 1b
    vpop {d8-d13}
    bx lr
    .size rwkv_edge_widen_q\bits, . - rwkv_edge_widen_q\bits
    .endm

    widen 4
    widen 5
    widen 6

@ void rwkv_edge_split(const int16_t *x, int8_t *target, size_t units)
@ Of each sixteen activations the high bytes and the low ones, and behind each unit the sums of its first block, in two parts,
@ and of its second. A low byte is signed, so the high byte is that of the number rounded to a multiple of 256.
    .macro sixteen sum
    vld1.16 {d0-d3}, [r0]!
    vadd.i16 q2, q0, q8
    vadd.i16 q3, q1, q8
    vmovn.i16 d20, q0
    vmovn.i16 d21, q1
    vshrn.i16 d18, q2, #8
    vshrn.i16 d19, q3, #8
    vpadal.s16 \sum, q0
    vpadal.s16 \sum, q1
    vst1.8 {d18-d21}, [r1]!
    .endm

    function rwkv_edge_split
    vmov.i16 q8, #128
1:  vmov.i32 q14, #0
    vmov.i32 q15, #0
    sixteen q14
    sixteen q14
    sixteen q15
    sixteen q15
    subs r2, r2, #1
    vpadd.i32 d28, d28, d29
    vpadd.i32 d29, d30, d31
    vst1.32 {d28-d29}, [r1]!
    bne 1b
    bx lr
    .size rwkv_edge_split, . - rwkv_edge_split

    .purgem function
    .purgem constants_4
    .purgem constants_5
    .purgem constants_6
    .purgem numbers_4
    .purgem numbers_5
    .purgem numbers_6
    .purgem insert_high
    .purgem block
    .purgem dot
    .purgem store
    .purgem widen
    .purgem sixteen
