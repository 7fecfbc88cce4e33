/* Every function, valid and invalid.
 * usage: functions GOLDEN_DIRECTORY DEMO_DIRECTORY MODEL_FILE (int8, of the demo) WORK_DIRECTORY */
#include "check.h"

static const char *golden, *demo, *model_file, *work;

static const uint32_t TOKENS[] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8};
enum { N_TOKENS = sizeof TOKENS / sizeof *TOKENS };

static void versions(void) {
  CHECK(rwkv_edge_abi_version() == RWKV_EDGE_ABI_VERSION);
  CHECK(strcmp(rwkv_edge_version(), "0.1.0") == 0);
  CHECK(rwkv_edge_last_error() != NULL);
}

static void write_file(const char *path, const void *bytes, size_t size) {
  FILE *file = fopen(path, "wb");
  CHECK(file != NULL && fwrite(bytes, 1, size, file) == size && fclose(file) == 0);
}

static void opening(void) {
  rwkv_edge_options options = default_options();
  rwkv_edge_model *const untouched = (rwkv_edge_model *)&options;
  rwkv_edge_model *model = untouched;
  char path[512];

  BAD(rwkv_edge_model_open(NULL, NULL, &model));
  BAD(rwkv_edge_model_open(golden, NULL, NULL));
  BAD(rwkv_edge_model_open("", NULL, &model));
  /* Arguments come first: the path is not looked at. */
  options.struct_size = 0;
  BAD(rwkv_edge_model_open("/no/such", &options, &model));
  SAYS("struct_size");
  options.struct_size = sizeof options - 1;
  BAD(rwkv_edge_model_open("/no/such", &options, &model));
  options.struct_size = sizeof options + 8;
  BAD(rwkv_edge_model_open("/no/such", &options, &model));
  options = default_options();
  options.quant = RWKV_EDGE_QUANT_Q6 + 1;
  BAD(rwkv_edge_model_open("/no/such", &options, &model));
  SAYS("quant is 7");
  options = default_options();
  options.flags = 2;
  BAD(rwkv_edge_model_open("/no/such", &options, &model));
  options = default_options();
  options.threads = 100000;
  BAD(rwkv_edge_model_open("/no/such", &options, &model));
  options = default_options();
  options.device_map = "nosuch:0";
  EXPECT(RWKV_EDGE_ERROR_BACKEND, rwkv_edge_model_open(golden, &options, &model));
  SAYS("no plugin for the device nosuch");
  options.device_map = "cpu *1";
  EXPECT(RWKV_EDGE_ERROR_ARGUMENT, rwkv_edge_model_open(golden, &options, &model));
  options.device_map = "what is that";
  BAD(rwkv_edge_model_open(golden, &options, &model));
  SAYS("device map");
  /* Without a device everything is on the CPU. */
  options.device_map = "auto";
  {
    rwkv_edge_model *opened = NULL;
    OK(rwkv_edge_model_open(golden, &options, &opened));
    rwkv_edge_model_free(opened);
  }

  EXPECT(RWKV_EDGE_ERROR_IO, rwkv_edge_model_open("/no/such", NULL, &model));
  SAYS("/no/such");
  EXPECT(RWKV_EDGE_ERROR_FORMAT, rwkv_edge_model_open(work, NULL, &model));
  snprintf(path, sizeof path, "%s/not-a-model", work);
  write_file(path, "this is no checkpoint", 21);
  EXPECT(RWKV_EDGE_ERROR_FORMAT, rwkv_edge_model_open(path, NULL, &model));
  write_file(path, "GGUF\1\0\0\0", 8);
  EXPECT(RWKV_EDGE_ERROR_UNSUPPORTED, rwkv_edge_model_open(path, NULL, &model));
  /* int8 cannot become more exact. */
  options = default_options();
  options.quant = RWKV_EDGE_QUANT_F32;
  EXPECT(RWKV_EDGE_ERROR_UNSUPPORTED, rwkv_edge_model_open(model_file, &options, &model));
  options = default_options();
  options.tokenizer = "/no/such/tokenizer.json";
  EXPECT(RWKV_EDGE_ERROR_IO, rwkv_edge_model_open(golden, &options, &model));
  write_file(path, "{}", 2);
  options.tokenizer = path;
  EXPECT(RWKV_EDGE_ERROR_TOKENIZER, rwkv_edge_model_open(golden, &options, &model));
  /* The demo's tokenizer has more tokens than the golden model. */
  snprintf(path, sizeof path, "%s/tokenizer.json", demo);
  EXPECT(RWKV_EDGE_ERROR_TOKENIZER, rwkv_edge_model_open(golden, &options, &model));
  SAYS("expected at most");
  options = default_options();
  options.max_memory = 1000;
  EXPECT(RWKV_EDGE_ERROR_MEMORY, rwkv_edge_model_open(golden, &options, &model));
  SAYS("expected at most 1000");
  CHECK(model == untouched);

  options = default_options();
  options.device_map = "cpu";
  options.flags = RWKV_EDGE_FLAG_NO_MMAP;
  options.threads = 2;
  options.max_memory = (uint64_t)1 << 32;
  OK(rwkv_edge_model_open(golden, &options, &model));
  rwkv_edge_model_free(model);
  rwkv_edge_model_free(NULL);
}

