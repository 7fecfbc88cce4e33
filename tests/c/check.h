/* What the C tests share. A check that fails says where and why, and ends the program with status 1. */
#ifndef CHECK_H
#define CHECK_H
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rwkv_edge.h"

#define CHECK(condition)                                                                        \
  do {                                                                                          \
    if (!(condition)) {                                                                         \
      fprintf(stderr, "%s:%d: not so: %s (last error: %s)\n", __FILE__, __LINE__, #condition,   \
              rwkv_edge_last_error());                                                          \
      exit(1);                                                                                  \
    }                                                                                           \
  } while (0)

/* Expects a status. The text of the last error must be there exactly when the call failed. */
#define EXPECT(expected, call)                                                                  \
  do {                                                                                          \
    rwkv_edge_status status_ = (call);                                                          \
    const char *text_ = rwkv_edge_last_error();                                                 \
    if (status_ != (expected)) {                                                                \
      fprintf(stderr, "%s:%d: %s: status %d, expected %d (%s)\n", __FILE__, __LINE__, #call,    \
              (int)status_, (int)(expected), text_);                                            \
      exit(1);                                                                                  \
    }                                                                                           \
    if ((status_ == RWKV_EDGE_OK) != (text_[0] == 0)) {                                         \
      fprintf(stderr, "%s:%d: %s: status %d with the text \"%s\"\n", __FILE__, __LINE__, #call, \
              (int)status_, text_);                                                             \
      exit(1);                                                                                  \
    }                                                                                           \
  } while (0)

#define OK(call) EXPECT(RWKV_EDGE_OK, call)
#define BAD(call) EXPECT(RWKV_EDGE_ERROR_ARGUMENT, call)

/* The text of the last error names what is wrong. */
#define SAYS(part) CHECK(strstr(rwkv_edge_last_error(), part) != NULL)

static inline rwkv_edge_options default_options(void) {
  rwkv_edge_options options;
  memset(&options, 0, sizeof options);
  options.struct_size = sizeof options;
  return options;
}

static inline rwkv_edge_model *open_model(const char *path, uint32_t quant, uint32_t threads) {
  rwkv_edge_options options = default_options();
  rwkv_edge_model *model = NULL;
  options.quant = quant;
  options.threads = threads;
  OK(rwkv_edge_model_open(path, &options, &model));
  CHECK(model != NULL);
  return model;
}

static inline rwkv_edge_session *new_session(const rwkv_edge_model *model) {
  rwkv_edge_session *session = NULL;
  OK(rwkv_edge_session_new(model, &session));
  CHECK(session != NULL);
  return session;
}

static inline rwkv_edge_model_info model_info(const rwkv_edge_model *model) {
  rwkv_edge_model_info info;
  memset(&info, 0xff, sizeof info);
  info.struct_size = sizeof info;
  OK(rwkv_edge_model_get_info(model, &info));
  CHECK(info.struct_size == sizeof info);
  return info;
}

static inline void *allocate(size_t size) {
  void *memory = malloc(size ? size : 1);
  CHECK(memory != NULL);
  return memory;
}

/* A whole file at an address that is `offset` bytes behind a 64-byte boundary; free *block. */
static inline unsigned char *read_file(const char *path, size_t offset, size_t *size, void **block) {
  FILE *file = fopen(path, "rb");
  unsigned char *data;
  long length;
  CHECK(file != NULL);
  CHECK(fseek(file, 0, SEEK_END) == 0);
  length = ftell(file);
  CHECK(length > 0 && fseek(file, 0, SEEK_SET) == 0);
  *size = (size_t)length;
  *block = allocate(*size + 128);
  data = (unsigned char *)*block;
  while ((uintptr_t)data % 64 != 0) data++;
  data += offset;
  CHECK(fread(data, 1, *size, file) == *size);
  fclose(file);
  return data;
}
#endif
