from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, SupportsIndex, TypeAlias, TypedDict, final, overload

import numpy as np
from numpy.typing import NDArray

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

__version__: str

_Path: TypeAlias = str | PathLike[str]
# FILE, FILE:ALPHA, or a file and its alpha.
_Lora: TypeAlias = _Path | tuple[_Path, float]
_Loras: TypeAlias = _Lora | list[_Lora] | None
_Quant: TypeAlias = Literal["f32", "f16", "int8", "q6", "q5", "q4"]
# Also a numpy array of integers.
_Ids: TypeAlias = Sequence[SupportsIndex] | NDArray[np.integer[Any]]
# A dict with role and content a message.
_Messages: TypeAlias = Sequence[Mapping[str, Any]]
_Preset: TypeAlias = Literal["pip", "chat", "creative", "precise", "maths"]
_Think: TypeAlias = Literal["off", "on", "fake", "short", "long"]
_Reason: TypeAlias = Literal["length", "end_of_text", "stop"]

class Error(Exception):
    kind: Literal["argument", "io", "format", "unsupported", "memory", "state", "tokenizer", "backend", "other"]

class _Quantized(TypedDict):
    file: Path
    quant: str
    n_params: int
    bytes: int
    bits_per_weight: float
    tokenizer: str | None

class _Converted(TypedDict):
    output: Path
    weight_files: list[Path]
    tokenizer_files: list[Path]
    dtype: str
    n_params: int
    bytes: int
    notes: list[str]

class _Measured(TypedDict):
    perplexity: float
    perplexity_stderr: float
    loss: float
    tokens: int
    predicted: int
    quant: str

def quantize(
    source: _Path,
    destination: _Path,
    quant: _Quant | None = "int8",
    *,
    target_bits: float | None = None,
    target_size: int | None = None,
    calibrate: _Path | _Ids | None = None,
    calibrate_tokens: int = 4096,
    lora: _Loras = None,
    tokenizer: _Path | None = None,
    threads: int | None = None,
    revision: str | None = None,
    progress: bool | None = None,
) -> _Quantized: ...
def convert(
    source: _Path,
    destination: _Path,
    *,
    to: Literal["hf", "raw"] = "hf",
    dtype: Literal["f32", "f16", "bf16"] | None = None,
    tokenizer: _Path | None = None,
    max_shard_size: int | None = None,
    lora: _Loras = None,
    overwrite: bool = False,
    revision: str | None = None,
    progress: bool | None = None,
) -> _Converted: ...
def perplexity(
    model: Model | _Path,
    text: str | _Ids,
    quant: _Quant | None = None,
    *,
    bos: bool = False,
    window: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    device: str | None = None,
    threads: int | None = None,
    max_memory: int | None = None,
    tokenizer: _Path | None = None,
    lora: _Loras = None,
    state: _Path | None = None,
    revision: str | None = None,
    progress: bool | None = None,
) -> _Measured: ...

@final
class Tokenizer:
    @property
    def n_tokens(self) -> int: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, tokens: _Ids) -> str: ...

