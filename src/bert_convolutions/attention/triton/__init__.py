"""The engine for GPUs: the numbers of ``attention.composite``, faster. Change nothing here to add a term."""
