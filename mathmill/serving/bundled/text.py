"""Text out of tokens as they come, cut at the first stop string."""

from tokenizers import Tokenizer

PROMPT_TAIL = 6
"""Tokens of the prompt that stand before the first generated one while it is decoded: some tokenizers drop a leading
space at the begin of what they decode."""
BROKEN = "\ufffd"


class TextStream:
    """The text of one sample: `push` tokens, `finish` once; `text` never holds more than what comes before a stop."""

    def __init__(self, tokenizer: Tokenizer, prompt: list[int], stop: tuple[str, ...] = ()):
        self.text = ""
        self.stop_reason: str | None = None
        self._tokenizer = tokenizer
        self._stop = stop
        self._longest = max(map(len, stop), default=0)
        self._sent = 0
        self._ended = False
        # Tokens before `_read` have been turned into text; `_shown` is what they decode to.
        self._tokens = prompt[-PROMPT_TAIL:]
        self._read = len(self._tokens)
        self._shown = tokenizer.decode(self._tokens)

    def push(self, token: int) -> bool:
        """Add a token. True when a stop string came with it; the text then ends before it."""
        self._tokens.append(token)
        whole = self._tokenizer.decode(self._tokens)
        if len(whole) <= len(self._shown) or whole.endswith(BROKEN):
            return False  # a character whose last bytes are still to come
        return self._extend(whole)

    def finish(self) -> bool:
        """No token comes any more: what is left of a broken character becomes text. True when that completes a stop."""
        whole = self._tokenizer.decode(self._tokens)
        stopped = self._extend(whole) if len(whole) > len(self._shown) else False
        self._ended = True
        return stopped

    def take(self) -> str:
        """The text that has not been taken yet and can no longer become part of a stop string."""
        end = len(self.text) if self._ended else max(self._sent, len(self.text) - max(self._longest - 1, 0))
        piece, self._sent = self.text[self._sent : end], end
        return piece

    def _extend(self, whole: str) -> bool:
        searched = max(0, len(self.text) - self._longest + 1)
        self.text += whole[len(self._shown) :]
        self._tokens = self._tokens[self._read :]
        self._read = len(self._tokens)
        self._shown = self._tokenizer.decode(self._tokens)
        found = [(at, stop) for stop in self._stop if (at := self.text.find(stop, searched)) >= 0]
        if found:
            at, self.stop_reason = min(found)
            self.text = self.text[:at]
            self._ended = True
        return bool(found)
