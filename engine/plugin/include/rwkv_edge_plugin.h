/* rwkv_edge_plugin.h: the table by which rwkv-edge runs layers of a model on another device, version 2.
 *
 * A plugin is a shared library that exports one symbol, rwkv_edge_plugin_v2.  docs/PLUGINS.md is the guide; this file is the
 * contract, and src/lib.rs beside it the same in Rust.
 *
 * The host is rwkv-edge.  A stage is a contiguous range of a model's layers on one device, with the embedding in front of
 * the first layer and the head behind the last one where it says so.  A state is what one sequence remembers of one stage.
 * Rows are tokens: one a token of the batch, span after span.
 *
 * What can be of several kinds has a name: architectures, quantisations, sizes, numbers, tensors and their parts.  Later
 * hosts have more names and the same table.  A plugin says which architectures and quantisations it knows, and refuses every
 * other name with ERROR_UNSUPPORTED and a text that has the name: to pass over what it does not know would be to compute
 * something else.
 *
 * Functions return a status; after one that failed, last_error on the same thread says why in one line.  Nothing aborts,
 * prints, or lets an exception out.  Functions may be called from any thread; calls on one stage may come from several
 * threads at once, but never two calls on one state.  The host frees every state before its stage.
 *
 * Structs start with struct_size, which the host sets, also in structs that the plugin fills; only the table's is the
 * plugin's.  A reader takes missing fields as 0.  (Elements of arrays have none, and never grow.)
 *
 * Texts are UTF-8 and end with a NUL.  Lists of names end with a NULL.  What a plugin gives of them lives as long as the
 * library is loaded.  What the host gives, texts, arrays and structs, need not outlive the call. */
#ifndef RWKV_EDGE_PLUGIN_H
#define RWKV_EDGE_PLUGIN_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

#define RWKV_EDGE_PLUGIN_VERSION 2u

typedef struct rwkv_edge_plugin_stage rwkv_edge_plugin_stage;
typedef struct rwkv_edge_plugin_state rwkv_edge_plugin_state;

typedef int32_t rwkv_edge_plugin_status;
#define RWKV_EDGE_PLUGIN_OK 0
#define RWKV_EDGE_PLUGIN_ERROR_ARGUMENT 1    /* what the host asked for cannot be */
#define RWKV_EDGE_PLUGIN_ERROR_UNSUPPORTED 2 /* well formed, but not for this plugin or device */
#define RWKV_EDGE_PLUGIN_ERROR_MEMORY 3      /* the device or the host has too little */
#define RWKV_EDGE_PLUGIN_ERROR_DEVICE 4      /* no driver, no such device, or it failed */
#define RWKV_EDGE_PLUGIN_ERROR_PANIC 99      /* a bug in the plugin */

typedef struct {
  uint32_t struct_size;
  uint32_t reserved;
  uint64_t total_bytes;      /* memory of the device */
  uint64_t free_bytes;       /* of it now */
  const char *const *quants; /* list of names: what the matrices of a stage may be stored as, such as "f16", "int8", NULL */
  char name[96];             /* such as "NVIDIA H200" */
  char detail[96];           /* such as "compute capability 9.0, driver 580.159" */
} rwkv_edge_plugin_device;

/* A size of a model, and a number that is none. */
typedef struct {
  const char *name;
  uint64_t value;
} rwkv_edge_plugin_size;

typedef struct {
  const char *name;
  double value; /* finite */
} rwkv_edge_plugin_number;

/* Sizes and numbers are those of the whole model. They come in any order, each once. An architecture has exactly these:
 *
 * rwkv-4   sizes    n_vocab, n_embd, n_layer
 *                   n_attention         channels of the time mixing
 *                   n_hidden            hidden units of the channel mixing
 *          numbers  norm_epsilon        of the layers' norms and of the norm behind the embedding
 *                   norm_out_epsilon    of the norm in front of the head
 *          row_width is n_embd: the residual stream
 *
 * Every architecture has n_vocab (how many tokens and logits), n_embd (how wide WRITE_HIDDEN is) and n_layer. */
typedef struct {
  uint32_t struct_size;
  uint32_t device;
  const char *architecture; /* one of the table's */
  const char *quant;        /* of the stage's matrices, one of the device's */
  const rwkv_edge_plugin_size *sizes;
  const rwkv_edge_plugin_number *numbers;
  uint32_t n_sizes, n_numbers;       /* how many of them */
  uint32_t first_layer, layer_count; /* of this stage; layer_count may be 0 when it has the head */
  uint32_t has_embedding;            /* 1: it reads token ids, and first_layer is 0 */
  uint32_t has_head;                 /* 1: it can give logits, and its layers are the model's last */
  uint32_t rows_max;                 /* no batch will have more rows, at least 1 */
  uint32_t row_width;                /* f32 numbers of a row that passes from stage to stage */
} rwkv_edge_plugin_stage_options;

