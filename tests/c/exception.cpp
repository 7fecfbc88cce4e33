// A C++ exception that leaves on_text ends the program, as the header says: it neither comes out of the call nor lets it
// go on.
// usage: exception MODEL_FILE
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>

#include "rwkv_edge.h"

static bool on_text(const char *, size_t, void *) { throw 1; }

static void check(bool condition, const char *what) {
  if (condition) return;
  std::fprintf(stderr, "exception: not so: %s (last error: %s)\n", what, rwkv_edge_last_error());
  std::exit(1);
}

int main(int argc, char **argv) {
  check(argc == 2, "one argument");
  const pid_t child = fork();
  check(child >= 0, "a child");
  if (child == 0) {
    rwkv_edge_options options = {};
    options.struct_size = sizeof options;
    options.threads = 1;
    rwkv_edge_model *model = nullptr;
    rwkv_edge_session *session = nullptr;
    if (rwkv_edge_model_open(argv[1], &options, &model) != 0) _exit(2);
    if (rwkv_edge_session_new(model, &session) != 0) _exit(3);
    try {
      rwkv_edge_generate(session, "a", 1, 4, on_text, nullptr);
    } catch (...) {
      _exit(4);
    }
    _exit(5);
  }
  int status = 0;
  check(waitpid(child, &status, 0) == child, "the child's end");
  if (WIFEXITED(status)) std::fprintf(stderr, "exception: the child ends with %d\n", WEXITSTATUS(status));
  check(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "the program is ended");
  std::puts("exception: the program is ended");
  return 0;
}