static void facts(void) {
  const uint32_t quants[] = {RWKV_EDGE_QUANT_F32, RWKV_EDGE_QUANT_F16, RWKV_EDGE_QUANT_INT8,
                             RWKV_EDGE_QUANT_Q6,  RWKV_EDGE_QUANT_Q5,  RWKV_EDGE_QUANT_Q4};
  rwkv_edge_model_info info;
  size_t i;
  for (i = 0; i < sizeof quants / sizeof *quants; i++) {
    rwkv_edge_model *model = open_model(golden, quants[i], 1);
    info = model_info(model);
    CHECK(info.version == 4 && info.quant == quants[i]);
    CHECK(info.n_vocab > 0 && info.n_embd > 0 && info.n_layer > 0);
    CHECK(info.state_bytes == (uint64_t)20 * info.n_embd * info.n_layer);
    CHECK(info.n_params > 0 && info.weight_bytes > info.n_params / 2);
    BAD(rwkv_edge_model_get_info(NULL, &info));
    BAD(rwkv_edge_model_get_info(model, NULL));
    memset(&info, 7, sizeof info);
    info.struct_size = sizeof info - 8;
    BAD(rwkv_edge_model_get_info(model, &info));
    CHECK(info.version == 0x07070707u);
    rwkv_edge_model_free(model);
  }
}

