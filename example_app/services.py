"""What the shop has anyway: plain classes that know nothing of jobs."""

import itertools


class Mailer:
    """Sends mail, or would."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []

    async def send(self, to: str, subject: str) -> str:
        self.sent.append((to, subject))
        return f"<{len(self.sent)}@shop.example>"


class PaymentGateway:
    """A remote service with bad days: of each payment the first two attempts fail."""

    def __init__(self) -> None:
        self._calls: dict[str, int] = {}

    async def charge(self, order: str, cents: int) -> str:
        calls = self._calls[order] = self._calls.get(order, 0) + 1
        if calls < 3:
            msg = f"gateway is busy (call {calls} for {order})"
            raise ConnectionError(msg)
        return f"paid-{order}-{cents}"


class Prices:
    """The exchange rates of the shop, fetched from somewhere."""

    def __init__(self) -> None:
        self._versions = itertools.count(1)
        self.version = 0

    async def refresh(self) -> int:
        self.version = next(self._versions)
        return self.version


class Journal:
    """What happened, for people to read."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, line: str) -> None:
        self.lines.append(line)
        print(f"  {line}", flush=True)
