/* A panic anywhere becomes a status. Needs a library built with the feature test-hooks.
 * usage: panic GOLDEN_DIRECTORY MODEL_FILE */
#include "check.h"

void rwkv_edge_test_panic_next(void);
void rwkv_edge_test_panic_inside(void);

#define PANICS(call)                            \
  do {                                          \
    rwkv_edge_test_panic_next();                \
    EXPECT(RWKV_EDGE_ERROR_PANIC, call);        \
    SAYS("a bug in rwkv-edge: the test asked"); \
  } while (0)

static bool on_text(const char *text, size_t size, void *user) {
  (void)text, (void)size, (void)user;
  return true;
}

int main(int argc, char **argv) {
  rwkv_edge_model *model, *none = NULL;
  rwkv_edge_session *session, *no_session = NULL;
  rwkv_edge_model_info info = {sizeof info, 0, 0, 0, 0, 0, 0, 0, 0};
  rwkv_edge_sampling sampling = {.struct_size = sizeof sampling, .top_p = 1};
  uint32_t tokens[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  char text[64];
  void *block;
  size_t size = 99, file_size;
  unsigned char *image;
  CHECK(argc == 3);
  image = read_file(argv[2], 0, &file_size, &block);
  model = open_model(argv[2], RWKV_EDGE_QUANT_KEEP, 2);
  session = new_session(model);

  PANICS(rwkv_edge_model_open(argv[1], NULL, &none));
  PANICS(rwkv_edge_model_open_memory(image, file_size, NULL, &none));
  PANICS(rwkv_edge_model_get_info(model, &info));
  PANICS(rwkv_edge_tokenize(model, "a", 1, tokens, 8, &size));
  PANICS(rwkv_edge_detokenize(model, tokens, 8, text, sizeof text, &size));
  PANICS(rwkv_edge_session_new(model, &no_session));
  PANICS(rwkv_edge_session_reset(session));
  PANICS(rwkv_edge_eval(session, tokens, 8, NULL));
  PANICS(rwkv_edge_set_sampling(session, &sampling));
  PANICS(rwkv_edge_sample(session, tokens));
  PANICS(rwkv_edge_generate(session, "a", 1, 4, on_text, NULL));
  PANICS(rwkv_edge_state_save(session, NULL, 0, &size));
  PANICS(rwkv_edge_state_load(session, image, file_size));
  CHECK(none == NULL && no_session == NULL && info.version == 0 && size == 99);
  CHECK(tokens[0] == 1);
  /* The next call is as ever: these panics came before anything was touched. */
  OK(rwkv_edge_eval(session, tokens, 8, NULL));

  /* One in the middle of a session's work: it is only to be freed. */
  rwkv_edge_test_panic_inside();
  EXPECT(RWKV_EDGE_ERROR_PANIC, rwkv_edge_eval(session, tokens, 1, NULL));
  EXPECT(RWKV_EDGE_ERROR_PANIC, rwkv_edge_session_reset(session));
  SAYS("only free it");
  rwkv_edge_session_free(session);
  session = new_session(model);
  OK(rwkv_edge_eval(session, tokens, 8, NULL));
  rwkv_edge_session_free(session);
  rwkv_edge_model_free(model);
  free(block);
  printf("panic: every one became a status\n");
  return 0;
}
