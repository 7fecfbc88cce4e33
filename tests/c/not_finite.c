/* Weights that are not finite, used where they lie in memory: every call says so, and a session that has met them is lost
 * until it gets another state.
 * usage: not_finite MODEL_FILE, of f16 matrices with a tokenizer */
#include "check.h"

static const uint16_t BAD[] = {0x7e00 /* NaN */, 0x7c00 /* infinity */, 0xfc00};

static unsigned char *image;
static size_t image_size;

/* The file in memory that is aligned as a model in flash has to be. */
static void read_image(const char *path) {
  FILE *file = fopen(path, "rb");
  unsigned char *memory;
  CHECK(file != NULL && fseek(file, 0, SEEK_END) == 0);
  image_size = (size_t)ftell(file);
  memory = malloc(image_size + 64);
  CHECK(memory != NULL);
  image = memory + (64 - (size_t)memory % 64);
  rewind(file);
  CHECK(fread(image, 1, image_size, file) == image_size);
  fclose(file);
}

#define LOST(call) EXPECT(RWKV_EDGE_ERROR_BACKEND, call)
#define BAD_NUMBERS(call)                  \
  do {                                     \
    EXPECT(RWKV_EDGE_ERROR_FORMAT, call);  \
    SAYS("the results are not finite");    \
  } while (0)

static void check_lost(rwkv_edge_session *session, uint32_t n_vocab) {
  uint32_t token = 1;
  size_t size;
  float *logits = allocate(n_vocab * sizeof *logits);
  LOST(rwkv_edge_eval(session, NULL, 0, logits));
  LOST(rwkv_edge_eval(session, &token, 1, NULL));
  LOST(rwkv_edge_sample(session, &token));
  LOST(rwkv_edge_state_save(session, NULL, 0, &size));
  SAYS("the state is undefined");
  OK(rwkv_edge_session_reset(session));
  free(logits);
}

static bool cannot_go_on(const char *text, size_t size, void *user) {
  (void)text, (void)size, (void)user;
  return true;
}

static void run(const char *name) {
  rwkv_edge_options options = default_options();
  rwkv_edge_model *model = NULL;
  rwkv_edge_session *session;
  rwkv_edge_model_info info;
  uint32_t tokens[100], i;
  float *logits;
  options.threads = 1;
  OK(rwkv_edge_model_open_memory(image, image_size, &options, &model));
  info = model_info(model);
  session = new_session(model);
  logits = allocate(info.n_vocab * sizeof *logits);
  for (i = 0; i < 100; i++) tokens[i] = i * 31 % info.n_vocab;
  for (i = 1; i <= 100; i = i * 3 + 1) {
    BAD_NUMBERS(rwkv_edge_eval(session, tokens, i, logits));
    SAYS(name);
    check_lost(session, info.n_vocab);
  }
  /* The head is not asked here, but generate asks it. */
  BAD_NUMBERS(rwkv_edge_generate(session, "A", 1, 3, cannot_go_on, NULL));
  SAYS(name);
  /* It has gone back to the state from its beginning, the empty one. */
  BAD(rwkv_edge_eval(session, NULL, 0, logits));
  SAYS("no token has been fed");
  BAD_NUMBERS(rwkv_edge_eval(session, tokens, 1, NULL));
  rwkv_edge_session_free(session);
  rwkv_edge_model_free(model);
  free(logits);
}

int main(int argc, char **argv) {
  uint64_t header_size;
  char *header, *end, *at;
  int n_matrices = 0;
  CHECK(argc == 2);
  read_image(argv[1]);
  memcpy(&header_size, image, 8);
  header = malloc(header_size + 1);
  CHECK(header != NULL);
  memcpy(header, image + 8, header_size);
  header[header_size] = 0;
  end = header + header_size;
  /* "NAME":{"data_offsets":[BEGIN,END],"dtype":"F16", ... */
  for (at = header; (at = strstr(at, "\"dtype\":\"F16\"")) != NULL && at < end; at++) {
    unsigned long long begin, behind;
    char *entry = at, *name, saved;
    unsigned char *before;
    size_t n, i;
    while (*entry != '{') entry--;
    CHECK(sscanf(entry, "{\"data_offsets\":[%llu,%llu]", &begin, &behind) == 2);
    for (name = entry - 3; *name != '"'; name--) continue;
    name++;
    saved = entry[-2];
    entry[-2] = 0;
    n = (size_t)(behind - begin) / 2;
    before = malloc(2 * n);
    CHECK(before != NULL && 8 + header_size + behind <= image_size);
    memcpy(before, image + 8 + header_size + begin, 2 * n);
    for (i = 0; i < n; i++) memcpy(image + 8 + header_size + begin + 2 * i, &BAD[n_matrices % 3], 2);
    run(name);
    memcpy(image + 8 + header_size + begin, before, 2 * n);
    free(before);
    entry[-2] = saved;
    n_matrices++;
  }
  printf("not_finite: %d matrices\n", n_matrices);
  CHECK(n_matrices > 9);
  return 0;
}
