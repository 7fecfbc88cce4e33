"""Models for lm-evaluation-harness: importing this registers the model class `rwkv-edge`.

    import lm_eval
    import rwkv_edge.lm_eval
    lm_eval.simple_evaluate(model="rwkv-edge", model_args={"pretrained": "model.rwkv"}, tasks=["lambada_openai"])

From a shell: python -m rwkv_edge.lm_eval --model rwkv-edge --model_args pretrained=model.rwkv --tasks lambada_openai
"""

import json
from collections.abc import Iterable
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from .. import Model
from .prefixes import LogLikelihood, log_likelihoods, states_behind

__all__ = ["RwkvEdge"]

# Arguments of generation that tasks give, beside their own four, and `Model.generate` knows.
_SAMPLING = {"top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "presence_penalty", "frequency_penalty"}
# States that wait to be gone on from, in bytes.
_STATES_BYTES = 512 << 20


@register_model("rwkv-edge")
class RwkvEdge(TemplateLM):  # type: ignore[misc]
    """A model as lm-evaluation-harness asks it.

    pretrained: what `rwkv_edge.Model` opens
    quant, threads, max_memory, tokenizer: as of `rwkv_edge.Model`
    max_length: tokens that are read at most, for comparisons with models that have such a limit; None: no limit
    max_gen_toks: new tokens of a text at most, where a task does not say
    prefix_token_id: what is read in front of a text without a context; None: the token that ends a text
    seed: of texts that are drawn

    `batch_size` and `device`, which the harness gives, have no effect: batches are as large as it pays, results do not
    depend on them, and what several requests begin with is read once.
    """

    def __init__(
        self,
        pretrained: str,
        quant: str | None = None,
        threads: int | None = None,
        max_memory: int | None = None,
        tokenizer: str | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        prefix_token_id: int | None = None,
        seed: int = 0,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"quant": quant, "threads": threads, "max_memory": max_memory}
        self.model = Model(pretrained, tokenizer=tokenizer, **options)
        self._max_length = max_length
        self.max_gen_toks = max_gen_toks
        self._prefix_token_id = prefix_token_id
        self._seed = seed

    @property
    def eot_token_id(self) -> int:
        return self.model.end_of_text

    @property
    def prefix_token_id(self) -> int:
        return self.eot_token_id if self._prefix_token_id is None else self._prefix_token_id

    @property
    def max_length(self) -> int:
        # A state has none; the harness wants a number.
        return self._max_length or 2**31 - 1

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_kwargs: Any) -> list[int]:
        return self.model.tokenizer.encode(string)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        pairs, numbers = [], []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            windows = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            for context, continuation in map(make_disjoint_window, windows):
                pairs.append((context, continuation))
                numbers.append(number)
        sums = [0.0] * len(requests)
        for number, (log_likelihood, _) in zip(numbers, self._log_likelihoods(pairs, disable_tqdm), strict=True):
            sums[number] += log_likelihood
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **_kwargs: Any,
    ) -> list[LogLikelihood]:
        pairs = []
        for _, context, continuation in requests:
            n_context = max(self.max_length + 1 - len(continuation), 1)
            # Of a context that is only spaces nothing is left: they belong to the continuation.
            pairs.append((context[-n_context:] or [self.prefix_token_id], continuation))
        answers = self._log_likelihoods(pairs, disable_tqdm)
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def _log_likelihoods(self, pairs: list[tuple[list[int], list[int]]], disable_tqdm: bool) -> list[LogLikelihood]:
        with tqdm(desc="Tokens read", unit=" tokens", disable=disable_tqdm) as bar:
            return log_likelihoods(self.model, pairs, bar.update)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        texts = [""] * len(requests)
        with tqdm(desc="Texts", total=len(requests), disable=disable_tqdm) as bar:
            for numbers in alike.values():
                options = self._options(requests[numbers[0]].args[1])
                for some in self._in_pieces(requests, numbers, options["max_new_tokens"]):
                    contexts = [context for _, context in some]
                    states = states_behind(self.model, [context[:-1] for context in contexts], lambda _n: None)
                    found = self.model.generate(
                        [context[-1:] for context in contexts],
                        state=states,
                        seed=[(self._seed + number) % 2**64 for number, _ in some],
                        **options,
                    )
                    for (number, _), one in zip(some, found, strict=True):
                        texts[number] = one.text or ""
                        self.cache_hook.add_partial("generate_until", requests[number].args, texts[number])
                    bar.update(len(some))
        return texts

    def _in_pieces(
        self, requests: list[Instance], numbers: list[int], max_new_tokens: int
    ) -> Iterable[list[tuple[int, list[int]]]]:
        """Numbers and contexts of as many requests as have room, those that begin alike together."""
        room = max(self.max_length - max_new_tokens, 1)
        contexts = []
        for number in numbers:
            context = self.tok_encode(requests[number].args[0])[-room:]
            contexts.append((number, context or [self.prefix_token_id]))
        contexts.sort(key=lambda numbered: numbered[1])
        size = min(max(_STATES_BYTES // self.model.info["state_bytes"], 8), 512)
        return (contexts[begin : begin + size] for begin in range(0, len(contexts), size))

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        """What a task asks for, as `Model.generate` takes it."""
        kwargs: dict[str, Any] = dict(normalize_gen_kwargs(given, self.max_gen_toks))
        does_draw = kwargs.pop("do_sample", False)
        until = kwargs.pop("until", None) or []
        options = {
            "max_new_tokens": kwargs.pop("max_gen_toks"),
            "temperature": kwargs.pop("temperature", 1.0 if does_draw else 0.0),
            "stop": [text for text in ([until] if isinstance(until, str) else until) if text],
        }
        unknown = set(kwargs) - _SAMPLING
        if unknown:
            raise ValueError(f"gen_kwargs: {', '.join(sorted(unknown))}: expected only {', '.join(sorted(_SAMPLING))}")
        return {**options, **kwargs}
