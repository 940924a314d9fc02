"""The command line, the demo and the benchmarks. Installed as moela.bench. Baselines live here and nowhere else."""
