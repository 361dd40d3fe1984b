"""The CPU engine: a faster computation of ``attention.composite``. Adding a term requires no change here.

``fused`` holds the attention function and the derivation of its backward; ``columns``, ``bias`` and ``tiles`` are its
parts. The rest of the project imports only the names below.
"""

from bert_convolutions.attention.cpu.dropout import Dropout
from bert_convolutions.attention.cpu.fused import attend_fused

__all__ = ["Dropout", "attend_fused"]
