"""OpenAI's published operations over HTTP.

Duty: the wire's shapes, checks and texts. Promise: every answer is JSON in the published shape or OpenAI's
error envelope (downloads apart). Not its duty: moving batches on (the roles); this room only writes what a
client asked for and count_before. Routers declare paths without `/v1`; `app` puts them there.
"""
