"""Isolation: random numbers, buffers, copies and the caller's process, each kept apart."""
