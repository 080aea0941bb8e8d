"""report.html: the page of a run, a function of the files below /output, written by launcher and worker.

Start reading: data.py (what it shows), page.py (how it is written), assets/page.js (how it looks).
May import: sdjob.
"""
