"""Measures kw against Celery in the same run: `make bench`. The method is in README.md."""
