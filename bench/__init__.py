"""The command line, the demo and the benchmarks; installed as moela.bench. Baselines live here only."""
