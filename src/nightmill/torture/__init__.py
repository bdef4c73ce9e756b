"""`nightmill torture`: kill a server again and again, then prove that nothing was lost.

plan      what is killed when: every named point (`nightmill.failpoints`) and random instants, from one seed
server    `nightmill serve` as a process group: start, kill, see who lives
upstream  the emulator beside it, which outlives every kill, and its record of each request
load      the official client: uploads, batches, cancels, waits
watch     polls all the while: nothing goes backwards, no stamp changes
ledger    between a death and the next start: what is on disk, and what was sent but is not
proof     expected against found: pure
conduct   plays the plan from start to proof
"""

from nightmill.torture.conduct import torture
from nightmill.torture.plan import Plan
from nightmill.torture.proof import Proof

__all__ = ["Plan", "Proof", "torture"]
