"""Which messages of libraries are silenced."""

import warnings

import pytest

from bert_convolutions.cli.main import silence_libraries


def test_only_irrelevant_warnings_are_silenced() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        silence_libraries()
        warnings.warn(
            "'pin_memory' argument is set as true but no accelerator is found, then device pinned memory", stacklevel=1
        )
        warnings.warn("`broadcast_buffers` is deprecated. Use another.", FutureWarning, stacklevel=1)
        warnings.warn("the loss is odd", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["the loss is odd"]


def test_variables_that_the_user_has_set_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_UPDATE_DOWNLOAD_COUNTS", "1")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    import os

    silence_libraries()
    assert os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] == "1"
    assert "HF_HUB_OFFLINE" not in os.environ, "or what the user names on the Hub could not be fetched"
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
