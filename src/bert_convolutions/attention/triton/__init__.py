"""The engine for GPUs. Change nothing here to add a term."""
