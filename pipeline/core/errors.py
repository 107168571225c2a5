"""The one exception that commands turn into a single line for the user."""


class UserError(Exception):
    """Something the user can mend; the message names the place, the value and the remedy in one line.

    Values come from files and command lines: what would break the line or move the cursor is written as an escape.
    """

    def __init__(self, message: str) -> None:
        own = message.rpartition(f"{__name__}.UserError: ")[2].rstrip("\n")  # a DataLoader's worker sends its traceback along
        super().__init__("".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in own))
