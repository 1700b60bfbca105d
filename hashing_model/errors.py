"""The exceptions whose message is all a user needs; the command line prints it as one line."""


class InputError(ValueError):
    """Bad input or options; the message says what to do about it. Exit code 2."""


class BuildError(RuntimeError):
    """A build whose own numbers do not add up, so that nothing was published. Exit code 1."""


class GateError(BuildError):
    """A version that is finished but not good enough to be served. Exit code 3."""


def exit_code(error: BaseException) -> int:
    """What the command line exits with after an error."""
    if isinstance(error, InputError):
        return 2
    if isinstance(error, GateError):
        return 3
    return 130 if isinstance(error, KeyboardInterrupt) else 1
