"""The launcher: reads settings, proves that the job can run, and supervises it. Never imports torch."""
