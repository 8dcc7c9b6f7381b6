"""Provenance: what it takes to know where a number came from."""
