from training.models.families import FAMILIES


def test_the_families_of_the_settings_are_those_that_can_be_made() -> None:
    assert {name for name, family in FAMILIES.items() if family.build} == set(("vit", "resnet"))
