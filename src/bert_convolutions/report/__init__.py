"""Figures, tables and pages from finished runs."""
