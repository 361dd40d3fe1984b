"""``python -m bert_convolutions pretrain ...``: the command, for ``torchrun -m`` and ``accelerate launch -m``."""

from bert_convolutions.cli.main import leave, main

if __name__ == "__main__":
    raise SystemExit(leave(main()))
