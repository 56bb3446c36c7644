"""The same application once per system; each is configured by the environment variables in `benchmarks.settings`."""
