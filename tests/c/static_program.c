/* A program without a loader: plugins are refused, and with auto the CPU does it.
 * usage: static_program MODEL, with RWKV_EDGE_PLUGIN_PATH */
#include "check.h"

int main(int argc, char **argv) {
  rwkv_edge_options options = default_options();
  rwkv_edge_model *model = NULL;
  CHECK(argc == 2);
  options.threads = 1;
  options.device_map = "cpuplug";
  EXPECT(RWKV_EDGE_ERROR_BACKEND, rwkv_edge_model_open(argv[1], &options, &model));
  SAYS("a static program cannot load plugins");
  CHECK(model == NULL);
  options.device_map = "auto";
  OK(rwkv_edge_model_open(argv[1], &options, &model));
  CHECK(model != NULL);
  rwkv_edge_model_free(model);
  puts("static program: plugins are refused");
  return 0;
}