static void tokenizing(void) {
  rwkv_edge_model *model = open_model(model_file, RWKV_EDGE_QUANT_KEEP, 1);
  const char text[] = "Ownership is, na\xc3\xafve\xe2\x80\xa6 \xff!";
  const size_t size = sizeof text - 1;
  uint32_t tokens[64];
  char back[256];
  size_t count = 99, needed = 99;
  uint32_t bad;

  OK(rwkv_edge_tokenize(model, text, size, NULL, 0, &count));
  CHECK(count > 0 && count < 64);
  needed = count;
  memset(tokens, 0xee, sizeof tokens);
  EXPECT(RWKV_EDGE_ERROR_MEMORY, rwkv_edge_tokenize(model, text, size, tokens, count - 1, &needed));
  CHECK(needed == count && tokens[0] == 0xeeeeeeeeu);
  OK(rwkv_edge_tokenize(model, text, size, tokens, count, &needed));
  CHECK(needed == count && tokens[count] == 0xeeeeeeeeu);
  OK(rwkv_edge_tokenize(model, NULL, 0, tokens, 64, &needed));
  CHECK(needed == 0);
  needed = 99;
  BAD(rwkv_edge_tokenize(NULL, text, size, tokens, 64, &needed));
  BAD(rwkv_edge_tokenize(model, NULL, 1, tokens, 64, &needed));
  BAD(rwkv_edge_tokenize(model, text, size, NULL, 64, &needed));
  BAD(rwkv_edge_tokenize(model, text, size, tokens, 64, NULL));
  BAD(rwkv_edge_tokenize(model, text, SIZE_MAX, tokens, 64, &needed));
  CHECK(needed == 99);

  OK(rwkv_edge_detokenize(model, tokens, count, NULL, 0, &needed));
  /* The byte that is no UTF-8 has become U+FFFD, of three bytes. */
  CHECK(needed == size + 2);
  memset(back, 'x', sizeof back);
  EXPECT(RWKV_EDGE_ERROR_MEMORY, rwkv_edge_detokenize(model, tokens, count, back, size, &needed));
  CHECK(needed == size + 2 && back[0] == 'x');
  OK(rwkv_edge_detokenize(model, tokens, count, back, sizeof back, &needed));
  CHECK(needed == size + 2 && back[needed] == 'x');
  CHECK(memcmp(back, text, size - 2) == 0 && memcmp(back + size - 2, "\xef\xbf\xbd!", 4) == 0);
  OK(rwkv_edge_detokenize(model, NULL, 0, back, 0, &needed));
  CHECK(needed == 0);
  bad = model_info(model).n_vocab;
  needed = 99;
  BAD(rwkv_edge_detokenize(model, &bad, 1, back, sizeof back, &needed));
  BAD(rwkv_edge_detokenize(NULL, tokens, count, back, sizeof back, &needed));
  BAD(rwkv_edge_detokenize(model, NULL, 1, back, sizeof back, &needed));
  BAD(rwkv_edge_detokenize(model, tokens, count, NULL, 1, &needed));
  BAD(rwkv_edge_detokenize(model, tokens, count, back, sizeof back, NULL));
  CHECK(needed == 99);
  /* The end of text is special: named in a text it becomes its token, and that has no text. */
  OK(rwkv_edge_tokenize(model, "<|endoftext|>", 13, tokens, 64, &count));
  CHECK(count == 1);
  OK(rwkv_edge_detokenize(model, tokens, 1, back, sizeof back, &needed));
  CHECK(needed == 0);
  rwkv_edge_model_free(model);

  model = open_model(golden, RWKV_EDGE_QUANT_KEEP, 1);
  EXPECT(RWKV_EDGE_ERROR_TOKENIZER, rwkv_edge_tokenize(model, text, size, tokens, 64, &count));
  EXPECT(RWKV_EDGE_ERROR_TOKENIZER,
         rwkv_edge_detokenize(model, tokens, 1, back, sizeof back, &needed));
  rwkv_edge_model_free(model);
}

static void evaluating(uint32_t quant, uint32_t threads) {
  rwkv_edge_model *model = open_model(golden, quant, threads);
  rwkv_edge_session *one = new_session(model), *two = new_session(model);
  const size_t n_vocab = model_info(model).n_vocab, row = n_vocab * sizeof(float);
  float *a = allocate(row), *b = allocate(row);
  uint32_t bad[2], token = 77;
  size_t i;

  BAD(rwkv_edge_session_new(NULL, &one));
  BAD(rwkv_edge_session_new(model, NULL));
  /* Before the first token there is nothing to give. */
  memset(a, 0xee, row);
  memcpy(b, a, row);
  BAD(rwkv_edge_eval(one, NULL, 0, a));
  BAD(rwkv_edge_sample(one, &token));
  BAD(rwkv_edge_generate(one, NULL, 0, 5, NULL, NULL));
  OK(rwkv_edge_eval(one, NULL, 0, NULL));
  bad[0] = 1;
  bad[1] = (uint32_t)n_vocab;
  BAD(rwkv_edge_eval(one, bad, 2, a));
  BAD(rwkv_edge_eval(one, NULL, 2, a));
  BAD(rwkv_edge_eval(NULL, TOKENS, 2, a));
  BAD(rwkv_edge_eval(one, TOKENS, SIZE_MAX / 4, a));
  CHECK(memcmp(a, b, row) == 0 && token == 77);

  /* The model may go first. */
  rwkv_edge_model_free(model);
  OK(rwkv_edge_eval(one, TOKENS, N_TOKENS, a));
  OK(rwkv_edge_eval(one, NULL, 0, b));
  CHECK(memcmp(a, b, row) == 0);
  for (i = 0; i < N_TOKENS; i++) OK(rwkv_edge_eval(two, &TOKENS[i], 1, NULL));
  OK(rwkv_edge_eval(two, NULL, 0, b));
  CHECK(memcmp(a, b, row) == 0);
  /* A failing call in between changes nothing. */
  BAD(rwkv_edge_eval(two, bad, 2, b));
  OK(rwkv_edge_eval(one, TOKENS, 1, a));
  OK(rwkv_edge_eval(two, TOKENS, 1, b));
  CHECK(memcmp(a, b, row) == 0);
  OK(rwkv_edge_session_reset(one));
  BAD(rwkv_edge_eval(one, NULL, 0, a));
  BAD(rwkv_edge_session_reset(NULL));
  OK(rwkv_edge_eval(one, TOKENS, N_TOKENS, a));
  OK(rwkv_edge_eval(one, TOKENS, 1, a));
  CHECK(memcmp(a, b, row) == 0);
  rwkv_edge_session_free(one);
  rwkv_edge_session_free(two);
  rwkv_edge_session_free(NULL);
  free(a);
  free(b);
}

