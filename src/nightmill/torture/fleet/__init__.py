"""`nightmill torture --store postgresql://...`: the same proof for a fleet on Postgres and an object store.

plan      which blows fall on whom, and when, from one seed
link      a TCP link of a process to Postgres or to the bucket, that can be cut, kept waiting, or slowed down
places    the database and the prefix that were given: empty before, cleared after
member    an API server or a crew, started again whenever it is down
settled   what is pinned while the fleet runs, and must be the answer in the end
bound     how many lines may be asked again
conduct   plays the plan from start to proof
"""

from nightmill.torture.fleet.conduct import torture_fleet
from nightmill.torture.fleet.plan import FleetPlan

__all__ = ["FleetPlan", "torture_fleet"]
