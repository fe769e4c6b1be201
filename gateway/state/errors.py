"""Why the state cannot be opened: a start ends with it, a call never does."""


class StateUnusable(Exception):
    """The state that the configuration names cannot be used. Says why and what to do.

    `held` tells that another process has it, which may be about to end.
    """

    def __init__(self, message: str, *, held: bool = False) -> None:
        super().__init__(message)
        self.held = held
