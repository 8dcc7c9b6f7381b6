"""The executor `ray`: a Ray cluster makes the runs of a board, wherever there is room for them."""

from gancore_ray.cluster import Cluster

__all__ = ["Cluster"]
