"""Index a directory tree of text files: one task per file, the results gathered into a table."""
