"""What Hugging Face transformers 4.57.6 (float32, CPU) computes with tests/fixtures/demo4 for tests/perplexity.rs and tests/eval.rs:
sliding-window perplexities and LAMBADA scores.

usage: make_evaluation.py MODEL_DIR PASSAGES.jsonl OUT.json [LAMBADA.jsonl]
MODEL_DIR is a copy of tests/fixtures/demo4, with cli/demo/validation.txt in it. The last file is lambada_test.jsonl (OpenAI's variant), which is not part of
the repository; its first 100 passages are scored.
"""
import json, math, sys
import torch
from transformers import PreTrainedTokenizerFast, RwkvForCausalLM

WINDOWS = [(2000, 256, 128), (2000, 256, 256), (1500, 100, 33), (300, 1000, 500), (300, 16, 1)]  # tokens, window, stride


def log_probabilities(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double().log_softmax(-1)


def sliding(model, ids, window, stride):
    """Every token that a window is the first to hold counts once, the mean is over those tokens. `recipe` is what the
    code in transformers' documentation gives, which weights each window with one token less than it averages over."""
    total, n, recipe_total, recipe_n, previous_end = 0.0, 0, 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        logs = log_probabilities(model, ids[begin:end])
        first = max(previous_end - begin, 1)
        nll = [-logs[i - 1, ids[begin + i]].item() for i in range(first, end - begin)]
        total, n = total + sum(nll), n + len(nll)
        if nll:
            weight = end - previous_end - 1
            recipe_total, recipe_n = recipe_total + sum(nll) / len(nll) * weight, recipe_n + weight
        previous_end = end
        if end == len(ids):
            break
    recipe = math.exp(recipe_total / recipe_n) if recipe_n else None
    return dict(perplexity=math.exp(total / n), predicted=n, recipe=recipe)


def lambada(model, tokenizer, lines):
    """As ChatRWKV's v2/benchmark.py: context [0] + passage up to the last space, target the rest with that space."""
    total, right = 0.0, []
    for line in lines:
        context, word = json.loads(line)["text"].rsplit(" ", 1)
        context, target = [0] + tokenizer.encode(context), tokenizer.encode(" " + word)
        logs = log_probabilities(model, context + target)
        rows = [logs[len(context) - 1 + i] for i in range(len(target))]
        total -= sum(row[token].item() for row, token in zip(rows, target))
        right.append(all(row.argmax().item() == token for row, token in zip(rows, target)))
    n = len(right)
    return dict(passages=n, right=sum(right), accuracy=sum(right) / n, perplexity=math.exp(total / n))


def main():
    folder, passages, out = sys.argv[1:4]
    model = RwkvForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=folder + "/tokenizer.json")
    ids = tokenizer.encode(open(folder + "/validation.txt", encoding="utf-8", newline="").read())
    assert len(ids) == 32282
    result = dict(source=__doc__.splitlines()[0])
    result["sliding"] = [
        dict(limit=n, window=w, stride=s, **sliding(model, ids[:n], w, s)) for n, w, s in WINDOWS
    ]
    result["passages"] = lambada(model, tokenizer, open(passages, encoding="utf-8").read().splitlines())
    if len(sys.argv) > 4:
        lines = open(sys.argv[4], encoding="utf-8").read().splitlines()[:100]
        result["lambada_test_first_100"] = lambada(model, tokenizer, lines)
    json.dump(result, open(out, "w"), indent=1)
    print(json.dumps(result, indent=1))


main()
