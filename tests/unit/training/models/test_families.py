import pytest

from storage_schemas.errors import UsageError
from training.config import InputConfig, ModelConfig
from training.models.families import FAMILIES, build_encoder


@pytest.mark.parametrize("family", ["magic", "swin"])
def test_a_family_that_cannot_be_built_is_refused_with_those_that_can(family: str) -> None:
    with pytest.raises(UsageError, match=r"model\.family.*(vit|resnet)") as refused:
        build_encoder(ModelConfig(family=family), InputConfig(), {})
    assert refused.value.kind == "config-invalid"


def test_vit_and_resnet_can_be_built() -> None:
    assert {name for name, family in FAMILIES.items() if family.build} == {"vit", "resnet"}
