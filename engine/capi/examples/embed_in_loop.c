/* A model in the main loop of a small program: fixed buffers, its own token loop, a saved state to come back
 * to, and no heap after start-up. One thread, so a turn of the loop takes the same time every time.
 *
 * usage: embed_in_loop MODEL */
#include <stdio.h>
#include <string.h>

#include "rwkv_edge.h"

/* Room for the models that this program is made for; start_up refuses a larger one. */
enum { PROMPT_TOKENS_MAX = 64, STATE_SIZE_MAX = 2 << 20, TEXT_SIZE_MAX = 64, ANSWER_TOKENS = 16 };

static uint32_t prompt_tokens[PROMPT_TOKENS_MAX];
static unsigned char state_after_prompt[STATE_SIZE_MAX];

/* All that the loop works on. */
typedef struct {
  rwkv_edge_model *model;
  rwkv_edge_session *session;
  size_t state_size;
} assistant;

static int failed(const char *doing) {
  fprintf(stderr, "embed_in_loop: %s: %s\n", doing, rwkv_edge_last_error());
  return 1;
}

/* Everything that allocates or may take long: opening, the session, and the prompt, whose state is kept. */
static int start_up(assistant *self, const char *path, const char *prompt) {
  rwkv_edge_options options = {0};
  rwkv_edge_sampling sampling = {0};
  size_t n_tokens = 0;
  options.struct_size = sizeof options;
  options.quant = RWKV_EDGE_QUANT_INT8;
  options.threads = 1; /* no thread is ever started */
  if (rwkv_edge_model_open(path, &options, &self->model)) return failed("open");
  if (rwkv_edge_session_new(self->model, &self->session)) return failed("session");
  sampling.struct_size = sizeof sampling;
  sampling.temperature = 0.8f;
  sampling.top_p = 0.9f;
  sampling.seed = 1;
  if (rwkv_edge_set_sampling(self->session, &sampling)) return failed("sampling");
  if (rwkv_edge_tokenize(self->model, prompt, strlen(prompt), prompt_tokens, PROMPT_TOKENS_MAX, &n_tokens))
    return failed("prompt");
  if (rwkv_edge_eval(self->session, prompt_tokens, n_tokens, NULL)) return failed("prompt");
  /* The same size for this model at any time. */
  if (rwkv_edge_state_save(self->session, state_after_prompt, sizeof state_after_prompt, &self->state_size))
    return failed("save");
  return 0;
}

/* One turn of the loop: one token. Nothing here allocates. */
static int turn(assistant *self, uint32_t *token) {
  if (rwkv_edge_sample(self->session, token)) return failed("sample");
  if (rwkv_edge_eval(self->session, token, 1, NULL)) return failed("eval");
  return 0;
}

/* The tokenizer does allocate: where that matters, send the ids to someone who can spell them. */
static int print_text(const assistant *self, const uint32_t *tokens, size_t count) {
  char text[ANSWER_TOKENS * TEXT_SIZE_MAX];
  size_t size = 0;
  if (rwkv_edge_detokenize(self->model, tokens, count, text, sizeof text, &size)) return failed("text");
  printf("%.*s\n", (int)size, text);
  return 0;
}

int main(int argc, char **argv) {
  assistant self = {0};
  uint32_t tokens[ANSWER_TOKENS];
  int answer, i, status = start_up(&self, argc > 1 ? argv[1] : "model", "A trait is");
  for (answer = 0; status == 0 && answer < 3; answer++) {
    /* Back to the prompt without reading it again: the sampler goes on, so answers differ. */
    if (rwkv_edge_state_load(self.session, state_after_prompt, self.state_size)) status = failed("load");
    for (i = 0; status == 0 && i < ANSWER_TOKENS; i++) status = turn(&self, &tokens[i]);
    if (status == 0) status = print_text(&self, tokens, ANSWER_TOKENS);
  }
  rwkv_edge_session_free(self.session);
  rwkv_edge_model_free(self.model);
  return status;
}
