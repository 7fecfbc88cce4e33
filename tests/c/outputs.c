/* Of a struct for results only struct_size is read: the other fields were never set. The struct lies across two pages,
 * of which the second cannot be touched until somebody tries; the first to do so must be writing.
 * usage: outputs MODEL */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "check.h"

#if defined(__linux__) && defined(__x86_64__)
static unsigned char *page;
static volatile sig_atomic_t n_writes;

static void on_fault(int signal, siginfo_t *info, void *context) {
  const ucontext_t *c = (const ucontext_t *)context;
  static const char text[] = "outputs: a field that was never set is read\n";
  (void)signal;
  if ((unsigned char *)info->si_addr < page || (unsigned char *)info->si_addr >= page + sysconf(_SC_PAGESIZE)) _exit(2);
  /* Bit 1 of the CPU's error code: a write. */
  if (!(c->uc_mcontext.gregs[REG_ERR] & 2)) {
    if (write(2, text, sizeof text - 1) < 0) _exit(3);
    _exit(1);
  }
  n_writes++;
  if (mprotect(page, (size_t)sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE) != 0) _exit(4);
}

int main(int argc, char **argv) {
  const size_t size = (size_t)sysconf(_SC_PAGESIZE);
  unsigned char *pages = mmap(NULL, 2 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  struct sigaction action;
  rwkv_edge_model_info *info, known;
  rwkv_edge_model *model;
  CHECK(argc == 2 && pages != MAP_FAILED);
  model = open_model(argv[1], RWKV_EDGE_QUANT_KEEP, 1);
  known = model_info(model);
  page = pages + size;
  /* As much in front of the border as alignment allows: struct_size and one field. */
  info = (rwkv_edge_model_info *)(page - 8);
  info->struct_size = sizeof *info;
  CHECK(mprotect(page, size, PROT_NONE) == 0);
  memset(&action, 0, sizeof action);
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO;
  CHECK(sigaction(SIGSEGV, &action, NULL) == 0);
  /* Errors touch no more than that field. */
  info->struct_size = sizeof *info - 8;
  BAD(rwkv_edge_model_get_info(model, info));
  info->struct_size = sizeof *info;
  BAD(rwkv_edge_model_get_info(NULL, info));
  CHECK(n_writes == 0);
  OK(rwkv_edge_model_get_info(model, info));
  CHECK(n_writes == 1 && memcmp(info, &known, sizeof known) == 0);
  rwkv_edge_model_free(model);
  puts("outputs: nothing but the size is read");
  return 0;
}
#else
int main(void) {
  puts("outputs: skipped: the test knows faults of Linux on x86-64 only");
  return 0;
}
#endif
