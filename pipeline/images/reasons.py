"""Why an image cannot become pixels: a fixed vocabulary, and the exception that carries it inside this room."""

from enum import StrEnum

from pipeline.errors import Filtered, Reject, Stage

DETAIL_LENGTH = 200  # characters: the cap that `Reject.detail` promises


class Reason(StrEnum):
    """The accounts are grouped by these words, so they are stable."""

    EMPTY = "empty"  # the member has no bytes
    NO_IMAGE = "no_image"  # the sample has no member that is an image by its extension
    NOT_IMAGE = "not_image"  # the bytes are something else: an HTML page, an archive, text
    UNSUPPORTED_FORMAT = "unsupported_format"  # an image, of a format or a kind that is not decoded here
    TOO_LARGE = "too_large"  # over a limit; found before the pixels are decoded
    TOO_SMALL = "too_small"  # under `image.min_side`
    ASPECT = "aspect"  # longer than the recipe takes
    TRUNCATED = "truncated"  # the file ends early
    CORRUPT = "corrupt"  # the decoder gave up for another cause
    INTERNAL = "internal"  # out of memory, or a bug: the detail names the exception


class BadImage(Exception):
    """Leaves the depths of this room as a `Reject`; never leaves the room itself.

    Attributes:
        reject: the value to hand to the caller.
    """

    def __init__(self, reason: Reason, detail: str, stage: Stage = Stage.DECODE) -> None:
        super().__init__(detail)
        self.reject = reject(stage, reason, detail)


class Unwanted(Exception):
    """The user does not want an image of this size; never leaves the room.

    Attributes:
        filtered: the value to hand to the caller.
    """

    def __init__(self, rule: str) -> None:
        super().__init__(rule)
        self.filtered = Filtered(rule)


def reject(stage: Stage, reason: Reason, detail: str) -> Reject:
    """A `Reject` whose detail is one printable line within its cap."""
    line = "".join(char if char.isprintable() else "?" for char in " ".join(detail.split()))
    return Reject(stage, reason.value, line[:DETAIL_LENGTH])
