/* With another static library in Rust: panics of ours become a status in silence, panics of the other are told as they
 * were before the first call of ours. Needs a library built with the feature test-hooks.
 * usage: two_libraries, whose stderr is to be looked at */
#include "check.h"

void rwkv_edge_test_panic_next(void);
bool other_panics(void);

int main(void) {
  rwkv_edge_model *model = NULL;
  CHECK(other_panics());
  rwkv_edge_test_panic_next();
  EXPECT(RWKV_EDGE_ERROR_PANIC, rwkv_edge_model_open("/no/such", NULL, &model));
  SAYS("a bug in rwkv-edge: the test asked");
  CHECK(other_panics());
  puts("two_libraries: each has its own panics");
  return 0;
}
