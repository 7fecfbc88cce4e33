/* rwkv_edge_plugin.h: the table by which rwkv-edge runs layers of a model on another device, version 1.
 *
 * A plugin is a shared library that exports one symbol, rwkv_edge_plugin_v1.  docs/PLUGINS.md is the guide; this file is the
 * contract, and src/lib.rs beside it the same in Rust.
 *
 * The host is rwkv-edge.  A stage is a contiguous range of a model's layers on one device, with the embedding in front of
 * the first layer and the head behind the last one where it says so.  A state is what one sequence remembers of one stage.
 * Rows are tokens: one a token of the batch, span after span.
 *
 * Functions return a status; after one that failed, last_error on the same thread says why in one line.  Nothing aborts,
 * prints, or lets an exception out.  Functions may be called from any thread; calls on one stage may come from several
 * threads at once, but never two calls on one state.  The host frees every state before its stage.
 *
 * Structs start with struct_size, which the host sets, also in structs that the plugin fills; only the table's is the
 * plugin's.  A reader takes missing fields as 0. */
#ifndef RWKV_EDGE_PLUGIN_H
#define RWKV_EDGE_PLUGIN_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

#define RWKV_EDGE_PLUGIN_VERSION 1u

typedef struct rwkv_edge_plugin_stage rwkv_edge_plugin_stage;
typedef struct rwkv_edge_plugin_state rwkv_edge_plugin_state;

typedef int32_t rwkv_edge_plugin_status;
#define RWKV_EDGE_PLUGIN_OK 0
#define RWKV_EDGE_PLUGIN_ERROR_ARGUMENT 1    /* what the host asked for cannot be */
#define RWKV_EDGE_PLUGIN_ERROR_UNSUPPORTED 2 /* well formed, but not for this plugin or device */
#define RWKV_EDGE_PLUGIN_ERROR_MEMORY 3      /* the device or the host has too little */
#define RWKV_EDGE_PLUGIN_ERROR_DEVICE 4      /* no driver, no such device, or it failed */
#define RWKV_EDGE_PLUGIN_ERROR_PANIC 99      /* a bug in the plugin */

/* How numbers are stored. */
#define RWKV_EDGE_PLUGIN_F32 0u
#define RWKV_EDGE_PLUGIN_F16 1u
#define RWKV_EDGE_PLUGIN_INT8 2u

typedef struct {
  uint32_t struct_size;
  uint32_t quants;        /* bit q is set when stages of quantisation q are understood */
  uint64_t total_bytes;   /* memory of the device */
  uint64_t free_bytes;    /* of it now */
  char name[96];          /* UTF-8, NUL-terminated, such as "NVIDIA H200" */
  char detail[96];        /* the same, such as "compute capability 9.0, driver 580.159" */
} rwkv_edge_plugin_device;

typedef struct {
  uint32_t struct_size;
  uint32_t device;
  uint32_t n_vocab, n_embd, n_layer; /* of the whole model */
  uint32_t n_attention;              /* channels of the time mixing */
  uint32_t n_hidden;                 /* hidden units of the channel mixing */
  uint32_t first_layer, layer_count; /* of this stage; layer_count may be 0 when it has the head */
  uint32_t has_embedding;            /* 1: it reads token ids, and first_layer is 0 */
  uint32_t has_head;                 /* 1: it can give logits, and its layers are the model's last */
  uint32_t quant;                    /* of the stage's matrices */
  uint32_t rows_max;                 /* no batch will have more rows, at least 1 */
  float norm_epsilon;                /* of the layers' norms and of the norm behind the embedding */
  float norm_out_epsilon;            /* of the norm in front of the head */
  uint32_t reserved;
} rwkv_edge_plugin_stage_options;

