"""Every error Tokenmill raises. A class says what the caller does next, not where it happened.

    TokenmillError
    ├── UsageError              stop, exit 2: the user changes the command or the configuration
    │   ├── ModelError            the VQ model cannot be read, or is not what the job asks for
    │   ├── FingerprintMismatch   the output holds tokens of another model, recipe or precision
    │   ├── StoreRefused          the output store cannot give the guarantees of a commit
    │   └── NotAPart              something that Tokenmill did not write lies where a part belongs
    ├── ShardError              this shard is bad: charge the attempt, retry, at last quarantine (`reason`)
    ├── StorageError            transport failed: not the shard's fault, retry without blame
    │   └── NotFound              the object does not exist (the caller knows whether that is an error)
    ├── Cancelled               this attempt is no longer wanted: drop it
    ├── AlreadyExists           a create-if-absent met an object: somebody committed first
    └── RunFailed               stop, exit 1: the run cannot go on

A bad *sample* is not an error of the run: it is a `Reject`, a value. One that the user does not want is `Filtered`.
"""

from dataclasses import dataclass
from enum import StrEnum


class TokenmillError(Exception):
    """Base of all errors that Tokenmill raises on purpose; its text is written for the user."""


class UsageError(TokenmillError):
    """The command or the configuration must change before trying again (exit code 2)."""


class ModelError(UsageError):
    """The model folder is missing, damaged, unsafe to load, or of another kind than asked for."""


class FingerprintMismatch(UsageError):
    """OUTPUT already holds tokens whose fingerprint differs from this configuration's."""


class StoreRefused(UsageError):
    """The output store has no working create-if-absent, so no commit on it can be exactly-once."""


class NotAPart(UsageError):
    """A file under `tokens/` is damaged, or none that Tokenmill wrote."""


class ShardFault(StrEnum):
    """Why a shard as a whole cannot be tokenized; stored in the accounts, so the words are stable."""

    MISSING = "missing"  # the object is not there
    FORBIDDEN = "forbidden"  # the store does not let us read it
    CHANGED = "changed"  # size or ETag differ from the frozen manifest
    EMPTY = "empty"  # zero bytes
    NOT_A_TAR = "not_a_tar"  # the first block is no tar header (an HTML error page, say)
    BAD_HEADER = "bad_header"  # a later header's checksum or field is wrong
    TRUNCATED = "truncated"  # the archive ends inside a member or a header
    WRONG_LENGTH = "wrong_length"  # fewer or more bytes arrived than the object has
    TRAILING_DATA = "trailing_data"  # something follows the end marker
    DUPLICATE_KEY = "duplicate_key"  # a key comes back after another key (interleaved or repeated)
    DUPLICATE_MEMBER = "duplicate_member"  # one sample has two members of the same extension
    LIMIT_EXCEEDED = "limit_exceeded"  # a member, a name or the member count is over its cap
    BAD_COMPRESSION = "bad_compression"  # the gzip or zstd stream is damaged
    STALLED = "stalled"  # no byte and no sample moved for limits.stall_seconds
    CRASHED = "crashed"  # the worker process died on it again and again
    INTERNAL = "internal"  # a bug: the text holds the exception


class ShardError(TokenmillError):
    """One shard cannot be tokenized.

    Attributes:
        reason: the fault, from a fixed vocabulary.
    """

    def __init__(self, reason: ShardFault, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type["ShardError"], tuple[ShardFault, str]]:
        return type(self), (self.reason, str(self))


class StorageError(TokenmillError):
    """The store or the network failed; the same call may succeed later."""


class NotFound(StorageError):
    """The object or folder does not exist."""


class AlreadyExists(TokenmillError):
    """A create-if-absent found the name taken."""


class Cancelled(TokenmillError):
    """The attempt was told to stop, because another one committed the shard."""


class RunFailed(TokenmillError):
    """The run as a whole cannot go on (exit code 1)."""


class Stage(StrEnum):
    """Where a sample was rejected."""

    READ = "read"
    DECODE = "decode"
    PREPROCESS = "preprocess"
    ENCODE = "encode"


@dataclass(frozen=True, slots=True)
class Reject:
    """Why one sample cannot become rows.

    Attributes:
        stage: where it failed.
        reason: one word of a short fixed vocabulary; accounts are grouped by it.
        detail: a sentence for a person, at most 200 characters.
    """

    stage: Stage
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Filtered:
    """A sample that the user's choice (`select`) leaves out.

    Attributes:
        rule: the first rule that it breaks, as in the configuration; accounts are grouped by it.
    """

    rule: str
