"""Finding classes by what people type: a number, a name, or part of a name."""

import difflib
import re
from collections.abc import Sequence

from pipeline.core.errors import UserError

NEAREST = 5


def find_classes(query: int | str, class_names: Sequence[str], class_ids: Sequence[str],
                 groups: Sequence[str]) -> list[int]:
    """The labels that a query means, in rising order: one for a number, else all classes of the best kind of match.

    From best to worst: the whole name or id, the whole group, whole words in a name, any part of a name. Case and
    underscores do not matter. Raises UserError for a number out of range, and with the nearest names where nothing matches.
    """
    text = _plain(str(query))
    if re.fullmatch(r"[+-]?\d+", text):
        label = int(text) if len(text) < 20 else -1
        if not 0 <= label < len(class_names):
            raise UserError(f"class: {text:.60}; the classes are numbered 0 to {len(class_names) - 1}")
        return [label]
    names, ids, groups = ([_plain(name) for name in kind] for kind in (class_names, class_ids, groups))
    words = re.compile(rf"(?<!\w){re.escape(text)}(?!\w)")
    kinds_of_match = (
        (text in pair for pair in zip(names, ids, strict=True)),
        (text == group for group in groups),
        (bool(words.search(name)) for name in names),
        (text in name for name in names),
    )
    for matches in kinds_of_match if text else ():
        labels = [label for label, match in enumerate(matches) if match]
        if labels:
            return labels
    raise UserError(f"class: {str(query)!r:.200} matches no class; the nearest: {', '.join(_nearest(text, names, groups))}")


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def _nearest(text: str, names: Sequence[str], groups: Sequence[str]) -> list[str]:
    vocabulary = list(dict.fromkeys([*groups, *names, *(word for name in names for word in re.findall(r"[^\W\d]+", name))]))
    return difflib.get_close_matches(text, vocabulary, NEAREST) or vocabulary[:NEAREST]