typedef struct {
  uint32_t struct_size;
  uint32_t reserved;
  uint64_t weight_bytes;    /* of matrices and vectors on the device */
  uint64_t workspace_bytes; /* of what forward passes need beside them */
  uint64_t state_bytes;     /* of one state on the device */
  uint64_t allocated_bytes; /* what the stage has taken of the device until now, states included; 0 in an estimate */
} rwkv_edge_plugin_memory;

/* Which tensor. Sizes: D = n_embd, A = n_attention, H = n_hidden, V = n_vocab. Vectors are f32 in one row.
 * Matrices are (outputs, inputs), but for FFN_VALUE. */
#define RWKV_EDGE_PLUGIN_EMBEDDING 0u          /* (V, D), with has_embedding */
#define RWKV_EDGE_PLUGIN_NORM_IN_WEIGHT 1u     /* D, ln0, with has_embedding */
#define RWKV_EDGE_PLUGIN_NORM_IN_BIAS 2u       /* D */
#define RWKV_EDGE_PLUGIN_ATT_NORM_WEIGHT 3u    /* D, ln1 */
#define RWKV_EDGE_PLUGIN_ATT_NORM_BIAS 4u      /* D */
#define RWKV_EDGE_PLUGIN_ATT_MIX_KEY 5u        /* D, share of the present token */
#define RWKV_EDGE_PLUGIN_ATT_MIX_VALUE 6u      /* D */
#define RWKV_EDGE_PLUGIN_ATT_MIX_RECEPTANCE 7u /* D */
#define RWKV_EDGE_PLUGIN_ATT_DECAY_LOG 8u      /* A, -exp(time_decay) */
#define RWKV_EDGE_PLUGIN_ATT_BONUS 9u          /* A, time_first */
#define RWKV_EDGE_PLUGIN_ATT_KEY 10u           /* (A, D) */
#define RWKV_EDGE_PLUGIN_ATT_VALUE 11u         /* (A, D) */
#define RWKV_EDGE_PLUGIN_ATT_RECEPTANCE 12u    /* (A, D) */
#define RWKV_EDGE_PLUGIN_ATT_OUTPUT 13u        /* (D, A) */
#define RWKV_EDGE_PLUGIN_FFN_NORM_WEIGHT 14u   /* D, ln2 */
#define RWKV_EDGE_PLUGIN_FFN_NORM_BIAS 15u     /* D */
#define RWKV_EDGE_PLUGIN_FFN_MIX_KEY 16u       /* D */
#define RWKV_EDGE_PLUGIN_FFN_MIX_RECEPTANCE 17u /* D */
#define RWKV_EDGE_PLUGIN_FFN_KEY 18u           /* (H, D) */
#define RWKV_EDGE_PLUGIN_FFN_RECEPTANCE 19u    /* (D, D) */
#define RWKV_EDGE_PLUGIN_FFN_VALUE 20u         /* (H, D): one stored row an input */
#define RWKV_EDGE_PLUGIN_NORM_OUT_WEIGHT 21u   /* D, ln_out, with has_head */
#define RWKV_EDGE_PLUGIN_NORM_OUT_BIAS 22u     /* D */
#define RWKV_EDGE_PLUGIN_HEAD 23u              /* (V, D), with has_head */
#define RWKV_EDGE_PLUGIN_TENSORS 24u

typedef struct {
  uint32_t struct_size;
  uint32_t tensor;     /* one of the above */
  uint32_t layer;      /* of the model, for those that each layer has */
  uint32_t dtype;      /* F32 for vectors, the stage's quant for matrices */
  uint64_t n_rows, n_cols;       /* of the whole tensor */
  uint64_t first_row, row_count; /* which of its rows come with this call: at least 1, from the first that has not come */
  const void *values;  /* (row_count, n_cols), row-major, little-endian; int8 -127 to 127; need not outlive the call */
  /* INT8 only: weight[r, c] = values[r, c] * row_scales[r] * 2^(column_exponents[c] / 4) */
  const uint16_t *row_scales;       /* (row_count) f16 */
  const int8_t *column_exponents;   /* (n_cols), -96 to 96, or NULL: all 0; the same in every call for a tensor */
} rwkv_edge_plugin_tensor;

