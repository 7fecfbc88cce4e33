/* A model on devices through the C library, with the plugin of tests/cpu_plugin (RWKV_EDGE_PLUGIN_PATH): logits are those of
 * the CPU, states move in both directions, and what is missing is a status.
 * usage: device MODEL */
#include <math.h>

#include "check.h"

static rwkv_edge_model *open_on(const char *path, const char *device_map) {
  rwkv_edge_options options = default_options();
  rwkv_edge_model *model = NULL;
  options.threads = 1;
  options.device_map = device_map;
  OK(rwkv_edge_model_open(path, &options, &model));
  return model;
}

/* The state of one session becomes that of another. */
static void move_state(rwkv_edge_session *from, rwkv_edge_session *to) {
  size_t size = 0;
  void *bytes;
  OK(rwkv_edge_state_save(from, NULL, 0, &size));
  bytes = malloc(size);
  CHECK(bytes != NULL);
  OK(rwkv_edge_state_save(from, bytes, size, &size));
  OK(rwkv_edge_state_load(to, bytes, size));
  free(bytes);
}

int main(int argc, char **argv) {
  static const char *const maps[] = {"cpuplug", "cpuplug:1", "auto", "cpuplug *1 -> cpu", "cpu *2 -> cpuplug:1",
                                     "data-parallel"};
  const uint32_t tokens[] = {1, 2, 3, 4, 5};
  rwkv_edge_options options = default_options();
  rwkv_edge_model_info info;
  rwkv_edge_model *cpu, *none = NULL;
  size_t m, i;
  CHECK(argc == 2);
  cpu = open_on(argv[1], NULL);
  info.struct_size = sizeof info;
  OK(rwkv_edge_model_get_info(cpu, &info));
  for (m = 0; m < sizeof maps / sizeof maps[0]; m++) {
    rwkv_edge_model *model = open_on(argv[1], maps[m]);
    rwkv_edge_session *a = new_session(cpu), *b = new_session(model);
    float *expected = malloc(info.n_vocab * sizeof *expected), *found = malloc(info.n_vocab * sizeof *found);
    CHECK(expected != NULL && found != NULL);
    OK(rwkv_edge_eval(a, tokens, 5, expected));
    OK(rwkv_edge_eval(b, tokens, 5, found));
    for (i = 0; i < info.n_vocab; i++) CHECK(fabsf(expected[i] - found[i]) < 1e-2f);
    move_state(b, a);
    move_state(a, b);
    OK(rwkv_edge_eval(a, tokens, 1, expected));
    OK(rwkv_edge_eval(b, tokens, 1, found));
    for (i = 0; i < info.n_vocab; i++) CHECK(fabsf(expected[i] - found[i]) < 1e-2f);
    OK(rwkv_edge_session_reset(b));
    BAD(rwkv_edge_eval(b, tokens, 0, found));
    free(expected);
    free(found);
    /* In this order: the session keeps its model and its device. */
    rwkv_edge_model_free(model);
    OK(rwkv_edge_eval(b, tokens, 2, NULL));
    rwkv_edge_session_free(a);
    rwkv_edge_session_free(b);
  }
  options.device_map = "cpuplug:7";
  EXPECT(RWKV_EDGE_ERROR_BACKEND, rwkv_edge_model_open(argv[1], &options, &none));
  SAYS("no such device");
  options.device_map = "cpuplug f17";
  BAD(rwkv_edge_model_open(argv[1], &options, &none));
  CHECK(none == NULL);
  rwkv_edge_model_free(cpu);
  printf("devices: %u maps\n", (unsigned)(sizeof maps / sizeof maps[0]));
  return 0;
}