static rwkv_edge_sampling default_sampling(void) {
  rwkv_edge_sampling sampling;
  memset(&sampling, 0, sizeof sampling);
  sampling.struct_size = sizeof sampling;
  sampling.top_p = 1;
  return sampling;
}

static void draw(rwkv_edge_session *session, uint32_t *tokens, size_t count) {
  size_t i;
  for (i = 0; i < count; i++) {
    OK(rwkv_edge_sample(session, &tokens[i]));
    OK(rwkv_edge_eval(session, &tokens[i], 1, NULL));
  }
}

static void sampling(void) {
  enum { N = 24 };
  rwkv_edge_model *model = open_model(golden, RWKV_EDGE_QUANT_F16, 1);
  rwkv_edge_session *session = new_session(model);
  const uint32_t n_vocab = model_info(model).n_vocab;
  float *logits = allocate(n_vocab * sizeof(float));
  rwkv_edge_sampling set = default_sampling();
  uint32_t first[N], again[N], token, best = 0, i;

  OK(rwkv_edge_eval(session, TOKENS, N_TOKENS, logits));
  for (i = 1; i < n_vocab; i++)
    if (logits[i] > logits[best]) best = i;
  OK(rwkv_edge_sample(session, &token));
  CHECK(token == best);
  BAD(rwkv_edge_sample(session, NULL));
  BAD(rwkv_edge_sample(NULL, &token));

  BAD(rwkv_edge_set_sampling(session, NULL));
  BAD(rwkv_edge_set_sampling(NULL, &set));
  set.struct_size = 8;
  BAD(rwkv_edge_set_sampling(session, &set));
  set = default_sampling();
  set.top_p = 1.5f;
  BAD(rwkv_edge_set_sampling(session, &set));
  SAYS("top_p");
  set = default_sampling();
  set.temperature = (float)(1e300 * 1e300);
  BAD(rwkv_edge_set_sampling(session, &set));

  set = default_sampling();
  set.temperature = 1.2f;
  set.top_p = 0.9f;
  set.top_k = 50;
  set.presence_penalty = 0.5f;
  set.frequency_penalty = 0.25f;
  set.seed = 12345678901234567ull;
  OK(rwkv_edge_set_sampling(session, &set));
  OK(rwkv_edge_session_reset(session));
  OK(rwkv_edge_eval(session, TOKENS, N_TOKENS, NULL));
  draw(session, first, N);
  /* A reset restarts seed and counts, and keeps the settings. */
  OK(rwkv_edge_session_reset(session));
  OK(rwkv_edge_eval(session, TOKENS, N_TOKENS, NULL));
  draw(session, again, N);
  CHECK(memcmp(first, again, sizeof first) == 0);
  set.seed = 2;
  OK(rwkv_edge_set_sampling(session, &set));
  OK(rwkv_edge_session_reset(session));
  OK(rwkv_edge_eval(session, TOKENS, N_TOKENS, NULL));
  draw(session, again, N);
  CHECK(memcmp(first, again, sizeof first) != 0);
  rwkv_edge_session_free(session);
  rwkv_edge_model_free(model);
  free(logits);
}

typedef struct {
  char text[4096];
  size_t size;
  int calls, calls_max;
  rwkv_edge_session *session;
} collected;

