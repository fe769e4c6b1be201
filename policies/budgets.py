"""May this call happen, by money: the seam at which a call borrows its cost before it runs and pays it back after."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Reservation:
    """Money lent to one call, in nano-dollars."""

    call_id: str
    amount: int


class Budgets(Protocol):
    """Lends before, settles after."""

    async def reserve(self, call_id: str, agent: str, tenant: str, session: str | None) -> Reservation | None:
        """None where nobody limits the caller's spending."""
        ...

    async def settle(self, reservation: Reservation, input_tokens: int, output_tokens: int) -> None:
        """Posts what the call cost and returns the rest. Called exactly once for every reservation."""
        ...


class Unbudgeted:
    """Until budgets are kept: nobody is lent anything, and nothing has to be settled."""

    async def reserve(self, call_id: str, agent: str, tenant: str, session: str | None) -> Reservation | None:
        return None

    async def settle(self, reservation: Reservation, input_tokens: int, output_tokens: int) -> None:
        return None
