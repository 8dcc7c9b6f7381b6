"""Checks: what a plugin and a critic must keep to, told before it costs anything."""
