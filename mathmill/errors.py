"""What a user can mend."""


class UserError(Exception):
    """One line that says what is wrong, where, and what to do. Scripts print it to stderr and end with exit code 2."""
