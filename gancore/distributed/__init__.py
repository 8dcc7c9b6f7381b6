"""Distributed: the processes that train one run together."""
