"""What a GPU gives, in one command: `make bench-gpu`. Nothing outside the machine is needed.

    python -m tests.benchmarks.gpu [--quick] [--output FOLDER]      under 8 minutes with --quick, on one large GPU
    python -m tests.benchmarks.gpu --device cpu --tiny              its own test: kernels interpreted, models shrunk

Correctness first: the kernels against their twins, the engine's streams and graphs against doing one thing at a time,
CUDA against the CPU. Then what the hardware gives (a large matrix product, a large copy), kernels beside their rivals,
images/s and token agreement by geometry, precision, batch and way of launching, a profile, and several engines at once.
Writes `gpu.json` (after every step, so that a lease that ends leaves what was done) and `gpu.md`. Exit code 1 if a
check or a step failed.
"""
