/* The table of device plugins from C, with the header alone: a model of one layer whose logits can be said beforehand, through
 * a plugin in Rust. So the two languages mean the same structs.
 * usage: plugin_host PLUGIN */
#include "rwkv_edge_plugin.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { V = 3, D = 2, A = 2, H = 4 };

static const rwkv_edge_plugin_table *table;

#define CHECK(condition)                                                        \
  do {                                                                          \
    if (!(condition)) {                                                         \
      char text_[256] = "";                                                     \
      if (table != NULL) table->last_error(text_, sizeof text_);                \
      fprintf(stderr, "%s:%d: not so: %s (last error: %s)\n", __FILE__, __LINE__, #condition, text_); \
      exit(1);                                                                  \
    }                                                                           \
  } while (0)
#define OK(call) CHECK((call) == RWKV_EDGE_PLUGIN_OK)

static const rwkv_edge_plugin_size sizes[] = {
    {"n_vocab", V}, {"n_embd", D}, {"n_layer", 2}, {"n_attention", A}, {"n_hidden", H}};
static const rwkv_edge_plugin_number numbers[] = {{"norm_epsilon", 1e-5}, {"norm_out_epsilon", 1e-5}};

static rwkv_edge_plugin_stage_options options(uint32_t first_layer, uint32_t layer_count) {
  rwkv_edge_plugin_stage_options o;
  memset(&o, 0, sizeof o);
  o.struct_size = sizeof o;
  o.architecture = "rwkv-4";
  o.quant = "f32";
  o.sizes = sizes;
  o.numbers = numbers;
  o.n_sizes = sizeof sizes / sizeof *sizes;
  o.n_numbers = sizeof numbers / sizeof *numbers;
  o.first_layer = first_layer;
  o.layer_count = layer_count;
  o.has_embedding = first_layer == 0 && layer_count == 2;
  o.has_head = first_layer + layer_count == 2;
  o.rows_max = 4;
  o.row_width = D;
  return o;
}

/* A tensor whose values are all 0, but for those that are given. */
static void send(rwkv_edge_plugin_stage *stage, const char *name, uint32_t layer, uint64_t n_rows, uint64_t n_cols,
                 const float *values) {
  static const float zeros[V * D + H * D];
  rwkv_edge_plugin_part part;
  rwkv_edge_plugin_tensor tensor;
  part.name = "values";
  part.data = values != NULL ? values : zeros;
  part.bytes = sizeof(float) * n_rows * n_cols;
  memset(&tensor, 0, sizeof tensor);
  tensor.struct_size = sizeof tensor;
  tensor.layer = layer;
  tensor.name = name;
  tensor.quant = "f32";
  tensor.n_rows = n_rows;
  tensor.n_cols = n_cols;
  tensor.row_count = n_rows;
  tensor.parts = &part;
  tensor.n_parts = 1;
  OK(table->stage_tensor(stage, &tensor));
}

static void send_layer(rwkv_edge_plugin_stage *stage, uint32_t layer) {
  static const struct {
    const char *name;
    uint64_t n_rows, n_cols;
  } of_layer[] = {{"ln1.weight", 1, D},        {"ln1.bias", 1, D},         {"att.time_mix_k", 1, D},
                  {"att.time_mix_v", 1, D},    {"att.time_mix_r", 1, D},   {"att.decay_log", 1, A},
                  {"att.time_first", 1, A},    {"att.key.weight", A, D},   {"att.value.weight", A, D},
                  {"att.receptance.weight", A, D}, {"att.output.weight", D, A}, {"ln2.weight", 1, D},
                  {"ln2.bias", 1, D},          {"ffn.time_mix_k", 1, D},   {"ffn.time_mix_r", 1, D},
                  {"ffn.key.weight", H, D},    {"ffn.receptance.weight", D, D}, {"ffn.value.weight", H, D}};
  for (size_t i = 0; i < sizeof of_layer / sizeof *of_layer; i++)
    send(stage, of_layer[i].name, layer, of_layer[i].n_rows, of_layer[i].n_cols, NULL);
}

/* Whether a list of names has this one. */
static int has(const char *const *names, const char *name) {
  for (; *names != NULL; names++)
    if (strcmp(*names, name) == 0) return 1;
  return 0;
}

/* Feeds rows of one sequence to one stage. */
static void forward(rwkv_edge_plugin_stage *stage, rwkv_edge_plugin_state *state, rwkv_edge_plugin_batch batch) {
  rwkv_edge_plugin_span span;
  span.states = &state;
  span.n_rows = batch.n_rows;
  span.rows = RWKV_EDGE_PLUGIN_ROWS_LAST;
  batch.struct_size = sizeof batch;
  batch.n_spans = 1;
  batch.spans = &span;
  OK(table->forward(&stage, 1, &batch));
}

int main(int argc, char **argv) {
  static const float bias[] = {2, 3}, head[] = {1, 0, 0, 1, 1, 1}, rows[] = {1, 2, 3, 4};
  static const uint32_t tokens[] = {1, 0};
  const rwkv_edge_plugin_table *(*entry)(uint32_t);
  rwkv_edge_plugin_device device;
  rwkv_edge_plugin_memory memory;
  rwkv_edge_plugin_stage_options o = options(0, 2);
  rwkv_edge_plugin_stage *stage = NULL, *middle = NULL;
  rwkv_edge_plugin_state *state = NULL;
  rwkv_edge_plugin_batch batch;
  uint64_t count = 0;
  uint32_t n_devices = 0, chosen = 99;
  float logits[V], through[4], kept[2 * (2 * D + 3 * A)];
  char text[256];
  void *library;

  CHECK(argc == 2);
  library = dlopen(argv[1], RTLD_NOW);
  CHECK(library != NULL);
  *(void **)&entry = dlsym(library, "rwkv_edge_plugin_v2");
  CHECK(entry != NULL && entry(1) == NULL);
  table = entry(RWKV_EDGE_PLUGIN_VERSION);
  CHECK(table != NULL && table->version == 2 && table->struct_size == sizeof *table);
  CHECK(has(table->architectures, "rwkv-4") && !has(table->architectures, "rwkv"));
  for (size_t i = 0; i < sizeof table->reserved / sizeof *table->reserved; i++) CHECK(table->reserved[i] == NULL);

  OK(table->device_count(&n_devices));
  CHECK(n_devices > 0);
  memset(&device, 0, sizeof device);
  device.struct_size = sizeof device;
  OK(table->device_info(0, &device));
  CHECK(device.free_bytes > 0 && device.free_bytes <= device.total_bytes && has(device.quants, "f32"));
  CHECK(strlen(device.name) > 0 && strlen(device.detail) > 0);

  memset(&memory, 0, sizeof memory);
  memory.struct_size = sizeof memory;
  OK(table->stage_estimate(&o, &memory));
  CHECK(memory.weight_bytes > 0 && memory.state_bytes > 0 && memory.allocated_bytes == 0);
  OK(table->state_count(&o, &count));
  CHECK(count == sizeof kept / sizeof *kept);
  o.quant = "int9";
  CHECK(table->stage_estimate(&o, &memory) == RWKV_EDGE_PLUGIN_ERROR_UNSUPPORTED);
  CHECK(table->last_error(text, sizeof text) < sizeof text && strstr(text, "int9") != NULL);

  o = options(0, 2);
  OK(table->stage_new(&o, &stage));
  send(stage, "emb.weight", RWKV_EDGE_PLUGIN_NO_LAYER, V, D, NULL);
  send(stage, "ln0.weight", 0, 1, D, NULL);
  send(stage, "ln0.bias", 0, 1, D, NULL);
  send_layer(stage, 0);
  CHECK(table->stage_finish(stage) == RWKV_EDGE_PLUGIN_ERROR_ARGUMENT);
  send_layer(stage, 1);
  send(stage, "ln_out.weight", RWKV_EDGE_PLUGIN_NO_LAYER, 1, D, NULL);
  send(stage, "ln_out.bias", RWKV_EDGE_PLUGIN_NO_LAYER, 1, D, bias);
  send(stage, "head.weight", RWKV_EDGE_PLUGIN_NO_LAYER, V, D, head);
  OK(table->stage_finish(stage));
  OK(table->stage_memory(stage, &memory));
  CHECK(memory.allocated_bytes >= memory.weight_bytes);

  /* Hidden rows are the bias, and logits the head's products with it. */
  OK(table->state_new(stage, &state));
  OK(table->state_read(state, kept, (size_t)count));
  CHECK(kept[0] == 0 && kept[count - 1] == -1e30f);
  memset(&batch, 0, sizeof batch);
  batch.n_rows = 2;
  batch.tokens = tokens;
  batch.write = RWKV_EDGE_PLUGIN_WRITE_LOGITS;
  batch.numbers = logits;
  forward(stage, state, batch);
  CHECK(logits[0] == 2 && logits[1] == 3 && logits[2] == 5);
  batch.write = RWKV_EDGE_PLUGIN_WRITE_TOKENS;
  batch.tokens_out = &chosen;
  forward(stage, state, batch);
  CHECK(chosen == 2);
  memset(logits, 0, sizeof logits);
  OK(table->state_logits(state, logits, V));
  CHECK(logits[2] == 5);
  table->state_free(state);

  /* Matrices of zeros add nothing: rows pass through a stage as they are. */
  o = options(0, 1);
  OK(table->stage_new(&o, &middle));
  send_layer(middle, 0);
  OK(table->stage_finish(middle));
  OK(table->state_new(middle, &state));
  memset(&batch, 0, sizeof batch);
  batch.n_rows = 2;
  batch.rows_in = rows;
  batch.write = RWKV_EDGE_PLUGIN_WRITE_ROWS;
  batch.numbers = through;
  forward(middle, state, batch);
  CHECK(memcmp(through, rows, sizeof rows) == 0);
  table->state_free(state);
  table->stage_free(middle);
  table->stage_free(stage);
  puts("the table of plugins means the same in C");
  return 0;
}
