"""The contract of launcher and worker: settings, exit codes, layouts. Imports neither torch nor diffusers."""
