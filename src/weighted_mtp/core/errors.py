"""One exception for everything a person can put right themselves."""


class UserError(Exception):
    """Bad input, said in one line: what is wrong, where (file, line or key), and the remedy.

    The command line prints the message without a traceback and exits with status 2. Library
    callers may catch it like any exception.
    """
