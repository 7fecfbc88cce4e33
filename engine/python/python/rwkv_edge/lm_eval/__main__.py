"""The command of lm-evaluation-harness, which knows the model class `rwkv-edge` here:

python -m rwkv_edge.lm_eval --model rwkv-edge --model_args pretrained=model.rwkv --tasks lambada_openai
"""

from lm_eval.__main__ import cli_evaluate

if __name__ == "__main__":
    cli_evaluate()
