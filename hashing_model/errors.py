"""The one exception that means: what the user gave cannot be used, and the message says how to mend it."""


class InputError(ValueError):
    """Bad input or options. The command line prints its message as one line and exits with 2."""