static bool collect(const char *text, size_t size, void *user) {
  collected *all = user;
  CHECK(size > 0 && all->size + size < sizeof all->text);
  memcpy(all->text + all->size, text, size);
  all->size += size;
  all->text[all->size] = 0;
  return ++all->calls != all->calls_max;
}

/* A callback that comes back to the session that is calling it. */
static bool come_back(const char *text, size_t size, void *user) {
  collected *all = user;
  uint32_t token;
  (void)text, (void)size;
  BAD(rwkv_edge_sample(all->session, &token));
  SAYS("in use");
  BAD(rwkv_edge_session_reset(all->session));
  rwkv_edge_session_free(all->session);
  all->calls++;
  return true;
}

static void generating(void) {
  rwkv_edge_model *model = open_model(model_file, RWKV_EDGE_QUANT_KEEP, 2);
  rwkv_edge_session *session = new_session(model);
  const char prompt[] = "Ownership is";
  const size_t size = sizeof prompt - 1;
  collected all = {{0}, 0, 0, 0, NULL}, part = {{0}, 0, 0, 0, NULL};
  uint32_t tokens[32];
  char text[4096];
  size_t count, i;

  BAD(rwkv_edge_generate(NULL, prompt, size, 8, collect, &all));
  BAD(rwkv_edge_generate(session, NULL, size, 8, collect, &all));
  BAD(rwkv_edge_generate(session, "", 0, 8, collect, &all));
  CHECK(all.calls == 0);
  OK(rwkv_edge_generate(session, prompt, size, 20, collect, &all));
  CHECK(all.size > 0);
  printf("generated: %s%s\n", prompt, all.text);

  /* The same by hand. */
  OK(rwkv_edge_session_reset(session));
  OK(rwkv_edge_tokenize(model, prompt, size, tokens, 32, &count));
  OK(rwkv_edge_eval(session, tokens, count, NULL));
  draw(session, tokens, 20);
  OK(rwkv_edge_detokenize(model, tokens, 20, text, sizeof text, &count));
  CHECK(count == all.size && memcmp(text, all.text, count) == 0);

  /* In two calls, the second with an empty prompt; the first without a callback. */
  OK(rwkv_edge_session_reset(session));
  OK(rwkv_edge_generate(session, prompt, size, 8, NULL, NULL));
  OK(rwkv_edge_generate(session, NULL, 0, 12, collect, &part));
  CHECK(part.size < all.size);
  CHECK(memcmp(all.text + all.size - part.size, part.text, part.size) == 0);
  /* 0 tokens only feed the prompt. */
  memset(&part, 0, sizeof part);
  OK(rwkv_edge_session_reset(session));
  OK(rwkv_edge_generate(session, prompt, size, 0, collect, &part));
  CHECK(part.calls == 0);
  OK(rwkv_edge_sample(session, &tokens[0]));
  /* The callback ends it, and is not called again. */
  OK(rwkv_edge_session_reset(session));
  part.calls_max = 3;
  OK(rwkv_edge_generate(session, prompt, size, 20, collect, &part));
  CHECK(part.calls == 3 && memcmp(part.text, all.text, part.size) == 0);
  memset(&part, 0, sizeof part);
  part.session = session;
  OK(rwkv_edge_generate(session, NULL, 0, 4, come_back, &part));
  CHECK(part.calls > 0);

  /* Pieces are whole characters, and together the text: also for a prompt that is no UTF-8. */
  OK(rwkv_edge_session_reset(session));
  OK(rwkv_edge_generate(session, "\xe2\x80", 2, 4, NULL, NULL));
  rwkv_edge_session_free(session);
  rwkv_edge_model_free(model);

  /* Without a tokenizer ids still work, and so does generating without text. */
  model = open_model(golden, RWKV_EDGE_QUANT_KEEP, 1);
  session = new_session(model);
  EXPECT(RWKV_EDGE_ERROR_TOKENIZER, rwkv_edge_generate(session, prompt, size, 4, NULL, NULL));
  for (i = 0; i < 4; i++) tokens[i] = (uint32_t)i;
  OK(rwkv_edge_eval(session, tokens, 4, NULL));
  OK(rwkv_edge_generate(session, NULL, 0, 4, NULL, NULL));
  EXPECT(RWKV_EDGE_ERROR_TOKENIZER, rwkv_edge_generate(session, NULL, 0, 4, collect, &part));
  rwkv_edge_session_free(session);
  rwkv_edge_model_free(model);
}

