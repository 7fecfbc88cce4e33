"""Speed of RWKV-4 in Hugging Face transformers on a GPU: fp16, random weights of a published size.

usage: transformers_speed.py SIZE        SIZE: 169m, 430m, 1b5

Greedy decode of one sequence and of 64 at once, and a prompt of 512 tokens; the median of several rounds, as one JSON
object.
"""

import json
import statistics
import sys
import time

import torch
import transformers

SIZES = {"169m": (12, 768), "430m": (24, 1024), "1b5": (24, 2048)}
N_VOCAB = 50277
# A step of 64 sequences of the 1.5B model takes half a second.
STEPS, ROUNDS = 8, 3


def build(size):
    n_layer, n_embd = SIZES[size]
    config = transformers.RwkvConfig(
        vocab_size=N_VOCAB, context_length=1024, hidden_size=n_embd, num_hidden_layers=n_layer
    )
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    with torch.device("cuda"):
        model = transformers.RwkvForCausalLM(config)
    torch.set_default_dtype(default)
    return model.half().eval()


@torch.no_grad()
def decode(model, n_sequences):
    """Tokens a second, in sum."""
    tokens = torch.ones((n_sequences, 1), dtype=torch.long, device="cuda")
    state = None

    def step(tokens, state):
        output = model(tokens, state=state, use_cache=True)
        return output.logits[:, -1:].argmax(-1), output.state

    for _ in range(3):
        tokens, state = step(tokens, state)
    torch.cuda.synchronize()
    speeds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(STEPS):
            tokens, state = step(tokens, state)
        torch.cuda.synchronize()
        speeds.append(STEPS * n_sequences / (time.perf_counter() - start))
    return statistics.median(speeds)


@torch.no_grad()
def prefill(model, n_tokens):
    tokens = (torch.arange(n_tokens, device="cuda") * 7919 % N_VOCAB)[None]
    speeds = []
    for _ in range(ROUNDS + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        model(tokens, use_cache=True).logits[:, -1].argmax(-1)
        torch.cuda.synchronize()
        speeds.append(n_tokens / (time.perf_counter() - start))
    return statistics.median(speeds[1:])


size = sys.argv[1]
model = build(size)
result = {
    "size": size,
    "device": torch.cuda.get_device_name(),
    "torch": torch.__version__,
    "transformers": transformers.__version__,
    "decode_tokens_per_s": decode(model, 1),
    "batch_64_tokens_per_s": decode(model, 64),
    "prefill_512_tokens_per_s": prefill(model, 512),
}
print(json.dumps(result))
