"""What a model on disk is, judged by configs and headers: no tensor is read.

Start reading: pipeline.py (folders), single_file.py (one file).
May import: sdjob.files, sdjob.problems, sdjob.settings.
"""
