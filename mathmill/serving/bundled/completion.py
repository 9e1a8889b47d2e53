"""What a completions request may say, checked field by field."""

from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from mathmill.serving.bundled import FIELDS
from mathmill.serving.bundled.sampling import Sampling

MAX_SAMPLES = 1024
MAX_LOGPROBS = 20
MAX_STOPS = 64


class Refused(Exception):
    """A request that is answered with an error; `body` is shaped as OpenAI's."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None):
        super().__init__(message)
        self.status = status
        kind = {401: "authentication_error", 404: "not_found_error"}.get(status, "invalid_request_error")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True)
class Completion:
    """A request that can be served: every prompt gets `num_samples` samples."""

    prompts: list[list[int]]
    num_samples: int
    seed: int | None
    sampling: Sampling
    stream: bool
    include_usage: bool


def read_completion(body: Any, tokenizer: Tokenizer, served_name: str, context_length: int) -> Completion:
    """Check a request's body and tokenize its prompts. Raises Refused."""
    if not isinstance(body, dict):
        raise Refused("the body is not a JSON object")
    unknown = sorted(set(body) - FIELDS)
    if unknown:
        raise Refused(f"unknown field '{unknown[0]}'. Known: {', '.join(sorted(FIELDS))}", unknown[0])
    fields = {name: value for name, value in body.items() if value is not None}
    _check_model(fields.get("model"), served_name)
    sampling = Sampling(
        max_tokens=_number(fields, "max_tokens", 16, 1, whole=True),
        temperature=_number(fields, "temperature", 1.0, 0, 100),
        top_p=_number(fields, "top_p", 1.0, 0, 1),
        top_k=max(_number(fields, "top_k", 0, -1, whole=True), 0),
        min_p=_number(fields, "min_p", 0.0, 0, 1),
        stop=_stops(fields.get("stop", [])),
        logprobs=_number(fields, "logprobs", None, 0, MAX_LOGPROBS, whole=True),
        ignore_eos=_switch(fields, "ignore_eos"),
    )
    if sampling.top_p == 0:
        raise Refused("top_p is 0; it must be above 0 and at most 1", "top_p")
    num_samples = _number(fields, "n", 1, 1, MAX_SAMPLES, whole=True)
    prompts = _prompts(fields.get("prompt"), tokenizer, MAX_SAMPLES // num_samples)
    for prompt in prompts:
        _check_length(prompt, sampling.max_tokens, context_length, tokenizer)
    return Completion(
        prompts,
        num_samples,
        _number(fields, "seed", None, -(2**63), 2**63 - 1, whole=True),
        sampling,
        _switch(fields, "stream"),
        _includes_usage(fields),
    )


def _check_model(model: Any, served_name: str) -> None:
    if not isinstance(model, str):
        raise Refused("model is missing or not a string", "model")
    if model != served_name:
        raise Refused(f"the model '{model}' does not exist here", "model", 404, "model_not_found")


def _check_length(prompt: list[int], max_tokens: int, context_length: int, tokenizer: Tokenizer) -> None:
    if not prompt:
        raise Refused("the prompt is empty", "prompt")
    if len(prompt) + max_tokens > context_length:
        raise Refused(
            f"the prompt has {len(prompt)} tokens and max_tokens is {max_tokens}: together "
            f"{len(prompt) + max_tokens}, and this model's context length is {context_length} tokens",
            "max_tokens" if len(prompt) < context_length else "prompt",
            code="context_length_exceeded",
        )
    if not 0 <= min(prompt) <= max(prompt) < tokenizer.get_vocab_size():
        raise Refused(f"the prompt has a token outside 0 to {tokenizer.get_vocab_size() - 1}", "prompt")


def _number(
    fields: dict[str, Any], name: str, default: Any, low: float, high: float | None = None, whole: bool = False
) -> Any:
    value = fields.get(name, default)
    if name not in fields:
        return value
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise Refused(f"{name} is not {'an integer' if whole else 'a number'}", name)
    if not low <= value <= (float("inf") if high is None else high):
        bounds = f"at least {low}" if high is None else f"from {low} to {high}"
        raise Refused(f"{name} is {value}; it must be {bounds}", name)
    return value


def _switch(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise Refused(f"{name} is neither true nor false", name)
    return value


def _includes_usage(fields: dict[str, Any]) -> bool:
    options = fields.get("stream_options", {})
    if not isinstance(options, dict) or not set(options) <= {"include_usage"}:
        raise Refused("stream_options is not an object with include_usage", "stream_options")
    return _switch(options, "include_usage")


def _stops(stop: Any) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(text, str) and text for text in stops):
        raise Refused("stop is not a non-empty string or a list of such strings", "stop")
    if len(stops) > MAX_STOPS:
        raise Refused(f"stop has {len(stops)} strings, at most {MAX_STOPS} are taken", "stop")
    return tuple(stops)


def _prompts(prompt: Any, tokenizer: Tokenizer, most: int) -> list[list[int]]:
    """The four forms of a prompt: a string, strings, token ids, lists of token ids."""
    if _is_tokens(prompt) or isinstance(prompt, str):
        prompt = [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise Refused("prompt is missing, or neither text nor a list", "prompt")
    if len(prompt) > most:
        raise Refused(
            f"{len(prompt)} prompts with that n are more than {MAX_SAMPLES} samples; ask several times", "prompt"
        )
    if all(map(_is_tokens, prompt)):
        return prompt
    if all(isinstance(text, str) for text in prompt):
        if not all(map(_is_unicode, prompt)):
            raise Refused("prompt holds half of a surrogate pair, which is no character", "prompt")
        return [tokenizer.encode(text).ids for text in prompt]
    raise Refused("prompt is neither a string, a list of strings, nor lists of token ids", "prompt")


def _is_tokens(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and all(type(token) is int for token in prompt)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
