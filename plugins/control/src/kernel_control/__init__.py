"""Remote control: the pidbox transport as a boot step, the commands, and their command line."""
