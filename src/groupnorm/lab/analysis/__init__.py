"""Records as tables, statistics and curves."""
