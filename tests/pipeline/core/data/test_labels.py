import pytest

from pipeline.core.data.labels import find_classes
from pipeline.core.errors import UserError

NAMES = ("sahara 24N 8E", "sahara 24N 16E", "tibet_himalaya 36N 72E", "cat", "catamaran", "Siamese cat")
IDS = ("a0", "a1", "a2", "n02", "n03", "n04")
GROUPS = ("sahara", "sahara", "tibet_himalaya", "animals", "things", "animals")


@pytest.mark.parametrize("query, labels", [
    (3, [3]), ("3", [3]), (" 0 ", [0]),
    ("sahara", [0, 1]), ("SAHARA", [0, 1]), ("sahara 24N 8E", [0]), ("sahara 24n", [0, 1]),
    ("tibet", [2]), ("Tibet Himalaya", [2]), ("n03", [4]), ("animals", [3, 5]),
    ("cat", [3]),          # the whole name first,
    ("siamese", [5]),      # then whole words,
    ("aha", [0, 1]), ("amar", [4]),   # then parts
])
def test_queries(query, labels):
    assert find_classes(query, NAMES, IDS, GROUPS) == labels


def test_whole_words_come_before_parts():
    assert find_classes("cat", NAMES[4:], IDS[4:], GROUPS[4:]) == [1]


@pytest.mark.parametrize("number", [6, -1, "207"])
def test_number_out_of_range(number):
    with pytest.raises(UserError, match=f"{number}; the classes are numbered 0 to 5"):
        find_classes(number, NAMES, IDS, GROUPS)


@pytest.mark.parametrize("query, near", [("sahra", "sahara"), ("tibte", "tibet"), ("zzzzzz", "sahara"), ("", "sahara")])
def test_no_match_gives_the_nearest_names(query, near):
    with pytest.raises(UserError, match=f"matches no class.*{near}"):
        find_classes(query, NAMES, IDS, GROUPS)
