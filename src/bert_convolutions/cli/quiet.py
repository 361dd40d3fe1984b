"""Keep messages of libraries that tell the user nothing off the terminal; warnings about the run itself stay."""

import os
import warnings

_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",  # or its warning about forks, once a DataLoader has workers
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",  # nothing is fetched unless asked: HF_HUB_OFFLINE=0 in the environment asks
}
_IRRELEVANT_WARNINGS = (
    r".*pin_memory.* argument is set as true but no accelerator is found",
    r".*`broadcast_buffers` is deprecated",  # accelerate, about the argument that it sets itself
)


def silence_libraries() -> None:
    """Set what the libraries read when they are imported, unless the user has set it, and filter their warnings."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for message in _IRRELEVANT_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