static void states(void) {
  rwkv_edge_model *int8 = open_model(golden, RWKV_EDGE_QUANT_INT8, 1);
  rwkv_edge_model *f32 = open_model(golden, RWKV_EDGE_QUANT_F32, 1);
  rwkv_edge_model *other = open_model(model_file, RWKV_EDGE_QUANT_KEEP, 1);
  rwkv_edge_session *session = new_session(int8), *second = new_session(int8);
  rwkv_edge_session *in_f32 = new_session(f32), *stranger = new_session(other);
  const size_t row = model_info(int8).n_vocab * sizeof(float);
  float *a = allocate(row), *b = allocate(row);
  unsigned char *state, *same;
  uint32_t token, token_again;
  size_t size = 0, size_again = 0, i;

  BAD(rwkv_edge_state_save(NULL, NULL, 0, &size));
  BAD(rwkv_edge_state_save(session, NULL, 0, NULL));
  BAD(rwkv_edge_state_save(session, NULL, 1, &size));
  OK(rwkv_edge_state_save(session, NULL, 0, &size));
  CHECK(size > model_info(int8).state_bytes + row);
  state = allocate(size);
  same = allocate(size);
  /* The state before the first token is a state too. */
  OK(rwkv_edge_state_save(session, state, size, &size_again));
  CHECK(size_again == size);
  OK(rwkv_edge_eval(session, TOKENS, N_TOKENS, NULL));
  OK(rwkv_edge_state_load(session, state, size));
  BAD(rwkv_edge_sample(session, &token));

  OK(rwkv_edge_eval(session, TOKENS, N_TOKENS, a));
  memset(state, 0xee, size);
  EXPECT(RWKV_EDGE_ERROR_MEMORY, rwkv_edge_state_save(session, state, size - 1, &size_again));
  CHECK(size_again == size && state[0] == 0xee && state[size - 1] == 0xee);
  OK(rwkv_edge_state_save(session, state, size, &size_again));
  CHECK(size_again == size);
  OK(rwkv_edge_state_load(second, state, size));
  OK(rwkv_edge_eval(second, NULL, 0, b));
  CHECK(memcmp(a, b, row) == 0);
  OK(rwkv_edge_sample(session, &token));
  OK(rwkv_edge_sample(second, &token_again));
  CHECK(token == token_again);
  OK(rwkv_edge_eval(session, &token, 1, a));
  OK(rwkv_edge_eval(second, &token, 1, b));
  CHECK(memcmp(a, b, row) == 0);
  /* Another quantisation has the same layout; saved again the bytes are the same. */
  OK(rwkv_edge_state_load(in_f32, state, size));
  OK(rwkv_edge_state_save(in_f32, same, size, &size_again));
  CHECK(size_again == size && memcmp(state, same, size) == 0);

  /* What is cut, padded, damaged or of another version of RWKV is refused, and changes nothing. */
  BAD(rwkv_edge_state_load(NULL, state, size));
  BAD(rwkv_edge_state_load(session, NULL, size));
  BAD(rwkv_edge_state_load(session, NULL, 0));
  EXPECT(RWKV_EDGE_ERROR_STATE, rwkv_edge_state_load(session, state, 0));
  EXPECT(RWKV_EDGE_ERROR_STATE, rwkv_edge_state_load(session, state, size - 1));
  EXPECT(RWKV_EDGE_ERROR_STATE, rwkv_edge_state_load(session, state, size / 2));
  EXPECT(RWKV_EDGE_ERROR_STATE, rwkv_edge_state_load(stranger, state, size));
  SAYS("state of \"rwkv-4\", expected one of rwkv-7");
  for (i = 0; i < size; i += 1 + size / 97) {
    state[i] ^= 0x10;
    EXPECT(RWKV_EDGE_ERROR_STATE, rwkv_edge_state_load(session, state, size));
    state[i] ^= 0x10;
  }
  OK(rwkv_edge_eval(session, NULL, 0, b));
  CHECK(memcmp(a, b, row) == 0);
  OK(rwkv_edge_state_load(session, state, size));

  rwkv_edge_model_free(int8);
  rwkv_edge_model_free(f32);
  rwkv_edge_model_free(other);
  rwkv_edge_session_free(session);
  rwkv_edge_session_free(second);
  rwkv_edge_session_free(in_f32);
  rwkv_edge_session_free(stranger);
  free(a);
  free(b);
  free(state);
  free(same);
}

