"""A name becomes a checked dataclass: names, options, messages with the remedy, and what comes from outside."""

import string
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import registry
from pipeline.registry import Registry, UserError, build, nearest

words = st.text(string.ascii_lowercase, min_size=4, max_size=10)


@pytest.fixture
def fruits(monkeypatch):
    monkeypatch.setattr(registry, "FOREIGN", set())
    found = Registry("fruit")

    @found.register("apple")
    @dataclass(frozen=True)
    class Apple:
        weight: float = 0.2
        count: int = 1
        ripe: bool = True

        def __post_init__(self):
            if self.weight <= 0:
                raise ValueError(f"weight is {self.weight}; give more than 0")

    @found.register("pear")
    @dataclass(frozen=True)
    class Pear:
        pass

    return found


def test_a_name_or_a_mapping_becomes_the_dataclass(fruits):
    apple = fruits["apple"]
    assert fruits.build("apple", "basket") == apple() == fruits.build({"name": "apple"}, "basket")
    assert fruits.build({"name": "apple", "weight": 3, "ripe": False}, "basket") == apple(weight=3.0, ripe=False)
    assert apple.name == "apple" and apple().name == "apple"


def test_names_are_listed_in_order_and_known(fruits):
    assert list(fruits) == ["apple", "pear"]
    assert "apple" in fruits and "plum" not in fruits and 3 not in fruits


def test_a_name_is_given_once(fruits):
    with pytest.raises(ValueError, match="fruit 'pear' is registered twice"):
        fruits.register("pear")(type("Other", (), {}))
    assert fruits["pear"].__name__ == "Pear"


def test_the_mapping_that_is_given_stays_as_it_was(fruits):
    options = {"name": "apple", "count": 2}
    fruits.build(options, "basket")
    assert options == {"name": "apple", "count": 2}


@pytest.mark.parametrize(
    "value,message",
    [
        ("aple", r"^basket: 'aple' is no fruit; known: apple, pear; did you mean 'apple'\?"),
        ({"weight": 1}, r"^basket.name: missing; known: apple, pear"),
        ({"name": "apple", "wieght": 1}, r"^basket.wieght: unknown option; .*did you mean 'weight'\?"),
        ({"name": "apple", "count": "many"}, r"^basket.count: .*many"),
        ({"name": "apple", "weight": -1}, r"^basket.*weight.*-1"),
        ({"name": ["apple"]}, r"^basket.*apple"),
    ],
)
def test_mistakes_name_place_value_and_remedy(fruits, value, message):
    with pytest.raises(UserError, match=message) as error:
        fruits.build(value, "basket")
    assert "\n" not in str(error.value)


def test_what_is_registered_outside_of_the_package_is_noted(fruits):
    assert {fruits["apple"], fruits["pear"]} == registry.FOREIGN
    from pipeline.distillation import LOSSES

    assert not {LOSSES[name] for name in LOSSES} & registry.FOREIGN


def test_a_class_without_a_name_is_built_in_the_same_way(fruits):
    assert build(fruits["apple"], {"count": 3}, "here").count == 3


@given(st.sets(words, min_size=1, max_size=6), st.data())
def test_nearest_lists_every_name_and_hints_at_one_with_a_slip(known, data):
    name = data.draw(st.sampled_from(sorted(known)))
    place = data.draw(st.integers(0, len(name) - 1))
    slip = name[:place] + "_" + name[place + 1 :]
    said = nearest(slip, known)
    assert said.startswith(f"known: {', '.join(sorted(known))}")
    hint = said.partition("; did you mean '")[2].removesuffix("'?")
    same = {each: sum(a == b for a, b in zip(each, slip, strict=False)) for each in known}
    assert hint in known and same[hint] >= 1
    if len(known) == 1:
        assert hint == name


@given(words)
def test_nearest_without_anything_known_or_near(word):
    assert nearest(word, []) == "known: none"
    assert nearest("123456", [word]) == f"known: {word}"
