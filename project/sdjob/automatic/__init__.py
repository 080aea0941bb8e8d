"""What a setting `auto` becomes, and why: a module for each such setting, pure, for the plan and for the worker.

Start reading: choice.py, then any other.
May import: sdjob.settings.
"""
