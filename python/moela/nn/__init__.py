"""Layers that other libraries know, on operators of moela."""
