/* A model on devices through the C library, with the plugin of tests/cpu_plugin (RWKV_EDGE_PLUGIN_PATH): logits are those of
 * the CPU, states move in both directions, what is missing is a status, and a device that fails leaves no half-fed state.
 * usage: device MODEL */
#define _POSIX_C_SOURCE 200112L
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

#define LOST(call) EXPECT(RWKV_EDGE_ERROR_BACKEND, call)

static bool all_are(const void *memory, unsigned char byte, size_t size) {
  const unsigned char *bytes = memory;
  while (size > 0 && bytes[size - 1] == byte) size--;
  return size == 0;
}

/* Every call but those that give the session another state, and none writes a result. */
static void check_lost(rwkv_edge_session *session, uint32_t n_vocab, size_t state_size) {
  const rwkv_edge_sampling sampling = {.struct_size = sizeof sampling, .top_p = 1};
  const uint32_t tokens[] = {1, 2};
  float *logits = allocate(n_vocab * sizeof *logits);
  void *state = allocate(state_size);
  uint32_t token = 99;
  size_t size = 99;
  memset(logits, 7, n_vocab * sizeof *logits);
  memset(state, 7, state_size);
  LOST(rwkv_edge_eval(session, tokens, 2, logits));
  SAYS("the state is undefined");
  LOST(rwkv_edge_eval(session, tokens, 1, NULL));
  LOST(rwkv_edge_eval(session, NULL, 0, logits));
  SAYS("the state is undefined");
  LOST(rwkv_edge_sample(session, &token));
  LOST(rwkv_edge_set_sampling(session, &sampling));
  LOST(rwkv_edge_generate(session, NULL, 0, 1, NULL, NULL));
  LOST(rwkv_edge_state_save(session, NULL, 0, &size));
  LOST(rwkv_edge_state_save(session, state, state_size, &size));
  SAYS("the state is undefined");
  CHECK(all_are(logits, 7, n_vocab * sizeof *logits) && all_are(state, 7, state_size));
  CHECK(token == 99 && size == 99);
  free(logits);
  free(state);
}

/* A device that fails in the middle of a call, for all maps that use one. `n_good` calls of the plugin go well. */
static void failures(const char *path, const char *map, const char *n_good) {
  rwkv_edge_model *model = open_on(path, map);
  rwkv_edge_session *session = new_session(model);
  const uint32_t n_vocab = model_info(model).n_vocab;
  const size_t row = n_vocab * sizeof(float);
  float *expected = allocate(row), *found = allocate(row);
  uint32_t prompt[600];
  void *state;
  size_t size, i;
  for (i = 0; i < 600; i++) prompt[i] = (uint32_t)(i * 7 % n_vocab);
  OK(rwkv_edge_eval(session, prompt, 5, NULL));
  OK(rwkv_edge_state_save(session, NULL, 0, &size));
  state = allocate(size);
  OK(rwkv_edge_state_save(session, state, size, &size));
  OK(rwkv_edge_eval(session, prompt, 1, expected));

  /* A token, and a prompt whose first piece may go well. */
  for (i = 0; i < 2; i++) {
    memset(found, 7, row);
    CHECK(setenv("CPUPLUG_FAIL_FORWARD", n_good, 1) == 0);
    LOST(rwkv_edge_eval(session, prompt, i ? 600 : 1, found));
    SAYS("the device is lost");
    CHECK(unsetenv("CPUPLUG_FAIL_FORWARD") == 0 && all_are(found, 7, row));
    check_lost(session, n_vocab, size);
    /* What is no state of this model does not help. */
    EXPECT(RWKV_EDGE_ERROR_STATE, rwkv_edge_state_load(session, state, size - 1));
    check_lost(session, n_vocab, size);
    OK(rwkv_edge_state_load(session, state, size));
    OK(rwkv_edge_eval(session, prompt, 1, found));
    CHECK(memcmp(found, expected, row) == 0);
  }
  CHECK(setenv("CPUPLUG_FAIL_FORWARD", n_good, 1) == 0);
  LOST(rwkv_edge_eval(session, prompt, 1, NULL));
  CHECK(unsetenv("CPUPLUG_FAIL_FORWARD") == 0);
  OK(rwkv_edge_session_reset(session));
  BAD(rwkv_edge_eval(session, NULL, 0, found));
  OK(rwkv_edge_eval(session, prompt, 5, NULL));
  OK(rwkv_edge_eval(session, prompt, 1, found));
  CHECK(memcmp(found, expected, row) == 0);

  /* generate goes back to where it began. */
  OK(rwkv_edge_state_load(session, state, size));
  CHECK(setenv("CPUPLUG_FAIL_FORWARD", n_good, 1) == 0);
  LOST(rwkv_edge_generate(session, NULL, 0, 4, NULL, NULL));
  SAYS("the device is lost");
  CHECK(unsetenv("CPUPLUG_FAIL_FORWARD") == 0);
  OK(rwkv_edge_eval(session, prompt, 1, found));
  CHECK(memcmp(found, expected, row) == 0);
  /* Neither does it begin nor is anything written where the device does not even give the state. */
  CHECK(setenv("CPUPLUG_FAIL_STATES", "1", 1) == 0);
  memset(found, 7, row);
  memset(state, 7, size);
  i = 99;
  LOST(rwkv_edge_state_save(session, state, size, &i));
  SAYS("the device is lost");
  CHECK(i == 99 && all_are(state, 7, size));
  LOST(rwkv_edge_generate(session, NULL, 0, 4, NULL, NULL));
  CHECK(unsetenv("CPUPLUG_FAIL_STATES") == 0);
  OK(rwkv_edge_eval(session, NULL, 0, found));
  CHECK(memcmp(found, expected, row) == 0);
  free(state);
  free(expected);
  free(found);
  rwkv_edge_model_free(model);
  /* One that has lost its state can be freed. */
  CHECK(setenv("CPUPLUG_FAIL_FORWARD", "0", 1) == 0);
  LOST(rwkv_edge_eval(session, prompt, 1, NULL));
  CHECK(unsetenv("CPUPLUG_FAIL_FORWARD") == 0);
  rwkv_edge_session_free(session);
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
  failures(argv[1], "cpuplug", "0");
  failures(argv[1], "cpuplug *1 -> cpu", "0");
  failures(argv[1], "cpuplug *1 -> cpu *1 -> cpuplug:1", "1");
  printf("devices: %u maps\n", (unsigned)(sizeof maps / sizeof maps[0]));
  return 0;
}
