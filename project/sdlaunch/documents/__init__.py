"""Tables of the documents that come from code: failures, flags of other trainers, command lines; in both languages.

Start reading: generate_docs.py, which places them.
May import: sdjob, and every other part of sdlaunch.
"""
