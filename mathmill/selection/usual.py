r"""Solutions of the usual kind, told from others many at a time: one plain box, no code or one whole block of it before the box.

They pass every filter of tags and boxes, and where they are cut is where the line with the box ends. All others, a box with
braces in it for one, are for the judge of single rows (`sift.judge_of`), which says the same of these.
"""

import numpy as np

from mathmill.selection.filters import CODE_BEGIN, CODE_END, OUTPUT_BEGIN, OUTPUT_END

_PADDING = bytes(max(map(len, (CODE_BEGIN, CODE_END, OUTPUT_BEGIN, OUTPUT_END))) + 8)


def usual_texts(texts: list[str], trim: bool) -> list[str | None]:
    """The usual ones, cut after the line with the answer if asked; None in the place of each other one."""
    content = "\0".join(texts).encode()
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    is_ascii = len(content) == lengths.sum() + len(texts) - 1
    if not is_ascii:
        lengths = np.fromiter((len(text.encode()) for text in texts), np.int64, len(texts))
    begins = np.cumsum(lengths + 1) - lengths - 1
    cuts = _cuts(content, begins, begins + lengths).tolist()
    if not trim:
        return [None if cut < 0 else text for text, cut in zip(texts, cuts, strict=True)]
    if is_ascii:
        return [None if cut < 0 else text[:cut] for text, cut in zip(texts, cuts, strict=True)]
    encoded = zip(begins.tolist(), cuts, strict=True)
    return [None if cut < 0 else content[begin : begin + cut].decode() for begin, cut in encoded]


def _cuts(content: bytes, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Of each text, which begins and ends there in the content, the bytes before the cut; -1 of those that are not usual."""
    marks = _Marks(content)
    box, is_usual = marks.boxes(begins)
    close = marks.following(marks.specials, box + len(r"\boxed{"))
    line_end = np.minimum(marks.following(marks.newlines, close), ends)
    is_usual &= (close < ends) & (marks.letters[close] == ord("}"))
    is_usual &= (line_end == ends) | ~_MAY_CLOSE[marks.letters[line_end + 1]]
    last_tag, has_whole_code = marks.code(begins)
    is_usual &= has_whole_code & (last_tag < box)
    return np.where(is_usual, line_end - begins, -1)


_MAY_CLOSE = np.zeros(256, bool)
"""Letters with which a line begins that may close a formula."""
_MAY_CLOSE[list(b"\\$ \t")] = True


class _Marks:
    """Where what matters stands in a text."""

    def __init__(self, content: bytes):
        content += _PADDING
        self.letters = np.frombuffer(content, np.uint8)
        self._words = np.ndarray(len(content) - 7, "<u8", content, strides=(1,))
        """The eight letters from each on."""
        folded = (self.letters | 0x20) - np.uint8(ord("{"))
        self.specials = np.flatnonzero(folded <= 2)
        r"""Of `{`, `}` and `\`, and with them of `|`, `[` and `]`, which are next to them."""
        self.newlines = np.flatnonzero(self.letters == ord("\n"))

    def following(self, places: np.ndarray, after: np.ndarray) -> np.ndarray:
        """The first of the places at each of `after` or later; the end, where there is none."""
        return np.append(places, len(self.letters) - 1)[np.searchsorted(places, after)]

    def boxes(self, begins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r"""Of each text the place of its last box (its begin, if there is none), and whether it is `\boxed{` and alone."""
        slashes = self.specials[self.letters[self.specials] == ord("\\")]
        places = slashes[self._begin_with(slashes, rb"\boxe") | self._begin_with(slashes, rb"\fbox")]
        count, last = _by_text(places, _text_of(places, begins), begins)
        return last, (count == 1) & self._begin_with(last, rb"\boxed{")

    def code(self, begins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each text the place of its last tag (its begin, if there is none), and whether its tags are none or one block's."""
        openings = np.flatnonzero(self.letters == ord("<"))
        places = openings[self._begin_with(openings, b"<llm-cod") | self._begin_with(openings, b"</llm-co")]
        texts = _text_of(places, begins)
        count, last = _by_text(places, texts, begins)
        blocks = places[(count == 4)[texts]].reshape(-1, 4)
        is_whole = count == 0
        tags = (CODE_BEGIN, CODE_END, OUTPUT_BEGIN, OUTPUT_END)
        fits = [self._begin_with(blocks[:, number], tag.encode()) for number, tag in enumerate(tags)]
        is_whole[count == 4] = np.all(fits, axis=0)
        return last, is_whole

    def _begin_with(self, places: np.ndarray, word: bytes) -> np.ndarray:
        """Whether the word, of any length, stands at each place."""
        fits = np.ones(len(places), bool)
        for start in range(0, len(word), 8):
            part = word[start : start + 8]
            unasked = np.uint64(64 - 8 * len(part))
            fits &= self._words[places + start] << unasked == np.uint64(int.from_bytes(part, "little")) << unasked
        return fits


def _text_of(places: np.ndarray, begins: np.ndarray) -> np.ndarray:
    return np.searchsorted(begins, places, side="right") - 1


def _by_text(places: np.ndarray, texts: np.ndarray, begins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many of the places are in each text, and the last of them; where there is none, where the text begins."""
    last = begins.copy()
    last[texts] = places
    return np.bincount(texts, minlength=len(begins)), last
