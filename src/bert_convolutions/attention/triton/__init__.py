"""The GPU engine: a faster computation of ``attention.composite``. Adding a term requires no change here."""
