"""What can be wrong with a call before anybody decides about it, and with an answer that looks like one."""


class MalformedCall(Exception):
    """The call cannot be read as its protocol says. The message is for the agent: what is wrong, and where."""


class ProtocolBreach(MalformedCall):
    """The call is against the rules of its protocol, which has a word of its own for that (a `Breach`)."""

    def __init__(self, message: str, breach: object) -> None:
        super().__init__(message)
        self.breach = breach
        self.id = b""
        """The JSON text of the id by which the message wants to be answered, as far as it was read."""


class GivenUp(ValueError):
    """A target says, in the words of an end like any other, that it has given up an answer in the middle."""


class BodyTooLarge(Exception):
    """The body is longer than `listen.max_body`. `limit` is in bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"The body is longer than the {limit} bytes that this gateway reads.")
        self.limit = limit


class UnknownEndpoint(Exception):
    """No protocol that the gateway speaks has this path."""


class UnknownOperation(UnknownEndpoint):
    """The tool is there, and its operator lets agents use nothing at this path of it."""


class MethodNotAllowed(Exception):
    """The path exists, the method does not. `allowed` names the one that does."""

    def __init__(self, allowed: str) -> None:
        super().__init__(f"Use {allowed} here.")
        self.allowed = allowed
