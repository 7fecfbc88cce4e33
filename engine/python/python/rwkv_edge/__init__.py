"""RWKV language models on small machines.

    model = rwkv_edge.Model("model.rwkv")
    print(model.generate("Ownership is").text)
    print(model.chat([{"role": "user", "content": "What is ownership?"}]).text)
    logits, state = model.forward(model.tokenizer.encode("Ownership is"))

Model opens checkpoints and model files, by path or by name on the Hugging Face hub; a Result is what it generated, a
Stream the same piece by piece, and a State what it remembers of a text. quantize writes model files, convert
checkpoints, and perplexity measures. All that goes wrong in the engine is an Error with a kind.

Token ids are int, logits float32 (n_vocab) or (tokens, n_vocab), likelihoods and losses are in nats, sizes in bytes.
"""

from ._native import (
    Error,
    Model,
    Result,
    State,
    Stream,
    TokenLogprob,
    Tokenizer,
    __version__,
    convert,
    perplexity,
    quantize,
)

__all__ = [
    "Error",
    "Model",
    "Result",
    "State",
    "Stream",
    "TokenLogprob",
    "Tokenizer",
    "__version__",
    "convert",
    "perplexity",
    "quantize",
]
