"""What Hugging Face transformers 4.57.6 (float32, CPU) answers to the tasks in tests/python/lm_eval, asked by
lm-evaluation-harness 0.4.13 through its own class for transformers (HFLM), for tests/python/test_lm_eval.py.

usage: make_lm_eval.py     in an environment with torch, transformers, accelerate and lm_eval; writes expected.json
"""
import json, os, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL, TASKS = ROOT / "tests/fixtures/demo4", ROOT / "tests/python/lm_eval"
os.environ["HF_HOME"] = tempfile.mkdtemp()
os.environ["HF_HUB_OFFLINE"] = "1"
os.chdir(TASKS)  # the tasks name files beside them

import lm_eval, torch, transformers
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

model = transformers.RwkvForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(MODEL / "tokenizer.json"))
# What ends a text; a reference of one sequence at a time needs no padding, but HFLM asks for a token.
end = model.config.eos_token_id
tokenizer.eos_token = tokenizer.pad_token = tokenizer.convert_ids_to_tokens(end)
lm = HFLM(pretrained=model, tokenizer=tokenizer, prefix_token_id=end, batch_size=1, max_length=2048)
names = sorted(path.stem for path in TASKS.glob("*.yaml"))
found = lm_eval.simple_evaluate(
    model=lm, tasks=names, task_manager=TaskManager(include_path=str(TASKS), include_defaults=False), log_samples=True,
    bootstrap_iters=0)
result = {"source": " ".join(__doc__.split("\n\n")[0].split())}
for name in names:
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    result[name] = {
        "answers": [[answer[0] for answer in sample["resps"]] for sample in samples],
        "results": {key: value for key, value in found["results"][name].items()
                    if isinstance(value, float) and "stderr" not in key},
    }
(TASKS / "expected.json").write_text(json.dumps(result, indent=1) + "\n")
