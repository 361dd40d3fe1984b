"""The speeches, which are read once for all tests."""

import pytest

from bert_convolutions.demo.corpus import Speech, load_speeches


@pytest.fixture(scope="session")
def speeches() -> list[Speech]:
    return load_speeches()