typedef struct {
  uint32_t struct_size;
  uint32_t reserved;
  uint64_t weight_bytes;    /* of matrices and vectors on the device */
  uint64_t workspace_bytes; /* of what forward passes need beside them */
  uint64_t state_bytes;     /* of one state on the device */
  uint64_t allocated_bytes; /* what the stage has taken of the device until now, states included; 0 in an estimate */
} rwkv_edge_plugin_memory;

/* Some numbers of a tensor. */
typedef struct {
  const char *name;
  const void *data; /* little-endian, in any alignment */
  uint64_t bytes;   /* exactly as many as the tensor's sizes give */
} rwkv_edge_plugin_part;

/* The layer of tensors that no layer has. */
#define RWKV_EDGE_PLUGIN_NO_LAYER UINT32_MAX

/* Tensors are called as in rwkv-edge's model files, without the layer in front: blocks.3.att.key.weight is att.key.weight of
 * layer 3; docs/PLUGINS.md has those of rwkv-7. Those of rwkv-4, with D = n_embd, A = n_attention, H = n_hidden, V = n_vocab; vectors are f32 in one row,
 * matrices have the stage's quant and are (outputs, inputs), but for ffn.value.weight:
 *
 * with has_embedding   emb.weight (V, D), NO_LAYER
 *                      ln0.weight D, ln0.bias D, both of layer 0
 * of each layer        ln1.weight D, ln1.bias D
 *                      att.time_mix_k D, att.time_mix_v D, att.time_mix_r D     share of the present token
 *                      att.decay_log A                                          -exp(time_decay) of checkpoints
 *                      att.time_first A
 *                      att.key.weight (A, D), att.value.weight (A, D), att.receptance.weight (A, D)
 *                      att.output.weight (D, A)
 *                      ln2.weight D, ln2.bias D
 *                      ffn.time_mix_k D, ffn.time_mix_r D
 *                      ffn.key.weight (H, D), ffn.receptance.weight (D, D)
 *                      ffn.value.weight (H, D): one stored row an input
 * with has_head        ln_out.weight D, ln_out.bias D, head.weight (V, D), all NO_LAYER
 *
 * Parts of a call for n = row_count rows of c = n_cols columns, in any order:
 *
 * f32    values             (n, c) f32, row-major
 * f16    values             (n, c) f16
 * int8   values             (n, c) int8, -127 to 127
 *        row_scales         (n) f16, 0 or above
 *        column_exponents   (c) int8, -96 to 96, the same in every call for a tensor; left out where all are 0
 *        weight[r, c] = values[r, c] * row_scales[r] * 2^(column_exponents[c] / 4) */
typedef struct {
  uint32_t struct_size;
  uint32_t layer;    /* of the model, or NO_LAYER */
  const char *name;
  const char *quant; /* of its values */
  uint64_t n_rows, n_cols;       /* of the whole tensor */
  uint64_t first_row, row_count; /* which of its rows come with this call: at least 1, from the first that has not come */
  const rwkv_edge_plugin_part *parts;
  uint32_t n_parts;
  uint32_t reserved;
} rwkv_edge_plugin_tensor;

/* What a forward pass writes. "Rows asked for" are those that the spans' outputs name. */
#define RWKV_EDGE_PLUGIN_WRITE_NOTHING 0u /* the tokens only move the states */
#define RWKV_EDGE_PLUGIN_WRITE_ROWS 1u    /* all rows as they are behind the last layer, (n_rows, row_width) */
#define RWKV_EDGE_PLUGIN_WRITE_HIDDEN 2u  /* rows asked for, behind the norm in front of the head, (.., n_embd) */
#define RWKV_EDGE_PLUGIN_WRITE_LOGITS 3u  /* rows asked for, (.., n_vocab) */
#define RWKV_EDGE_PLUGIN_WRITE_TOKENS 4u  /* rows asked for: the token with the largest logit, the first of equal ones */

#define RWKV_EDGE_PLUGIN_ROWS_NONE 0u
#define RWKV_EDGE_PLUGIN_ROWS_LAST 1u
#define RWKV_EDGE_PLUGIN_ROWS_ALL 2u

/* Tokens of one sequence. No two spans of a batch have the same states. */
typedef struct {
  rwkv_edge_plugin_state *const *states; /* one a stage of the chain */
  uint32_t n_rows;                       /* at least 1 */
  uint32_t rows;                         /* ROWS_*: for which of them something is written */
} rwkv_edge_plugin_span;

typedef struct {
  uint32_t struct_size;
  uint32_t n_spans;
  const rwkv_edge_plugin_span *spans;
  uint32_t n_rows; /* of all spans, at least 1 */
  uint32_t write;  /* WRITE_* */
  const uint32_t *tokens;  /* (n_rows), less than n_vocab each, when the first stage has the embedding; else NULL */
  const float *rows_in;    /* (n_rows, row_width), when it has not; else NULL; never overlaps what is written */
  float *numbers;          /* for WRITE_ROWS, _HIDDEN and _LOGITS */
  uint32_t *tokens_out;    /* for WRITE_TOKENS */
} rwkv_edge_plugin_batch;

