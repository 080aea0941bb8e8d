"""What a setting `auto` becomes, and why: a pure module for each such setting, for the plan and for the worker.

Start reading: choice.py, then any other; machine.py has the facts about the machine that both ask for.
May import: sdjob.settings.
"""
