"""moela inside transformers: its experts, routers and FP8 checkpoints on operators of moela."""
