"""`nightmill torture`: injects faults into servers again and again, then proves that nothing was lost.

plan       which faults are injected, where and when, from one seed; failpoints are in `nightmill.failpoints`
fleet      the members of a run: one server, or API servers and worker hosts
member     a process group: start, kill, freeze, readiness
link       a TCP link of a member to Postgres or to the bucket, which can be cut and slowed down
storage    the data folder, or the database and the prefix of a bucket, of a run
ray_cluster, ray_nodes   a Ray cluster of several nodes on this machine
upstream   the emulator, which outlives every kill
load       the official client: uploads, batches, cancels
watch      polls all batches: no state, count or time stamp goes backwards
record     the requests to the upstream, and the answers that were seen durable
stored     reads which answers are durable
inject     injects a fault and ends it
accounts   what each fault may cost; `repeats` explains each repeated request
proof      compares expected and found; pure
run        from the first start to the proof
report     the table and the JSON document
"""

from nightmill_torture.plan import Plan
from nightmill_torture.proof import Proof
from nightmill_torture.run import torture

__all__ = ["Plan", "Proof", "torture"]
