"""An engine: the numbers of ``attention.composite``, faster on a CPU. Change nothing here to add a term.

``fused`` holds the attention function and the derivation of its backward; ``columns``, ``bias`` and ``tiles`` are its
parts. The rest of the project imports what this file names, and nothing else of the folder.
"""

from bert_convolutions.attention.cpu.dropout import Dropout
from bert_convolutions.attention.cpu.fused import attend_fused

__all__ = ["Dropout", "attend_fused"]
