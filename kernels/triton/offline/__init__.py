"""Compiles every kernel variant for GPUs that are not there and reads the machine code.

    python -P -m foveate.kernels.triton.offline

`jobs` lists what there is and `build` compiles it; `sass` and `amdgcn` parse the two instruction
sets, `loops` finds the inner loops, `reading` puts their figures together, `rules` judges them and
`page` writes them down.
"""

__all__: list[str] = []
