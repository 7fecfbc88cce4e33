/* After rwkv_edge_session_new a session allocates nothing: malloc and its relatives are counted in this
 * whole process, every thread of it.
 * usage: no_allocation MODEL MODEL_FILE */
#include <stdatomic.h>

#include "check.h"

/* glibc's own, behind the names that this program defines for itself. */
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static atomic_ulong n_allocations;

void *malloc(size_t size) {
  atomic_fetch_add(&n_allocations, 1);
  return __libc_malloc(size);
}

void *calloc(size_t count, size_t size) {
  atomic_fetch_add(&n_allocations, 1);
  return __libc_calloc(count, size);
}

void *realloc(void *memory, size_t size) {
  atomic_fetch_add(&n_allocations, 1);
  return __libc_realloc(memory, size);
}

void *memalign(size_t alignment, size_t size) {
  atomic_fetch_add(&n_allocations, 1);
  return __libc_memalign(alignment, size);
}

void *aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }

int posix_memalign(void **memory, size_t alignment, size_t size) {
  *memory = memalign(alignment, size);
  return *memory ? 0 : 12;
}

enum { N_EVALS = 1000, N_PROMPT = 300 };

static void run(const char *path, uint32_t quant, uint32_t threads, int n_evals) {
  rwkv_edge_model *model = open_model(path, quant, threads);
  rwkv_edge_session *session = new_session(model);
  const rwkv_edge_model_info info = model_info(model);
  float *logits = allocate(info.n_vocab * sizeof(float));
  rwkv_edge_sampling sampling;
  uint32_t prompt[N_PROMPT], token, bad = info.n_vocab;
  unsigned char *state;
  size_t size, needed;
  unsigned long before, after;
  int i;

  OK(rwkv_edge_state_save(session, NULL, 0, &size));
  state = allocate(size);
  for (i = 0; i < N_PROMPT; i++) prompt[i] = (uint32_t)i * 7 % info.n_vocab;
  memset(&sampling, 0, sizeof sampling);
  sampling.struct_size = sizeof sampling;

  before = atomic_load(&n_allocations);
  OK(rwkv_edge_eval(session, prompt, N_PROMPT, logits));
  for (i = 0; i < n_evals; i++) {
    /* Every combination of settings has its turn. */
    sampling.temperature = i % 4 ? 0.5f + 0.1f * (float)(i % 7) : 0;
    sampling.top_p = i % 3 ? 0.9f : 1;
    sampling.top_k = i % 5 ? 40 : 0;
    sampling.presence_penalty = i % 6 ? 0.1f : 0;
    sampling.frequency_penalty = i % 8 ? 0.1f : 0;
    sampling.min_p = i % 9 ? 0 : 0.05f;
    sampling.typical_p = i % 10 ? 0 : 0.9f;
    sampling.mirostat_tau = i % 11 ? 0 : 4;
    sampling.penalty_decay = i % 12 ? 0 : 0.9f;
    sampling.repetition_penalty = i % 13 ? 0 : 1.2f;
    sampling.temperature_last = (uint32_t)i % 2;
    sampling.seed = (uint64_t)i;
    OK(rwkv_edge_set_sampling(session, &sampling));
    OK(rwkv_edge_sample(session, &token));
    OK(rwkv_edge_eval(session, &token, 1, i % 2 ? logits : NULL));
    if (i % 50 == 0) {
      OK(rwkv_edge_state_save(session, state, size, &needed));
      OK(rwkv_edge_state_load(session, state, size));
      OK(rwkv_edge_session_reset(session));
      OK(rwkv_edge_state_load(session, state, size));
      OK(rwkv_edge_eval(session, prompt, (size_t)(i % 130), logits));
      BAD(rwkv_edge_eval(session, &bad, 1, logits));
      BAD(rwkv_edge_sample(session, NULL));
      EXPECT(RWKV_EDGE_ERROR_MEMORY, rwkv_edge_state_save(session, state, size - 1, &needed));
    }
  }
  after = atomic_load(&n_allocations);
  printf("no_allocation: quant %u, %u threads: %lu allocations in %d evals\n", quant, threads,
         after - before, n_evals);
  CHECK(after == before);
  CHECK(before > 0);
  rwkv_edge_session_free(session);
  rwkv_edge_model_free(model);
  free(logits);
  free(state);
}

int main(int argc, char **argv) {
  uint32_t threads;
  CHECK(argc == 3);
  for (threads = 1; threads <= 2; threads++) {
    run(argv[1], RWKV_EDGE_QUANT_F32, threads, N_EVALS);
    run(argv[1], RWKV_EDGE_QUANT_F16, threads, N_EVALS);
    run(argv[1], RWKV_EDGE_QUANT_INT8, threads, N_EVALS);
    run(argv[2], RWKV_EDGE_QUANT_KEEP, threads, N_EVALS);
  }
  return 0;
}
