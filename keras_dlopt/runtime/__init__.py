"""The seam of backends and replicas."""
