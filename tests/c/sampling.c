/* The sampling that came after the first version: callers who do not know it, each field, and lists of tokens.
 * usage: sampling GOLDEN_DIRECTORY */
#include "check.h"

/* rwkv_edge_sampling as programs of the first version were compiled with it. */
typedef struct {
  uint32_t struct_size;
  float temperature, top_p;
  uint32_t top_k;
  float presence_penalty, frequency_penalty;
  uint64_t seed;
} first_version;

enum { N = 40 };

static rwkv_edge_sampling drawing(void) {
  rwkv_edge_sampling sampling;
  memset(&sampling, 0, sizeof sampling);
  sampling.struct_size = sizeof sampling;
  sampling.temperature = 1.5f;
  sampling.top_p = 0.95f;
  sampling.top_k = 60;
  sampling.presence_penalty = 0.5f;
  sampling.frequency_penalty = 0.25f;
  sampling.seed = 12345678901234567ull;
  return sampling;
}

/* What is drawn from the beginning, by a struct of any version. */
static void draw(rwkv_edge_session *session, const void *sampling, uint32_t *tokens) {
  const uint32_t start[] = {3, 1, 4};
  int i;
  OK(rwkv_edge_session_reset(session));
  OK(rwkv_edge_set_sampling(session, (const rwkv_edge_sampling *)sampling));
  OK(rwkv_edge_session_reset(session));
  OK(rwkv_edge_eval(session, start, 3, NULL));
  for (i = 0; i < N; i++) {
    OK(rwkv_edge_sample(session, &tokens[i]));
    OK(rwkv_edge_eval(session, &tokens[i], 1, NULL));
  }
}

static bool is_same(rwkv_edge_session *session, const rwkv_edge_sampling *sampling, const uint32_t *expected) {
  uint32_t tokens[N];
  draw(session, sampling, tokens);
  return memcmp(tokens, expected, sizeof tokens) == 0;
}

static void versions(rwkv_edge_session *session, const uint32_t *expected) {
  const rwkv_edge_sampling now = drawing();
  /* Alone in its block, behind which nothing may be read. */
  first_version *first = allocate(sizeof *first);
  uint32_t tokens[N], size;
  CHECK(sizeof *first == 32);
  memcpy(first, &now, sizeof *first);
  first->struct_size = sizeof *first;
  draw(session, first, tokens);
  CHECK(memcmp(tokens, expected, sizeof tokens) == 0);
  for (size = 0; size < 2 * sizeof now; size++) {
    rwkv_edge_sampling other = now;
    other.struct_size = size;
    if (size == sizeof *first || size == sizeof now) continue;
    BAD(rwkv_edge_set_sampling(session, &other));
    SAYS("struct_size");
  }
  free(first);
}

static void numbers(rwkv_edge_session *session, const uint32_t *expected) {
  const rwkv_edge_sampling off = drawing();
  rwkv_edge_sampling set = off;
  /* What else is off. */
  set.typical_p = set.penalty_decay = set.repetition_penalty = 1;
  set.mirostat_eta = 0.1f;
  CHECK(is_same(session, &set, expected));
#define CHANGES(field, value)                  \
  set = off, set.field = value;                \
  CHECK(!is_same(session, &set, expected))
  CHANGES(min_p, 0.9f);
  CHANGES(typical_p, 0.1f);
  CHANGES(mirostat_tau, 0.5f);
  CHANGES(penalty_decay, 0.01f);
  CHANGES(repetition_penalty, 3);
  CHANGES(temperature_last, 1);
#define REFUSED(field, value, word)            \
  set = off, set.field = value;                \
  BAD(rwkv_edge_set_sampling(session, &set));  \
  SAYS(word)
  REFUSED(min_p, 1.5f, "min_p");
  REFUSED(typical_p, -1, "typical_p");
  REFUSED(mirostat_tau, -1, "mirostat_tau");
  REFUSED(mirostat_eta, -1, "mirostat_eta");
  REFUSED(penalty_decay, 2, "penalty_decay");
  REFUSED(repetition_penalty, -1, "repetition_penalty");
  REFUSED(temperature_last, 2, "temperature_last");
  REFUSED(reserved, 1, "reserved");
}

static void lists(rwkv_edge_session *session, uint32_t n_vocab) {
  rwkv_edge_sampling set = drawing();
  uint32_t *tokens = allocate(n_vocab * sizeof *tokens), found[N], with_list[N], i;
  for (i = 0; i < n_vocab; i++) tokens[i] = i;
  set.n_banned_tokens = set.n_uncounted_tokens = 1;
  BAD(rwkv_edge_set_sampling(session, &set));
  SAYS("banned_tokens is NULL");
  set.n_uncounted_tokens = 0;
  set.banned_tokens = &n_vocab;
  BAD(rwkv_edge_set_sampling(session, &set));
  SAYS("banned_tokens");
  set.banned_tokens = tokens;
  set.n_banned_tokens = n_vocab;
  BAD(rwkv_edge_set_sampling(session, &set));
  SAYS("banned_tokens: all");
  /* All but the last. The list is copied. */
  set.n_banned_tokens = n_vocab - 1;
  draw(session, &set, found);
  for (i = 0; i < N; i++) CHECK(found[i] == n_vocab - 1);
  memset(tokens, 0, n_vocab * sizeof *tokens);
  OK(rwkv_edge_sample(session, found));
  CHECK(found[0] == n_vocab - 1);

  /* A frequency penalty that lets no token come twice, but for those that are not counted. */
  set = drawing();
  set.presence_penalty = 0;
  set.frequency_penalty = 1e6f;
  set.temperature = 0;
  draw(session, &set, found);
  for (i = 1; i < N; i++) CHECK(found[i] != found[0]);
  for (i = 0; i < n_vocab; i++) tokens[i] = i;
  set.uncounted_tokens = tokens;
  set.n_uncounted_tokens = n_vocab;
  draw(session, &set, with_list);
  set.frequency_penalty = 0;
  set.n_uncounted_tokens = 0;
  draw(session, &set, found);
  CHECK(memcmp(found, with_list, sizeof found) == 0);
  set.n_uncounted_tokens = 1;
  set.uncounted_tokens = &n_vocab;
  BAD(rwkv_edge_set_sampling(session, &set));
  SAYS("uncounted_tokens");
  free(tokens);
}

int main(int argc, char **argv) {
  rwkv_edge_model *model;
  rwkv_edge_session *session;
  rwkv_edge_sampling set = drawing();
  uint32_t expected[N];
  CHECK(argc == 2);
  model = open_model(argv[1], RWKV_EDGE_QUANT_F16, 1);
  session = new_session(model);
  draw(session, &set, expected);
  versions(session, expected);
  numbers(session, expected);
  lists(session, model_info(model).n_vocab);
  rwkv_edge_session_free(session);
  rwkv_edge_model_free(model);
  printf("sampling: fields of all versions\n");
  return 0;
}
