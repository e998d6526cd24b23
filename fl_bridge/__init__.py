"""The bridge between iopfl and NVIDIA FLARE: rounds of training among sites, and the bank they make.

Imports `iopfl.core` and nothing else of iopfl. A reader begins with
`controller` (what the consortium does), then `executor` and `trainer` (what a
site does), `persistor` (what outlives a crash) and `simulate`.
"""
