"""``python -m bert_convolutions pretrain ...``: the command, for ``torchrun -m`` and ``accelerate launch -m``."""

from bertconv import main

if __name__ == "__main__":
    raise SystemExit(main())
