/* Text from a model. usage: hello MODEL "The beginning of a text" */
#include <stdio.h>
#include <string.h>

#include "rwkv_edge.h"

static bool print(const char *text, size_t size, void *user) {
  (void)user;
  return fwrite(text, 1, size, stdout) == size;
}

int main(int argc, char **argv) {
  rwkv_edge_model *model = NULL;
  rwkv_edge_session *session = NULL;
  const char *prompt = argc > 2 ? argv[2] : "Ownership is";
  rwkv_edge_status status = rwkv_edge_model_open(argc > 1 ? argv[1] : "model", NULL, &model);
  if (status == RWKV_EDGE_OK) status = rwkv_edge_session_new(model, &session);
  if (status == RWKV_EDGE_OK) fputs(prompt, stdout);
  if (status == RWKV_EDGE_OK) status = rwkv_edge_generate(session, prompt, strlen(prompt), 64, print, NULL);
  if (status != RWKV_EDGE_OK) fprintf(stderr, "hello: %s\n", rwkv_edge_last_error());
  rwkv_edge_session_free(session);
  rwkv_edge_model_free(model);
  return status == RWKV_EDGE_OK ? putchar('\n') == EOF : 1;
}
