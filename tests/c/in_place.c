/* rwkv_edge_model_open_memory uses a 64-byte aligned image of the wanted quantisation where it lies: the image
 * is mapped read-only, and opening it adds far less memory than its size.
 * usage: in_place MODEL_FILE */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"

/* Bytes of memory that this process has for itself, pages of mapped files not counted. */
static size_t own_bytes(void) {
  FILE *file = fopen("/proc/self/status", "r");
  char line[256];
  unsigned long kib = 0;
  CHECK(file != NULL);
  while (fgets(line, sizeof line, file))
    if (sscanf(line, "RssAnon: %lu", &kib) == 1) break;
  fclose(file);
  CHECK(kib > 0);
  return (size_t)kib * 1024;
}

int main(int argc, char **argv) {
  rwkv_edge_options options = default_options();
  rwkv_edge_model *model = NULL;
  rwkv_edge_session *session;
  struct stat found;
  const uint32_t tokens[] = {1, 2, 3};
  size_t size, before, aligned, copied;
  unsigned char *image, *moved;
  int file;
  CHECK(argc == 2);
  file = open(argv[1], O_RDONLY);
  CHECK(file >= 0 && fstat(file, &found) == 0);
  size = (size_t)found.st_size;
  /* Writing to it would end the process. */
  image = mmap(NULL, size, PROT_READ, MAP_PRIVATE, file, 0);
  CHECK(image != MAP_FAILED);
  options.threads = 1;

  before = own_bytes();
  OK(rwkv_edge_model_open_memory(image, size, &options, &model));
  aligned = own_bytes() - before;
  session = new_session(model);
  OK(rwkv_edge_eval(session, tokens, 3, NULL));
  rwkv_edge_session_free(session);
  rwkv_edge_model_free(model);

  /* One byte further on it is copied, which shows that the measure above can tell. */
  moved = mmap(NULL, size + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(moved != MAP_FAILED);
  memcpy(moved + 1, image, size);
  before = own_bytes();
  OK(rwkv_edge_model_open_memory(moved + 1, size, &options, &model));
  copied = own_bytes() - before;
  rwkv_edge_model_free(model);
  printf("in_place: image of %zu bytes: aligned %zu bytes more, not aligned %zu\n", size, aligned, copied);
  CHECK(aligned < size / 10 && copied > size / 2);
  /* The limit counts no weights that lie in the caller's memory. */
  options.max_memory = size;
  OK(rwkv_edge_model_open_memory(image, size, &options, &model));
  rwkv_edge_model_free(model);
  options.max_memory = 0;
  options.quant = RWKV_EDGE_QUANT_F16;
  EXPECT(RWKV_EDGE_ERROR_UNSUPPORTED, rwkv_edge_model_open_memory(image, size, &options, &model));
  return 0;
}