@final
class State:
    def __new__(cls, model: Model, data: bytes | None = None) -> State: ...
    @property
    def n_tokens(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    def copy(self) -> State: ...
    def reset(self) -> None: ...
    def save(self, path: _Path, logits: Sequence[float] | NDArray[np.float32] | None = None) -> None: ...
    def load(self, path: _Path) -> NDArray[np.float32] | None: ...
    def to_bytes(self) -> bytes: ...
    def to_numpy(self) -> NDArray[np.float32]: ...
    def __copy__(self) -> State: ...
    def __deepcopy__(self, _memo: Any) -> State: ...

@final
class TokenLogprob:
    @property
    def token(self) -> int: ...
    @property
    def logprob(self) -> float: ...
    @property
    def top(self) -> dict[int, float]: ...

@final
class Result:
    @property
    def text(self) -> str | None: ...
    @property
    def thought(self) -> str | None: ...
    @property
    def tokens(self) -> list[int]: ...
    @property
    def logprobs(self) -> list[TokenLogprob] | None: ...
    @property
    def finish_reason(self) -> _Reason: ...

@final
class Stream(Iterator[str]):
    @property
    def thought(self) -> str | None: ...
    @property
    def tokens(self) -> list[int]: ...
    @property
    def logprobs(self) -> list[TokenLogprob] | None: ...
    @property
    def finish_reason(self) -> _Reason | None: ...
    def __iter__(self) -> Stream: ...
    def __next__(self) -> str: ...
    def close(self) -> None: ...

@final
class Model:
    def __new__(
        cls,
        path: _Path,
        quant: _Quant | None = None,
        *,
        device: str = "cpu",
        threads: int | None = None,
        max_memory: int | None = None,
        tokenizer: _Path | None = None,
        lora: _Loras = None,
        state: _Path | None = None,
        revision: str | None = None,
        progress: bool | None = None,
    ) -> Model: ...
    @property
    def n_vocab(self) -> int: ...
    @property
    def end_of_text(self) -> int: ...
    @property
    def info(self) -> dict[str, Any]: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    def new_state(self) -> State: ...
    def forward(
        self, tokens: _Ids, state: State | None = None, all: bool = False
    ) -> tuple[NDArray[np.float32], State]: ...
    @overload
    def forward_batch(
        self, tokens: Sequence[_Ids], states: Sequence[State | None] | None = None, all: Literal[False] = False
    ) -> tuple[NDArray[np.float32], list[State]]: ...
    @overload
    def forward_batch(
        self, tokens: Sequence[_Ids], states: Sequence[State | None] | None = None, *, all: Literal[True]
    ) -> tuple[list[NDArray[np.float32]], list[State]]: ...
    # A str is a sequence of str, too: the first that fits counts.
    @overload
    def generate(  # type: ignore[overload-overlap]
        self,
        prompt: str | _Ids,
        *,
        max_new_tokens: int = 128,
        stop: str | Sequence[str] | None = None,
        ignore_eos: bool = False,
        bos: bool = False,
        state: State | None = None,
        temperature: float = 0.0,
        temperature_last: bool = False,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        typical_p: float = 1.0,
        mirostat_tau: float = 0.0,
        mirostat_eta: float = 0.1,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        penalty_decay: float = 1.0,
        repetition_penalty: float = 1.0,
        banned_tokens: _Ids = (),
        uncounted_tokens: _Ids = (),
        seed: int | None = None,
        preset: _Preset | None = None,
        logprobs: int | None = None,
    ) -> Result: ...
    @overload
    def generate(
        self,
        prompt: Sequence[str] | Sequence[_Ids],
        *,
        max_new_tokens: int = 128,
        stop: str | Sequence[str] | None = None,
        ignore_eos: bool = False,
        bos: bool = False,
        state: Sequence[State] | None = None,
        temperature: float = 0.0,
        temperature_last: bool = False,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        typical_p: float = 1.0,
        mirostat_tau: float = 0.0,
        mirostat_eta: float = 0.1,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        penalty_decay: float = 1.0,
        repetition_penalty: float = 1.0,
        banned_tokens: _Ids = (),
        uncounted_tokens: _Ids = (),
        seed: int | Sequence[int] | None = None,
        preset: _Preset | None = None,
        logprobs: int | None = None,
    ) -> list[Result]: ...
    def stream(
        self,
        prompt: str | _Ids,
        *,
        max_new_tokens: int = 128,
        stop: str | Sequence[str] | None = None,
        ignore_eos: bool = False,
        bos: bool = False,
        state: State | None = None,
        temperature: float = 0.0,
        temperature_last: bool = False,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        typical_p: float = 1.0,
        mirostat_tau: float = 0.0,
        mirostat_eta: float = 0.1,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        penalty_decay: float = 1.0,
        repetition_penalty: float = 1.0,
        banned_tokens: _Ids = (),
        uncounted_tokens: _Ids = (),
        seed: int | None = None,
        preset: _Preset | None = None,
        logprobs: int | None = None,
    ) -> Stream: ...
    @overload
    def chat(
        self,
        messages: _Messages,
        *,
        think: _Think | None = "off",
        template: str | None = None,
        max_new_tokens: int = 512,
        stop: str | Sequence[str] | None = None,
        ignore_eos: bool = False,
        bos: bool = False,
        state: State | None = None,
        temperature: float = 0.0,
        temperature_last: bool = False,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        typical_p: float = 1.0,
        mirostat_tau: float = 0.0,
        mirostat_eta: float = 0.1,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        penalty_decay: float = 1.0,
        repetition_penalty: float = 1.0,
        banned_tokens: _Ids = (),
        uncounted_tokens: _Ids = (),
        seed: int | None = None,
        preset: _Preset | None = None,
        logprobs: int | None = None,
    ) -> Result: ...
    @overload
    def chat(
        self,
        messages: Sequence[_Messages],
        *,
        think: _Think | None = "off",
        template: str | None = None,
        max_new_tokens: int = 512,
        stop: str | Sequence[str] | None = None,
        ignore_eos: bool = False,
        bos: bool = False,
        state: Sequence[State] | None = None,
        temperature: float = 0.0,
        temperature_last: bool = False,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        typical_p: float = 1.0,
        mirostat_tau: float = 0.0,
        mirostat_eta: float = 0.1,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        penalty_decay: float = 1.0,
        repetition_penalty: float = 1.0,
        banned_tokens: _Ids = (),
        uncounted_tokens: _Ids = (),
        seed: int | Sequence[int] | None = None,
        preset: _Preset | None = None,
        logprobs: int | None = None,
    ) -> list[Result]: ...
    def chat_stream(
        self,
        messages: _Messages,
        *,
        think: _Think | None = "off",
        template: str | None = None,
        max_new_tokens: int = 512,
        stop: str | Sequence[str] | None = None,
        ignore_eos: bool = False,
        bos: bool = False,
        state: State | None = None,
        temperature: float = 0.0,
        temperature_last: bool = False,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        typical_p: float = 1.0,
        mirostat_tau: float = 0.0,
        mirostat_eta: float = 0.1,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        penalty_decay: float = 1.0,
        repetition_penalty: float = 1.0,
        banned_tokens: _Ids = (),
        uncounted_tokens: _Ids = (),
        seed: int | None = None,
        preset: _Preset | None = None,
        logprobs: int | None = None,
    ) -> Stream: ...
    def astream(
        self,
        prompt: str | _Ids,
        *,
        max_new_tokens: int = 128,
        stop: str | Sequence[str] | None = None,
        ignore_eos: bool = False,
        bos: bool = False,
        state: State | None = None,
        temperature: float = 0.0,
        temperature_last: bool = False,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        typical_p: float = 1.0,
        mirostat_tau: float = 0.0,
        mirostat_eta: float = 0.1,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        penalty_decay: float = 1.0,
        repetition_penalty: float = 1.0,
        banned_tokens: _Ids = (),
        uncounted_tokens: _Ids = (),
        seed: int | None = None,
        preset: _Preset | None = None,
        logprobs: int | None = None,
    ) -> AsyncGenerator[str, None]: ...
    def chat_astream(
        self,
        messages: _Messages,
        *,
        think: _Think | None = "off",
        template: str | None = None,
        max_new_tokens: int = 512,
        stop: str | Sequence[str] | None = None,
        ignore_eos: bool = False,
        bos: bool = False,
        state: State | None = None,
        temperature: float = 0.0,
        temperature_last: bool = False,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        typical_p: float = 1.0,
        mirostat_tau: float = 0.0,
        mirostat_eta: float = 0.1,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        penalty_decay: float = 1.0,
        repetition_penalty: float = 1.0,
        banned_tokens: _Ids = (),
        uncounted_tokens: _Ids = (),
        seed: int | None = None,
        preset: _Preset | None = None,
        logprobs: int | None = None,
    ) -> AsyncGenerator[str, None]: ...
    def embed(
        self, texts: str | Sequence[str] | Sequence[_Ids], pooling: str = "hidden-mean", normalize: bool = True
    ) -> NDArray[np.float32]: ...
    @overload
    def score(  # type: ignore[overload-overlap]
        self, texts: str, bos: bool = False, per_token: Literal[False] = False
    ) -> float: ...
    @overload
    def score(
        self, texts: Sequence[str] | Sequence[_Ids], bos: bool = False, per_token: Literal[False] = False
    ) -> NDArray[np.float64]: ...
    @overload
    def score(  # type: ignore[overload-overlap]
        self, texts: str, bos: bool = False, *, per_token: Literal[True]
    ) -> NDArray[np.float64]: ...
    @overload
    def score(
        self, texts: Sequence[str] | Sequence[_Ids], bos: bool = False, *, per_token: Literal[True]
    ) -> list[NDArray[np.float64]]: ...
