"""What the tests of several trainers share."""

import pytest
from helpers import official_trainers as trainers


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return trainers.dinov2_dataset(tmp_path_factory.mktemp("dataset"))
