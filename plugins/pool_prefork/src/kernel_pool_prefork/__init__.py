"""Prefork: processes forked by a clean fork server. Imports nothing here: `early` is needed before all else."""
