"""What a run reports: progress, metrics, anomalies, report.json and report.html.

Start reading: metrics.py, then report.py.
May import: torch, tensorboard, sdjob; trackers.py alone: the packages of trackers; report.py alone: sdtrain.training
and what it holds.
"""
