"""Settings from the command lines and configuration files of other trainers; nothing of them is left unsaid.

Start reading: translate.py, which goes from words or a file to the lines of an env file.
May import: sdjob, and sdlaunch.settings.
"""
