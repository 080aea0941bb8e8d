"""What a dataset on disk is: format, captions, images; nothing is decoded before it is needed.

Start reading: detect.py; formats/ has one module for each format.
May import: sdjob.children, sdjob.files, sdjob.problems, sdjob.settings; Pillow and pyarrow lazily.
"""
