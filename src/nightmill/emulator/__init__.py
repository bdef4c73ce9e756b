"""A built-in upstream with generated answers and configurable faults.

The emulator answers every batch endpoint at once, with the same answer for the same body. Structured outputs
and tool calls satisfy their JSON Schema. Every answer is marked as emulated by `system_fingerprint`,
`metadata` or the header `x-nightmill-emulator`. The emulator runs only when a setting or a command selects
it.
"""
