/* Threads share a model, each with its own session, and get the same results as one alone.
 * usage: threads MODEL */
#include <pthread.h>

#include "check.h"

enum { N_THREADS = 4, N_STEPS = 12 };

typedef struct {
  rwkv_edge_model *model;
  uint32_t seed;
  uint32_t tokens[N_STEPS];
} job;

static void *work(void *user) {
  job *j = user;
  rwkv_edge_session *session = new_session(j->model);
  const uint32_t prompt[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  rwkv_edge_sampling sampling;
  uint32_t bad = UINT32_MAX;
  int i;
  memset(&sampling, 0, sizeof sampling);
  sampling.struct_size = sizeof sampling;
  sampling.temperature = 1;
  sampling.top_p = 0.95f;
  sampling.seed = j->seed;
  OK(rwkv_edge_set_sampling(session, &sampling));
  OK(rwkv_edge_eval(session, prompt, 10, NULL));
  for (i = 0; i < N_STEPS; i++) {
    OK(rwkv_edge_sample(session, &j->tokens[i]));
    OK(rwkv_edge_eval(session, &j->tokens[i], 1, NULL));
    /* The text of an error belongs to its thread. */
    BAD(rwkv_edge_eval(session, &bad, 1, NULL));
    SAYS("4294967295");
  }
  rwkv_edge_session_free(session);
  return NULL;
}

int main(int argc, char **argv) {
  job jobs[N_THREADS], alone;
  pthread_t threads[N_THREADS];
  int i;
  CHECK(argc == 2);
  jobs[0].model = open_model(argv[1], RWKV_EDGE_QUANT_INT8, 2);
  for (i = 0; i < N_THREADS; i++) {
    jobs[i].model = jobs[0].model;
    jobs[i].seed = (uint32_t)i / 2;
    CHECK(pthread_create(&threads[i], NULL, work, &jobs[i]) == 0);
  }
  for (i = 0; i < N_THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  for (i = 0; i < N_THREADS; i++) {
    alone = jobs[i];
    memset(alone.tokens, 0, sizeof alone.tokens);
    work(&alone);
    CHECK(memcmp(alone.tokens, jobs[i].tokens, sizeof alone.tokens) == 0);
  }
  rwkv_edge_model_free(jobs[0].model);
  printf("threads: %d share a model and agree\n", N_THREADS);
  return 0;
}
