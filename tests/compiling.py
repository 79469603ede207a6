"""How tests compile: fast, but for those that ask for what users get."""

FAST = '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'
"""Flags of XLA: tiny models take longer to compile than to run."""

SHIPPED = '--xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false'
"""The same for processes that draw many images with the shipped model."""

AS_USERS = {'xla_backend_optimization_level': 3, 'xla_cpu_use_fusion_emitters': True}
"""Options of a compilation: the defaults, whatever the flags say."""
