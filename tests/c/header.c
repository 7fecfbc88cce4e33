/* The header alone: it includes what it needs, is C99 and C++11, and lays out its structs as the library does
 * (engine/capi/src/tests.rs checks the same numbers from the other side). */
#include "rwkv_edge.h"

#ifdef __cplusplus
#define CHECK(name, condition) static_assert(condition, #name)
#else
#define CHECK(name, condition) _Static_assert(condition, #name)
#endif

#define POINTER sizeof(void *)
#define OFFSET(type, field, expected) CHECK(type##_##field, offsetof(type, field) == (expected))

OFFSET(rwkv_edge_options, struct_size, 0);
OFFSET(rwkv_edge_options, quant, 4);
OFFSET(rwkv_edge_options, threads, 8);
OFFSET(rwkv_edge_options, flags, 12);
OFFSET(rwkv_edge_options, max_memory, 16);
OFFSET(rwkv_edge_options, tokenizer, 24);
OFFSET(rwkv_edge_options, device_map, 24 + POINTER);
CHECK(options_size, sizeof(rwkv_edge_options) == 24 + 2 * POINTER);

OFFSET(rwkv_edge_model_info, struct_size, 0);
OFFSET(rwkv_edge_model_info, version, 4);
OFFSET(rwkv_edge_model_info, n_vocab, 8);
OFFSET(rwkv_edge_model_info, n_embd, 12);
OFFSET(rwkv_edge_model_info, n_layer, 16);
OFFSET(rwkv_edge_model_info, quant, 20);
OFFSET(rwkv_edge_model_info, n_params, 24);
OFFSET(rwkv_edge_model_info, weight_bytes, 32);
OFFSET(rwkv_edge_model_info, state_bytes, 40);
CHECK(info_size, sizeof(rwkv_edge_model_info) == 48);

OFFSET(rwkv_edge_sampling, struct_size, 0);
OFFSET(rwkv_edge_sampling, temperature, 4);
OFFSET(rwkv_edge_sampling, top_p, 8);
OFFSET(rwkv_edge_sampling, top_k, 12);
OFFSET(rwkv_edge_sampling, presence_penalty, 16);
OFFSET(rwkv_edge_sampling, frequency_penalty, 20);
OFFSET(rwkv_edge_sampling, seed, 24);
OFFSET(rwkv_edge_sampling, min_p, 32);
OFFSET(rwkv_edge_sampling, typical_p, 36);
OFFSET(rwkv_edge_sampling, mirostat_tau, 40);
OFFSET(rwkv_edge_sampling, mirostat_eta, 44);
OFFSET(rwkv_edge_sampling, penalty_decay, 48);
OFFSET(rwkv_edge_sampling, repetition_penalty, 52);
OFFSET(rwkv_edge_sampling, temperature_last, 56);
OFFSET(rwkv_edge_sampling, reserved, 60);
OFFSET(rwkv_edge_sampling, n_banned_tokens, 64);
OFFSET(rwkv_edge_sampling, n_uncounted_tokens, 68);
OFFSET(rwkv_edge_sampling, banned_tokens, 72);
OFFSET(rwkv_edge_sampling, uncounted_tokens, 72 + POINTER);
CHECK(sampling_size, sizeof(rwkv_edge_sampling) == 72 + 2 * POINTER);

CHECK(status_size, sizeof(rwkv_edge_status) == 4);
CHECK(abi_version, RWKV_EDGE_ABI_VERSION == 1);

int main(void) {
  /* Links against the library, from C and from C++. */
  return rwkv_edge_abi_version() == RWKV_EDGE_ABI_VERSION ? 0 : 1;
}
