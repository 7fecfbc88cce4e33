/* A model that does not fit options.max_memory gives the same bits, and the process grows by no more than that.
 * usage: low_memory MODEL_FILE, of at least 16 MB */
#include "check.h"

enum { PROMPT = 40, STEPS = 8 };

static size_t status(const char *key) {
  FILE *file = fopen("/proc/self/status", "r");
  char line[256];
  unsigned long kib = 0;
  CHECK(file != NULL);
  while (fgets(line, sizeof line, file))
    if (strncmp(line, key, strlen(key)) == 0 && sscanf(line + strlen(key), " %lu", &kib) == 1) break;
  fclose(file);
  CHECK(kib > 0);
  return (size_t)kib * 1024;
}

/* Lets the peak start again from what is resident now. */
static size_t resident(void) {
  FILE *file = fopen("/proc/self/clear_refs", "w");
  CHECK(file != NULL && fputs("5", file) >= 0 && fclose(file) == 0);
  return status("VmRSS:");
}

/* Runs a prompt and some tokens one by one; writes the rows of logits and gives how much the process grew. */
static size_t run(const char *path, uint64_t max_memory, float *logits) {
  rwkv_edge_options options = default_options();
  rwkv_edge_model *model = NULL;
  rwkv_edge_session *session;
  uint32_t tokens[PROMPT], n_vocab;
  size_t before = resident(), peak;
  int i;
  options.threads = 2;
  options.max_memory = max_memory;
  OK(rwkv_edge_model_open(path, &options, &model));
  n_vocab = model_info(model).n_vocab;
  session = new_session(model);
  for (i = 0; i < PROMPT; i++) tokens[i] = (uint32_t)(i * 577) % n_vocab;
  OK(rwkv_edge_eval(session, tokens, PROMPT, logits));
  for (i = 1; i < STEPS; i++) OK(rwkv_edge_eval(session, tokens + i, 1, logits + (size_t)i * n_vocab));
  peak = status("VmHWM:");
  rwkv_edge_session_free(session);
  rwkv_edge_model_free(model);
  return peak - before;
}

int main(int argc, char **argv) {
  rwkv_edge_options options = default_options();
  rwkv_edge_model *model = NULL;
  unsigned long long needed = 0, limit;
  size_t size, grown, grown_free;
  float *expected, *logits;
  CHECK(argc == 2);
  OK(rwkv_edge_model_open(argv[1], NULL, &model));
  size = STEPS * sizeof(float) * model_info(model).n_vocab;
  rwkv_edge_model_free(model);
  expected = allocate(size);
  logits = allocate(size);
  /* The rows themselves are in memory before anything is measured. */
  memset(expected, 1, size);
  memset(logits, 1, size);

  grown_free = run(argv[1], 0, expected);
  options.max_memory = 1;
  options.threads = 2;
  EXPECT(RWKV_EDGE_ERROR_MEMORY, rwkv_edge_model_open(argv[1], &options, &model));
  SAYS("expected at most 1 ");
  CHECK(sscanf(strstr(rwkv_edge_last_error(), "needs "), "needs %llu", &needed) == 1);
  for (limit = needed; limit <= needed + 1000000; limit += 1000000) {
    grown = run(argv[1], limit, logits);
    printf("low_memory: %zu bytes more within %llu, %zu without a limit\n", grown, limit, grown_free);
    CHECK(memcmp(logits, expected, size) == 0);
    CHECK(grown <= limit && limit < grown_free);
  }
  free(expected);
  free(logits);
  return 0;
}
