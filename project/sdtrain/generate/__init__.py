"""The command `bash train.sh generate`: images from any model, and grids that compare models.

Start reading: __main__.py, then images.py.
May import: everything of sdtrain but the loop and what it needs; what validation shares is sdtrain/model/generation.py.
"""