/* What a forward pass writes. "Rows asked for" are those that the spans' outputs name. */
#define RWKV_EDGE_PLUGIN_WRITE_NOTHING 0u  /* the tokens only move the states */
#define RWKV_EDGE_PLUGIN_WRITE_RESIDUAL 1u /* all rows of the residual stream behind the last layer, (n_rows, n_embd) */
#define RWKV_EDGE_PLUGIN_WRITE_HIDDEN 2u   /* rows asked for, behind the norm in front of the head, (.., n_embd) */
#define RWKV_EDGE_PLUGIN_WRITE_LOGITS 3u   /* rows asked for, (.., n_vocab) */
#define RWKV_EDGE_PLUGIN_WRITE_TOKENS 4u   /* rows asked for: the token with the largest logit, the first of equal ones */

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
  const float *residual;   /* (n_rows, n_embd), when it has not; else NULL; never overlaps what is written */
  float *numbers;          /* for WRITE_RESIDUAL, _HIDDEN and _LOGITS */
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

  /* Devices there are now. Without a driver: ERROR_DEVICE, and last_error says what is missing. */
  rwkv_edge_plugin_status (*device_count)(uint32_t *count);
  rwkv_edge_plugin_status (*device_info)(uint32_t device, rwkv_edge_plugin_device *info);
  /* Measures; takes about a second. */
  rwkv_edge_plugin_status (*device_limits)(uint32_t device, rwkv_edge_plugin_limits *limits);

  /* What a stage would take, before it is made. */
  rwkv_edge_plugin_status (*stage_estimate)(const rwkv_edge_plugin_stage_options *options,
                                            rwkv_edge_plugin_memory *memory);
  /* Allocates a stage; then comes every row of every tensor once: tensors in any order, the rows of each from the first
   * to the last, in as many calls as the host likes; then stage_finish, which refuses missing ones. */
  rwkv_edge_plugin_status (*stage_new)(const rwkv_edge_plugin_stage_options *options, rwkv_edge_plugin_stage **stage);
  rwkv_edge_plugin_status (*stage_tensor)(rwkv_edge_plugin_stage *stage, const rwkv_edge_plugin_tensor *tensor);
  rwkv_edge_plugin_status (*stage_finish)(rwkv_edge_plugin_stage *stage);
  rwkv_edge_plugin_status (*stage_memory)(const rwkv_edge_plugin_stage *stage, rwkv_edge_plugin_memory *memory);
  void (*stage_free)(rwkv_edge_plugin_stage *stage); /* NULL: nothing */

  /* States of one stage. Their numbers, on the host: for each of the stage's layers 2 D + 3 A floats: the last
   * normalised inputs of channel mixing and of time mixing, then WKV's numerator, denominator and exponent_max. A new
   * state holds the empty state: 0, and exponent_max -1e30. */
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
   * that is done. A refusal of arguments leaves the states as they were; after any other failure they are undefined. */
  rwkv_edge_plugin_status (*forward)(rwkv_edge_plugin_stage *const *stages, uint32_t n_stages,
                                     const rwkv_edge_plugin_batch *batch);

  /* Why the last call on this thread failed, NUL-terminated into text; gives the length of the whole. text may be NULL
   * with capacity 0. */
  size_t (*last_error)(char *text, size_t capacity);

  void *reserved[8]; /* NULL */
} rwkv_edge_plugin_table;

/* The only symbol. host_version is RWKV_EDGE_PLUGIN_VERSION of the host. NULL when the plugin cannot serve it. The table
 * lives as long as the library is loaded. Must not touch devices or drivers. */
const rwkv_edge_plugin_table *rwkv_edge_plugin_v1(uint32_t host_version);

#ifdef __cplusplus
}
#endif
#endif
