"""Who follows a training."""

from typing import Protocol, TypeVar

Report = TypeVar("Report", contravariant=True)  # noqa: PLC0105  the figures of a kind of training


class Watcher(Protocol[Report]):
    """Follows a training, and may stop it."""

    def began(self, step: int) -> None:
        """It starts, or goes on, after `step` steps."""
        ...

    def stepped(self, step: int) -> None:
        """So many steps are done."""
        ...

    def reported(self, report: Report) -> None:
        """The figures of the latest steps."""
        ...

    def stopping(self) -> bool:
        """Whether to put the training down; asked between steps."""
        ...
