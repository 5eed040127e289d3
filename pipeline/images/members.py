"""Which member of a sample is its image."""

from collections.abc import Mapping
from typing import Final

from pipeline.errors import Reject, Stage
from pipeline.images.reasons import Reason, reject

EXTENSIONS: Final = frozenset(
    ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "pbm", "pgm", "pnm", "ppm")
)


def find_image(members: Mapping[str, bytes]) -> bytes | Reject:
    """The payload of the sample's image.

    The first plain extension wins (`jpg`, not `seg.png`). Without one, a single dotted extension that ends like an
    image's is taken (`v2.jpg` of `photo.v2.jpg`); several are ambiguous: one of them may be a mask or a depth map.

    Args:
        members: payloads by WebDataset extension, lower case, without the leading dot, in tar order.

    Returns:
        The bytes, or a reject of stage `read` and reason `no_image` or `empty`.
    """
    plain = [extension for extension in members if extension in EXTENSIONS]
    dotted = [extension for extension in members if extension.rpartition(".")[2] in EXTENSIONS]
    candidates = plain[:1] or dotted
    if len(candidates) != 1:
        problem = "several members may be the image" if candidates else "no member has an image's extension"
        return reject(Stage.READ, Reason.NO_IMAGE, f"{problem}: {', '.join(members) or 'the sample has no members'}")
    payload = members[candidates[0]]
    if not payload:
        return reject(Stage.READ, Reason.EMPTY, f"member {candidates[0]} has no bytes")
    return payload
