"""Keeping a data folder: copies of it while a server runs, and whether what it says is there is there.

Duty: backup and check. Promise: neither changes anything in the folder, unless the check is told to mend and
nobody else uses it. Not its duty: a store or blobs that are not SQLite and a folder; those have their own
tools.
"""