typedef struct {
  uint32_t struct_size;
  uint32_t reserved;
  double read_bytes_per_s;    /* of the device's memory */
  double macs_per_s;          /* multiply-adds of the arithmetic that long prompts use */
  double step_seconds;        /* of one dependent step of a decode: a kernel that does nothing, say; 0: unknown */
} rwkv_edge_plugin_limits;

typedef struct {
  uint32_t version;     /* RWKV_EDGE_PLUGIN_VERSION */
  uint32_t struct_size; /* of this table as the plugin was built with it */
  const char *name;     /* how devices of this plugin are called: "cuda" gives cuda:0, cuda:1, ...; [a-z0-9]+ */
  const char *build;    /* its own version, for people */
  const char *const *architectures; /* list of names: what stages may be of, such as "rwkv-4", NULL */

  /* Devices there are now. Without a driver: ERROR_DEVICE, and last_error says what is missing. */
  rwkv_edge_plugin_status (*device_count)(uint32_t *count);
  rwkv_edge_plugin_status (*device_info)(uint32_t device, rwkv_edge_plugin_device *info);
  /* Measures; takes about a second. */
  rwkv_edge_plugin_status (*device_limits)(uint32_t device, rwkv_edge_plugin_limits *limits);

  /* What a stage would take, before it is made. */
  rwkv_edge_plugin_status (*stage_estimate)(const rwkv_edge_plugin_stage_options *options,
                                            rwkv_edge_plugin_memory *memory);
  /* Of how many f32 numbers a state of such a stage consists on the host: see state_write. The host compares it with what it
   * keeps itself, before a stage is made. */
  rwkv_edge_plugin_status (*state_count)(const rwkv_edge_plugin_stage_options *options, uint64_t *count);
  /* Allocates a stage; then comes every row of every tensor once: tensors in any order, the rows of each from the first
   * to the last, in as many calls as the host likes; then stage_finish, which refuses missing ones. */
  rwkv_edge_plugin_status (*stage_new)(const rwkv_edge_plugin_stage_options *options, rwkv_edge_plugin_stage **stage);
  rwkv_edge_plugin_status (*stage_tensor)(rwkv_edge_plugin_stage *stage, const rwkv_edge_plugin_tensor *tensor);
  rwkv_edge_plugin_status (*stage_finish)(rwkv_edge_plugin_stage *stage);
  rwkv_edge_plugin_status (*stage_memory)(const rwkv_edge_plugin_stage *stage, rwkv_edge_plugin_memory *memory);
  void (*stage_free)(rwkv_edge_plugin_stage *stage); /* NULL: nothing */

  /* States of one stage. Their numbers on the host are f32, layer after layer, and the same on every device; count is what
   * state_count says. A new state is the empty one.
   *
   * rwkv-4: for each of the stage's layers 2 D + 3 A numbers, the last normalised inputs of channel mixing and of time mixing,
   * then WKV's numerator, denominator and exponent_max. Empty are 0, and exponent_max -1e30. */
  rwkv_edge_plugin_status (*state_new)(rwkv_edge_plugin_stage *stage, rwkv_edge_plugin_state **state);
  rwkv_edge_plugin_status (*state_write)(rwkv_edge_plugin_state *state, const float *numbers, size_t count);
  rwkv_edge_plugin_status (*state_read)(const rwkv_edge_plugin_state *state, float *numbers, size_t count);
  rwkv_edge_plugin_status (*state_copy)(rwkv_edge_plugin_state *to, const rwkv_edge_plugin_state *from);
  void (*state_free)(rwkv_edge_plugin_state *state); /* NULL: nothing */

  /* The logits behind the last row fed that WRITE_LOGITS or WRITE_TOKENS was asked for, of a state of a stage with the
   * head: so that a caller who took only tokens can have the numbers in the end. count is n_vocab. */
  rwkv_edge_plugin_status (*state_logits)(const rwkv_edge_plugin_state *state, float *logits, size_t count);

  /* Feeds a batch through consecutive stages of one model, all of this plugin: the first stage's input is the batch's,
   * rows pass from stage to stage in whatever way suits the devices, the last stage's output is written. Returns when
   * that is done. A refusal of arguments leaves the states as they were; after any other failure they are undefined.
   * Numbers that are NaN or infinite are no failure here; they must show in the results, which the host then refuses. */
  rwkv_edge_plugin_status (*forward)(rwkv_edge_plugin_stage *const *stages, uint32_t n_stages,
                                     const rwkv_edge_plugin_batch *batch);

  /* Why the last call on this thread failed, NUL-terminated into text; gives the length of the whole. text may be NULL
   * with capacity 0. */
  size_t (*last_error)(char *text, size_t capacity);

  void *reserved[8]; /* NULL */
} rwkv_edge_plugin_table;

/* The only symbol. host_version is RWKV_EDGE_PLUGIN_VERSION of the host. NULL when the plugin cannot serve it. The table
 * lives as long as the library is loaded. Must not touch devices or drivers. */
const rwkv_edge_plugin_table *rwkv_edge_plugin_v2(uint32_t host_version);

#ifdef __cplusplus
}
#endif
#endif
