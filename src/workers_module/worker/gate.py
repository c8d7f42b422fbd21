"""Lets a job that may kill its process run alone."""

from typing import Protocol


class Member(Protocol):
    """What the gate asks of a consumer."""

    @property
    def quiet(self) -> bool:
        """Whether it holds nothing but a suspect and no call is under way."""
        ...

    def run_suspect(self) -> bool:
        """Start the suspect it keeps, if it keeps one."""
        ...

    def wake(self) -> None:
        """Have the loop look at its state again."""
        ...


class Gate:
    """Lets a suspect run alone: while the gate is shut, no consumer of the process claims anything.

    Nobody is to fail for a neighbour's crash. The first suspect shuts the gate; when every consumer has settled all
    else it had claimed, the suspect runs, and when it is settled too, the gate opens. Only one is kept at a time:
    further ones are handed back, because a claimed job counts a crash when its process dies, whether it had begun or
    not.
    """

    def __init__(self) -> None:
        self.open = True
        self._members: list[Member] = []

    def join(self, member: Member) -> None:
        """Make a consumer heed this gate."""
        self._members.append(member)

    def leave(self, member: Member) -> None:
        """Let go of a consumer that has ended."""
        if member in self._members:
            self._members.remove(member)
        self.look()

    def shut(self) -> bool:
        """Shut the gate because of a suspect; whether that one is to be kept."""
        if not self.open:
            return False
        self.open = False
        self._wake_all()
        return True

    def look(self) -> None:
        """Let the suspect run if all is quiet; open the gate when it has."""
        if self.open or not all(member.quiet for member in self._members):
            return
        if any(member.run_suspect() for member in self._members):
            return
        self.open = True
        self._wake_all()

    def _wake_all(self) -> None:
        for member in self._members:
            member.wake()