/* Logits of a model in memory are those of the same model opened by its path. */
static void in_memory(void) {
  rwkv_edge_options options = default_options();
  rwkv_edge_model *by_path = open_model(model_file, RWKV_EDGE_QUANT_KEEP, 1), *model = NULL;
  rwkv_edge_session *session = new_session(by_path);
  const size_t row = model_info(by_path).n_vocab * sizeof(float);
  float *a = allocate(row), *b = allocate(row);
  size_t size, offset;
  void *block;

  OK(rwkv_edge_eval(session, TOKENS, N_TOKENS, a));
  rwkv_edge_session_free(session);
  for (offset = 0; offset < 3; offset++) {
    unsigned char *image = read_file(model_file, offset, &size, &block);
    BAD(rwkv_edge_model_open_memory(NULL, size, NULL, &model));
    BAD(rwkv_edge_model_open_memory(image, size, NULL, NULL));
    EXPECT(RWKV_EDGE_ERROR_FORMAT, rwkv_edge_model_open_memory(image, 0, NULL, &model));
    EXPECT(RWKV_EDGE_ERROR_FORMAT, rwkv_edge_model_open_memory(image, size - 1, NULL, &model));
    EXPECT(RWKV_EDGE_ERROR_FORMAT, rwkv_edge_model_open_memory(image, 100, NULL, &model));
    options.threads = 1;
    OK(rwkv_edge_model_open_memory(image, size, &options, &model));
    session = new_session(model);
    rwkv_edge_model_free(model);
    OK(rwkv_edge_eval(session, TOKENS, N_TOKENS, b));
    CHECK(memcmp(a, b, row) == 0);
    rwkv_edge_session_free(session);
    free(block);
  }
  rwkv_edge_model_free(by_path);
  free(a);
  free(b);
}

/* The memory limit counts weights and sessions. */
static void limit(void) {
  rwkv_edge_options options = default_options();
  rwkv_edge_model *model = NULL;
  rwkv_edge_session *one, *two = NULL;
  unsigned long long needed = 0, more = 0;
  options.max_memory = 1;
  EXPECT(RWKV_EDGE_ERROR_MEMORY, rwkv_edge_model_open(golden, &options, &model));
  CHECK(sscanf(strstr(rwkv_edge_last_error(), "needs "), "needs %llu", &needed) == 1);
  options.max_memory = needed - 1;
  EXPECT(RWKV_EDGE_ERROR_MEMORY, rwkv_edge_model_open(golden, &options, &model));
  options.max_memory = needed;
  OK(rwkv_edge_model_open(golden, &options, &model));
  one = new_session(model);
  EXPECT(RWKV_EDGE_ERROR_MEMORY, rwkv_edge_session_new(model, &two));
  CHECK(two == NULL);
  CHECK(sscanf(strstr(rwkv_edge_last_error(), "session of "), "session of %llu", &more) == 1);
  CHECK(more > 0 && more < needed);
  rwkv_edge_session_free(one);
  two = new_session(model);
  rwkv_edge_session_free(two);
  rwkv_edge_model_free(model);
}

int main(int argc, char **argv) {
  CHECK(argc == 5);
  golden = argv[1];
  demo = argv[2];
  model_file = argv[3];
  work = argv[4];
  versions();
  opening();
  facts();
  tokenizing();
  evaluating(RWKV_EDGE_QUANT_INT8, 1);
  evaluating(RWKV_EDGE_QUANT_F16, 2);
  sampling();
  generating();
  states();
  in_memory();
  limit();
  printf("functions: all as the header says\n");
  return 0;
}
