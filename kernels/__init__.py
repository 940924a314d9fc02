"""Triton kernels, one file per op: Plan, plan(), kernel, launch(). Installed as moela.kernels."""
