"""Workers and models as actors of a Ray cluster. No other package uses the Ray library.

Ray places and restarts processes and stores nothing that matters. Leases and answers are in the store and the
blobs, so that workers, nodes, the head and the launcher itself can die in any order.
"""
