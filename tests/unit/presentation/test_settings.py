"""Settings are listed, read and checked by the types and docstrings of their dataclasses."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from presentation.setting_types import limits
from presentation.settings import check, describe_fields, read_settings, settings_of
from storage_schemas.errors import UsageError


@dataclass(frozen=True)
class Oven:
    """An oven.

    Parameters
    ----------
    heat : float
        Temperature of the air,
        in degrees.
    shelves, lamps : int
        Number of them.

    Notes
    -----
    heat : nothing
        Not a parameter.
    """

    heat: Annotated[float, limits("degrees", gt=0, le=300)] = 180.0
    shelves: Annotated[int, limits("N", ge=1)] = 2
    lamps: int | None = None
    mode: Literal["fan", "grill"] = "fan"
    times: tuple[Annotated[float, limits(gt=0)], ...] = (1.0,)
    clean: bool = False

    def __post_init__(self) -> None:
        check(self)
        if self.mode == "grill" and self.clean:
            raise UsageError("config-invalid", "a grill cannot be clean")


@dataclass(frozen=True)
class Kitchen:
    name: str = "mine"
    oven: Oven = field(default_factory=Oven)

    def __post_init__(self) -> None:
        check(self)


def test_every_field_of_every_part_is_listed_with_its_default_text_and_unit() -> None:
    found = settings_of(Kitchen)
    assert list(found) == [
        "name",
        *(f"oven.{name}" for name in ("heat", "shelves", "lamps", "mode", "times", "clean")),
    ]
    heat = found["oven.heat"]
    assert (heat.name, heat.default, heat.unit) == ("heat", 180.0, "degrees")
    assert heat.text == "Temperature of the air, in degrees."


def test_fields_that_share_a_description_each_have_it_and_later_sections_are_no_parameters() -> (
    None
):
    found = describe_fields(Oven)
    assert found["shelves"] == found["lamps"] == "Number of them."
    assert found["heat"].startswith("Temperature")


def test_a_document_changes_what_it_names_and_nothing_else() -> None:
    base = Kitchen(oven=Oven(heat=200.0, shelves=3))
    found = read_settings(base, {"oven": {"shelves": 5, "times": [1, 2], "lamps": None}})
    assert found == Kitchen(oven=Oven(heat=200.0, shelves=5, times=(1.0, 2.0)))


HEAT = "expected a number above 0 and at most 300"


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"oven": {"heat": "three"}}, f'oven.heat: {HEAT}, got "three"'),
        ({"oven": {"heat": 0}}, f"oven.heat: {HEAT}, got 0"),
        ({"oven": {"heat": True}}, f"oven.heat: {HEAT}, got true"),
        ({"oven": {"heat": float("inf")}}, "oven.heat: expected a number above 0"),
        ({"oven": {"shelves": 1.5}}, "oven.shelves: expected a whole number at least 1, got 1.5"),
        ({"oven": {"shelves": None}}, "oven.shelves: expected a whole number at least 1, got null"),
        ({"oven": {"lamps": "x"}}, 'oven.lamps: expected a whole number or none, got "x"'),
        ({"oven": {"mode": "fann"}}, 'oven.mode: expected one of fan, grill, got "fann"; did you'),
        ({"oven": {"times": [1, -1]}}, "oven.times: expected a list, each a number above 0, got ["),
        ({"oven": {"times": [float("inf")]}}, "oven.times: expected a list, each a number above 0"),
        ({"oven": {"clean": 1}}, "oven.clean: expected true or false, got 1"),
        ({"oven": {"mode": "grill", "clean": True}}, "oven: a grill cannot be clean"),
        ({"oven": {"heet": 3}}, "oven.heet: no such setting; did you mean oven.heat?"),
        ({"zzz": 3}, "zzz: no such setting"),
        ({"oven": 3}, "oven: expected a table of settings, got 3"),
        ([], "expected a table of settings, got []"),
        ({"name": "his"}, 'name: expected one of mine, hers, got "his"; did you mean hers?'),
    ],
)
def test_what_does_not_fit_is_named_with_what_is_expected(document: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_settings(Kitchen(), document, choices={"name": ("mine", "hers")})
    assert caught.value.kind == "config-invalid"
    assert caught.value.detail.startswith(said)


def test_values_given_in_python_are_checked_and_made_what_the_type_says() -> None:
    oven = Oven(heat=200, times=[1, 2])  # type: ignore[arg-type]
    assert isinstance(oven.heat, float)
    assert oven.times == (1.0, 2.0)
    with pytest.raises(UsageError, match=r"Oven\.shelves: expected a whole number at least 1"):
        Oven(shelves=0)
    with pytest.raises(UsageError, match=r"Kitchen\.oven: expected Oven, got dict"):
        Kitchen(oven={})  # type: ignore[arg-type]


def test_old_names_are_read_as_those_of_today_and_the_document_is_left_alone() -> None:
    document = {"oven": {"warmth": 99.0}}
    found = read_settings(
        Kitchen(), document, old_names={"oven.warmth": "oven.heat", "hob": "name"}
    )
    assert found.oven.heat == 99.0
    assert document == {"oven": {"warmth": 99.0}}
    both = {"oven": {"warmth": 99.0, "heat": 98.0}}
    with pytest.raises(UsageError, match=r"oven\.heat: is given twice"):
        read_settings(Kitchen(), both, old_names={"oven.warmth": "oven.heat"})


def test_a_complete_document_lacks_no_field() -> None:
    whole = {"name": "mine", "oven": {name: getattr(Oven(), name) for name in Oven.__annotations__}}
    assert read_settings(Kitchen(), whole, complete=True) == Kitchen()
    del whole["oven"]["clean"]  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=r"oven\.clean: is missing"):
        read_settings(Kitchen(), whole, complete=True)
