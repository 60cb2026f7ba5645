"""Other processors, imitated: python -m tests.processors tests/core/test_group.py …

Runs pytest with these arguments once for each of IMITATIONS, and ends with 1 if any of them failed. What is
there was chosen by comparing the digests of products, attention, element-wise functions and decompositions
between settings on a processor with AVX2. Of no effect there: MKL_ENABLE_INSTRUCTIONS, ONEDNN_MAX_CPU_ISA,
MKL_DEBUG_CPU_TYPE, TORCH_MKLDNN_MATMUL, and ATEN_CPU_CAPABILITY=avx2, which it has.
"""

from __future__ import annotations

import os
import subprocess
import sys

IMITATIONS: tuple[dict[str, str], ...] = (
    {},
    {"ATEN_CPU_CAPABILITY": "default"},  # torch without vector instructions: everything, random weights too
    {"ATEN_CPU_CAPABILITY": "avx2"},
    {"MKL_CBWR": "COMPATIBLE"},  # MKL's oldest code path: products, attention, decompositions
    {"MKL_CBWR": "AVX2"},  # batched products
    {"LORA_WORKBENCH_TEST_THREADS": "2"},  # decompositions
    {"LORA_WORKBENCH_TEST_THREADS": "4"},
    {"ONEDNN_MAX_CPU_ISA": "AVX2"},
)


def main(arguments: list[str]) -> int:
    """0 if pytest passes under every imitation."""
    failed = []
    for imitation in IMITATIONS:
        name = " ".join(f"{key}={value}" for key, value in imitation.items()) or "as it is"
        print(f"== {name}", flush=True)
        environment = {
            **os.environ,
            **imitation,
            "OMP_NUM_THREADS": imitation.get("LORA_WORKBENCH_TEST_THREADS", "1"),
        }
        if subprocess.run([sys.executable, "-m", "pytest", *arguments], env=environment).returncode:
            failed.append(name)
    print(f"Failed under: {', '.join(failed) or 'none'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
