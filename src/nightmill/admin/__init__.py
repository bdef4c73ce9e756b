"""Tools for a data folder: backup while a server runs, consistency check, and repair.

Backup and check change nothing in the folder. Repair needs the folder to itself. Stores other than SQLite and
blobs in an object store have tools of their own.
"""
