"""The clients of stores keep quiet: at DEBUG they write session tokens and signed URLs into whatever log listens.

Measured with botocore 1.43 and the root logger at DEBUG: `botocore.endpoint` and `botocore.auth` print every request's
headers, `X-Amz-Security-Token` and `Authorization` among them. httpx prints URLs with their signatures at INFO,
urllib3 and huggingface_hub at WARNING. What matters of their errors is raised, translated and redacted by `failures`.
"""

import logging
from typing import Final

CLIENTS: Final = (
    *("botocore", "aiobotocore", "s3fs", "fsspec"),
    *("gcsfs", "google", "adlfs", "azure", "msal"),
    *("huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2", "urllib3", "aiohttp"),
)


def quiet_clients() -> None:
    """Raise the loggers of all clients to ERROR, however the program that runs us has set them.

    Some libraries set their level when they are imported: call it before a client is made, and after.
    """
    for name in CLIENTS:
        logger = logging.getLogger(name)
        if logger.level != logging.ERROR:
            logger.setLevel(logging.ERROR)
