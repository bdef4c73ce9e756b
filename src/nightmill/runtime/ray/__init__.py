"""Workers and models as actors of a Ray cluster. The Ray library is known in here only.

Ray places and restarts; it holds no truth. Leases and answers are in the store and the blobs, so that
workers, nodes, the head and the launcher itself can die in any order.
"""
