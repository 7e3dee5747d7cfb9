"""Figures of tables: pure views."""
