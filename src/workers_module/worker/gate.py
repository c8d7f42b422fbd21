"""Lets a job that may kill its process run alone."""

from typing import Protocol


class Member(Protocol):
    """What the gate asks of a consumer."""

    @property
    def quiet(self) -> bool:
        """Whether it holds nothing but suspects and no call is under way."""
        ...

    def run_suspect(self) -> bool:
        """Start one suspect, if there is one."""
        ...

    def wake(self) -> None:
        """Have the loop look at its state again."""
        ...


class Gate:
    """Lets a suspect run alone: while it is shut, no consumer of the process claims anything.

    Nobody is to fail for a neighbour's crash. A suspect shuts the gate; when every consumer has settled all it had
    claimed, the suspects run one by one, each settled before the next, and the gate opens.
    """

    def __init__(self) -> None:
        self.open = True
        self._consumers: list[Member] = []

    def join(self, consumer: Member) -> None:
        """Make a consumer heed this gate."""
        self._consumers.append(consumer)

    def leave(self, consumer: Member) -> None:
        """Let go of a consumer that has ended."""
        if consumer in self._consumers:
            self._consumers.remove(consumer)
        self.look()

    def shut(self) -> None:
        """Shut the gate, because a suspect came."""
        if self.open:
            self.open = False
            self._wake_all()

    def look(self) -> None:
        """Let the next suspect run if all is quiet; open the gate when there is none left."""
        if self.open or not all(consumer.quiet for consumer in self._consumers):
            return
        for consumer in self._consumers:
            if consumer.run_suspect():
                return
        self.open = True
        self._wake_all()

    def _wake_all(self) -> None:
        for consumer in self._consumers:
            consumer.wake()
