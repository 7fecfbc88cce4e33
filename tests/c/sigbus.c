/* A mapped model file that shrinks: an error once the program has asked for the handler, and SIGBUS for those that have
 * not. Other faults go to the program's own handler.
 * usage: sigbus MODEL_FILE SCRATCH_FOLDER */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

static const uint32_t tokens[] = {1, 2, 3};
static char path[4096];
static void *volatile fault_at;
static volatile sig_atomic_t faults;

/* A copy of the model file, to be cut. */
static void copy(const char *from) {
  char block[1 << 16];
  ssize_t n;
  int in = open(from, O_RDONLY), out = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  CHECK(in >= 0 && out >= 0);
  while ((n = read(in, block, sizeof block)) > 0) CHECK(write(out, block, (size_t)n) == n);
  CHECK(n == 0 && close(in) == 0 && close(out) == 0);
}

static void on_fault(int number, siginfo_t *info, void *context) {
  (void)context;
  if (number == SIGBUS && info->si_addr == fault_at) {
    faults++;
    mmap(fault_at, 1, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  } else {
    _exit(3);
  }
}

/* Without the request SIGBUS is left alone, and ends the process. */
static void unasked(const char *from) {
  int status;
  pid_t child = fork();
  if (child == 0) {
    struct sigaction action;
    rwkv_edge_session *session;
    copy(from);
    session = new_session(open_model(path, RWKV_EDGE_QUANT_KEEP, 1));
    OK(rwkv_edge_eval(session, tokens, 3, NULL));
    CHECK(sigaction(SIGBUS, NULL, &action) == 0 && action.sa_handler == SIG_DFL);
    CHECK(truncate(path, 0) == 0);
    rwkv_edge_eval(session, tokens, 3, NULL);
    _exit(0);
  }
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
}

static void *eval_lost(void *model) {
  rwkv_edge_session *session = new_session(model);
  EXPECT(RWKV_EDGE_ERROR_IO, rwkv_edge_eval(session, tokens, 3, NULL));
  SAYS(path);
  rwkv_edge_session_free(session);
  return NULL;
}

int main(int argc, char **argv) {
  struct sigaction action;
  rwkv_edge_model *model;
  rwkv_edge_session *session, *unfed;
  pthread_t threads[4];
  FILE *file;
  size_t size, i;
  CHECK(argc == 3);
  snprintf(path, sizeof path, "%s/cut.safetensors", argv[2]);
  unasked(argv[1]);

  memset(&action, 0, sizeof action);
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO;
  CHECK(sigaction(SIGBUS, &action, NULL) == 0);
  copy(argv[1]);
  model = open_model(path, RWKV_EDGE_QUANT_KEEP, 2);
  session = new_session(model);
  unfed = new_session(model);
  OK(rwkv_edge_eval(session, tokens, 3, NULL));
  /* Models that are open already count, too. */
  OK(rwkv_edge_install_sigbus_handler());
  OK(rwkv_edge_install_sigbus_handler());
  CHECK(truncate(path, 0) == 0);
  EXPECT(RWKV_EDGE_ERROR_IO, rwkv_edge_eval(session, tokens, 3, NULL));
  SAYS("cut.safetensors: the file shrank or could not be read");
  EXPECT(RWKV_EDGE_ERROR_BACKEND, rwkv_edge_eval(session, tokens, 3, NULL));
  EXPECT(RWKV_EDGE_ERROR_BACKEND, rwkv_edge_state_save(session, NULL, 0, &size));
  OK(rwkv_edge_session_reset(session));
  EXPECT(RWKV_EDGE_ERROR_IO, rwkv_edge_eval(session, tokens, 3, NULL));
  EXPECT(RWKV_EDGE_ERROR_IO, rwkv_edge_eval(unfed, tokens, 3, NULL));
  rwkv_edge_session_free(unfed);
  rwkv_edge_session_free(session);
  rwkv_edge_model_free(model);

  /* Threads of the program, whose stacks are all that a handler has there. */
  copy(argv[1]);
  model = open_model(path, RWKV_EDGE_QUANT_KEEP, 1);
  CHECK(truncate(path, 0) == 0);
  for (i = 0; i < 4; i++) CHECK(pthread_create(&threads[i], NULL, eval_lost, model) == 0);
  for (i = 0; i < 4; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  rwkv_edge_model_free(model);
  CHECK(faults == 0);

  /* A fault of the program's own. */
  file = tmpfile();
  CHECK(file != NULL && ftruncate(fileno(file), 1) == 0);
  fault_at = mmap(NULL, 1, PROT_READ, MAP_SHARED, fileno(file), 0);
  CHECK(fault_at != MAP_FAILED && ftruncate(fileno(file), 0) == 0);
  CHECK(*(volatile char *)fault_at == 0);
  CHECK(faults == 1);
  fclose(file);
  CHECK(remove(path) == 0);
  return 0;
}
