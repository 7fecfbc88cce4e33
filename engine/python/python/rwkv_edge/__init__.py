"""RWKV language models on small machines.

    model = rwkv_edge.Model("model.rwkv")
    print(model.generate("Ownership is").text)
    print(model.chat([{"role": "user", "content": "What is ownership?"}]).text)
    logits, state = model.forward(model.tokenizer.encode("Ownership is"))

Model opens checkpoints and model files; State is what a model remembers of a text; quantize writes model files. All
that goes wrong in the engine is an Error with a kind.
"""

from ._native import (
    Error,
    Model,
    Result,
    State,
    Stream,
    Tokenizer,
    __version__,
    quantize,
)

__all__ = [
    "Error",
    "Model",
    "Result",
    "State",
    "Stream",
    "Tokenizer",
    "__version__",
    "quantize",
]
