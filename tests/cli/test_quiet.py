"""Which messages of libraries are silenced, and where progress bars are drawn."""

import sys
import warnings
from types import SimpleNamespace

import pytest

from bert_convolutions.cli.main import silence_libraries
from bert_convolutions.terminal import shows_bars


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


@pytest.mark.parametrize("stream", [None, SimpleNamespace(write=len)])
def test_bars_are_drawn_on_no_stream_but_a_terminal(
    stream: SimpleNamespace | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that embeds Python may give a stream without ``isatty``."""
    monkeypatch.setattr(sys, "stderr", stream)
    assert not shows_bars()
