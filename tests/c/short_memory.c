/* A ladder of limits on the address space: whatever a call has no memory for is a status, and no call ends the process,
 * but for what the header leaves out: allocations below 64 KiB, and those inside libraries, which here are those that
 * read a tokenizer.json.
 * usage: short_memory MODEL QUANT [tokenize]      QUANT: a number of RWKV_EDGE_QUANT_... */
#define _GNU_SOURCE
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

enum { STEP = 256 << 10, RUNGS_MAX = 2000, OUT_OF_MEMORY = 5, SMALL = 64 << 10 };

static const char *path;
static uint32_t quant;
static bool with_text;

/* What the child was doing, shared with its parent through a pipe. */
static int stages = -1;
static void stage(char name) { CHECK(write(stages, &name, 1) == 1); }

/* Goes on with OK; ends the child where memory is short; anything else is wrong. */
#define TRY(name, call)                                                      \
  do {                                                                       \
    rwkv_edge_status status_;                                                \
    stage(name);                                                             \
    status_ = (call);                                                        \
    if (status_ == RWKV_EDGE_ERROR_MEMORY) _exit(OUT_OF_MEMORY);             \
    /* A file that cannot be mapped or read is told as the system says it. */ \
    if (status_ == RWKV_EDGE_ERROR_IO && strstr(rwkv_edge_last_error(), "memory")) _exit(OUT_OF_MEMORY); \
    CHECK(status_ == RWKV_EDGE_OK);                                          \
  } while (0)

static size_t address_space(void) {
  FILE *file = fopen("/proc/self/statm", "r");
  unsigned long pages = 0;
  CHECK(file != NULL && fscanf(file, "%lu", &pages) == 1);
  fclose(file);
  return (size_t)pages * (size_t)sysconf(_SC_PAGESIZE);
}

/* Static: nothing of the test's own needs memory. */
static float logits[1 << 17];
static unsigned char state[1 << 22];

static void child(size_t limit) {
  const struct rlimit limits = {limit, limit};
  rwkv_edge_options options = default_options();
  rwkv_edge_sampling sampling = {.struct_size = sizeof sampling, .temperature = 1, .top_p = 0.9f, .top_k = 40,
                                 .presence_penalty = 0.1f, .frequency_penalty = 0.1f, .seed = 7};
  rwkv_edge_model *model = NULL;
  rwkv_edge_session *session = NULL, *second = NULL;
  uint32_t tokens[300], token, i;
  size_t size = 0;
  CHECK(setrlimit(RLIMIT_AS, &limits) == 0);
  options.threads = 1;
  options.quant = quant;
  TRY('o', rwkv_edge_model_open(path, &options, &model));
  TRY('s', rwkv_edge_session_new(model, &session));
  for (i = 0; i < 300; i++) tokens[i] = i % 90;
  TRY('e', rwkv_edge_eval(session, tokens, 300, logits));
  TRY('e', rwkv_edge_eval(session, tokens, 1, logits));
  TRY('d', rwkv_edge_set_sampling(session, &sampling));
  TRY('d', rwkv_edge_sample(session, &token));
  CHECK(rwkv_edge_state_save(session, NULL, 0, &size) == RWKV_EDGE_OK && size <= sizeof state);
  TRY('t', rwkv_edge_state_save(session, state, sizeof state, &size));
  TRY('t', rwkv_edge_state_load(session, state, size));
  TRY('n', rwkv_edge_session_new(model, &second));
  TRY('t', rwkv_edge_state_load(second, state, size));
  if (with_text) {
    TRY('x', rwkv_edge_tokenize(model, "A text", 6, tokens, 300, &size));
    TRY('g', rwkv_edge_generate(session, "A text", 6, 4, NULL, NULL));
  }
  rwkv_edge_session_free(second);
  rwkv_edge_session_free(session);
  rwkv_edge_model_free(model);
}

int main(int argc, char **argv) {
  size_t base;
  int rung, n_refused = 0, n_small = 0, n_good = 0, seen[256] = {0};
  CHECK(argc >= 3);
  path = argv[1];
  quant = (uint32_t)atoi(argv[2]);
  with_text = argc > 3;
  base = address_space();
  for (rung = 0; rung < RUNGS_MAX && n_good < 3; rung++) {
    int errors[2], reports[2], status;
    char text[4096], last = 0, name;
    size_t n = 0;
    ssize_t got;
    pid_t pid;
    CHECK(pipe(errors) == 0 && pipe(reports) == 0);
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
      close(errors[0]);
      close(reports[0]);
      stages = reports[1];
      dup2(errors[1], 2);
      child(base + (size_t)rung * STEP);
      _exit(0);
    }
    close(errors[1]);
    close(reports[1]);
    while (n + 1 < sizeof text && (got = read(errors[0], text + n, sizeof text - 1 - n)) > 0) n += (size_t)got;
    text[n] = 0;
    while (read(reports[0], &name, 1) == 1) last = name;
    close(errors[0]);
    close(reports[0]);
    CHECK(waitpid(pid, &status, 0) == pid);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
      n_good++;
    } else if (WIFEXITED(status) && WEXITSTATUS(status) == OUT_OF_MEMORY) {
      n_refused++;
      seen[(unsigned char)last]++;
    } else {
      /* What the header leaves out. */
      const char *failed = strstr(text, "memory allocation of ");
      unsigned long bytes = 0;
      bool is_small = failed && sscanf(failed, "memory allocation of %lu bytes failed", &bytes) == 1 && bytes < SMALL;
      if (!is_small && last != 'x' && last != 'g') {
        fprintf(stderr, "short_memory: %d KiB more, in %c: status %x: %s\n", rung * (STEP >> 10), last, status, text);
        return 1;
      }
      n_small++;
    }
  }
  printf("short_memory: %d limits: %d refused (open %d, session %d, second session %d), %d left out\n", rung, n_refused,
         seen['o'], seen['s'], seen['n'], n_small);
  CHECK(n_good == 3 && n_refused > 5);
  /* Converting takes more than sessions do. */
  CHECK(seen['o'] > 0 && (quant != RWKV_EDGE_QUANT_KEEP || seen['s'] + seen['n'] > 0));
  return 0;
}
