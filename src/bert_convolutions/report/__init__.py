"""Plots and tables from finished runs."""
