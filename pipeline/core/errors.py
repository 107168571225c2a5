"""The one exception that commands turn into a single line for the user."""


class UserError(Exception):
    """Something the user can mend; the message names the place, the value and the remedy in one line."""
